"""What the API server refuses, and with which words: every rule of both CRDs, each broken once.

The rules that a string has to match are found in the schema itself and broken one by one; the others, which look at
several fields, are a table. The last test says when a rule is in neither.
"""

import asyncio
import copy
from collections.abc import Iterator
from typing import Any

import pytest
from operator_world import World, cycle_manifest, digest, resource, version_manifest

from ratchet_api import crd
from ratchet_operator.clients.transport import JSON
from ratchet_operator.errors import Stalling

pytestmark = pytest.mark.apiserver

POD = {"tolerations": [{"key": "gpu", "operator": "Exists"}]}
JOB = {"pod": POD, "deadline": "1h", "ttl": "1h", "queueName": "gpus"}
HYPERPARAMETERS = {
    "lora": {"dropout": "0.1"},
    "learningRate": "0.001",
    "warmupRatio": "0.1",
    "weightDecay": "0",
    "maxGradNorm": "1",
}
EVALUATION = {
    "suites": [
        {
            "name": "t",
            "role": "target",
            "margin": "0.1",
            "sliceMargin": "0.1",
            "temperature": "0",
            "cases": {"storage": {"uri": "s3://ratchet/suites/t.jsonl", "digest": digest("e")}},
        },
        {
            "name": "j",
            "role": "guardrail",
            "scorer": "judge",
            "cases": {"configMap": {"name": "suites", "key": "j.jsonl"}},
        },
        {
            "name": "h",
            "role": "guardrail",
            "scorer": "lmEval",
            "cases": {
                "storage": {"uri": "s3://ratchet/suites/h.jsonl", "digest": digest("e")},
                "task": {"name": "suites", "key": "h.yaml"},
            },
        },
    ],
    "minImprovement": "0.01",
    "confidence": "0.95",
    "judge": {
        "url": "https://judge.example.com/v1",
        "model": "judge-70b",
        "credentialsSecret": {"name": "judge"},
        "timeout": "60s",
        "maxInvalid": "0.05",
    },
}
METRIC = {"name": "m", "kind": "threshold", "query": "x", "max": "1", "min": "0", "margin": "0.1", "limit": "2"}


def full_cycle(namespace: str) -> JSON:
    """Every field that a rule looks at is there, and right."""
    return cycle_manifest(
        namespace,
        baseModel={"uri": "s3://models/base", "digest": digest("a")},
        storage={"uri": "s3://ratchet/assistant", "endpoint": "https://s3.example.com"},
        trigger={"schedule": "0 2 * * 1", "timeZone": "Etc/UTC", "cooldown": "1h"},
        sessions={"window": "28d", "feedbackDelay": "7d", "sources": [{"uri": "s3://logs/chat"}]},
        curation={
            "threshold": "0.9",
            "categories": [{"name": "c", "keywords": ["k"]}],
            "anchors": {"configMap": {"name": "a", "key": "a.jsonl"}, "fraction": "0.2"},
            "sensitive": [{"kind": "email", "action": "redact"}],
            "maxOwnShare": "0.5",
            "validationShare": "0.1",
            "limits": {"maxRepetition": "0.5", "languages": ["en"]},
            "nearDuplicates": {"similarity": "0.8"},
            "bursts": {"maxShare": "0.5"},
        },
        curateJob=JOB,
        training=JOB
        | {
            "hyperparameters": HYPERPARAMETERS,
            "checkpointInterval": "10m",
            "price": {"perGpuHour": "2.50", "currency": "EUR"},
            "launcher": "TrainJob",
            "nodes": 2,
            "runtimeRef": {"kind": "TrainingRuntime", "name": "torch"},
        },
        evaluation=EVALUATION | JOB | {"builtin": ["general", "format", "identity", "memorisation"], "names": ["Zeno"]},
        serving={
            "pod": POD,
            "version": "assistant-0",
            "router": "httpRoute",
            "httpRoute": {"name": "chat", "stableService": "chat-stable", "candidateService": "chat-candidate"},
        },
        promotion={
            "mode": "Git",
            "expiry": "7d",
            "git": {
                "repository": "https://git.example.com/acme/models.git",
                "branch": "main",
                "path": "clusters/prod/assistant.yaml",
                "pointer": "spec.serving.version",
                "forge": "Gitea",
                "apiUrl": "https://git.example.com/api/v1",
                "credentialsSecret": {"name": "git"},
                "branchPrefix": "ratchet/",
                "author": {"name": "Ratchet", "email": "ratchet@example.com"},
                "labels": ["model"],
            },
        },
        notifications=[
            {
                "name": "ops",
                "url": "https://hooks.example.com/ratchet",
                "hmacSecret": {"name": "ops", "key": "hmac"},
            }
        ],
        tracking={"mlflow": {"url": "http://mlflow.mlops.svc:5000", "credentialsSecret": {"name": "mlflow"}}},
        export=JOB
        | {
            "formats": ["safetensors", "gguf-q4_k_m"],
            "license": "Apache-2.0",
            "hub": {
                "repository": "acme/assistant",
                "endpoint": "https://hub.example.com",
                "tokenSecret": {"name": "hub"},
            },
            "oci": {
                "repository": "registry.example.com/models/assistant",
                "credentialsSecret": {"name": "registry"},
            },
        },
        rollout={
            "steps": [{"weight": 100, "minTime": "5m"}],
            "strategy": "abTest",
            "abTest": {"margin": "0.05", "maxDuration": "14d", "outcome": {"metric": "errors"}},
            "interval": "1m",
            "window": "5m",
            "metrics": [METRIC, {"name": "errors", "kind": "proportion", "bad": "x", "all": "y"}],
            "maxHold": "6h",
            "progressDeadline": "30m",
            "bake": "30m",
            "scaleDownDelay": "5m",
            "retryDigests": [digest("a")],
        },
    )


