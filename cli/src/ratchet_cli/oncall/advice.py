"""The one command to type next, for every reason of the catalogue.

Room: cli. Pure. A test walks all reasons: a new one needs an entry in `_NEXT`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ratchet_api.judge import KEY_ENV
from ratchet_api.names import CYCLE_LABEL, VERSION_LABEL
from ratchet_api.reasons import Reason
from ratchet_cli.oncall.view import Where


@dataclass(frozen=True)
class Situation:
    """What a command may have to name. Empty: not known."""

    where: Where
    cycle: str
    version: str = ""
    """The version that it is about."""
    stable: str = ""
    """The version that serves."""
    job: str = ""
    """The stage's Job."""
    secret: str = ""
    """storage.credentialsSecret."""
    git_secret: str = ""
    """promotion.git.credentialsSecret."""
    judge_secret: str = ""
    """evaluation.judge.credentialsSecret."""
    workload: str = ""
    """serving.workload: the Deployment that is served in place."""
    suites: str = ""
    """ConfigMap of the first target suite."""
    endpoint: str = ""
    """storage.endpoint."""
    storage: str = ""
    """storage.uri."""
    base: str = ""
    """baseModel.uri."""
    folder: str = ""
    """uri of the version's dataset or adapter."""


Command = Callable[[Situation], str]


def _approve(s: Situation) -> str:
    return s.where.ratchet(f"approve {s.version}") if s.version else s.where.ratchet(f"explain {s.cycle}")


def _watch(s: Situation) -> str:
    return s.where.ratchet(f"get {s.cycle} -w")


def _get(s: Situation) -> str:
    return s.where.ratchet(f"get {s.cycle}")


def _run(s: Situation) -> str:
    return s.where.ratchet(f"run {s.cycle}")


def _resume(s: Situation) -> str:
    return s.where.ratchet(f"resume {s.cycle}")


def _doctor(s: Situation) -> str:
    return s.where.ratchet(f"doctor {s.cycle}")


def _retry(s: Situation) -> str:
    return s.where.ratchet(f"retry {s.version or s.cycle}")


def _lineage(s: Situation) -> str:
    return s.where.ratchet(f"lineage {s.version or s.stable}") if s.version or s.stable else _get(s)


def _list(s: Situation) -> str:
    return s.where.ratchet("get")


def _edit(s: Situation) -> str:
    return s.where.kubectl(f"edit cycle {s.cycle}")


def _point(s: Situation) -> str:
    return s.where.ratchet(f"promote {s.cycle} {s.version}") if s.version else _edit(s)


def _follow(s: Situation) -> str:
    return s.where.kubectl(f"logs -f job/{s.job}") if s.job else _watch(s)


def _logs(s: Situation) -> str:
    return s.where.kubectl(f"logs job/{s.job}") if s.job else _edit(s)


def _job(s: Situation) -> str:
    return s.where.kubectl(f"describe job/{s.job}") if s.job else _retry(s)


def _pods(s: Situation) -> str:
    return s.where.kubectl(f"describe pods -l {CYCLE_LABEL}={s.cycle}")


def _candidate_pods(s: Situation) -> str:
    return s.where.kubectl(f"describe pods -l {VERSION_LABEL}={s.version}") if s.version else _pods(s)


def _stable_pods(s: Situation) -> str:
    return s.where.kubectl(f"describe pods -l {VERSION_LABEL}={s.stable}") if s.stable else _pods(s)


def _candidate_logs(s: Situation) -> str:
    label = f"{VERSION_LABEL}={s.version}" if s.version else f"{CYCLE_LABEL}={s.cycle}"
    return s.where.kubectl(f"logs -l {label} --all-containers --prefix --tail=50")


def _route(s: Situation) -> str:
    return s.where.kubectl("describe httproutes.gateway.networking.k8s.io")


def _workload(s: Situation) -> str:
    return s.where.kubectl(f"describe deployment {s.workload}") if s.workload else _edit(s)


def _scale_up(s: Situation) -> str:
    return s.where.kubectl(f"scale deployment {s.workload} --replicas=1") if s.workload else _edit(s)


def _scalers(s: Situation) -> str:
    return s.where.kubectl("get hpa")


