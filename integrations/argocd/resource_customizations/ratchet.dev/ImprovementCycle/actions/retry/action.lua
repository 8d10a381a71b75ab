-- `ratchet retry CYCLE`: another run after one that did not end well.
if obj.spec.suspend then
  error("the cycle is suspended, and nothing starts: resume it first", 0)
end
local run = (obj.status or {}).run
if run == nil or run.finishedAt == nil then
  error("there is no run that has ended: use the action run", 0)
end
obj.metadata.annotations = obj.metadata.annotations or {}
obj.metadata.annotations["ratchet.dev/run"] = "argocd-" .. obj.metadata.resourceVersion
return obj
