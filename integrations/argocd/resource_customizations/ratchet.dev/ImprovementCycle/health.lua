-- Health of an ImprovementCycle. Only Lua's base library is used: scripts from argocd-cm get no other one.
--
-- Degraded     nobody is served, or nothing moves until a person comes (Stalled)
-- Suspended    a person is asked for something: to approve, to resume, to bring back the evidence of a held rollout
-- Progressing  a rollout is on its way, serving.version is not followed yet, or pods are missing
-- Healthy      the champion serves; a run may curate, train and evaluate meanwhile

local status = obj.status or {}
local spec = obj.spec or {}
local rollout = status.rollout

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

-- What is measured and held against which limit, of the checks that do not pass.
local function evidence()
  local words = ""
  for _, check in ipairs(rollout.checks or {}) do
    if check.verdict ~= "Pass" and check.message ~= nil and check.message ~= "" then
      words = words .. "; " .. check.verdict .. ", " .. check.message
    end
  end
  return words
end

local function rollout_health(progress)
  local message = progress.message .. evidence()
  if rollout.phase == "RollingBack" then
    return health("Progressing", "rolling back, " .. progress.reason .. ": " .. progress.message)
  end
  if spec.suspend then
    return health("Suspended", message)
  end
  if progress.reason == "Held" or progress.reason == "AwaitingApproval" then
    return health("Suspended", progress.reason .. ": " .. message)
  end
  return health("Progressing", message)
end

local function last_run()
  local run = status.run
  if run == nil or run.finishedAt == nil or run.outcome == nil or run.outcome == "Promoted" then
    return ""
  end
  local words = "; run " .. run.number .. " ended as " .. run.outcome
  if run.message ~= nil and run.message ~= "" then
    words = words .. ": " .. run.message
  end
  return words
end

local ready = condition("Ready")
local reconciling = condition("Reconciling")
local stalled = condition("Stalled")
local stable = (status.serving or {}).stable or {}
local pointer = (spec.serving or {}).version

if status.conditions == nil or #status.conditions == 0 then
  return health("Progressing", "no operator has looked at it yet")
end
if status.observedGeneration ~= obj.metadata.generation then
  return health("Progressing", "the operator has not read the latest change of the spec yet")
end
if stalled.status == "True" then
  local serving = ""
  if ready.status == "True" then
    serving = "; " .. ready.message
  end
  return health("Degraded", said(stalled) .. serving)
end
if ready.status ~= "True" then
  if ready.reason == "Initializing" or ready.reason == "Pending" then
    return health("Progressing", said(ready))
  end
  return health("Degraded", said(ready))
end
if rollout ~= nil and rollout.phase ~= "Done" then
  return rollout_health(condition("RolloutProgressing"))
end
if spec.suspend then
  return health("Suspended", ready.message .. "; " .. reconciling.message)
end
if ready.reason == "StableDegraded" then
  return health("Progressing", said(ready))
end
if reconciling.status == "True" and reconciling.reason == "AwaitingApproval" then
  return health("Suspended", said(reconciling))
end
if pointer ~= nil and pointer ~= stable.version then
  return health("Progressing", "serving.version names " .. pointer .. ", and "
    .. (stable.version or "nothing") .. " serves; " .. said(reconciling))
end
if reconciling.status == "True" then
  if reconciling.reason == "Curating" or reconciling.reason == "Training" or reconciling.reason == "Evaluating" then
    return health("Healthy", ready.message .. "; " .. reconciling.message)
  end
  return health("Progressing", ready.message .. "; " .. said(reconciling))
end
return health("Healthy", ready.message .. last_run())
