"""The Services by which arms are reached without the gateway.

Room: operator, manifests. Pure.
"""

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.names import ARM_LABEL, ARM_PORT, CYCLE_KIND, CYCLE_LABEL, VERSION_LABEL
from ratchet_operator.manifests import pods
from ratchet_operator.manifests.pods import JSON


def selector(cycle: str, version: str | None) -> dict[str, str]:
    """Labels of the pods of one arm, or of all arms of the cycle."""
    return {CYCLE_LABEL: cycle, ARM_LABEL: "true"} | ({} if version is None else {VERSION_LABEL: version})


def service(cycle: ImprovementCycle, name: str, version: str | None) -> JSON:
    """A Service of ours."""
    meta = cycle.metadata
    return {
        **service_selector(cycle, name, version),
        "metadata": {
            "name": name,
            "namespace": meta.namespace,
            "labels": pods.labels(meta.name),
            "ownerReferences": pods.owner(CYCLE_KIND, meta.name, meta.uid),
        },
        "spec": {
            "selector": selector(meta.name, version),
            "ports": [{"name": "http", "port": ARM_PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def service_selector(cycle: ImprovementCycle, name: str, version: str | None) -> JSON:
    """All that we write of a Service that is somebody else's."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": cycle.metadata.namespace},
        "spec": {"selector": selector(cycle.metadata.name, version)},
    }
