"""What the on-call commands decide: next commands of all reasons, actions and refusals, goals of `status --wait`."""

import shlex
from dataclasses import replace
from typing import Any

import pytest
from tests.cli.oncall_states import NOW, REJECTED, STATES, before, changed, digest

from ratchet_api.cycle import Rejected
from ratchet_api.export import Export
from ratchet_api.reasons import Reason
from ratchet_api.version import ExportStatus, ModelVersion, StageStatus
from ratchet_cli.main import parser
from ratchet_cli.oncall import actions, advice, pointing
from ratchet_cli.oncall.actions import Create, Patch, Plan
from ratchet_cli.oncall.advice import Situation
from ratchet_cli.oncall.errors import Refused
from ratchet_cli.oncall.explain import explain, meaning, situation
from ratchet_cli.oncall.goals import Goal, standing
from ratchet_cli.oncall.view import View, Where

FULL = Situation(
    where=Where(namespace="chat"), cycle="assistant", version="assistant-7", stable="assistant-6",
    job="assistant-7-train-0", secret="storage", suites="suites", endpoint="https://s3.example.com",
    storage="s3://ratchet/assistant", base="s3://ratchet/base", folder="s3://ratchet/a/versions/assistant-7/0/adapter",
)  # fmt: skip
KUBECTL = {"create", "describe", "edit", "get", "logs", "patch"}


def understood(command: str) -> None:
    """A command of ours parses, one of others is of a known kind and names everything."""
    words = shlex.split(command)
    match words[0]:
        case "ratchet":
            parser().parse_args(words[1:])
        case "kubectl":
            assert words[1] in KUBECTL
        case other:
            assert other == "aws"
    assert "None" not in command
    assert not any(word.endswith(("=", "/")) and word.startswith(("-l", "job/")) for word in words), command


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_next_command(reason: Reason) -> None:
    assert advice.known(reason), "add the reason to `_NEXT` in ratchet_cli/oncall/advice.py"
    understood(advice.command(reason, FULL))
    understood(advice.command(reason, Situation(where=Where(), cycle="assistant")))
    assert meaning(reason)


def test_a_reason_of_a_newer_operator_is_answered_with_a_check_up() -> None:
    assert advice.command("Tomorrow", FULL) == "ratchet doctor assistant -n chat"


def test_next_commands_reach_the_same_cluster_by_the_same_program() -> None:
    where = Where(program="kubectl ratchet", namespace="chat", context="my prod", kubeconfig="k")
    assert where.ratchet("get a") == "kubectl ratchet get a -n chat --context 'my prod' --kubeconfig k"
    assert where.kubectl("get mv") == "kubectl get mv -n chat --context 'my prod' --kubeconfig k"


@pytest.mark.parametrize("base", ["s3://b/m", "pvc://claim/m", "hf://o/m@1", "file:///m"])
def test_a_missing_base_model_is_looked_for_where_it_should_be(base: str) -> None:
    understood(advice.command(Reason.MISSING_BASE_MODEL, replace(FULL, base=base)))


@pytest.mark.parametrize("state", STATES)
def test_explanations_end_with_a_command_that_can_be_typed(state: str) -> None:
    view = STATES[state]
    for version in (None, *view.versions):
        said = explain(view, NOW, version)
        understood(said.next)
        assert said.text().splitlines()[-1].strip() == said.next
        assert said.now.endswith(".")


def test_the_situation_names_what_the_spec_names() -> None:
    view = STATES["rolled-back"]
    found = situation(view, view.version("assistant-7"))
    assert (found.secret, found.suites, found.stable) == ("storage", "assistant-suites", "assistant-6")
    assert found.folder.startswith("s3://ratchet/assistant/")


# Actions


def with_meta(view: View, **meta: Any) -> View:
    """A state with other metadata of the cycle."""
    changed = view.cycle.metadata.model_copy(update=meta)
    return replace(view, cycle=view.cycle.model_copy(update={"metadata": changed}))


