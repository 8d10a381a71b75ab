"""Argo CD's health checks and actions, run by Lua over every state, held against what `ratchet` itself would do.

UPDATE_GOLDEN=1 writes the fixtures and the expectations in the layout of argo-cd's resource_customizations anew.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.version import ModelVersion
from ratchet_cli.oncall import actions, pointing
from ratchet_cli.oncall.actions import Create, Patch, Plan
from ratchet_cli.oncall.errors import Refused
from ratchet_cli.oncall.view import View

from .lua import LuaError, healed, merge_patch, run
from .states import CYCLES, VERSIONS, VIEWS, document, subjects

FOLDER = Path(__file__).resolve().parents[2] / "integrations/argocd/resource_customizations/ratchet.dev"
STATES: dict[str, dict[str, Any]] = {"ImprovementCycle": CYCLES, "ModelVersion": VERSIONS}
EVERY = [(kind, name) for kind, states in STATES.items() for name in states]
STAMP = "argocd-77"


def text(kind: str, *path: str) -> str:
    return (FOLDER / kind).joinpath(*path).read_text()


def health(found: dict[str, Any]) -> dict[str, str]:
    told: dict[str, str] = run(text(found["kind"], "health.lua"), found)
    return told


def discovered(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    told: dict[str, dict[str, Any]] = run(text(found["kind"], "actions", "discovery.lua"), found)
    return told


def enabled(found: dict[str, Any]) -> set[str]:
    return {name for name, action in discovered(found).items() if not action["disabled"]}


def acted(found: dict[str, Any], action: str, **parameters: str) -> Any:
    return healed(run(text(found["kind"], "actions", action, "action.lua"), found, parameters), found)


def state(kind: str, name: str) -> dict[str, Any]:
    return document(STATES[kind][name])


# Files


def dump(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000)


EXAMPLES = {
    "ImprovementCycle": {
        "run": "idle", "retry": "rolled-back", "abort": "canary", "pause": "idle", "resume": "suspended-canary",
        "promote": "pinned", "rollback": "promoted", "unpin": "pinned", "unlock": "rolled-back",
    },
    "ModelVersion": {"approve": "approval-canary", "retry": "rolled-back"},
}  # fmt: skip
PARAMETERS = {"promote": {"version": "assistant-7"}}


def action_output(kind: str, action: str, name: str) -> Any:
    """The file with what an action makes of a fixture, in the form that argo-cd's test reads."""
    made = acted(state(kind, name), action, **PARAMETERS.get(action, {}))
    if isinstance(made, list):
        return [{"k8sOperation": one["operation"], "unstructuredObj": one["resource"]} for one in made]
    return made


def expected_files(kind: str) -> dict[str, str]:
    """Path below the kind's folder -> text, of everything that is generated there."""
    files: dict[str, str] = {}
    healths, discoveries, made = [], [], []
    for name in STATES[kind]:
        found = state(kind, name)
        files[f"testdata/{name}.yaml"] = dump(found)
        healths.append({"inputPath": f"testdata/{name}.yaml", "healthStatus": health(found)})
        result = [
            {"name": action}
            | ({"disabled": True} if entry["disabled"] else {})
            | {"iconClass": entry["iconClass"], "displayName": entry["displayName"]}
            | ({"params": [{"name": one["name"]} for one in entry["params"]]} if "params" in entry else {})
            for action, entry in sorted(discovered(found).items())
        ]
        discoveries.append({"inputPath": f"../testdata/{name}.yaml", "result": result})
    for action, name in EXAMPLES[kind].items():
        output = f"testdata/{name}-{action}.yaml"
        files[f"actions/{output}"] = dump(action_output(kind, action, name))
        test = {"action": action, "inputPath": f"../testdata/{name}.yaml", "expectedOutputPath": output}
        made.append(test | ({"parameters": PARAMETERS[action]} if action in PARAMETERS else {}))
    files["health_test.yaml"] = dump({"tests": healths})
    files["actions/action_test.yaml"] = dump({"discoveryTests": discoveries, "actionTests": made})
    return files


@pytest.mark.parametrize("kind", STATES)
def test_fixtures_are_what_the_operator_writes(kind: str) -> None:
    expected, base = expected_files(kind), FOLDER / kind
    if os.environ.get("UPDATE_GOLDEN"):
        for old in base.rglob("*.yaml"):
            old.unlink()
        for path, content in expected.items():
            (base / path).parent.mkdir(parents=True, exist_ok=True)
            (base / path).write_text(content)
    there = {str(file.relative_to(base)): file.read_text() for file in base.rglob("*.yaml")}
    assert sorted(there) == sorted(expected), "UPDATE_GOLDEN=1, and read the difference"
    assert [path for path in expected if there[path] != expected[path]] == [], (
        "UPDATE_GOLDEN=1, and read the difference"
    )


