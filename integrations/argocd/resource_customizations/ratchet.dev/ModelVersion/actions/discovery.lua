-- What may be asked of a ModelVersion now; each does what `ratchet` does under the same name.

local status, spec, meta = obj.status or {}, obj.spec or {}, obj.metadata
local annotations = meta.annotations or {}
local alive = meta.deletionTimestamp == nil
local phase = status.phase

local function is(kind, reason)
  for _, entry in ipairs(status.conditions or {}) do
    if entry.type == kind then
      return entry.status == "True" and entry.reason == reason
    end
  end
  return false
end

-- The annotation and the digest that open the gate before which it stands.
local annotation, digest = "ratchet.dev/approve-training", (spec.dataset or {}).digest
if phase == "Accepted" or phase == "Canary" then
  annotation = phase == "Accepted" and "ratchet.dev/approve-canary" or "ratchet.dev/approve-promotion"
  digest = (spec.adapter or (status.artifacts or {}).adapter or {}).digest
end
local late = is("Stalled", "ApprovalExpired") and phase == "Accepted" and status.outcome == nil
local awaited = alive and (is("Reconciling", "AwaitingApproval") or late) and digest ~= nil

local root = spec.run == 0 and spec.dataset == nil and spec.adapter == nil
local ended = phase == "Rejected" or phase == "Failed"
  or (status.outcome ~= nil and phase ~= "Serving" and phase ~= "Superseded")

local actions = {}
actions["approve"] = {
  disabled = not awaited or annotations[annotation] == digest,
  displayName = "Approve this digest",
  iconClass = "fa fa-fw fa-check-circle",
  params = { { name = "digest", default = awaited and digest or "" } },
}
actions["retry"] = {
  disabled = not alive or root or not ended,
  displayName = "Try again under a new name",
  iconClass = "fa fa-fw fa-redo",
}
return actions
