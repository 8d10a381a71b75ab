"""A check-up: is everything there that a cycle needs, and what mends it.

Room: cli. Pure: what was seen in, findings out. `probes` does the looking.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.data import ConfigMapKey, SecretRef
from ratchet_api.judge import KEY_ENV
from ratchet_api.names import CYCLE_PLURAL, VERSION_PLURAL
from ratchet_api.tracking import CREDENTIAL_KEYS, TrackingSecret
from ratchet_cli.oncall.view import View, Where
from ratchet_cli.oncall.words import ago, count, span

State = Literal["ok", "bad", "unknown"]

Keys = tuple[tuple[str, ...], ...]
"""Sets of keys of a Secret, of which one is enough."""
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
DOCKER_KEY = ".dockerconfigjson"


@dataclass(frozen=True)
class Finding:
    """One line of the check-up."""

    state: State
    subject: str
    message: str
    fix: str = ""
    """What mends it; empty when nothing has to be."""


@dataclass(frozen=True)
class PodSeen:
    """A pod, as far as the check-up cares."""

    name: str
    namespace: str
    ready: bool
    trouble: str = ""
    """Why it is not ready, in Kubernetes' own words."""
    args: tuple[str, ...] = ()
    """Arguments of its containers."""


@dataclass(frozen=True)
class LeaseSeen:
    """The operator's Lease, and the API server's clock."""

    namespace: str
    holder: str
    renewed: datetime | None
    seconds: int
    now: datetime


@dataclass(frozen=True)
class NotTold:
    """The API server does not tell us, or something did not answer."""

    why: str


@dataclass(frozen=True)
class Seen:
    """All that was looked at. None: there is no such thing."""

    where: Where
    resources: frozenset[str]
    """Plural names that the cluster serves of our group."""
    operators: list[PodSeen] | NotTold
    gateways: list[PodSeen] | NotTold
    lease: LeaseSeen | NotTold | None = None
    prometheus: str | NotTold = ""
    """Empty: it answers that it is ready."""
    denied: list[tuple[str, str]] = field(default_factory=list)
    """(verb, resource) that the caller may not do."""
    view: View | None = None
    secrets: Mapping[str, frozenset[str] | NotTold | None] = field(default_factory=dict)
    """By name: keys of the Secrets that the spec names."""
    config_maps: Mapping[str, Mapping[str, str] | NotTold | None] = field(default_factory=dict)
    """By name: data of the ConfigMaps that the spec names."""
    arms: list[PodSeen] | NotTold = field(default_factory=list)


def findings(seen: Seen) -> list[Finding]:
    """In the order in which things depend on each other."""
    found = [_resources(seen)]
    if found[0].state == "bad":
        return found
    found.append(_component(seen.where, "operator", seen.operators))
    found.append(_lease(seen))
    found.append(_component(seen.where, "gateway", seen.gateways))
    found.append(_prometheus(seen))
    found.append(_permissions(seen.denied))
    if seen.view is not None:
        found += _of_cycle(seen, seen.view)
    return found


def healthy(found: Iterable[Finding]) -> bool:
    """Whether nothing is known to be broken."""
    return all(finding.state != "bad" for finding in found)


# The installation


def _resources(seen: Seen) -> Finding:
    missing = {CYCLE_PLURAL, VERSION_PLURAL} - seen.resources
    if not missing:
        return Finding("ok", "resources", "the cluster knows cycles and versions")
    fix = "`helm install ratchet charts/ratchet ...`, or `kubectl apply --server-side -f crds/`"
    return Finding("bad", "resources", f"the cluster does not know {' and '.join(sorted(missing))}", fix)


def _component(where: Where, name: str, pods: list[PodSeen] | NotTold) -> Finding:
    if isinstance(pods, NotTold):
        return Finding("unknown", name, pods.why)
    if not pods:
        text = f"no pod has the labels of Ratchet's {name}"
        return Finding(
            "bad", name, text, "`helm install ratchet charts/ratchet ...`; with --system-namespace where it is"
        )
    ready = [pod for pod in pods if pod.ready]
    place = f"in namespace {pods[0].namespace}"
    if len(ready) == len(pods):
        return Finding("ok", name, f"{count(len(pods), 'pod')} ready {place}")
    ill = next(pod for pod in pods if not pod.ready)
    text = f"{len(ready)} of {count(len(pods), 'pod')} ready {place}; {ill.name}: {ill.trouble or 'not ready'}"
    fix = f"`kubectl describe pod {ill.name} -n {ill.namespace}`, `kubectl logs {ill.name} -n {ill.namespace}`"
    return Finding("bad" if not ready else "unknown", name, text, fix)


