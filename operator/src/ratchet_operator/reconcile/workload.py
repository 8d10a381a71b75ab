"""Serving in place: people's Deployment and its companions, seen, moved between, and given back.

Room: operator, reconcile. Which version serves where is domain.workload's; this observes for it and acts on it.
"""

import re
from collections.abc import Iterable
from datetime import datetime
from functools import partial

from ratchet_api.cycle import Arm, ImprovementCycle, ImprovementCycleStatus, ServingStatus
from ratchet_api.names import COMPANION_LABEL, CYCLE_LABEL, VERSION_LABEL
from ratchet_api.reasons import Reason
from ratchet_api.version import ModelVersion
from ratchet_operator.clients.arms import Server
from ratchet_operator.clients.objects import Deployment, Pod
from ratchet_operator.clients.workload import Workload
from ratchet_operator.domain import workload as domain
from ratchet_operator.domain.phases import Remark
from ratchet_operator.domain.workload import Seen
from ratchet_operator.errors import Conflict, Stalling
from ratchet_operator.manifests import arms as arm_manifests
from ratchet_operator.manifests import workload as manifests
from ratchet_operator.manifests.workload import Named
from ratchet_operator.reconcile import arms, autoscaling
from ratchet_operator.reconcile.arms import Fleet
from ratchet_operator.reconcile.context import Context
from ratchet_operator.reconcile.hosting import lingering, unwanted

_CONFLICT = re.compile(r'conflicts? with "([^"]+)"[^:]*:\s*(?:\\n|-|\s)*(\.[^\s,"\\]+(?:\\?"[^\s,]*)?)')
"""The API server's words about a field of somebody else's (apimachinery, managedfields, conflict.go)."""


