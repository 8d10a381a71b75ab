-- `ratchet approve VERSION [--digest DIGEST]`: a person names the digest of what they have looked at.
local status, spec = obj.status or {}, obj.spec or {}
local annotation, digest = "ratchet.dev/approve-training", (spec.dataset or {}).digest
if status.phase == "Accepted" or status.phase == "Canary" then
  annotation = status.phase == "Accepted" and "ratchet.dev/approve-canary" or "ratchet.dev/approve-promotion"
  digest = (spec.adapter or (status.artifacts or {}).adapter or {}).digest
end
local waits = false
for _, entry in ipairs(status.conditions or {}) do
  if entry.status == "True" and (
    entry.type == "Reconciling" and entry.reason == "AwaitingApproval"
    or entry.type == "Stalled" and entry.reason == "ApprovalExpired"
  ) then
    waits = true
  end
end
if not waits or digest == nil then
  error("this version waits for no approval now", 0)
end
local seen = (actionParams or {})["digest"]
if seen ~= nil and seen ~= "" and seen ~= digest then
  error("digest: " .. seen .. " is not what waits, " .. digest .. " is; look at it again before you approve", 0)
end
obj.metadata.annotations = obj.metadata.annotations or {}
obj.metadata.annotations[annotation] = digest
return obj