def _lease(seen: Seen) -> Finding:
    lease = seen.lease
    if isinstance(lease, NotTold):
        return Finding("unknown", "leader", lease.why)
    if lease is None or not lease.holder or lease.renewed is None:
        if not isinstance(seen.operators, NotTold) and not seen.operators:
            return Finding("unknown", "leader", "no operator runs, so nobody leads")
        fix = "`kubectl logs` of the operator's pod says why it does not lead"
        return Finding("bad", "leader", "no operator holds the Lease ratchet-operator, so nobody acts", fix)
    age = lease.now - lease.renewed
    if age.total_seconds() > lease.seconds:
        text = f"{lease.holder} has not renewed its Lease for {span(age)} (it lasts {lease.seconds} s), so nobody acts"
        return Finding(
            "bad", "leader", text, f"`kubectl get pods -n {lease.namespace}`; delete an operator pod that hangs"
        )
    return Finding("ok", "leader", f"{lease.holder} leads, renewed {ago(lease.renewed, lease.now)}")


def _prometheus(seen: Seen) -> Finding:
    address = prometheus_url(seen.operators) if not isinstance(seen.operators, NotTold) else ""
    blind = _blind(seen.view)
    if blind:
        text = f"the operator's last look at {blind[0]} ended with: {blind[1]}"
        return Finding(
            "bad", "prometheus", text, f"make {address or 'prometheus.url of the chart'} answer the operator"
        )
    if not address:
        return Finding("unknown", "prometheus", "its address is known only from the operator's pod")
    if isinstance(seen.prometheus, NotTold):
        text = f"{address} was not reached from here ({seen.prometheus.why}); the operator may reach it"
        return Finding("unknown", "prometheus", text)
    if seen.prometheus:
        fix = "correct prometheus.url of the chart, or bring Prometheus up; until then rollouts are held"
        return Finding("bad", "prometheus", f"{address}: {seen.prometheus}", fix)
    return Finding("ok", "prometheus", f"{address} answers")


def prometheus_url(operators: Iterable[PodSeen]) -> str:
    """The address that the operator was given; empty when no pod says."""
    for pod in operators:
        for argument in pod.args:
            if argument.startswith("--prometheus-url="):
                return argument.partition("=")[2]
    return ""


def _blind(view: View | None) -> tuple[str, str] | None:
    rollout = view.rollout if view is not None else None
    for check in rollout.checks if rollout is not None else []:
        if check.verdict == "Unknown" and check.reason in ("QueryError", "Stale", "ManySeries"):
            return check.name, check.message
    return None


def _permissions(denied: list[tuple[str, str]]) -> Finding:
    if not denied:
        return Finding("ok", "you", "may look at cycles and versions, and change them")
    words = ", ".join(f"{verb} {resource}" for verb, resource in denied)
    looking = any(verb in ("get", "list", "watch") for verb, _ in denied)
    fix = "ask for the role `view` in this namespace" if looking else "ask for the role `edit` if you have to act"
    return Finding("bad" if looking else "unknown", "you", f"may not: {words}", fix)


# The cycle


def _of_cycle(seen: Seen, view: View) -> list[Finding]:
    return [
        *_secrets(seen, view.cycle),
        *_config_maps(seen, view.cycle),
        _arms(seen, view),
        *_conditions(view),
    ]


def named_secrets(cycle: ImprovementCycle) -> list[tuple[str, str, Keys]]:
    """(field, name, sets of keys) of every Secret that the spec names; it must have all keys of one of the sets."""
    spec = cycle.spec
    judge, mlflow = spec.evaluation.judge, spec.tracking.mlflow if spec.tracking is not None else None
    hub, oci = (spec.export.hub, spec.export.oci) if spec.export is not None else (None, None)
    token, *login = CREDENTIAL_KEYS
    named: list[tuple[str, SecretRef | TrackingSecret | None, Keys]] = [
        ("storage.credentialsSecret", spec.storage.credentials_secret, (S3_KEYS,)),
        ("evaluation.judge.credentialsSecret", judge.credentials_secret if judge else None, ((KEY_ENV,),)),
        ("export.hub.tokenSecret", hub.token_secret if hub else None, (("HF_TOKEN",),)),
        ("export.oci.credentialsSecret", oci.credentials_secret if oci else None, ((DOCKER_KEY,),)),
        ("tracking.mlflow.credentialsSecret", mlflow.credentials_secret if mlflow else None, ((token,), tuple(login))),
    ]
    return [(field, reference.name, keys) for field, reference, keys in named if reference is not None]


def _secrets(seen: Seen, cycle: ImprovementCycle) -> list[Finding]:
    found = [_secret(seen, *named) for named in named_secrets(cycle)]
    if cycle.spec.storage.credentials_secret is None:
        found.insert(0, Finding("ok", "credentials", "none are named: the pods use workload identity"))
    return found


