-- Health of a ModelVersion. Only Lua's base library is used: scripts from argocd-cm get no other one.
--
-- Degraded     rejected, failed, taken back, or something that it names is missing: nothing moves by itself (Stalled)
-- Suspended    a person is asked for something: to approve it, to point serving.version at it, to resume its cycle
-- Progressing  it is trained, evaluated or rolled out
-- Healthy      it serves, or has served

local status = obj.status or {}

local function health(state, message)
  return { status = state, message = message }
end

local function condition(kind)
  for _, entry in ipairs(status.conditions or {}) do
    if entry.type == kind then
      return entry
    end
  end
  return { status = "Unknown", reason = "", message = "" }
end

local function said(entry)
  if entry.message == nil or entry.message == "" then
    return entry.reason
  end
  return entry.reason .. ": " .. entry.message
end

-- How far the training is, or what the evaluation has shown.
local function numbers()
  local training, evaluation = status.training, status.evaluation
  if status.phase == "Training" and training ~= nil and training.step ~= nil and training.steps ~= nil then
    local words = "; step " .. training.step .. " of " .. training.steps
    if training.loss ~= nil then
      words = words .. ", loss " .. training.loss
    end
    return words
  end
  if evaluation == nil or evaluation.target == nil or evaluation.target == "" then
    return ""
  end
  local words = "; target " .. evaluation.target
  if evaluation.guardrail ~= nil and evaluation.guardrail ~= "" then
    words = words .. ", guardrail " .. evaluation.guardrail
  end
  return words
end

local ready = condition("Ready")
local reconciling = condition("Reconciling")
local stalled = condition("Stalled")

if status.conditions == nil or #status.conditions == 0 then
  return health("Progressing", "no operator has looked at it yet")
end
if status.observedGeneration ~= obj.metadata.generation then
  return health("Progressing", "the operator has not read the latest change of the spec yet")
end
if stalled.status == "True" then
  if stalled.reason == "ApprovalExpired" and status.phase == "Accepted" and status.outcome == nil then
    return health("Suspended", said(stalled))
  end
  return health("Degraded", said(stalled) .. numbers())
end
if ready.status == "True" then
  return health("Healthy", (status.phase or ready.reason) .. ": " .. ready.message .. numbers())
end
if reconciling.status == "True" then
  if reconciling.reason == "AwaitingApproval" or reconciling.reason == "AwaitingPointer"
    or reconciling.reason == "Suspended" then
    return health("Suspended", said(reconciling) .. numbers())
  end
  return health("Progressing", said(reconciling) .. numbers())
end
return health("Progressing", said(ready))
