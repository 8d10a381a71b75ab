-- `ratchet resume`: runs start again and a rollout goes on from its weight.
obj.spec.suspend = false
return obj
