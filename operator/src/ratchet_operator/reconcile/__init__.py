"""Observe what is there, decide by the pure domain, write the decision, then act on it.

Room: operator, reconcile. Every pass starts from nothing but the objects themselves, so that it can be repeated, and
so that a process that dies between any two writes leaves nothing that the next pass does not finish.
"""
