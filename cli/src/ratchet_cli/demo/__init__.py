"""`ratchet demo`: the whole story of Ratchet on one machine, on real parts.

Room: cli. `story` reads top to bottom; the other modules are what it stands on.
"""