@pytest.mark.parametrize("kind", STATES)
def test_every_action_has_its_script_and_its_example(kind: str) -> None:
    scripts = {file.parent.name for file in (FOLDER / kind / "actions").glob("*/action.lua")}
    assert scripts == set(discovered(state(kind, next(iter(STATES[kind]))))) == set(EXAMPLES[kind])


# Health


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_health_of_every_state(kind: str, name: str) -> None:
    found = state(kind, name)
    told = health(found)
    assert told["status"] in ("Healthy", "Progressing", "Degraded", "Suspended")
    assert told["message"]
    assert health(document(STATES[kind][name], defaults=True)) == told, "the CRD's defaults change nothing"
    conditions = {entry["type"]: entry for entry in found["status"].get("conditions", [])}
    if not conditions:
        assert told["status"] == "Progressing"
    elif conditions["Stalled"]["status"] == "True":
        assert told["status"] in ("Degraded", "Suspended")
        assert told["message"].startswith(f"{conditions['Stalled']['reason']}: {conditions['Stalled']['message']}")
    if told["status"] == "Healthy":
        assert conditions["Ready"]["status"] == "True"


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("unseen", "Progressing", "no operator"),
        ("unread", "Progressing", "has not read the latest change"),
        ("initializing", "Progressing", "Initializing: assistant-0 does not answer"),
        ("idle", "Healthy", "assistant-6 serves, 2 of 2 pods ready"),
        ("training", "Healthy", "assistant-6 serves, 2 of 2 pods ready; run 7 is training"),
        ("unschedulable", "Progressing", "Unschedulable: no node takes pod x"),
        ("canary", "Progressing", "25 % of the sessions: feedback ok, errors ok, p95 ok; Unknown, feedback: waits for"),
        ("failing", "Progressing", "Fail, errors: 5xx 12.0 % (n 320) vs 0.2 % stable"),
        ("held", "Suspended", "Held: assistant-7 stays at 25 %: errors: candidate: Prometheus does not answer"),
        ("approval-promotion", "Suspended", "AwaitingApproval: assistant-7 stays at 50 % until a person approves"),
        ("suspended-canary", "Suspended", "spec.suspend is true"),
        ("suspended", "Suspended", "spec.suspend is true"),
        ("rolling-back", "Progressing", "CheckFailed: assistant-7: errors: 5xx 12.0 %"),
        ("rolled-back", "Healthy", "run 7 ended as RolledBack: errors: 5xx 12.0 %"),
        ("stable-not-ready", "Degraded", "StableNotReady: stable has no ready pod"),
        ("crashed-canary", "Degraded", "StableDegraded: assistant-6 does not answer"),
        ("degraded", "Degraded", "StableDegraded: assistant-6 does not answer"),
        ("partly-ready", "Progressing", "1 of 2 pods ready"),
        ("stalled", "Degraded", "there is no Secret storage in namespace chat; assistant-6 serves"),
        ("pointer-rolled-back", "Degraded", "RolledBackPendingGit: serving.version: assistant-7 is rejected"),
        ("pointer-evaluating", "Progressing", "serving.version names assistant-7, and assistant-6 serves"),
        ("pointer-approval", "Suspended", "AwaitingApproval: assistant-7 waits for a person before its canary"),
        ("pointer-followed", "Healthy", "assistant-7 serves"),
    ],
)
def test_health_of_a_cycle_in_words(name: str, status: str, words: str) -> None:
    told = health(state("ImprovementCycle", name))
    assert told["status"] == status
    assert words in told["message"]


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("unseen", "Progressing", "no operator"),
        ("training", "Progressing", "step 40 of 155, loss 0.82"),
        ("retrying", "Progressing", "OutOfMemory: train: killed at 24 GiB"),
        ("approval-training", "Suspended", "ratchet.dev/approve-training=sha256:ddd"),
        ("approval-promotion", "Suspended", "ratchet.dev/approve-promotion=sha256:777"),
        ("approval-expired", "Suspended", "ApprovalExpired: nobody approved within 7d"),
        ("pinned", "Suspended", "AwaitingPointer: accepted; serving.version names assistant-6"),
        ("canary", "Progressing", "target +6.2 (p 0.003), guardrail -0.4 ok"),
        ("champion", "Healthy", "Serving: is the champion"),
        ("base-superseded", "Healthy", "Superseded: a newer champion serves"),
        ("rolled-back", "Degraded", "CheckFailed: errors: 5xx 12.0 %"),
        ("gate-rejected", "Degraded", "NotBetter: house-rules +0.3 points"),
        ("hold-expired", "Degraded", "HoldExpired: held for 6h"),
        ("training-failed", "Degraded", "UserError: train: training.microBatch"),
        ("already-rejected", "Degraded", "AlreadyRejected: this adapter was rejected as assistant-7"),
    ],
)
def test_health_of_a_version_in_words(name: str, status: str, words: str) -> None:
    told = health(state("ModelVersion", name))
    assert told["status"] == status
    assert words in told["message"]