def patches(plan: Plan) -> list[Any]:
    return [request.body for request in plan.requests if isinstance(request, Patch)]


def test_run_asks_by_annotation() -> None:
    plan = actions.run(STATES["idle"], "stamp")
    assert patches(plan) == [{"metadata": {"annotations": {"ratchet.dev/run": "stamp"}}}]
    assert "starts now" in plan.sentence


def test_run_beside_a_run_waits_for_it_and_says_so() -> None:
    assert "as soon as run 7 (Training) has ended" in actions.run(STATES["training"], "stamp").sentence


def test_abort_names_the_candidate_and_what_follows() -> None:
    plan = actions.abort(STATES["canary"], None)
    assert patches(plan) == [{"metadata": {"annotations": {"ratchet.dev/abort": "assistant-7"}}}]
    assert "from 25 % to 0 and assistant-6 takes all sessions" in plan.sentence
    assert plan.warnings == ()


def test_abort_without_a_ready_stable_arm_says_that_the_split_is_kept() -> None:
    view = STATES["canary"]
    stable = view.cycle.status.serving.stable
    assert stable is not None
    serving = view.cycle.status.serving.model_copy(update={"stable": stable.model_copy(update={"ready_replicas": 0})})
    plan = actions.abort(changed("canary", serving=serving), "assistant-7")
    assert "no ready pod" in plan.warnings[0]


def test_pause_and_resume_write_what_was_looked_at_and_warn_of_git() -> None:
    paused = actions.pause(STATES["canary"])
    assert patches(paused) == [{"metadata": {"resourceVersion": "77"}, "spec": {"suspend": True}}]
    assert "assistant-7 stays at 25 %" in paused.sentence
    assert "Git" in paused.warnings[0]
    resumed = actions.resume(STATES["suspended-canary"])
    assert patches(resumed)[0]["spec"] == {"suspend": False}
    assert "goes on from 25 %" in resumed.sentence


@pytest.mark.parametrize(
    ("meta", "owner"),
    [
        ({"labels": {"kustomize.toolkit.fluxcd.io/name": "apps"}}, "Flux Kustomization apps"),
        ({"labels": {"argocd.argoproj.io/instance": "chat"}}, "Argo CD application chat"),
        ({"annotations": {"argocd.argoproj.io/tracking-id": "chat:ratchet.dev/x:y"}}, "Argo CD application chat"),
    ],
)
def test_who_may_undo_a_pause_is_named(meta: dict[str, Any], owner: str) -> None:
    assert owner in actions.pause(with_meta(STATES["idle"], **meta)).warnings[0]


def test_retry_of_a_rolled_back_version_unlocks_its_digest_and_proves_its_adapter_again() -> None:
    view = STATES["rolled-back"]
    plan = actions.retry(view, view.version("assistant-7"), "stamp")
    unlock, create = plan.requests
    assert isinstance(unlock, Patch)
    assert isinstance(create, Create)
    assert unlock.body["spec"] == {"rollout": {"retryDigests": [digest("7")]}}
    again = ModelVersion.model_validate(create.body)
    assert again.metadata.name == "assistant-7-try2"
    assert again.spec.adapter is not None
    assert (again.spec.adapter.digest, again.spec.dataset, again.spec.run) == (digest("7"), None, None)
    assert again.spec.parent == "assistant-6"
    assert "CheckFailed" in plan.sentence


def test_retry_of_a_version_that_failed_before_it_was_trained_repeats_the_recipe() -> None:
    view = STATES["training"]
    version = view.version("assistant-7")
    assert version is not None
    failed = version.model_copy(update={"status": version.status.model_copy(update={"phase": "Failed"})})
    plan = actions.retry(replace(view, versions=(*view.versions[:2], failed)), failed, "stamp")
    (create,) = plan.requests
    assert isinstance(create, Create)
    assert "dataset" in create.body["spec"]
    assert "trained and proven again" in plan.sentence


