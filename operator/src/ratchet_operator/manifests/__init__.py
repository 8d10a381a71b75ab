"""Desired objects: typed values in, plain dicts out.

Room: operator, manifests. Pure; touches nothing. Golden files in tests/operator_room/golden show all of them.
"""
