"""What `ratchet doctor` looks at in the cluster.

Room: cli. Talks to the API server, and to Prometheus through it or directly.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import kubernetes.client
import urllib3
from kubernetes.client.exceptions import ApiException

from ratchet_api.names import ARM_LABEL, CYCLE_LABEL, CYCLE_PLURAL, GATEWAY_LABELS, GROUP, GROUP_VERSION, VERSION_PLURAL
from ratchet_cli.oncall.cluster import Cluster, message_of
from ratchet_cli.oncall.doctor import (
    LeaseSeen,
    NotTold,
    PodSeen,
    Seen,
    named_config_maps,
    named_secrets,
    prometheus_url,
)
from ratchet_cli.oncall.errors import Unreachable

LEASE = "ratchet-operator"
OPERATOR_LABELS = GATEWAY_LABELS | {"app.kubernetes.io/component": "operator"}
_HOME = "ratchet-system"
_SECONDS = 10
_RIGHTS = [
    *((verb, CYCLE_PLURAL) for verb in ("get", "list", "watch", "patch")),
    *((verb, VERSION_PLURAL) for verb in ("get", "list", "watch", "create")),
]
_T = TypeVar("_T")


def look(cluster: Cluster, name: str | None, home: str | None) -> Seen:
    """Everything about the installation, and about the cycle `name`. Raises NotFound, Unreachable."""
    core = kubernetes.client.CoreV1Api(cluster.client)
    resources = _resources(cluster)
    operators = _tried(lambda: _pods(core, home, OPERATOR_LABELS))
    gateways = _tried(lambda: _pods(core, home, GATEWAY_LABELS))
    place = home or (operators[0].namespace if not isinstance(operators, NotTold) and operators else _HOME)
    seen = Seen(
        where=cluster.where,
        resources=resources,
        operators=operators,
        gateways=gateways,
        lease=_tried(lambda: _lease(cluster, place)),
        prometheus=_prometheus(core, operators),
        denied=_denied(cluster) if resources else [],
    )
    if name is None or not resources:
        return seen
    return _with_cycle(cluster, core, seen, name)


def _with_cycle(cluster: Cluster, core: Any, seen: Seen, name: str) -> Seen:
    view = cluster.view(name)
    secrets = sorted({name for _, name, _ in named_secrets(view.cycle)})
    wanted = sorted({reference.name for _, reference in named_config_maps(view.cycle)})
    labels = {CYCLE_LABEL: name, ARM_LABEL: "true"}
    return Seen(
        **{field: getattr(seen, field) for field in ("where", "resources", "operators", "gateways", "lease")},
        prometheus=seen.prometheus,
        denied=seen.denied,
        view=view,
        secrets={each: _tried(partial(_keys, core, cluster.namespace, each)) for each in secrets},
        config_maps={each: _tried(partial(_data, core, cluster.namespace, each)) for each in wanted},
        arms=_tried(lambda: _pods(core, cluster.namespace, labels)),
    )


def _tried(look_at: Callable[[], _T]) -> _T | NotTold:
    try:
        return look_at()
    except ApiException as error:
        return NotTold(f"you may not look: {message_of(error)}" if error.status == 403 else message_of(error))
    except urllib3.exceptions.HTTPError as error:
        return NotTold(f"no answer: {error}")


def _resources(cluster: Cluster) -> frozenset[str]:
    api = kubernetes.client.CustomObjectsApi(cluster.client)
    group, version = GROUP_VERSION.split("/")
    try:
        return frozenset(one.name for one in api.get_api_resources(group, version, _request_timeout=_SECONDS).resources)
    except ApiException as error:
        if error.status == 404:
            return frozenset()
        raise Unreachable(f"the API server answered {error.status}: {message_of(error)}") from error
    except urllib3.exceptions.HTTPError as error:
        raise Unreachable(f"the API server does not answer: {error}") from error


def _pods(core: Any, namespace: str | None, labels: dict[str, str]) -> list[PodSeen]:
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    options = {"label_selector": selector, "_request_timeout": _SECONDS}
    if namespace is not None:
        items = core.list_namespaced_pod(namespace, **options).items
    else:
        try:
            items = core.list_pod_for_all_namespaces(**options).items
        except ApiException as error:
            if error.status != 403:
                raise
            items = core.list_namespaced_pod(_HOME, **options).items
    return [_pod(item) for item in items if item.metadata.deletion_timestamp is None]


def _pod(item: Any) -> PodSeen:
    conditions = {c.type: c for c in item.status.conditions or []}
    ready = "Ready" in conditions and conditions["Ready"].status == "True"
    statuses = [*(item.status.init_container_statuses or []), *(item.status.container_statuses or [])]
    troubles = [
        f"{status.state.waiting.reason}: {status.state.waiting.message or ''}".rstrip(": ")
        for status in statuses
        if status.state is not None and status.state.waiting is not None
    ]
    scheduled = conditions.get("PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        troubles.insert(0, f"{scheduled.reason}: {scheduled.message}")
    args = tuple(argument for container in item.spec.containers for argument in container.args or [])
    meta = item.metadata
    return PodSeen(meta.name, meta.namespace, ready, "" if ready else "; ".join(troubles) or item.status.phase, args)


def _lease(cluster: Cluster, namespace: str) -> LeaseSeen | None:
    api = kubernetes.client.CoordinationV1Api(cluster.client)
    try:
        answer = api.read_namespaced_lease_with_http_info(LEASE, namespace, _request_timeout=_SECONDS)
    except ApiException as error:
        if error.status == 404:
            return None
        raise
    data, headers = (answer.data, answer.headers) if hasattr(answer, "headers") else (answer[0], answer[2])
    # The API server's clock, not ours: the Lease was stamped in the cluster.
    date = {key.lower(): value for key, value in (headers or {}).items()}.get("date")
    now = parsedate_to_datetime(date) if date else datetime.now(UTC)
    spec = data.spec
    return LeaseSeen(namespace, spec.holder_identity or "", spec.renew_time, spec.lease_duration_seconds or 0, now)


def _prometheus(core: Any, operators: list[PodSeen] | NotTold) -> str | NotTold:
    address = "" if isinstance(operators, NotTold) else prometheus_url(operators)
    if not address:
        return ""
    parts = urlsplit(address)
    labels = (parts.hostname or "").split(".")
    if len(labels) >= 2 and (len(labels) == 2 or labels[2] == "svc"):
        return _through_service(core, parts, labels)
    pool = urllib3.PoolManager(retries=False, timeout=5.0)
    try:
        status = pool.request("GET", f"{address.rstrip('/')}/-/ready").status
    except urllib3.exceptions.HTTPError as error:
        return NotTold(str(error))
    finally:
        pool.clear()
    return _judged(status)


def _through_service(core: Any, parts: Any, labels: list[str]) -> str | NotTold:
    """A Service's address means something inside the cluster only, so the API server passes the question on."""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    service, namespace = f"{parts.scheme}:{labels[0]}:{port}", labels[1]
    path = f"{parts.path.strip('/')}/-/ready".lstrip("/")
    try:
        core.connect_get_namespaced_service_proxy_with_path(service, namespace, path, _request_timeout=_SECONDS)
    except ApiException as error:
        if error.status == 403:
            return NotTold("you may not use the API server's proxy to services")
        if error.status == 404 and '"kind":"Status"' in str(error.body).replace(" ", ""):
            return f"there is no Service {labels[0]} in namespace {namespace}"
        return _judged(int(error.status or 0))
    except urllib3.exceptions.HTTPError as error:
        return NotTold(str(error))
    return ""


