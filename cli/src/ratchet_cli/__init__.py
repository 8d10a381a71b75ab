"""The `ratchet` command, also installed as `kubectl-ratchet`: local platform and demonstration.

Room: cli. The only room that may import `ratchet_local`.
"""
