-- `ratchet promote CYCLE VERSION`: serving.version names a version, and no other one is rolled out from then on.
-- Without a version, the one that the last run got accepted and that waits to be named.
local version = (actionParams or {})["version"]
local run = (obj.status or {}).run or {}
if (version == nil or version == "") and run.outcome == "Accepted" then
  version = run.version
end
if version == nil or version == "" then
  error("version: write the name of the ModelVersion that is to serve", 0)
end
obj.spec.serving = obj.spec.serving or {}
if obj.spec.serving.version == version then
  error("version: serving.version names " .. version .. " already", 0)
end
obj.spec.serving.version = version
return obj