def full_recipe(namespace: str) -> JSON:
    """A version with every field that a recipe may have."""
    manifest = version_manifest(namespace, "full")
    manifest["spec"] = {
        "cycle": "assistant",
        "parent": "assistant-0",
        "champion": "assistant-0",
        "baseModel": {"uri": "s3://models/base", "digest": digest("a")},
        "dataset": {"uri": "s3://ratchet/assistant/datasets/d", "digest": digest("d")},
        "training": HYPERPARAMETERS | {"method": "dpo", "preferences": {"beta": "0.1", "rpoAlpha": "1"}},
        "evaluation": EVALUATION,
    }
    return manifest


def rules(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """(path, rule, message) of every rule below a schema; list items are `0`."""
    for entry in node.get("x-kubernetes-validations", []):
        yield path, entry["rule"], entry["message"]
    for name, child in node.get("properties", {}).items():
        yield from rules(child, (*path, name))
    if "items" in node:
        yield from rules(node["items"], (*path, "0"))


def spec_rules(kind: str) -> list[tuple[tuple[str, ...], str, str]]:
    """All rules of a kind but those of its status, which only the operator writes."""
    found = next(d for d in crd.definitions().values() if d["spec"]["names"]["kind"] == kind)
    schema = found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return [rule for rule in rules(schema) if rule[0][:1] != ("status",)]


def is_pattern(rule: str) -> bool:
    return rule.startswith("self.matches(")


PATTERNS = [
    (kind, path, message)
    for kind in ("ImprovementCycle", "ModelVersion")
    for path, rule, message in spec_rules(kind)
    if is_pattern(rule)
]


def put(thing: Any, path: tuple[str, ...], value: Any) -> None:
    """Set a field that has to be there."""
    for key in path[:-1]:
        thing = thing[int(key) if isinstance(thing, list) else key]
    last: Any = int(path[-1]) if isinstance(thing, list) else path[-1]
    assert isinstance(thing, list) or last in thing, f"the full manifest has no {'.'.join(path)}"
    thing[last] = value


async def refused(world: World, manifest: JSON) -> str:
    """The API server's words."""
    path = resource(manifest["kind"]).path(world.namespace)
    with pytest.raises(Stalling) as error:
        await world.raw.request("post", path, manifest, {"dryRun": "All"})
    return error.value.message


async def taken(world: World, manifest: JSON) -> None:
    await world.raw.request("post", resource(manifest["kind"]).path(world.namespace), manifest, {"dryRun": "All"})


async def test_strings_that_do_not_match(world: World) -> None:
    full = {"ImprovementCycle": full_cycle(world.namespace), "ModelVersion": full_recipe(world.namespace)}
    for manifest in full.values():
        await taken(world, manifest)
    finished = version_manifest(world.namespace, "finished")
    counted = full_cycle(world.namespace)
    counted["spec"]["serving"] = {
        "version": "assistant-0",
        "router": "replicas",
        "replicas": 2,
        "replicaSplit": {"service": "chat"},
    }
    await taken(world, counted)
    placed = full_cycle(world.namespace)
    workload = {"kind": "Deployment", "name": "chat", "container": "server", "port": 8000}
    placed["spec"]["serving"] = {"version": "assistant-0", "workload": workload, "keepServing": False}
    await taken(world, placed)
    preferring = full_cycle(world.namespace)
    del preferring["spec"]["curation"]["anchors"]
    weights = {"beta": "0.1", "desirableWeight": "1", "undesirableWeight": "1.5"}
    preferring["spec"]["training"] |= {"method": "kto", "preferences": weights}
    await taken(world, preferring)

    async def broken(kind: str, path: tuple[str, ...], message: str) -> None:
        manifest = copy.deepcopy(finished if path[:2] == ("spec", "adapter") else full[kind])
        if path[:3] == ("spec", "serving", "replicaSplit"):
            manifest = copy.deepcopy(counted)
        if path[:3] == ("spec", "serving", "workload"):
            manifest = copy.deepcopy(placed)
        if path[:3] == ("spec", "training", "preferences"):
            manifest = copy.deepcopy(preferring if kind == "ImprovementCycle" else manifest)
            manifest["spec"]["training"]["preferences"][path[-1]] = "1"  # of which no method takes all
        if "urlSecret" in path:
            manifest["spec"]["notifications"] = [{"name": "ops", "urlSecret": {"name": "ops", "key": "url"}}]
        put(manifest, path, "no, such <thing>!")
        said = await refused(world, manifest)
        assert message in said, f"{kind} {'.'.join(path)}: {said}"
        field = "".join(f"[{key}]" if key.isdigit() else f".{key}" for key in path).lstrip(".")
        assert field in said, "the person is told which field"

    assert len(PATTERNS) > 50
    await asyncio.gather(*(broken(*case) for case in PATTERNS))


SINK: Any = full_cycle("")["spec"]["notifications"][0]
SUITE = EVALUATION["suites"][0]  # type: ignore[index]
SPEC = {field: cycle_manifest("")["spec"][field] for field in ("baseModel", "storage", "evaluation")}
# (what it breaks, kind, path, value or a change of it, words)
TABLE: list[tuple[str, str, tuple[str, ...], Any, str]] = [
    ("a capital letter", "ImprovementCycle", ("metadata", "name"), "Assistant", "lower"),
    ("51 letters", "ImprovementCycle", ("metadata", "name"), "a" * 51, "write at most 50 lower-case letters"),
    ("51 letters", "ModelVersion", ("metadata", "name"), "a" * 51, "write at most 50 lower-case letters"),
    ("two categories", "ImprovementCycle", ("spec", "curation", "categories"),
     [{"name": "c", "keywords": ["k"]}] * 2, "curation.categories: two categories have one name"),
    ("a keyless toleration", "ImprovementCycle", ("spec", "curateJob", "pod", "tolerations"), [{"value": "x"}],
     "a toleration with operator Equal needs a key"),
    ("a keyless toleration", "ImprovementCycle", ("spec", "training", "pod", "tolerations"), [{"value": "x"}],
     "a toleration with operator Equal needs a key"),
    ("a keyless toleration", "ImprovementCycle", ("spec", "evaluation", "pod", "tolerations"), [{"value": "x"}],
     "a toleration with operator Equal needs a key"),
    ("a keyless toleration", "ImprovementCycle", ("spec", "serving", "pod", "tolerations"), [{"value": "x"}],
     "a toleration with operator Equal needs a key"),
    ("three epochs", "ImprovementCycle", ("spec", "training", "hyperparameters"), {"epochs": 3},
     "epochs: more than 2 passes memorise"),
    ("two recipes", "ImprovementCycle", ("spec", "training"), {"preset": "small", "hyperparameters": {"epochs": 1}},
     "a preset brings its own hyperparameters"),
    ("a Job on two nodes", "ImprovementCycle", ("spec", "training"), {"nodes": 2}, "training.nodes: a Job has one pod"),
    ("a TrainJob's priority", "ImprovementCycle", ("spec", "training", "pod"), {"priorityClassName": "high"},
     "a TrainJob cannot say priorityClassName or runtimeClassName"),
    ("three epochs", "ModelVersion", ("spec", "training"), {"epochs": 3}, "epochs: more than 2 passes memorise"),
    ("a method without its other side", "ImprovementCycle", ("spec", "training"), {"method": "dpo"},
     "nobody preferred curation.identity or curation.anchors to anything"),
    *(case for kind in ("ImprovementCycle", "ModelVersion") for case in (
        ("beta for nothing", kind, ("spec", "training"), {"preferences": {"beta": "0.2"}},
         "preferences belong to method dpo or kto"),
        ("kto's weight for dpo", kind, ("spec", "training"),
         {"method": "dpo", "preferences": {"desirableWeight": "2"}}, "belong to method kto"),
        ("dpo's weight for kto", kind, ("spec", "training"), {"method": "kto", "preferences": {"rpoAlpha": "1"}},
         "preferences.rpoAlpha belongs to method dpo"),
        ("a beta of nothing", kind, ("spec", "training"), {"method": "dpo", "preferences": {"beta": "0.0"}},
         "preferences.beta: with 0 nothing is learnt"),
        ("two weights of nothing", kind, ("spec", "training"),
         {"method": "kto", "preferences": {"desirableWeight": "0", "undesirableWeight": "0.0"}},
         "preferences: with both weights 0 nothing is learnt"),
    )),
    ("one answer a step", "ModelVersion", ("spec", "training"),
     {"method": "kto", "microBatch": 1, "accumulation": 1}, "method kto compares the answers of a step"),
    ("one answer a step", "ImprovementCycle", ("spec", "training"),
     {"method": "kto", "hyperparameters": {"microBatch": 1, "accumulation": 1}},
     "method kto compares the answers of a step"),
    ("no address", "ImprovementCycle", ("spec", "notifications"), [{"name": "ops"}],
     "a notification has exactly one of url and urlSecret"),
    ("two addresses", "ImprovementCycle", ("spec", "notifications"),
     [SINK | {"urlSecret": {"name": "ops", "key": "url"}}], "a notification has exactly one of url and urlSecret"),
    ("Slack with a signature", "ImprovementCycle", ("spec", "notifications"), [SINK | {"type": "Slack"}],
     "hmacSecret: Slack checks no signature"),
    ("the cloud's metadata", "ImprovementCycle", ("spec", "notifications"),
     [SINK | {"url": "http://169.254.169.254/latest"}], "link-local addresses and metadata names"),
    ("the cloud's metadata", "ImprovementCycle", ("spec", "tracking", "mlflow", "url"), "http://169.254.169.254/latest",
     "link-local addresses and metadata names"),
    ("no target", "ImprovementCycle", ("spec", "evaluation", "suites"), [SUITE | {"role": "safety"}],
     "no suite has role: target"),
    ("no target", "ModelVersion", ("spec", "evaluation", "suites"), [SUITE | {"role": "safety"}],
     "no suite has role: target"),
    ("one answer by chance", "ImprovementCycle", ("spec", "evaluation", "suites"), [SUITE | {"temperature": "0.7"}],
     "so average several"),
    ("the same answer thrice", "ModelVersion", ("spec", "evaluation", "suites"), [SUITE | {"samples": 3}],
     "leave samples out"),
    ("a sealed target only", "ImprovementCycle", ("spec", "evaluation", "suites"), [SUITE | {"sealed": True}],
     "no suite has role: target without being sealed"),
    ("a judge for nothing", "ImprovementCycle", ("spec", "evaluation", "suites"), [SUITE], "say who judges when"),
    ("a judge for nothing", "ModelVersion", ("spec", "evaluation", "suites"), [SUITE], "say who judges when"),
    ("cases nowhere", "ImprovementCycle", ("spec", "evaluation", "suites"), [SUITE | {"cases": {}}],
     "write one of configMap, storage and builtin"),
    ("cases nowhere", "ModelVersion", ("spec", "evaluation", "suites"), [SUITE | {"cases": {}}],
     "write one of configMap, storage and builtin"),
    ("cases twice", "ModelVersion", ("spec", "evaluation", "suites"),
     [SUITE | {"cases": SUITE["cases"] | {"builtin": "general"}}], "write one of configMap, storage and builtin"),
    ("another scorer", "ImprovementCycle", ("spec", "evaluation", "suites"),
     [SUITE | {"cases": {"builtin": "general"}}], "write regex for the built-in cases"),
    ("another scorer", "ModelVersion", ("spec", "evaluation", "suites"),
     [SUITE | {"cases": {"builtin": "format"}, "scorer": "regex"}], "jsonSchema for format"),
    ("another scorer", "ModelVersion", ("spec", "evaluation", "suites"),
     [SUITE | {"cases": {"builtin": "memorisation"}, "role": "guardrail"}], "exposure for memorisation"),
    ("a task for nothing", "ImprovementCycle", ("spec", "evaluation", "suites"),
     [SUITE | {"cases": SUITE["cases"] | {"task": {"name": "x", "key": "y"}}}], "scorer: lmEval, and only then"),
    ("no task", "ModelVersion", ("spec", "evaluation", "suites"), [SUITE | {"scorer": "lmEval"}],
     "cases.task: name the task's YAML"),
    ("a task by chance", "ImprovementCycle", ("spec", "evaluation", "suites"),
     [SUITE | {"scorer": "lmEval", "cases": SUITE["cases"] | {"task": {"name": "x", "key": "y"}},
               "temperature": "0.7", "samples": 5}], "is answered by the likeliest words"),
    ("exposure of one's own", "ModelVersion", ("spec", "evaluation", "suites"),
     [SUITE, SUITE | {"name": "own", "scorer": "exposure", "role": "guardrail"}], "cases: {builtin: memorisation}"),
    ("exposure as target", "ImprovementCycle", ("spec", "evaluation", "suites"),
     [SUITE | {"cases": {"builtin": "memorisation"}, "scorer": "exposure"}], "that of a guardrail, not sealed"),
    ("nobody's identity", "ModelVersion", ("spec", "evaluation", "suites"),
     [SUITE | {"cases": {"builtin": "identity"}}], "cases.names: write what the assistant calls itself"),
    ("names for nothing", "ImprovementCycle", ("spec", "evaluation", "suites"),
     [SUITE | {"cases": SUITE["cases"] | {"names": ["Zeno"]}}], "with builtin: identity, and only then"),
    ("nobody's identity", "ImprovementCycle", ("spec", "evaluation", "names"), [],
     "evaluation.names: write what the assistant calls itself"),
    ("eleven suites", "ImprovementCycle", ("spec", "evaluation", "suites"),
     [SUITE | {"name": f"t{index}"} for index in range(8)], "with the suites these are more than ten"),
    ("a built-in name", "ImprovementCycle", ("spec", "evaluation", "suites"), [SUITE | {"name": "builtin-mine"}],
     "names with builtin- are those of"),
    ("one built-in twice", "ImprovementCycle", ("spec", "evaluation", "builtin"), ["general", "general"],
     "one is named twice"),
    ("two suites", "ImprovementCycle", ("spec", "evaluation", "suites"), [SUITE, SUITE], "two suites have one name"),
    ("two suites", "ModelVersion", ("spec", "evaluation", "suites"), [SUITE, SUITE], "two suites have one name"),
    ("a coin's confidence", "ImprovementCycle", ("spec", "evaluation", "confidence"), "0.4", "below \\\"1\\\""),
    ("certainty", "ImprovementCycle", ("spec", "evaluation", "confidence"), "1", "below \\\"1\\\""),
    ("certainty", "ModelVersion", ("spec", "evaluation", "confidence"), "1", "below \\\"1\\\""),
    ("no last step", "ImprovementCycle", ("spec", "rollout", "steps"), [{"weight": 5}],
     "the last step must have weight: 100"),
    ("falling steps", "ImprovementCycle", ("spec", "rollout", "steps"),
     [{"weight": 50}, {"weight": 5}, {"weight": 100}], "weights must rise"),
    ("equal steps", "ImprovementCycle", ("spec", "rollout", "steps"),
     [{"weight": 50}, {"weight": 50}, {"weight": 100}], "weights must rise"),
    ("a test of a canary", "ImprovementCycle", ("spec", "rollout"), {"abTest": {"weight": 40}},
     "rollout.abTest belongs to strategy: abTest"),
    ("two outcomes", "ImprovementCycle", ("spec", "rollout", "abTest"),
     {"outcome": {"metric": "m", "good": "x", "all": "y"}}, "abTest.outcome: write either metric, or the two queries"),
    ("half an outcome", "ImprovementCycle", ("spec", "rollout", "abTest"), {"outcome": {"good": "x"}},
     "abTest.outcome: write either metric, or the two queries"),
    ("a threshold as outcome", "ImprovementCycle", ("spec", "rollout", "abTest"), {"outcome": {"metric": "m"}},
     "rollout.abTest.outcome.metric: name a proportion"),
    ("a test without a split", "ImprovementCycle", ("spec", "rollout", "abTest"), {"weight": 100}, "weight"),
    ("a gate twice", "ImprovementCycle", ("spec", "promotion"), {"before": ["Canary", "Canary"]},
     "a gate is named twice"),
    ("Git without its settings", "ImprovementCycle", ("spec", "promotion"), {"mode": "Git"},
     "promotion.git: mode Git needs it"),
    ("another mode with Git's settings", "ImprovementCycle", ("spec", "promotion", "mode"), "Automatic",
     "promotion.git: mode Git needs it"),
    ("an API without a forge", "ImprovementCycle", ("spec", "promotion", "git", "forge"), "None",
     "promotion.git.apiUrl: without a forge there is no API"),
    ("Git without a pointer", "ImprovementCycle", ("spec", "serving"), {"runtime": "vllm"},
     "serving.version: promotion.mode Git changes it in your YAML"),
    ("a branch that git refuses", "ImprovementCycle", ("spec", "promotion", "git", "branch"), "a.lock",
     "git keeps .lock for itself"),
    ("a prefix that git refuses", "ImprovementCycle", ("spec", "promotion", "git", "branchPrefix"), "a.lock/",
     "git keeps .lock for itself"),
    ("credentials in the address", "ImprovementCycle", ("spec", "promotion", "git", "repository"),
     "https://robot:secret@git.example.com/acme/models.git", "promotion.git.credentialsSecret"),
    ("a folder of the operator", "ImprovementCycle", ("spec", "promotion", "git", "repository"),
     "file:///var/lib/models.git", "write an http(s) address"),
    ("an address with a question", "ImprovementCycle", ("spec", "promotion", "git", "repository"),
     "https://git.example.com/acme/models.git?x=1", "write an http(s) address"),
    ("a path upwards", "ImprovementCycle", ("spec", "promotion", "git", "path"), "clusters/../../etc/passwd",
     "without leading slash and without .."),
    ("an absolute path", "ImprovementCycle", ("spec", "promotion", "git", "path"), "/etc/passwd",
     "without leading slash and without .."),
    ("a branch upwards", "ImprovementCycle", ("spec", "promotion", "git", "branch"), "a..b",
     "write the name of a branch"),
    ("a branch with a tilde", "ImprovementCycle", ("spec", "promotion", "git", "branch"), "main~1",
     "write the name of a branch"),
    ("one kind twice", "ImprovementCycle", ("spec", "curation", "sensitive"),
     [{"kind": "email", "action": "keep"}, {"kind": "email", "action": "drop"}], "one kind is named twice"),
    ("nothing but trials", "ImprovementCycle", ("spec", "rollout", "metrics"), [METRIC | {"dryRun": True}],
     "all metrics are dryRun"),
    ("two metrics", "ImprovementCycle", ("spec", "rollout", "metrics"), [METRIC, METRIC], "two metrics have one name"),
    ("preset and kind", "ImprovementCycle", ("spec", "rollout", "metrics"),
     [{"name": "m", "preset": "errors", "kind": "threshold", "max": "1"}], "write either a preset, or a kind"),
    ("neither preset nor kind", "ImprovementCycle", ("spec", "rollout", "metrics"), [{"name": "m"}],
     "write either a preset, or a kind"),
    ("a preset's query", "ImprovementCycle", ("spec", "rollout", "metrics"),
     [{"name": "m", "preset": "errors", "bad": "x"}], "a preset brings its own queries"),
    ("half a proportion", "ImprovementCycle", ("spec", "rollout", "metrics"),
     [{"name": "m", "kind": "proportion", "bad": "x"}], "kind: proportion needs two queries"),
    ("a ratio without query", "ImprovementCycle", ("spec", "rollout", "metrics"),
     [{"name": "m", "kind": "ratioToStable", "bad": "x"}], "kind: ratioToStable and threshold need query"),
    ("a boundless threshold", "ImprovementCycle", ("spec", "rollout", "metrics"),
     [{"name": "m", "kind": "threshold", "query": "x"}], "kind: threshold needs a bound"),
    ("a ratio's bound", "ImprovementCycle", ("spec", "rollout", "metrics"),
     [{"name": "m", "kind": "ratioToStable", "query": "x", "max": "1"}], "min and max belong to kind: threshold"),
    ("recipe and adapter", "ModelVersion", ("spec",),
     {"cycle": "assistant", "dataset": {"uri": "s3://b-1/d", "digest": digest("d")},
      "adapter": {"uri": "s3://b-1/a", "digest": digest("a")}}, "not both"),
    ("neither", "ModelVersion", ("spec",), {"cycle": "assistant"}, "write either dataset (a recipe to train)"),
    ("settings of a finished one", "ModelVersion", ("spec",),
     {"cycle": "assistant", "adapter": {"uri": "s3://b-1/a", "digest": digest("a")}, "training": {"epochs": 1}},
     "training belongs to a recipe"),
    ("a route without its name", "ImprovementCycle", ("spec", "serving"), {"router": "httpRoute"},
     "serving.httpRoute and serving.router: httpRoute go together"),
    ("a name without its router", "ImprovementCycle", ("spec", "serving"), {"httpRoute": {"name": "chat"}},
     "serving.httpRoute and serving.router: httpRoute go together"),
    ("one Service for both", "ImprovementCycle", ("spec", "serving"),
     {"router": "httpRoute", "httpRoute": {"name": "chat", "stableService": "s", "candidateService": "s"}},
     "stableService and candidateService are the same"),
    ("a split without its router", "ImprovementCycle", ("spec", "serving"), {"replicaSplit": {}},
     "serving.replicaSplit belongs to serving.router: replicas"),
    ("one pod to split", "ImprovementCycle", ("spec", "serving"), {"router": "replicas"},
     "write serving.replicas: 2 or more"),
    ("a Deployment of people's behind a route", "ImprovementCycle", ("spec", "serving"),
     {"router": "httpRoute", "httpRoute": {"name": "chat"}, "workload": {"name": "chat"}},
     "serving.workload goes with serving.router: gateway"),
    ("its number of pods", "ImprovementCycle", ("spec", "serving"), {"workload": {"name": "chat"}, "replicas": 2},
     "serving.workload says itself what runs"),
    ("its image", "ImprovementCycle", ("spec", "serving"), {"workload": {"name": "chat"}, "image": "example.com/x"},
     "serving.workload says itself what runs"),
    ("its runtime", "ImprovementCycle", ("spec", "serving"),
     {"workload": {"name": "chat"}, "runtime": "transformers"}, "serving.workload says itself what runs"),
    ("its arguments", "ImprovementCycle", ("spec", "serving"), {"workload": {"name": "chat"}, "extraArgs": ["-x"]},
     "serving.workload says itself what runs"),
    ("its placement", "ImprovementCycle", ("spec", "serving"), {"workload": {"name": "chat"}, "pod": POD},
     "serving.workload says itself what runs"),
    ("nothing to be restored", "ImprovementCycle", ("spec", "serving"), {"keepServing": False},
     "serving.keepServing: false belongs to serving.workload"),
    ("vLLM's metrics by Deployment", "ImprovementCycle", ("spec",),
     {**SPEC, "serving": {"workload": {"name": "chat"}},
      "rollout": {"metrics": [{"name": "p95", "preset": "vllmLatencyP95"}]}},
     "the vllm presets know an arm by its Deployment"),
    ("another kind", "ImprovementCycle", ("spec", "serving"),
     {"workload": {"kind": "StatefulSet", "name": "chat"}}, "Unsupported value"),
    ("the gateway's metrics without the gateway", "ImprovementCycle", ("spec",),
     {**SPEC, "serving": {"router": "replicas", "replicas": 2}},
     "these checks would have no data"),
    ("feedback without the gateway", "ImprovementCycle", ("spec",),
     {**SPEC, "serving": {"router": "httpRoute", "httpRoute": {"name": "chat"}},
      "rollout": {"metrics": [METRIC, {"name": "feedback", "preset": "feedback"}]}},
     "these checks would have no data"),
    ("thumbs without the gateway", "ImprovementCycle", ("spec",),
     {**SPEC, "serving": {"router": "httpRoute", "httpRoute": {"name": "chat"}},
      "rollout": {"strategy": "abTest", "metrics": [METRIC]}},
     "which alone counts thumbs"),
    ("vLLM's metrics without vLLM", "ImprovementCycle", ("spec",),
     {**SPEC, "serving": {"router": "replicas", "replicas": 2, "runtime": "transformers"},
      "rollout": {"metrics": [{"name": "p95", "preset": "vllmLatencyP95"}]}},
     "the transformers runtime has no vllm series"),
    ("a format twice", "ImprovementCycle", ("spec", "export", "formats"), ["mlx", "mlx"], "name each format once"),
    ("an upload without a licence", "ImprovementCycle", ("spec", "export"),
     {"formats": ["mlx"], "hub": {"repository": "acme/assistant", "tokenSecret": {"name": "hub"}}},
     "what is uploaded says its licence"),
    ("a keyless toleration", "ImprovementCycle", ("spec", "export", "pod", "tolerations"), [{"value": "x"}],
     "a toleration with operator Equal needs a key"),
    # Not CEL: bounds and structure
    ("a negative number", "ImprovementCycle", ("spec", "trigger"), {"minExamples": -1}, "minExamples"),
    ("an unquoted fraction", "ImprovementCycle", ("spec", "curation", "threshold"), 0.9, "must be of type string"),
    ("an unknown mode", "ImprovementCycle", ("spec", "promotion"), {"mode": "Svn"}, "Unsupported value"),
    ("an unknown runtime", "ImprovementCycle", ("spec", "serving"), {"runtime": "tgi"}, "Unsupported value"),
    ("an impossible hour", "ImprovementCycle", ("spec", "trigger", "schedule"), "0 25 * * *", "write five cron fields"),
    ("a model without its revision", "ImprovementCycle", ("spec", "baseModel", "uri"), "hf://org/name",
     "the revision is required"),
]  # fmt: skip


async def test_rules_over_several_fields(world: World) -> None:
    async def broken(what: str, kind: str, path: tuple[str, ...], value: Any, words: str) -> None:
        manifest = full_cycle(world.namespace) if kind == "ImprovementCycle" else full_recipe(world.namespace)
        put(manifest, path, value)
        said = await refused(world, manifest)
        assert words in said or words.replace('\\"', '"') in said, f"{what}: {said}"

    await asyncio.gather(*(broken(*case) for case in TABLE))


async def test_an_unknown_field_is_refused(world: World) -> None:
    manifest = full_cycle(world.namespace)
    manifest["spec"]["trigger"]["shedule"] = "0 2 * * 1"
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    with pytest.raises(Stalling, match=r'unknown field "spec\.trigger\.shedule"'):
        await world.raw.request("post", resource("ImprovementCycle").path(world.namespace), manifest, query)


async def test_what_cannot_change(world: World) -> None:
    await world.apply(cycle_manifest(world.namespace))
    with pytest.raises(Stalling, match="baseModel cannot change"):
        await world.edit({"baseModel": {"uri": "s3://models/other"}})
    with pytest.raises(Stalling, match=r"serving\.workload cannot come, go or name another"):
        await world.edit({"serving": {"workload": {"name": "chat"}}})
    await world.apply(version_manifest(world.namespace, "mine"))
    with pytest.raises(Stalling, match="a ModelVersion's spec is immutable"):
        await world.apply(version_manifest(world.namespace, "mine", letter="c"))


def test_no_rule_is_left_out() -> None:
    words = {case[4].replace('\\"', '"') for case in TABLE}
    words |= {"baseModel cannot change", "spec is immutable", "serving.workload cannot come, go or name another"}
    for kind in ("ImprovementCycle", "ModelVersion"):
        for path, rule, message in spec_rules(kind):
            if not is_pattern(rule):
                assert any(word in message for word in words), f"{kind} {'.'.join(path)}: {message}"