def test_an_object_without_any_status() -> None:
    for kind, name in EVERY:
        bare = {key: value for key, value in state(kind, name).items() if key != "status"}
        assert health(bare)["status"] == "Progressing"
        assert discovered(bare)


# Actions, held against the command line


def planned(what: Callable[[], Plan]) -> Plan | None:
    try:
        return what()
    except Refused:
        return None


def asked(plan: Plan, version: str = "") -> list[Any]:
    """The patches of a plan without their precondition, which Argo CD does not know."""
    bodies = [request.body for request in plan.requests if isinstance(request, Patch) and request.version == version]
    for body in bodies:
        assert set(body.get("metadata", {})) <= {"resourceVersion", "annotations"}
    return [
        {key: value for key, value in part.items() if value}
        for body in bodies
        for part in [{**body, "metadata": {k: v for k, v in body.get("metadata", {}).items() if k == "annotations"}}]
    ]


CYCLE_ACTIONS: dict[str, Callable[[View], Plan]] = {
    "run": lambda view: actions.run(view, STAMP),
    "retry": lambda view: actions.retry(view, None, STAMP),
    "abort": lambda view: actions.abort(view, None),
    "pause": actions.pause,
    "resume": actions.resume,
    "rollback": lambda view: pointing.rollback(view, None),
    "unpin": pointing.unpin,
}


@pytest.mark.parametrize("action", CYCLE_ACTIONS)
@pytest.mark.parametrize("name", VIEWS)
def test_a_cycle_s_action_does_what_the_command_does(name: str, action: str) -> None:
    view, found = VIEWS[name], document(VIEWS[name].cycle)
    plan = planned(lambda: CYCLE_ACTIONS[action](view))
    if plan is None and action == "rollback" and action in enabled(found):
        # Only the command sees whether the version's object is still there.
        plan = pointing.rollback(with_all_champions(view), None)
    assert (action in enabled(found)) == (plan is not None)
    if plan is not None:
        assert [merge_patch(found, acted(found, action))] == asked(plan)
    elif action in ("abort", "unpin") and view.cycle.metadata.deletion_timestamp is None:
        changed = "ratchet.dev/abort" in found["metadata"].get("annotations", {})
        if not changed:
            with pytest.raises(LuaError):
                acted(found, action)


def with_all_champions(view: View) -> View:
    """The view with an object for each version that the cycle remembers."""
    there = {version.metadata.name for version in view.versions}
    missing = [good.version for good in view.cycle.status.last_good if good.version not in there]
    more = [
        VERSIONS["champion"].model_copy(
            update={"metadata": VERSIONS["champion"].metadata.model_copy(update={"name": name})}
        )
        for name in missing
    ]
    return replace(view, versions=(*view.versions, *more))


@pytest.mark.parametrize("name", VIEWS)
def test_a_version_can_be_named(name: str) -> None:
    """promote, rollback: the same change as the command's wherever that one is not refused."""
    view, found = VIEWS[name], document(VIEWS[name].cycle)
    tried = 0
    for version in (version.metadata.name for version in view.versions):
        commands = {"promote": pointing.promote, "rollback": pointing.rollback}
        for action, command in commands.items():
            plan = planned(lambda command=command, version=version: command(view, version))  # type: ignore[misc]
            if plan is not None:
                assert [merge_patch(found, acted(found, action, version=version))] == asked(plan)
                tried += 1
    assert tried or view.cycle.metadata.deletion_timestamp is not None or len(view.versions) <= 1
    if view.cycle.metadata.deletion_timestamp is None:
        assert "promote" in enabled(found)


