"""A cycle in each state that a person on call may meet, as the operator writes it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ratchet_api.base import format_time
from ratchet_api.cycle import ImprovementCycle
from ratchet_api.version import ModelVersion
from ratchet_cli.oncall.view import View

NOW = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
GENERATION = 4


def before(**gap: float) -> str:
    """A status timestamp, so long before NOW."""
    return format_time(NOW - timedelta(**gap))


def digest(letter: str) -> str:
    """A digest."""
    return "sha256:" + letter * 64


def condition(kind: str, status: bool, reason: str, message: str = "", **gap: float) -> dict[str, Any]:
    """One entry of status.conditions."""
    return {
        "type": kind,
        "status": str(status),
        "reason": reason,
        "message": message,
        "observedGeneration": GENERATION,
        "lastTransitionTime": before(**(gap or {"hours": 1})),
    }


def arm(version: str, weight: int, *, seen: int | None = -1, ready: int = 2) -> dict[str, Any]:
    """One entry of status.serving."""
    made = {
        "version": version,
        "deployment": f"{version}-arm",
        "modelName": version,
        "digest": digest("6"),
        "port": 8000,
        "weight": weight,
        "replicas": 2,
        "readyReplicas": ready,
        "since": before(days=7),
    }
    return made if seen is None else made | {"observedWeight": weight if seen == -1 else seen}


def stage(name: str, *, began: float = 120, ended: float | None = None, **fields: Any) -> dict[str, Any]:
    """One stage, in minutes before NOW."""
    made = {"stage": name, "job": f"assistant-7-{name}-0", "jobUid": "u", "startedAt": before(minutes=began), **fields}
    return made if ended is None else made | {"finishedAt": before(minutes=ended)}


DATASET = {"uri": "s3://ratchet/assistant/datasets/d", "digest": digest("d")}
NUMBERS = DATASET | {"interactions": 3020, "successful": 1400, "categories": 5, "examples": 1240, "quarantined": 1}


def suite(name: str, role: str, champion: str, candidate: str, p: str, better: int, worse: int) -> dict[str, Any]:
    """One entry of status.evaluation.suites."""
    difference = float(candidate) - float(champion)
    return {
        "name": name,
        "role": role,
        "cases": 200,
        "champion": champion,
        "candidate": candidate,
        "difference": f"{difference:.4f}",
        "lowerBound": f"{difference - 0.02:.4f}",
        "pValue": p,
        "better": better,
        "worse": worse,
    }


EVALUATION = {
    "champion": "assistant-6",
    "target": "+6.2 (p 0.003)",
    "guardrail": "-0.4 ok",
    "suites": [
        suite("house-rules", "target", "0.810", "0.872", "0.003", 15, 3),
        suite("general", "guardrail", "0.644", "0.640", "0.6", 2, 3),
    ],
}
TRAINING = {"examples": 1240, "step": 155, "steps": 155, "loss": "0.31", "tokensPerSecond": 5120}


def version(name: str = "assistant-7", phase: str = "Pending", /, *conditions: Any, **status: Any) -> ModelVersion:
    """A version that a run made."""
    number = int(name.rpartition("-")[2])
    spec: dict[str, Any] = {"cycle": "assistant", "run": number}
    if number:
        spec |= {"dataset": DATASET, "parent": f"assistant-{number - 1}"}
    meta = {"name": name, "namespace": "chat", "uid": name, "creationTimestamp": before(days=8 - number, hours=2)}
    return ModelVersion.model_validate(
        {"metadata": meta, "spec": spec, "status": {"phase": phase, "conditions": list(conditions), **status}}
    )


def proven(phase: str, *conditions: Any, **status: Any) -> ModelVersion:
    """assistant-7, trained, evaluated and accepted."""
    accepted = condition("Accepted", True, "GatePassed", "house-rules +6.2 points, lower bound +4.2", minutes=30)
    return version(
        "assistant-7",
        phase,
        accepted,
        *conditions,
        **{
            "training": TRAINING,
            "evaluation": EVALUATION,
            "artifacts": {
                "adapter": {"uri": "s3://ratchet/assistant/versions/assistant-7/0/adapter", "digest": digest("7")}
            },
            "stages": [stage("train", began=110, ended=48), stage("evaluate", began=48, ended=40)],
            "provenance": {"parent": "assistant-6", "datasetDigest": digest("d"), "tools": {"peft": "0.21.2"}},
        }
        | status,
    )


ROOT = version("assistant-0", "Superseded", condition("Serving", False, "Superseded", "a newer champion serves"))
CHAMPION = version(
    "assistant-6",
    "Serving",
    condition("Serving", True, "Promoted", "is the champion", days=7),
    artifacts={"adapter": {"uri": "s3://ratchet/assistant/versions/assistant-6/0/adapter", "digest": digest("6")}},
    provenance={"parent": "assistant-0"},
    training={"examples": 880},
)
OLD = [
    {
        "version": "assistant-5",
        "run": 5,
        "outcome": "GateRejected",
        "message": "general -9.8 points, margin 5.0",
        "at": before(days=14),
    },
    {
        "version": "assistant-6",
        "run": 6,
        "outcome": "Promoted",
        "message": "assistant-6 is champion",
        "at": before(days=7),
    },
]
SERVES = condition("Ready", True, "Idle", "assistant-6 serves, 2 of 2 pods ready", days=7)


def cycle(phase: str, *conditions: Any, spec: Any = None, meta: Any = None, **status: Any) -> ImprovementCycle:
    """The cycle `assistant` in namespace chat."""
    suites = {"name": "assistant-suites"}
    document = {
        "metadata": {
            "name": "assistant",
            "namespace": "chat",
            "uid": "c",
            "generation": GENERATION,
            "resourceVersion": "77",
            "creationTimestamp": before(days=41),
            **(meta or {}),
        },
        "spec": {
            "baseModel": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct@12fd25f"},
            "storage": {
                "uri": "s3://ratchet/assistant",
                "endpoint": "https://s3.example.com",
                "credentialsSecret": {"name": "storage"},
            },
            "trigger": {"schedule": "0 2 * * 1"},
            "evaluation": {
                "suites": [
                    {"name": "house-rules", "role": "target", "cases": {"configMap": suites | {"key": "target.jsonl"}}},
                    {"name": "general", "role": "guardrail", "cases": {"configMap": suites | {"key": "general.jsonl"}}},
                ]
            },
            "serving": {"replicas": 2},
            **(spec or {}),
        },
        "status": {
            "observedGeneration": GENERATION,
            "phase": phase,
            "conditions": list(conditions),
            "history": OLD,
            "serving": {"stable": arm("assistant-6", 100)},
            "nextRunTime": "2026-11-23T02:00:00Z",
            "lastGood": [{"version": "assistant-6", "digest": digest("6"), "at": before(days=7)}],
            **status,
        },
    }
    return ImprovementCycle.model_validate(document)


def run(at: str, **fields: Any) -> dict[str, Any]:
    """status.run: number 7, begun two hours ago."""
    made: dict[str, Any] = {
        "number": 7,
        "stage": at,
        "startedAt": before(minutes=130),
        "curate": stage("curate", began=130),
    }
    if at != "Curating":
        made |= {
            "curate": stage("curate", began=130, ended=118),
            "dataset": NUMBERS,
            "version": "assistant-7",
            "versionUid": "u",
        }
    return made | fields


def check(name: str, verdict: str, **fields: Any) -> dict[str, Any]:
    """One entry of status.rollout.checks, looked at twenty seconds ago."""
    return {
        "name": name,
        "verdict": verdict,
        "message": f"{name}: as measured",
        "measuredAt": before(seconds=20),
        **fields,
    }


GOOD = [
    check(
        "feedback",
        "Pass",
        candidate="0.045",
        stable="0.061",
        lower="-0.060",
        upper="0.029",
        limit="0.05",
        candidateSamples=412,
        stableSamples=1230,
        passes=3,
    ),
    check(
        "errors",
        "Pass",
        candidate="0.001",
        stable="0.0015",
        lower="-0.006",
        upper="0.008",
        limit="0.02",
        candidateSamples=980,
        stableSamples=2910,
        passes=3,
    ),
    check(
        "p95", "Pass", candidate="1.31", stable="1.2", limit="1.5", candidateSamples=980, stableSamples=2910, passes=3
    ),
]
FEW = check(
    "feedback",
    "Unknown",
    reason="TooFewSamples",
    candidate="0.05",
    stable="0.06",
    candidateSamples=40,
    stableSamples=1230,
    unknowns=2,
    message="feedback: waits for samples: candidate 40, stable 1230, at least 200",
)
BLIND = check(
    "errors", "Unknown", reason="QueryError", unknowns=7, message="errors: candidate: Prometheus does not answer"
)
HARM = check(
    "errors",
    "Fail",
    candidate="0.12",
    stable="0.002",
    lower="0.061",
    upper="0.19",
    limit="0.02",
    candidateSamples=320,
    stableSamples=960,
    failures=1,
    firstFailedAt=before(seconds=20),
    message="errors: 5xx 12.0 % (n 320) vs 0.2 % stable (n 960): +11.8 points [6.1, 19.0], limit +2.0",
)


def rollout(phase: str, weight: int, checks: Any = (), **fields: Any) -> dict[str, Any]:
    """status.rollout of assistant-7."""
    return {
        "version": "assistant-7",
        "uid": "assistant-7",
        "digest": digest("7"),
        "phase": phase,
        "weight": weight,
        "step": {5: 0, 25: 1, 50: 2, 100: 3}.get(weight, -1),
        "startedAt": before(minutes=35),
        "stepSince": before(minutes=3),
        "checks": list(checks),
        "measuredAt": before(seconds=20),
        "summary": "feedback ok, errors ok, p95 ok",
        **fields,
    }


def split(weight: int, **candidate: Any) -> dict[str, Any]:
    """status.serving with both arms."""
    return {"stable": arm("assistant-6", 100 - weight), "candidate": arm("assistant-7", weight, **candidate)}


TESTED = {
    "verdict": "Undecided",
    "message": "thumbs-up 83.1 % (n 1204) vs 81.9 % stable (n 1188): +1.2 points [-3.1, +5.5]",
    "candidate": "0.831",
    "stable": "0.819",
    "difference": "0.012",
    "lower": "-0.031",
    "upper": "0.055",
    "candidateSamples": 1204,
    "stableSamples": 1188,
    "measuredAt": before(seconds=20),
}
INCONCLUSIVE = {
    "verdict": "Inconclusive",
    "rule": "the test's 7d are over, and it is not proven better",
    "decidedAt": before(minutes=9),
}
UNPROVEN = {
    "outcome": "Returned",
    "reason": "Inconclusive",
    "check": "abTest",
    "message": f"{INCONCLUSIVE['rule']}: {TESTED['message']}",
    "at": before(minutes=9),
}
DECISION = {
    "outcome": "RolledBack",
    "reason": "CheckFailed",
    "check": "errors",
    "message": HARM["message"],
    "at": before(seconds=8),
    "regressionSeenAt": before(minutes=2),
}
BACK = {
    "version": "assistant-7",
    "run": 7,
    "outcome": "RolledBack",
    "message": HARM["message"],
    "at": before(minutes=9),
}
STALLED_SECRET = condition(
    "Stalled",
    True,
    "MissingSecret",
    "storage.credentialsSecret: there is no Secret storage in namespace chat",
    minutes=4,
)
ABORTED = condition("Rejected", True, "CheckFailed", HARM["message"], minutes=9)
REJECTED = [
    {
        "digest": digest("7"),
        "version": "assistant-7",
        "reason": "CheckFailed",
        "message": HARM["message"],
        "at": before(minutes=9),
    }
]


def _view(found: ImprovementCycle, *versions: ModelVersion) -> View:
    return View(found, (ROOT, CHAMPION, *versions))


def _states() -> dict[str, View]:
    working = condition("Reconciling", True, "Training", "run 7 is training")
    small = {"examples": 1240, "step": 40, "steps": 155, "loss": "0.82", "tokensPerSecond": 5120, "etaSeconds": 2700}
    training = version(
        "assistant-7",
        "Training",
        condition("Reconciling", True, "Training"),
        training=small,
        stages=[stage("train", began=20)],
    )
    retrying = version(
        "assistant-7",
        "Training",
        condition("Reconciling", True, "OutOfMemory"),
        stages=[
            stage(
                "train",
                began=20,
                reason="OutOfMemory",
                message="killed at 24 GiB",
                attempts={"outOfMemory": 1},
                retryAt=format_time(NOW + timedelta(seconds=30)),
            )
        ],
    )
    rejected = proven(
        "Rejected", condition("Stalled", True, "CheckFailed", HARM["message"], minutes=9), ABORTED, outcome="RolledBack"
    )
    weak = condition("Rejected", True, "NotBetter", "house-rules +0.3 points, lower bound -1.9", minutes=30)
    hand = ModelVersion.model_validate(
        {
            "metadata": {"name": "tuned-elsewhere", "namespace": "chat", "creationTimestamp": before(minutes=12)},
            "spec": {"cycle": "assistant", "adapter": {"uri": "s3://ratchet/mine", "digest": digest("e")}},
            "status": {
                "phase": "Evaluating",
                "conditions": [condition("Reconciling", True, "Evaluating")],
                "stages": [stage("evaluate", began=10, job="tuned-elsewhere-evaluate-0")],
            },
        }
    )
    unscheduled = condition(
        "Reconciling", True, "Unschedulable", "no node takes pod x: 0/3 nodes have nvidia.com/gpu", minutes=6
    )
    nothing: dict[str, Any] = {"history": [], "lastGood": []}
    person = {"promotion": {"mode": "Approval", "before": ["Training", "Canary", "Promotion"]}}
    pending = version("assistant-7", "Training", condition("Reconciling", True, "AwaitingApproval", minutes=4))
    waits = condition("Reconciling", True, "AwaitingApproval", minutes=4)
    pinned = {"serving": {"replicas": 2, "version": "assistant-6"}}
    done = run("Done", outcome="Accepted", message="assistant-7 is accepted", finishedAt=before(minutes=9))
    return {
        "approval-training": _view(cycle("Training", SERVES, spec=person, run=run("Training")), pending),
        "approval-canary": _view(cycle("Idle", SERVES, spec=person, run=run("RollingOut")), proven("Accepted", waits)),
        "approval-promotion": _view(
            cycle(
                "Canary",
                SERVES,
                spec=person,
                run=run("RollingOut"),
                serving=split(50),
                rollout=rollout("Canary", 50, GOOD, awaitingSince=before(hours=3)),
            ),
            proven("Canary"),
        ),
        "pinned": _view(cycle("Idle", SERVES, spec=pinned, run=done), proven("Accepted")),
        "unseen": View(cycle("Initializing", serving={}, observedGeneration=0, **nothing)),
        "initializing": View(
            cycle(
                "Initializing",
                condition("Ready", False, "Initializing", "assistant-0 does not answer: 0 of 2 pods ready", minutes=2),
                serving={"stable": arm("assistant-0", 100, seen=None, ready=0)},
                **nothing,
            ),
            (version("assistant-0", "Accepted", condition("Accepted", True, "Root")),),
        ),
        "idle": _view(cycle("Idle", SERVES)),
        "asked": _view(cycle("Idle", SERVES, meta={"annotations": {"ratchet.dev/run": "now"}})),
        "unread": _view(cycle("Idle", SERVES, observedGeneration=3)),
        "curating": _view(cycle("Curating", SERVES, run=run("Curating"))),
        "training": _view(cycle("Training", SERVES, working, run=run("Training")), training),
        "retrying": _view(cycle("Training", SERVES, working, run=run("Training")), retrying),
        "unschedulable": _view(cycle("Training", SERVES, unscheduled, run=run("Training")), training),
        "by-hand": _view(cycle("Idle", SERVES), hand),
        "starting": _view(
            cycle(
                "Starting",
                SERVES,
                run=run("RollingOut"),
                serving=split(0, ready=1, seen=None),
                rollout=rollout("Starting", 0, startedAt=before(minutes=10)),
            ),
            proven("Accepted"),
        ),
        "canary": _view(
            cycle(
                "Canary",
                SERVES,
                run=run("RollingOut"),
                serving=split(25),
                rollout=rollout("Canary", 25, [FEW, *GOOD[1:]]),
            ),
            proven("Canary"),
        ),
        "ab-test": _view(
            cycle(
                "Canary",
                SERVES,
                spec={"rollout": {"strategy": "abTest", "abTest": {"maxDuration": "7d"}}},
                run=run("RollingOut"),
                serving=split(50),
                rollout=rollout("Canary", 50, GOOD, abTest=TESTED),
            ),
            proven("Canary"),
        ),
        "ab-test-over": _view(
            cycle(
                "Idle",
                SERVES,
                spec={"rollout": {"strategy": "abTest", "abTest": {"maxDuration": "7d"}}},
                run=run("Done", outcome="Returned", finishedAt=before(minutes=9), message=UNPROVEN["message"]),
                rollout=rollout("Done", 0, GOOD, abTest=TESTED | INCONCLUSIVE, decision=UNPROVEN),
            ),
            proven("Accepted"),
        ),
        "unconfirmed": _view(
            cycle(
                "Canary",
                SERVES,
                run=run("RollingOut"),
                serving=split(25, seen=5),
                rollout=rollout("Canary", 25, GOOD, unconfirmedSince=before(seconds=12)),
            ),
            proven("Canary"),
        ),
        "failing": _view(
            cycle(
                "Canary",
                SERVES,
                run=run("RollingOut"),
                serving=split(25),
                rollout=rollout("Canary", 25, [GOOD[0], HARM, GOOD[2]]),
            ),
            proven("Canary"),
        ),
        "held": _view(
            cycle(
                "Held",
                SERVES,
                run=run("RollingOut"),
                serving=split(25),
                rollout=rollout("Canary", 25, [GOOD[0], BLIND, GOOD[2]], heldSince=before(minutes=5)),
            ),
            proven("Canary"),
        ),
        "suspended-canary": _view(
            cycle(
                "Canary",
                SERVES,
                spec={"suspend": True},
                run=run("RollingOut"),
                serving=split(25),
                rollout=rollout("Canary", 25, GOOD),
            ),
            proven("Canary"),
        ),
        "baking": _view(
            cycle("Baking", SERVES, run=run("RollingOut"), serving=split(100), rollout=rollout("Baking", 100, GOOD)),
            proven("Baking"),
        ),
        "rolling-back": _view(
            cycle(
                "RollingBack",
                SERVES,
                run=run("RollingOut"),
                serving=split(0, seen=25),
                rollout=rollout("RollingBack", 0, [GOOD[0], HARM, GOOD[2]], decision=DECISION),
            ),
            proven("Rejected"),
        ),
        "stable-not-ready": _view(
            cycle(
                "RollingBack",
                condition("Ready", False, "StableDegraded", "assistant-6 does not answer: 0 of 2 pods ready"),
                condition(
                    "Stalled",
                    True,
                    "StableNotReady",
                    "stable has no ready pod, so assistant-7 keeps 25 % until it has one",
                    minutes=1,
                ),
                run=run("RollingOut"),
                serving=split(25) | {"stable": arm("assistant-6", 75, ready=0)},
                rollout=rollout("RollingBack", 25, [GOOD[0], HARM, GOOD[2]], decision=DECISION),
            ),
            proven("Rejected"),
        ),
        "rolled-back": _view(
            cycle(
                "Idle",
                SERVES,
                history=[*OLD, BACK],
                rejected=REJECTED,
                run=run("Done", outcome="RolledBack", message=HARM["message"], finishedAt=before(minutes=9)),
                serving={
                    "stable": arm("assistant-6", 100),
                    "retired": [
                        {"version": "assistant-7", "deployment": "assistant-7-arm", "since": before(minutes=2)}
                    ],
                },
                rollout=rollout(
                    "Done", 0, [GOOD[0], HARM, GOOD[2]], decision=DECISION | {"at": before(minutes=9)}, settled=True
                ),
            ),
            rejected,
        ),
        "promoted": _view(
            cycle(
                "Idle",
                condition("Ready", True, "Idle", "assistant-7 serves, 2 of 2 pods ready"),
                history=[*OLD, BACK | {"outcome": "Promoted", "message": "assistant-7 is champion"}],
                run=run("Done", outcome="Promoted", message="assistant-7 is champion", finishedAt=before(minutes=9)),
                serving={"stable": arm("assistant-7", 100)},
                rollout=rollout(
                    "Done", 100, GOOD, decision=DECISION | {"outcome": "Promoted", "reason": "Promoted", "check": ""}
                ),
            ),
            proven("Serving", condition("Serving", True, "Promoted", "is the champion", minutes=9), outcome="Promoted"),
        ),
        "gate-rejected": _view(
            cycle(
                "Idle",
                SERVES,
                history=[*OLD, BACK | {"outcome": "GateRejected", "message": weak["message"]}],
                run=run("Done", outcome="GateRejected", message=weak["message"], finishedAt=before(minutes=30)),
            ),
            version(
                "assistant-7",
                "Rejected",
                weak,
                condition("Stalled", True, "NotBetter", weak["message"], minutes=30),
                condition("Accepted", False, "NotBetter", weak["message"]),
                training=TRAINING,
                evaluation=EVALUATION,
                artifacts={"adapter": {"uri": "s3://ratchet/a", "digest": digest("7")}},
                stages=[stage("train", began=110, ended=48), stage("evaluate", began=48, ended=30)],
            ),
        ),
        "skipped": _view(
            cycle(
                "Idle",
                SERVES,
                history=[
                    *OLD,
                    {
                        "version": "",
                        "run": 7,
                        "outcome": "Skipped",
                        "message": "12 good examples, at least 20",
                        "at": before(minutes=9),
                    },
                ],
                run=run(
                    "Done",
                    outcome="Skipped",
                    message="12 good examples, at least 20",
                    version=None,
                    finishedAt=before(minutes=9),
                ),
            ),
        ),
        "stalled": _view(cycle("Stalled", SERVES, STALLED_SECRET, run=run("Curating", curate=None))),
        "suspended": _view(
            cycle(
                "Suspended",
                SERVES,
                condition("Reconciling", False, "Suspended"),
                spec={"suspend": True},
                nextRunTime=None,
            )
        ),
        "degraded": _view(
            cycle(
                "Degraded",
                condition(
                    "Ready", False, "StableDegraded", "assistant-6 does not answer: 0 of 2 pods ready", minutes=3
                ),
                run=run("Done", outcome="Promoted", finishedAt=before(days=7)),
                serving={"stable": arm("assistant-6", 100, ready=0)},
            ),
        ),
    }


STATES = _states()
"""By name, the file name of the golden text."""


def changed(name: str, **status: object) -> View:
    """A state with fields of the cycle's status replaced."""
    view = STATES[name]
    cycle = view.cycle.model_copy(update={"status": view.cycle.status.model_copy(update=status)})
    return replace(view, cycle=cycle)
