-- `ratchet pause`: nothing starts and nothing advances; serving goes on, and a failing check still rolls back.
obj.spec.suspend = true
return obj
