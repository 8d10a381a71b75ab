"""Which pods the process node refuses, and with what words: nothing is accepted and then ignored.

Room: local. Pure.
"""

from ratchet_local.node.model import Container, Pod
from ratchet_local.node.status import Override


def refusal(pod: Pod) -> Override | None:
    """Why this pod cannot run here; None when it can."""
    for container in (*pod.spec.init_containers, *pod.spec.containers):
        if why := _container_refusal(container):
            return Override("NotSupported", f'container "{container.name}": {why}')
    if pod.spec.host_network:
        return Override("NotSupported", "hostNetwork is not supported by the process node: leave it out")
    return None


def _container_refusal(container: Container) -> str | None:
    if container.security_context is not None and container.security_context.privileged:
        return "privileged containers are refused by the process node: leave out securityContext.privileged"
    for probe in (container.startup_probe, container.readiness_probe, container.liveness_probe):
        if probe is not None and probe.grpc is not None:
            return "grpc probes are not supported by the process node: use httpGet, tcpSocket or exec"
    if container.restart_policy is not None:
        return "the process node runs no sidecars and knows no restart policy of one container: leave restartPolicy out"
    if any(mount.sub_path_expr for mount in container.volume_mounts):
        return "subPathExpr is not supported by the process node: use subPath"
    return None
