-- `ratchet rollback CYCLE [--to VERSION]`: serving.version names a champion of before, which returns without gate and
-- steps, and bakes.
local status = obj.status or {}
local rollout = status.rollout
local stable = ((status.serving or {}).stable or {}).version
local version = (actionParams or {})["version"]
local champion, earlier = false, nil
for _, good in ipairs(status.lastGood or {}) do
  if good.version == version then
    champion = true
  end
  if good.version ~= stable then
    earlier = good.version
  end
end
if version == nil or version == "" then
  if rollout ~= nil and rollout.phase ~= "Done" then
    error(rollout.version .. " is being rolled out: use the action abort, or name a version", 0)
  end
  if earlier == nil then
    error("version: the cycle remembers no champion of before; name one", 0)
  end
  version = earlier
elseif version == stable then
  error("version: " .. version .. " serves already: there is nothing to go back to", 0)
elseif not champion and version ~= obj.metadata.name .. "-0" then
  error("version: " .. version .. " has never been champion; the action promote rolls it out", 0)
end
obj.spec.serving = obj.spec.serving or {}
if obj.spec.serving.version == version then
  error("version: serving.version names " .. version .. " already", 0)
end
obj.spec.serving.version = version
return obj
