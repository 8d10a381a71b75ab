-- `ratchet run`: one run, now. Any value that the annotation has not had yet starts one.
if obj.spec.suspend then
  error("the cycle is suspended, and nothing starts: resume it first", 0)
end
obj.metadata.annotations = obj.metadata.annotations or {}
obj.metadata.annotations["ratchet.dev/run"] = "argocd-" .. obj.metadata.resourceVersion
return obj
