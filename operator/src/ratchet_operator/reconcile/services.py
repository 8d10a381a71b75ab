"""Services over arms: seen with their endpoints, made, and pointed at a version.

Room: operator, reconcile.
"""

from collections import Counter
from dataclasses import dataclass

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.names import ARM_PORT, CYCLE_LABEL, FIELD_MANAGER, VERSION_LABEL
from ratchet_api.reasons import Reason
from ratchet_operator.clients.traffic import EndpointSlice, Service
from ratchet_operator.domain.phases import Remark
from ratchet_operator.manifests import routes as manifests
from ratchet_operator.reconcile.arms import Fleet
from ratchet_operator.reconcile.context import Context

SLICE_LABEL = "kubernetes.io/service-name"


@dataclass(frozen=True)
class SeenService:
    """One Service by name."""

    name: str
    service: Service | None
    endpoints: Counter[str]
    """Version -> ready endpoints, as those see them who forward traffic."""
    ours: bool
    """We made it, so that all of it is ours."""
    stalled: Remark | None
    """Why it cannot be used."""

    @property
    def selects(self) -> str | None:
        """Version that its selector names."""
        return None if self.service is None else self.service.spec.selector.get(VERSION_LABEL)


async def see(ctx: Context, cycle: ImprovementCycle, fleet: Fleet, name: str) -> SeenService:
    """The Service and its endpoints."""
    meta = cycle.metadata
    service = await ctx.kube.get(Service, meta.namespace, name)
    if service is None:
        return SeenService(name, None, Counter(), True, None)
    slices = await ctx.kube.select(EndpointSlice, meta.namespace, f"{SLICE_LABEL}={name}")
    version_of = {pod.metadata.name: pod.metadata.labels.get(VERSION_LABEL, "") for pod in fleet.pods}
    ready = {pod for one in slices for pod in one.ready_pods}
    ours = service.metadata.owned_by(meta.uid)
    stalled = None if ours else _foreign(cycle, service)
    return SeenService(name, service, Counter(version_of.get(pod, "") for pod in ready), ours, stalled)


def _foreign(cycle: ImprovementCycle, service: Service) -> Remark | None:
    """A Service of people's is ours to point when its selector is nobody else's."""
    name, spec = service.metadata.name, service.spec
    others = [m for m in service.metadata.managers("spec", "selector") if m != FIELD_MANAGER]
    if others and spec.selector:
        text = (
            f"Service {name} has a selector that {others[-1]} wrote: take spec.selector out of it (the operator points "
            "it at the arms), or name another Service in spec.serving"
        )
        return Remark(Reason.FOREIGN_OWNER, text)
    if spec.selector and spec.selector.get(CYCLE_LABEL) != cycle.metadata.name:
        text = f"Service {name} is pointed at another cycle: name another Service in spec.serving"
        return Remark(Reason.FOREIGN_OWNER, text)
    return None


async def point(ctx: Context, cycle: ImprovementCycle, seen: SeenService, version: str | None) -> bool:
    """Make it select one version, or all arms; False, and no write, when it does already or is not to be touched."""
    if seen.stalled is not None:
        return False
    selector = manifests.selector(cycle.metadata.name, version)
    if seen.service is not None and seen.service.spec.selector == selector and (not seen.ours or _reachable(seen)):
        return False
    if seen.ours:
        await ctx.kube.apply(manifests.service(cycle, seen.name, version))
    else:
        await ctx.kube.apply(manifests.service_selector(cycle, seen.name, version), force=False)
    return True


def _reachable(seen: SeenService) -> bool:
    return seen.service is not None and any(port.port == ARM_PORT for port in seen.service.spec.ports)
