"""Rollouts on a simulated clock, decided by the very code that decides them in a cluster (`ratchet simulate`).

Room: operator/simulate. Reads files that a person names, draws; touches neither Kubernetes nor Prometheus.
"""
