-- `ratchet unpin`: serving.version is taken out; every accepted version is rolled out again.
if obj.spec.serving == nil or obj.spec.serving.version == nil then
  error("spec.serving.version is not set: every accepted version is rolled out already", 0)
end
obj.spec.serving.version = nil
return obj