def _secret(seen: Seen, field: str, name: str, sets: Keys) -> Finding:
    subject, keys, usual = f"secret {name}", seen.secrets.get(name), sets[0]
    if isinstance(keys, NotTold):
        return Finding("unknown", subject, keys.why)
    if keys is None:
        create = f"generic {name} " + " ".join(f"--from-literal={key}=..." for key in usual)
        if usual == (DOCKER_KEY,):
            create = f"docker-registry {name} --docker-server=... --docker-username=... --docker-password=..."
        fix = f"`{seen.where.kubectl(f'create secret {create}')}`"
        return Finding("bad", subject, f"{field}: there is no Secret {name}", fix)
    if not any(keys.issuperset(wanted) for wanted in sets):
        fix = f"`{seen.where.kubectl(f'edit secret {name}')}`"
        missing = " and no key ".join(key for key in usual if key not in keys)
        return Finding("bad", subject, f"{field}: it has no key {missing}", fix)
    return Finding("ok", subject, "is there, with its keys")


def named_config_maps(cycle: ImprovementCycle) -> list[tuple[str, ConfigMapKey]]:
    """(field, reference) of everything that the spec wants from ConfigMaps."""
    suites = [(f"evaluation.suites[{s.name}].cases", s.cases.config_map) for s in cycle.spec.evaluation.suites]
    suites += [(f"evaluation.suites[{s.name}].cases.task", s.cases.task) for s in cycle.spec.evaluation.suites]
    mounted = [(field, key) for field, key in suites if key is not None]
    anchors = cycle.spec.curation.anchors
    return mounted + ([("curation.anchors", anchors.config_map)] if anchors is not None else [])


def _config_maps(seen: Seen, cycle: ImprovementCycle) -> list[Finding]:
    return [_config_map(seen, field, reference) for field, reference in named_config_maps(cycle)]


def _config_map(seen: Seen, field: str, reference: ConfigMapKey) -> Finding:
    data, subject = seen.config_maps.get(reference.name), f"configmap {reference.name}"
    if isinstance(data, NotTold):
        return Finding("unknown", subject, data.why)
    if data is None:
        command = seen.where.kubectl(f"create configmap {reference.name} --from-file={reference.key}")
        return Finding("bad", subject, f"{field}: there is no ConfigMap {reference.name}", f"`{command}`")
    edit = f"`{seen.where.kubectl(f'edit configmap {reference.name}')}`"
    if reference.key not in data:
        there = ", ".join(sorted(data)) or "none"
        return Finding("bad", subject, f"{field}: it has no key {reference.key} (it has: {there})", edit)
    if field.endswith(".task"):
        return Finding("ok", subject, f"{field}: {reference.key} is there")
    rows, problem = rows_of(data[reference.key])
    if problem:
        return Finding("bad", subject, f"{field}: {reference.key} {problem}", edit)
    return Finding("ok", subject, f"{field}: {count(rows, 'row')} in {reference.key}")


def rows_of(text: str) -> tuple[int, str]:
    """(number of rows, what is wrong with the first bad one) of JSON lines."""
    rows = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            return rows, f"line {number} is no JSON: {error}"
        if not isinstance(row, dict):
            return rows, f"line {number} is no JSON object"
        rows += 1
    return rows, "" if rows else "has no rows"


def _arms(seen: Seen, view: View) -> Finding:
    if isinstance(seen.arms, NotTold):
        return Finding("unknown", "arms", seen.arms.why)
    ill = [pod for pod in seen.arms if not pod.ready]
    if not seen.arms:
        return Finding("bad", "arms", f"no pod serves {view.name}", f"`{seen.where.ratchet(f'explain {view.name}')}`")
    if not ill:
        return Finding("ok", "arms", f"{count(len(seen.arms), 'pod')} ready")
    text = "; ".join(f"{pod.name}: {pod.trouble or 'not ready'}" for pod in ill)
    none_ready = len(ill) == len(seen.arms)
    fix = f"`{seen.where.kubectl(f'describe pod {ill[0].name}')}`"
    return Finding("bad" if none_ready else "unknown", "arms", f"{len(ill)} of {len(seen.arms)} not ready: {text}", fix)


def _conditions(view: View) -> list[Finding]:
    found = []
    explain = f"`{view.where.ratchet(f'explain {view.name}')}`"
    for condition in view.cycle.status.conditions:
        if condition.type == "Stalled" and condition.status == "True":
            found.append(Finding("bad", "cycle", f"stalled, {condition.reason}: {condition.message}", explain))
    if not view.cycle.status.conditions:
        found.append(Finding("bad", "cycle", "no operator has looked at it", "does the operator watch this namespace?"))
    elif view.unread:
        found.append(Finding("unknown", "cycle", "the operator has not read its latest change yet", explain))
    return found or [Finding("ok", "cycle", f"{view.cycle.status.phase}, nothing stalls it")]


def text(found: Iterable[Finding]) -> str:
    """As it is printed."""
    words = {"ok": "ok     ", "bad": "BAD    ", "unknown": "unknown"}
    lines = []
    for finding in found:
        lines.append(f"{words[finding.state]}  {finding.subject}: {finding.message}")
        if finding.fix:
            lines.append(f"         fix: {finding.fix}")
    return "\n".join(lines)
