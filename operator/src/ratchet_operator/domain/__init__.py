"""Every decision of the operator, as pure functions: no clock, no kopf, no client, no I/O; `now` is an argument.

Room: operator/domain. Imports ratchet_api, cronsim and the standard library only.
"""