def test_retry_finds_a_free_name() -> None:
    view = STATES["rolled-back"]
    version = view.version("assistant-7")
    assert version is not None
    taken = version.model_copy(update={"metadata": version.metadata.model_copy(update={"name": "assistant-7-try2"})})
    plan = actions.retry(replace(view, versions=(*view.versions, taken)), version, "stamp")
    assert "assistant-7-try3" in plan.sentence


def test_retry_of_a_cycle_repeats_its_last_run() -> None:
    plan = actions.retry(STATES["skipped"], None, "stamp")
    assert patches(plan) == [{"metadata": {"annotations": {"ratchet.dev/run": "stamp"}}}]
    assert "run 7 ended as Skipped" in plan.sentence


def _retry(name: str, version: str | None) -> Plan:
    view = STATES[name]
    return actions.retry(view, view.version(version), "stamp")


def _used_up() -> Plan:
    rejected = [Rejected.model_validate(REJECTED[0] | {"retried": True})]
    view = changed("rolled-back", rejected=rejected)
    rollout = view.cycle.spec.rollout.model_copy(update={"retry_digests": [digest("7")]})
    spec = view.cycle.spec.model_copy(update={"rollout": rollout})
    view = replace(view, cycle=view.cycle.model_copy(update={"spec": spec}))
    return actions.retry(view, view.version("assistant-7"), "stamp")


def _aborted_twice() -> Plan:
    return actions.abort(with_meta(STATES["canary"], annotations={"ratchet.dev/abort": "assistant-7"}), None)


def test_approve_names_the_digest_at_each_gate() -> None:
    for state, gate, wanted in (
        ("approval-training", "training", digest("d")),
        ("approval-canary", "canary", digest("7")),
        ("approval-promotion", "promotion", digest("7")),
    ):
        plan = _approve(state)
        (patch,) = plan.requests
        assert isinstance(patch, Patch)
        assert patch.version == "assistant-7"
        assert patch.body == {"metadata": {"annotations": {f"ratchet.dev/approve-{gate}": wanted}}}
        assert explain(STATES[state], NOW).next == "ratchet approve assistant-7"
        assert explain(STATES[state], NOW, STATES[state].version("assistant-7")).next == "ratchet approve assistant-7"
    assert "target +6.2 (p 0.003), guardrail -0.4 ok" in _approve("approval-canary").sentence
    assert _approve("approval-canary", digest("7")).requests


def test_export_asks_once_and_only_for_what_there_is() -> None:
    view = STATES["canary"]
    version = view.version("assistant-7")
    assert version is not None
    with pytest.raises(Refused, match=r"write spec\.export\.formats first"):
        pointing.export(view, version, "stamp")
    spec = view.cycle.spec.model_copy(update={"export": Export(formats=["gguf-q8_0"])})
    view = replace(view, cycle=view.cycle.model_copy(update={"spec": spec}))
    (patch,) = pointing.export(view, version, "stamp").requests
    assert patch == Patch({"metadata": {"annotations": {"ratchet.dev/export": "stamp"}}}, "assistant-7")
    work = StageStatus(stage="export", job="assistant-7-export-0")
    busy = version.status.model_copy(update={"export": ExportStatus(work=work)})
    with pytest.raises(Refused, match="by Job assistant-7-export-0"):
        pointing.export(view, version.model_copy(update={"status": busy}), "stamp")
    root = view.version("assistant-0")
    assert root is not None
    with pytest.raises(Refused, match="nothing to export"):
        pointing.export(view, root, "stamp")


def test_what_is_approved_already_waits_for_nobody() -> None:
    view = STATES["approval-canary"]
    version = view.version("assistant-7")
    assert version is not None
    given = {"ratchet.dev/approve-canary": digest("7")}
    metadata = version.metadata.model_copy(update={"annotations": given})
    with pytest.raises(Refused, match="waits for no approval now"):
        pointing.approve(view, version.model_copy(update={"metadata": metadata}), None)


