-- `ratchet abort CYCLE`: the candidate back to weight 0, now; its digest is rejected for good.
local rollout = (obj.status or {}).rollout
if rollout == nil or rollout.phase == "Done" or rollout.phase == "RollingBack" then
  error("nothing is being rolled out now: there is nothing to take back", 0)
end
obj.metadata.annotations = obj.metadata.annotations or {}
obj.metadata.annotations["ratchet.dev/abort"] = rollout.version
return obj
