-- What may be asked of an ImprovementCycle now; each does what `ratchet` does under the same name.

local status, spec, meta = obj.status or {}, obj.spec or {}, obj.metadata
local annotations = meta.annotations or {}
local alive = meta.deletionTimestamp == nil
local suspended = spec.suspend == true
local run, rollout = status.run, status.rollout
local running = run ~= nil and run.finishedAt == nil
local rolling = rollout ~= nil and rollout.phase ~= "Done"
local pointer = (spec.serving or {}).version
local stable = ((status.serving or {}).stable or {}).version

local asked = annotations["ratchet.dev/run"] or ""
local run_is_asked_for = asked ~= "" and asked ~= ((run or {}).request or "")
local may_run = alive and not suspended and not run_is_asked_for

-- The last champion before the present one.
local earlier = ""
for _, good in ipairs(status.lastGood or {}) do
  if good.version ~= stable then
    earlier = good.version
  end
end

-- The version that waits until serving.version names it.
local waiting = ""
if run ~= nil and run.version ~= nil and run.outcome == "Accepted" and run.version ~= pointer then
  waiting = run.version
end

local named = {}
for _, digest in ipairs((spec.rollout or {}).retryDigests or {}) do
  named[digest] = true
end
local locked = ""
for _, entry in ipairs(status.rejected or {}) do
  if not named[entry.digest] then
    locked = entry.version
  end
end

local function action(enabled, title, icon, default)
  local made = { disabled = not enabled, displayName = title, iconClass = "fa fa-fw " .. icon }
  if default ~= nil then
    made.params = { { name = "version", default = default } }
  end
  return made
end

local actions = {}
actions["run"] = action(may_run, "Run now", "fa-play")
actions["retry"] = action(
  may_run and run ~= nil and not running and run.outcome ~= "Promoted", "Run again", "fa-redo"
)
actions["abort"] = action(
  alive and rolling and rollout.phase ~= "RollingBack" and annotations["ratchet.dev/abort"] ~= rollout.version,
  "Abort the rollout", "fa-times-circle"
)
actions["pause"] = action(alive and not suspended, "Pause", "fa-pause-circle")
actions["resume"] = action(alive and suspended, "Resume", "fa-play-circle")
actions["promote"] = action(alive, "Promote a version", "fa-arrow-circle-up", waiting)
actions["rollback"] = action(
  alive and not rolling and earlier ~= "" and earlier ~= pointer, "Roll back to a version", "fa-undo", earlier
)
actions["unpin"] = action(alive and pointer ~= nil, "Take serving.version out", "fa-unlink")
actions["unlock"] = action(alive and locked ~= "", "Allow a rejected adapter again", "fa-unlock", locked)
return actions