def test_promote_and_unpin_move_the_pointer() -> None:
    plan = pointing.promote(STATES["pinned"], "assistant-7")
    assert patches(plan)[0]["spec"] == {"serving": {"version": "assistant-7"}}
    assert "its rollout begins" in plan.sentence
    assert "ratchet unpin assistant" in plan.warnings[0]
    assert patches(pointing.unpin(STATES["pinned"]))[0]["spec"] == {"serving": {"version": None}}
    assert explain(STATES["pinned"], NOW).next == "ratchet promote assistant assistant-7"


def test_rollback_goes_to_the_champion_before() -> None:
    plan = pointing.rollback(STATES["promoted"], None)
    assert patches(plan)[0]["spec"] == {"serving": {"version": "assistant-6"}}
    assert "returns without gate and steps" in plan.sentence
    base = pointing.rollback(STATES["canary"], "assistant-0")
    assert "assistant-7 goes back from 25 % to 0 without blame" in base.sentence


def _approve(name: str, wanted: str | None = None) -> Plan:
    view = STATES[name]
    version = view.version("assistant-7")
    assert version is not None
    return pointing.approve(view, version, wanted)


REFUSALS = {
    "approve automatic": (lambda: _approve("canary"), "needs nobody's approval"),
    "approve another digest": (lambda: _approve("approval-canary", digest("a")), "is not what waits before Canary"),
    "promote a rejected one": (lambda: pointing.promote(STATES["rolled-back"], "assistant-7"), "not obeyed"),
    "promote a stranger": (lambda: pointing.promote(STATES["idle"], "ghost"), "no version ghost"),
    "promote twice": (lambda: pointing.promote(STATES["pinned"], "assistant-6"), "already"),
    "rollback in a canary": (lambda: pointing.rollback(STATES["canary"], None), "ratchet abort assistant"),
    "rollback to nothing": (lambda: pointing.rollback(STATES["idle"], None), "no champion of before"),
    "rollback to what serves": (lambda: pointing.rollback(STATES["idle"], "assistant-6"), "serves already"),
    "rollback to a candidate": (lambda: pointing.rollback(STATES["pinned"], "assistant-7"), "never been champion"),
    "unpin nothing": (lambda: pointing.unpin(STATES["idle"]), "is not set"),
    "run while suspended": (lambda: actions.run(STATES["suspended"], "s"), "ratchet resume assistant"),
    "run twice": (lambda: actions.run(STATES["asked"], "s"), "asked for already"),
    "run when deleted": (
        lambda: actions.run(with_meta(STATES["idle"], deletion_timestamp=NOW), "s"), "is being deleted",
    ),
    "abort nothing": (lambda: actions.abort(STATES["idle"], None), "rolls nothing out now"),
    "abort in training": (lambda: actions.abort(STATES["training"], None), "kubectl delete mv assistant-7"),
    "abort in curating": (lambda: actions.abort(STATES["curating"], None), "ratchet pause assistant"),
    "abort another": (lambda: actions.abort(STATES["canary"], "assistant-5"), "assistant-7 is"),
    "abort unknown": (lambda: actions.abort(STATES["idle"], "nobody"), "has no version nobody"),
    "abort the champion": (lambda: actions.abort(STATES["idle"], "assistant-6"), "nothing to take back"),
    "abort while rolling back": (lambda: actions.abort(STATES["rolling-back"], None), "being taken back already"),
    "abort twice": (_aborted_twice, "asked for already"),
    "pause twice": (lambda: actions.pause(STATES["suspended"]), "suspended already"),
    "resume what runs": (lambda: actions.resume(STATES["idle"]), "not suspended"),
    "retry the base": (lambda: _retry("idle", "assistant-0"), "bare base model"),
    "retry the champion": (lambda: _retry("idle", "assistant-6"), "has served"),
    "retry on its way": (lambda: _retry("training", "assistant-7"), "on its way"),
    "retry without a run": (lambda: _retry("idle", None), "no run yet"),
    "retry a good run": (lambda: _retry("promoted", None), "ended well"),
    "retry during a run": (lambda: _retry("training", None), "goes on"),
    "retry the third time": (_used_up, "take sha256:7"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_makes_no_sense_is_refused_by_name(case: str) -> None:
    ask, words = REFUSALS[case]
    with pytest.raises(Refused, match=words):
        ask()


# Goals

GOALS: list[tuple[str, Goal, str | None, str]] = [
    ("unseen", "ready", None, "Waiting"),
    ("initializing", "ready", None, "Waiting"),
    ("unread", "ready", None, "Waiting"),
    ("idle", "ready", None, "Reached"),
    ("stalled", "ready", None, "Reached"),  # the champion serves all the same
    ("stable-not-ready", "ready", None, "Failed"),
    ("degraded", "ready", None, "Waiting"),
    ("idle", "idle", None, "Reached"),
    ("asked", "idle", None, "Waiting"),
    ("training", "idle", None, "Waiting"),
    ("by-hand", "idle", None, "Waiting"),
    ("canary", "idle", None, "Waiting"),
    ("rolled-back", "idle", None, "Reached"),
    ("stalled", "idle", None, "Failed"),
    ("suspended-canary", "idle", None, "Failed"),
    ("suspended", "idle", None, "Reached"),
    ("idle", "promoted", None, "Failed"),  # there was no run
    ("asked", "promoted", None, "Waiting"),
    ("curating", "promoted", None, "Waiting"),
    ("training", "promoted", None, "Waiting"),
    ("canary", "promoted", None, "Waiting"),
    ("baking", "promoted", None, "Waiting"),
    ("held", "promoted", None, "Waiting"),
    ("rolling-back", "promoted", None, "Failed"),
    ("rolled-back", "promoted", None, "Failed"),
    ("gate-rejected", "promoted", None, "Failed"),
    ("skipped", "promoted", None, "Failed"),
    ("promoted", "promoted", None, "Reached"),
    ("stalled", "promoted", None, "Failed"),
    ("suspended-canary", "promoted", None, "Failed"),
    ("approval-canary", "promoted", None, "Waiting"),
    ("pinned", "promoted", None, "Waiting"),
    ("pinned", "idle", None, "Reached"),
    ("idle", "promoted", "assistant-6", "Reached"),
    ("idle", "promoted", "assistant-0", "Reached"),
    ("idle", "promoted", "not-yet-applied", "Waiting"),
    ("by-hand", "promoted", "tuned-elsewhere", "Waiting"),
    ("rolled-back", "promoted", "assistant-7", "Failed"),
]


@pytest.mark.parametrize(("state", "goal", "version", "expected"), GOALS)
def test_goals(state: str, goal: Goal, version: str | None, expected: str) -> None:
    found = standing(STATES[state], goal, version)
    assert found.state == expected, found.message
    assert found.message


def test_a_deleted_cycle_reaches_nothing() -> None:
    view = with_meta(STATES["idle"], deletion_timestamp=NOW)
    assert standing(view, "ready").state == "Failed"


def test_a_returned_version_is_not_waited_for() -> None:
    view = STATES["rolled-back"]
    version = view.version("assistant-7")
    assert version is not None
    gone = [c for c in version.status.conditions if c.type != "Rejected"]
    status = version.status.model_copy(update={"phase": "Accepted", "outcome": "Returned", "conditions": gone})
    returned = replace(view, versions=(*view.versions[:2], version.model_copy(update={"status": status})))
    assert standing(returned, "idle").state == "Reached"
    assert standing(returned, "promoted", "assistant-7").state == "Failed"
    assert before(seconds=1) < before(seconds=0)