def _judged(status: int) -> str | NotTold:
    if status in (401, 403, 404):
        # Behind a password, or a system that has no such page: only the operator can tell.
        return NotTold(f"it answered {status}")
    return "" if status == 200 else f"it answered {status} when asked whether it is ready"


def _denied(cluster: Cluster) -> list[tuple[str, str]]:
    api = kubernetes.client.AuthorizationV1Api(cluster.client)
    denied = []
    for verb, resource in _RIGHTS:
        attributes = {"verb": verb, "group": GROUP, "resource": resource, "namespace": cluster.namespace}
        body = {"spec": {"resourceAttributes": attributes}}
        answer = _tried(lambda body=body: api.create_self_subject_access_review(body, _request_timeout=_SECONDS))  # type: ignore[misc]
        if not isinstance(answer, NotTold) and not answer.status.allowed:
            denied.append((verb, resource))
    return denied


def _keys(core: Any, namespace: str, name: str) -> frozenset[str] | None:
    try:
        return frozenset(core.read_namespaced_secret(name, namespace, _request_timeout=_SECONDS).data or {})
    except ApiException as error:
        if error.status == 404:
            return None
        raise


def _data(core: Any, namespace: str, name: str) -> dict[str, str] | None:
    try:
        found = core.read_namespaced_config_map(name, namespace, _request_timeout=_SECONDS)
    except ApiException as error:
        if error.status == 404:
            return None
        raise
    # What is binary is there all the same.
    return (found.data or {}) | dict.fromkeys(found.binary_data or {}, "{}")
