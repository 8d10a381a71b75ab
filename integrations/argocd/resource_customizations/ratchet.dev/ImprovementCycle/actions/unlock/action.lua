-- The cycle's half of `ratchet retry VERSION`: the digest of a rejected adapter is named in rollout.retryDigests.
local version = (actionParams or {})["version"]
local rejected = (obj.status or {}).rejected or {}
obj.spec.rollout = obj.spec.rollout or {}
local digests = obj.spec.rollout.retryDigests or {}
local named = {}
for _, digest in ipairs(digests) do
  named[digest] = true
end
local found
for _, entry in ipairs(rejected) do
  local wanted = version == nil or version == "" or entry.version == version
  if wanted and not named[entry.digest] then
    found = entry.digest
  end
end
if found == nil then
  error("version: no adapter of that version is rejected and still locked", 0)
end
table.insert(digests, found)
obj.spec.rollout.retryDigests = digests
return obj