def test_a_name_is_needed_and_has_to_be_another_one() -> None:
    with pytest.raises(LuaError, match=r"^version: write the name"):
        acted(state("ImprovementCycle", "idle"), "promote")
    with pytest.raises(LuaError, match="names assistant-6 already"):
        acted(state("ImprovementCycle", "pinned"), "promote", version="assistant-6")
    with pytest.raises(LuaError, match="has never been champion"):
        acted(state("ImprovementCycle", "idle"), "rollback", version="assistant-9")
    with pytest.raises(LuaError, match="serves already"):
        acted(state("ImprovementCycle", "idle"), "rollback", version="assistant-6")


def test_the_version_that_waits_to_be_named_is_the_default() -> None:
    found = state("ImprovementCycle", "pinned")
    assert discovered(found)["promote"]["params"] == [{"name": "version", "default": "assistant-7"}]
    assert merge_patch(found, acted(found, "promote")) == {"spec": {"serving": {"version": "assistant-7"}}}


@pytest.mark.parametrize("name", VIEWS)
def test_approve_does_what_the_command_does(name: str) -> None:
    view = VIEWS[name]
    for version in subjects(view):
        found = document(version)
        plan = planned(lambda version=version: pointing.approve(view, version, None))  # type: ignore[misc]
        waits = "approve" in enabled(found)
        if waits:
            assert plan is not None
            [patch] = asked(plan, version.metadata.name)
            assert merge_patch(found, acted(found, "approve")) == patch
            [digest] = patch["metadata"]["annotations"].values()
            assert acted(found, "approve", digest=digest) == acted(found, "approve")
            with pytest.raises(LuaError, match="is not what waits"):
                acted(found, "approve", digest="sha256:" + "0" * 64)
            given = acted(found, "approve")
            assert "approve" not in enabled(given), "it is approved already"
        else:
            assert plan is None
            with pytest.raises(LuaError, match="waits for no approval"):
                acted(found, "approve")


def test_the_states_of_approvals_are_all_there() -> None:
    waiting = {name for name, version in VERSIONS.items() if "approve" in enabled(document(version))}
    assert waiting == {
        "approval-training", "approval-canary", "approval-promotion", "approval-expired", "pointer-approval",
    }  # fmt: skip


@pytest.mark.parametrize("name", VIEWS)
def test_retry_of_a_version_does_what_the_command_does(name: str) -> None:
    view = VIEWS[name]
    for version in view.versions:
        found = document(version)
        plan = planned(lambda version=version: actions.retry(view, version, STAMP))  # type: ignore[misc]
        alive = view.cycle.metadata.deletion_timestamp is None
        assert ("retry" in enabled(found)) == (plan is not None) or not alive
        if plan is None:
            continue
        [again] = [request.body for request in plan.requests if isinstance(request, Create)]
        [made] = acted(found, "retry")
        assert made["operation"] == "create"
        taken = f"{version.metadata.name}-try2" in {other.metadata.name for other in view.versions}
        assert made["resource"] == {**again, "metadata": made["resource"]["metadata"]}
        assert made["resource"]["metadata"] == again["metadata"] or taken
        ModelVersion.model_validate(made["resource"])
        unlocks = asked(plan)
        if unlocks:
            cycle = document(view.cycle)
            assert "unlock" in enabled(cycle)
            name_then = next(r.version for r in view.cycle.status.rejected if r.digest == version.digest)
            assert [merge_patch(cycle, acted(cycle, "unlock", version=name_then))] == unlocks


def test_what_actions_make_is_valid() -> None:
    """Every enabled action of every state gives an object that the vocabulary takes."""
    models = {"ImprovementCycle": ImprovementCycle, "ModelVersion": ModelVersion}
    done = 0
    for kind, name in EVERY:
        found = document(STATES[kind][name], defaults=True)
        for action in enabled(found):
            parameters = {"version": "assistant-6"} if action == "promote" else {}
            if found["spec"].get("serving", {}).get("version") == "assistant-6":
                parameters = {"version": "assistant-7"} if action == "promote" else {}
            made = acted(found, action, **parameters)
            models[kind].model_validate(made if isinstance(made, dict) else made[0]["resource"])
            done += 1
    assert done > len(EVERY)


def test_scripts_get_no_library() -> None:
    with pytest.raises(LuaError):
        run("return string.format('%d', 1)", {})
    with pytest.raises(LuaError):
        run("return ('x'):upper()", {})
    assert run("return { status = tostring(1), list = {} }", {}) == {"status": "1", "list": []}
