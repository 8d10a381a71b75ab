"""The process node: a kubelet's work without containers.

Room: local. It registers a Node, watches the pods bound to it and runs their containers as processes in sessions of
their own. One module per noun; `environment`, `paths`, `probes`, `status`, `backoff` and `selectors` are pure.
There is no mount namespace and no root: see `paths` for how files still appear where a container expects them.
"""
