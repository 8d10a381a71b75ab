"""The shared vocabulary of Ratchet: resources, the stage contract, records, names and reasons.

Room: api. Imports pydantic and the standard library only, and is imported by every other room.
"""
