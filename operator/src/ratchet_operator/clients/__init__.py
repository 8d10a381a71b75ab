"""The only modules that talk to Kubernetes, Prometheus, the gateway and the arms.

Room: operator, clients. Answers are parsed here into typed values; errors become those of `ratchet_operator.errors`.
"""