class InPlace:
    """A Deployment of people's, and companions of it."""

    def __init__(self, ctx: Context, cycle: ImprovementCycle) -> None:
        self._ctx = ctx
        self._cycle = cycle
        self._name = manifests.workload_name(cycle)
        self._workload: Workload | None = None
        self._companions: dict[str, Deployment] = {}
        """By version."""
        self._pods: list[Pod] = []
        self._seen = Seen(self._name, 0, None, False)
        self._unserved: set[str] = set()
        """Versions whose companion's pods are ready and do not serve them."""
        self.scalers: autoscaling.Scalers = {}

    async def observe(self) -> Fleet:
        """People's Deployment with the companions, and the pods of all of them."""
        meta = self._cycle.metadata
        self.scalers = await autoscaling.find(self._ctx, meta.namespace)
        found = await arms.fleet(self._ctx, self._cycle)
        self._pods = found.pods
        companions = {n: d for n, d in found.deployments.items() if n != self._name and d.metadata.owned_by(meta.uid)}
        self._companions = {d.metadata.labels[VERSION_LABEL]: d for d in companions.values()}
        workload = await self._ctx.kube.get(Workload, meta.namespace, self._name)
        if workload is not None and workload.metadata.deletion_timestamp is None:
            self._workload = workload
        self._seen = await self._see()
        return Fleet(companions | ({} if self._workload is None else {self._name: self._workload}), found.pods)

    async def _see(self) -> Seen:
        proven = {
            version for version, deployment in self._companions.items() if await self._proven(version, deployment)
        }
        workload = self._workload
        if workload is None:
            return Seen(self._name, 1, None, False, frozenset(self._companions), frozenset(proven))
        rolled_out = False
        if workload.version is not None and not self._at_rest():
            mine = [pod for pod in self._of(workload.version) if COMPANION_LABEL not in pod.metadata.labels]
            rolled_out = await self._serve(mine, workload.version, workload.spec.replicas)
        return Seen(
            self._name,
            workload.spec.replicas,
            workload.version,
            rolled_out,
            frozenset(self._companions),
            frozenset(proven),
        )

    def _at_rest(self) -> bool:
        """Nobody is on the way to people's Deployment, so that its pods need not be asked twice."""
        serving = self._cycle.status.serving
        found = [arm for arm in (serving.stable, serving.candidate) if arm is not None]
        return bool(found) and all(arm.deployment == self._name for arm in found)

    def _of(self, version: str) -> list[Pod]:
        return Fleet({}, self._pods).of(version)

    async def _proven(self, version: str, companion: Deployment) -> bool:
        pods = [pod for pod in self._of(version) if COMPANION_LABEL in pod.metadata.labels]
        return await self._serve(pods, version, companion.spec.replicas)

    async def _serve(self, pods: Iterable[Pod], version: str, wanted: int) -> bool:
        """Whether as many as wanted, and at least one, are ready and serve the version."""
        ready = [pod for pod in pods if pod.ready and pod.status.pod_ip]
        servers = [Server(pod.status.pod_ip, pod.start) for pod in ready]
        serves = await self._ctx.arms.serves(servers, self._port, version)
        if serves is False:
            self._unserved.add(version)
        return serves is True and len(ready) >= max(1, wanted)

    @property
    def _port(self) -> int:
        workload = self._cycle.spec.serving.workload
        assert workload is not None
        return workload.port

    # What people have to put right

    def stalled(self, status: ImprovementCycleStatus) -> Remark | None:
        """The Deployment or its container is missing, it is scaled to nothing, or cannot serve the champion."""
        workload, stable = self._workload, status.serving.stable
        if workload is None:
            text = f"Deployment {self._name} does not exist: apply it; people are answered by what is left meanwhile"
            return Remark(Reason.MISSING_WORKLOAD, text)
        if self._container() is None:
            return Remark(Reason.MISSING_WORKLOAD, self._no_container(workload))
        if workload.spec.replicas == 0:
            text = f"Deployment {self._name} is scaled to 0: scale it up; no version is rolled out meanwhile"
            return Remark(Reason.SCALED_TO_ZERO, text)
        if stable is not None and stable.version in self._unserved and status.serving.candidate is None:
            text = (
                f"Deployment {self._name} does not serve {stable.version} when it is told to: let its container pass "
                "$(RATCHET_BASE_NAME) as --served-model-name and $(RATCHET_LORA_MODULES) as --lora-modules, or what "
                "its server has instead"
            )
            return Remark(Reason.ADAPTER_NOT_SERVED, text)
        return None

    def _container(self) -> str | None:
        """The container that serves; None when it is not there, or nobody said which."""
        asked = self._cycle.spec.serving.workload
        there = [] if self._workload is None else self._workload.container_names
        if asked is None or asked.container is None:
            return there[0] if len(there) == 1 else None
        return asked.container if asked.container in there else None

    def _no_container(self, workload: Workload) -> str:
        asked = self._cycle.spec.serving.workload
        names = ", ".join(workload.container_names)
        if asked is not None and asked.container is not None:
            return (
                f"serving.workload.container: Deployment {self._name} has no {asked.container}; write one of: {names}"
            )
        return f"serving.workload.container: Deployment {self._name} has several; write one of: {names}"

    def resets(self) -> list[Remark]:
        """Of people's Deployment they say how many pods it has; a companion is made again without a word."""
        return []

    # Numbers of pods

    def goal(self, arm: Arm, split: int) -> int:
        """As many as the Deployment has; people, or their autoscaler, say how many that is."""
        companion = self._companions.get(arm.version)
        if arm.deployment != self._name and companion is not None:
            return companion.spec.replicas
        return max(1, self._seen.replicas)

    def sized(self, serving: ServingStatus) -> ServingStatus:
        """As it is."""
        noted = {}
        for role in ("stable", "candidate"):
            arm: Arm | None = getattr(serving, role)
            if arm is not None:
                noted[role] = arm.model_copy(update={"replicas": self.goal(arm, 0)})
        return serving.model_copy(update=noted)

    # Where versions serve

    def moved(self, status: ImprovementCycleStatus) -> ImprovementCycleStatus:
        """By domain.workload."""
        name = partial(manifests.companion_name, self._name)
        return status.model_copy(
            update={"serving": domain.moved(status.serving, status.rollout, self._seen, companion=name)}
        )

    def busy(self, status: ImprovementCycleStatus) -> Remark | None:
        """The champion has to be at home before a rollout begins."""
        stable = status.serving.stable
        if stable is None or domain.settled(status.serving, self._seen):
            return None
        if self._seen.version == stable.version:
            return Remark(Reason.PENDING, f"Deployment {self._name} is being rolled to {stable.version}")
        return Remark(Reason.PENDING, f"{stable.version} is served by {stable.deployment}, beside {self._name}")

    # Acting

    async def ensure(self, cycle: ImprovementCycle, arm: Arm, version: ModelVersion) -> None:
        """Its companion if it is to have one, then people's Deployment if it is to name it."""
        workload, container = self._workload, self._container()
        if workload is None or container is None:
            return
        wanted = domain.placement(cycle.status.serving, cycle.status.rollout, self._seen)
        image = self._ctx.settings.images.trainer
        named = Named(cycle, version.metadata.name, version.adapter, container, image)
        if arm.version in wanted.companions:
            await self._ensure_companion(named, workload)
        if arm.version == wanted.home:
            await self._roll(named, workload)

    async def _ensure_companion(self, named: Named, workload: Workload) -> None:
        present = self._companions.get(named.version)
        # Never fewer: an autoscaler shrinks a Deployment whose traffic went to its companion.
        replicas = max(1, workload.spec.replicas, 0 if present is None else present.spec.replicas)
        manifest = manifests.companion(named, workload.pod_template, workload.spec.selector.keys, replicas)
        stamp = arm_manifests.MANIFEST_ANNOTATION
        if present is None or present.metadata.annotations.get(stamp) != manifest["metadata"]["annotations"][stamp]:
            await self._ctx.kube.apply(manifest)

    async def _roll(self, named: Named, workload: Workload) -> None:
        meta = workload.metadata
        manifest = manifests.fields(named, meta.uid)
        if manifests.holds(meta.labels, meta.annotations, workload.pod_template, manifest):
            return
        try:
            await self._ctx.kube.apply(manifest, manager=manifests.manager(named.cycle.metadata.name), force=False)
        except Conflict as error:
            raise _foreign(self._name, error) from error

    async def clear(self, cycle: ImprovementCycle, now: datetime) -> None:
        """Companions that serve nobody and are not kept for their last answers."""
        for version in await unwanted(self._ctx, cycle, lambda seen: self._idle(seen, now)):
            meta = self._companions[version].metadata
            await self._ctx.kube.delete(Deployment, meta.namespace, meta.name, meta.uid)

    def _idle(self, cycle: ImprovementCycle, now: datetime) -> set[str]:
        """Versions whose companions a cycle has no use for."""
        status = cycle.status
        wanted = domain.placement(status.serving, status.rollout, self._seen).companions
        kept = lingering(cycle, now)
        return {
            v for v, companion in self._companions.items() if v not in wanted and companion.metadata.name not in kept
        }


def _foreign(name: str, error: Conflict) -> Exception:
    """Somebody else's word about a field of ours; any other conflict is to be tried again."""
    found = _CONFLICT.search(str(error))
    if found is None:
        return error
    text = (
        f"Deployment {name}: {found[1]} says otherwise about {found[2]}, which names the version: take that field out "
        "of what it applies"
    )
    return Stalling(Reason.FOREIGN_OWNER, text)


async def give_back(ctx: Context, namespace: str, cycle: str) -> None:
    """After the end of a cycle with keepServing: false, everything of ours is taken out of people's Deployment.

    Whether that is to be done is written on the Deployment itself, so that it is known when the cycle is gone.
    """
    for found in await ctx.kube.select(Deployment, namespace, f"{CYCLE_LABEL}={cycle}"):
        meta = found.metadata
        if manifests.RESTORE_ANNOTATION in meta.annotations:
            await ctx.kube.apply(manifests.released(namespace, meta.name, meta.uid), manager=manifests.manager(cycle))
