-- `ratchet retry VERSION`: the same recipe or adapter as a new ModelVersion, because a version is rolled out once. An
-- adapter that was rejected stays so until the cycle's action unlock names it.
local status = obj.status or {}
local made = (status.artifacts or {}).adapter
local left_out = { run = true, champion = true }
if obj.spec.adapter ~= nil or made ~= nil then
  left_out.dataset, left_out.training = true, true
end
if status.phase == "Serving" or status.phase == "Superseded" then
  error("this version has served: there is nothing to try again", 0)
end

-- Lua cannot tell an empty list from an empty object: what is empty is left to the defaults.
local function copy(value)
  if type(value) ~= "table" then
    return value
  end
  local new = {}
  for key, entry in pairs(value) do
    local taken = copy(entry)
    if type(taken) ~= "table" or next(taken) ~= nil then
      new[key] = taken
    end
  end
  return new
end

local spec = {}
for key, value in pairs(obj.spec) do
  if not left_out[key] then
    spec[key] = copy(value)
  end
end
if spec.adapter == nil and made ~= nil then
  spec.adapter = { uri = made.uri, digest = made.digest }
end

local name = obj.metadata.name .. "-try2"
if #name > 50 then
  error("the new name " .. name .. " would be too long: type `ratchet retry " .. obj.metadata.name .. "`", 0)
end
local again = {
  apiVersion = obj.apiVersion,
  kind = obj.kind,
  metadata = { name = name, namespace = obj.metadata.namespace },
  spec = spec,
}
return { { operation = "create", resource = again } }