def _secret(s: Situation) -> str:
    keys = " ".join(f"--from-literal={key}=..." for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    return s.where.kubectl(f"create secret generic {s.secret} {keys}") if s.secret else _doctor(s)


def _judge_secret(s: Situation) -> str:
    if not s.judge_secret:
        return _edit(s)
    return s.where.kubectl(f"create secret generic {s.judge_secret} --from-literal={KEY_ENV}=...")


def _explain(s: Situation) -> str:
    return s.where.ratchet(f"explain {s.cycle}")


def _git_secret(s: Situation) -> str:
    return s.where.kubectl(f"edit secret {s.git_secret}") if s.git_secret else _edit(s)


def _suites(s: Situation) -> str:
    return s.where.kubectl(f"edit configmap {s.suites}") if s.suites else _edit(s)


def _bucket(s: Situation) -> str:
    return _storage(s, "s3 ls " + s.storage) if s.storage else _edit(s)


def _folder(s: Situation) -> str:
    return _storage(s, f"s3 ls {s.folder.rstrip('/')}/") if s.folder else _edit(s)


def _manifest(s: Situation) -> str:
    return _storage(s, f"s3 cp {s.folder.rstrip('/')}/manifest.json -") if s.folder else _edit(s)


def _base(s: Situation) -> str:
    scheme, _, rest = s.base.partition("://")
    match scheme:
        case "s3":
            return _storage(s, f"s3 ls {s.base.rstrip('/')}/")
        case "pvc":
            return s.where.kubectl(f"get pvc {rest.partition('/')[0]}")
        case _:
            return _logs(s)


def _storage(s: Situation, command: str) -> str:
    return f"aws {command}" + (f" --endpoint-url {s.endpoint}" if s.endpoint else "")


_NEXT: dict[str, Command] = {
    Reason.INITIALIZING: _pods,
    Reason.IDLE: _run,
    Reason.SUSPENDED: _resume,
    Reason.CURATING: _follow,
    Reason.TRAINING: _follow,
    Reason.EVALUATING: _follow,
    Reason.EXPORTING: _follow,
    Reason.CANARY: _watch,
    Reason.BAKING: _watch,
    Reason.PROMOTED: _lineage,
    Reason.SUPERSEDED: _lineage,
    Reason.SKIPPED: _logs,
    Reason.PENDING: _watch,
    Reason.UNSCHEDULABLE: _pods,
    Reason.MISSING_SECRET: _secret,
    Reason.MISSING_JUDGE_SECRET: _judge_secret,
    Reason.MISSING_CONFIG_MAP: _doctor,
    Reason.MISSING_BUCKET: _bucket,
    Reason.MISSING_BASE_MODEL: _base,
    Reason.MISSING_DATASET: _folder,
    Reason.MISSING_SUITE: _edit,
    Reason.MISSING_ADAPTER: _folder,
    Reason.MISSING_CYCLE: _list,
    Reason.INVALID_SPEC: _edit,
    Reason.DIGEST_MISMATCH: _manifest,
    Reason.ARM_NOT_READY: _candidate_pods,
    Reason.STABLE_NOT_READY: _stable_pods,
    Reason.STABLE_DEGRADED: _stable_pods,
    Reason.SUCCEEDED: _get,
    Reason.USER_ERROR: _edit,
    Reason.DATA_ERROR: _logs,
    Reason.OUT_OF_MEMORY: _edit,
    Reason.INFRASTRUCTURE_ERROR: _job,
    Reason.PREEMPTED: _watch,
    Reason.DEADLINE_EXCEEDED: _edit,
    Reason.INTERNAL_ERROR: _logs,
    Reason.EXPORT_DIFFERS: _edit,
    Reason.UPLOAD_REFUSED: _edit,
    Reason.ACCEPTED: _watch,
    Reason.NOT_BETTER: _lineage,
    Reason.GUARDRAIL_LOST: _lineage,
    Reason.SAFETY_LOST: _lineage,
    "SliceLost": _lineage,
    Reason.UNDERPOWERED: _suites,
    Reason.ROOT: _get,
    Reason.HELD: _doctor,
    Reason.HOLD_EXPIRED: _retry,
    Reason.CHECK_FAILED: _lineage,
    Reason.OUTCOME_WORSE: _lineage,
    Reason.INCONCLUSIVE: _retry,
    Reason.ARM_FAILED: _candidate_logs,
    Reason.ADAPTER_NOT_SERVED: _candidate_logs,
    Reason.ABORTED: _retry,
    Reason.ALREADY_REJECTED: _retry,
    Reason.RETURNED: _watch,
    Reason.MISSING_VERSION: _edit,
    Reason.AWAITING_POINTER: _point,
    Reason.ROLLED_BACK_PENDING_GIT: _edit,
    Reason.PROPOSED: _explain,
    Reason.MERGED: _watch,
    Reason.FORGE_UNAVAILABLE: _watch,
    Reason.FORGE_DENIED: _git_secret,
    Reason.PUSH_REFUSED: _edit,
    Reason.POINTER_NOT_FOUND: _edit,
    Reason.PULL_REQUEST_CLOSED: _point,
    Reason.POINTER_MOVED: _get,
    Reason.NOTIFICATION_FAILED: _edit,
    Reason.TRACKING_FAILED: _edit,
    Reason.AWAITING_APPROVAL: _approve,
    Reason.APPROVAL_EXPIRED: _approve,
    Reason.MISSING_ROUTE: _route,
    Reason.ROUTE_NOT_ACCEPTED: _route,
    Reason.ROUTE_RESET: _route,
    Reason.ARM_RESET: _edit,
    Reason.FOREIGN_OWNER: _edit,
    Reason.SCALER_CONFLICT: _scalers,
    Reason.MISSING_WORKLOAD: _workload,
    Reason.SCALED_TO_ZERO: _scale_up,
}


def known(reason: str) -> bool:
    """Whether the catalogue's reason has a command of its own here."""
    return reason in _NEXT


def command(reason: str, situation: Situation) -> str:
    """The command to type next. A reason of a newer operator is answered with a check-up."""
    found = _NEXT.get(reason)
    return _doctor(situation) if found is None else found(situation)
