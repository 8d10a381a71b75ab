"""Conditions, names, stage reports, artifacts, records: the contracts between the rooms."""

import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ratchet_api import names
from ratchet_api.artifacts import FileEntry, Manifest, files_digest
from ratchet_api.conditions import Condition, find, is_true, merged
from ratchet_api.crd import definitions
from ratchet_api.cycle import ImprovementCycle
from ratchet_api.reasons import ConditionType, Reason
from ratchet_api.records import RECORD, Feedback, Interaction
from ratchet_api.stage import MAX_REPORT_BYTES, STAGE_INPUT, StageReport, attempt_uri, dataset_uri, digest_hex
from ratchet_api.version import Attempts, ModelVersion, SuiteResult, points

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
SHA = "sha256:" + "a" * 64


# Conditions


def test_transition_time_moves_with_the_status_only() -> None:
    first = merged([], ConditionType.READY, False, Reason.INITIALIZING, "", 1, NOW)
    same = merged(first, ConditionType.READY, False, Reason.IDLE, "other words", 2, LATER)
    other = merged(same, ConditionType.READY, True, Reason.IDLE, "", 2, LATER)
    assert [c[0].last_transition_time for c in (first, same, other)] == [NOW, NOW, LATER]
    assert (same[0].reason, same[0].observed_generation) == ("Idle", 2)


def test_conditions_stay_one_a_type_and_sorted() -> None:
    conditions: list[Condition] = []
    for kind in (ConditionType.STALLED, ConditionType.READY, ConditionType.READY, ConditionType.ACCEPTED):
        conditions = merged(conditions, kind, True, Reason.IDLE, "", 1, NOW)
    assert [c.type for c in conditions] == ["Accepted", "Ready", "Stalled"]


def test_finding_conditions() -> None:
    conditions = merged([], ConditionType.READY, "Unknown", Reason.IDLE, "", 1, NOW)
    assert find(conditions, ConditionType.STALLED) is None
    assert not is_true(conditions, ConditionType.READY)
    assert not is_true(conditions, ConditionType.STALLED)


def test_a_condition_s_message_fits_into_kubernetes() -> None:
    [condition] = merged([], ConditionType.READY, True, Reason.IDLE, "x" * 100_000, 1, NOW)
    assert len(condition.message) == 32768


# Names


@given(st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9-]{0,40}[A-Za-z0-9]", fullmatch=True), min_size=1, max_size=5))
def test_child_names_are_dns_labels(parts: list[str]) -> None:
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", names.child_name(*parts))


def test_long_child_names_differ_where_their_ends_do() -> None:
    long = "a" * 60
    one, other = names.child_name(long, "train", "0"), names.child_name(long, "train", "1")
    assert one != other
    assert len(one) == len(other) == 63
    assert one == names.child_name(long, "train", "0")


def test_child_names_leave_out_what_is_empty() -> None:
    assert names.child_name("a", "", "b") == "a-b"
    assert names.version_name("assistant", 0) == "assistant-0"


# Stage reports and inputs


def report(**fields: object) -> StageReport:
    return StageReport.model_validate({"stage": "train", "outcome": "Succeeded", "reason": "Succeeded", **fields})


def test_report_round_trip() -> None:
    full = report(message="done", artifact={"uri": "s3://b/a", "digest": SHA}, training={"loss": "0.31", "steps": 9})
    assert StageReport.model_validate_json(full.encode()) == full
    assert b"null" not in full.encode()


@given(st.text(max_size=20_000))
def test_a_report_always_fits_into_a_termination_message(message: str) -> None:
    data = report(message=message).encode()
    assert len(data) <= MAX_REPORT_BYTES
    assert message.startswith(StageReport.model_validate_json(data).message)


def test_numbers_of_a_report_are_never_shortened() -> None:
    suite = SuiteResult(
        name="n" * 63, role="target", cases=10**6, champion=Decimal("0.123456789012"), candidate=Decimal("0.5"),
        difference=Decimal("0.1"), lower_bound=Decimal("0.01"), p_value=Decimal("0.000000000001"), better=1, worse=2,
    )  # fmt: skip
    sixteen = report(stage="evaluate", message="m" * 4000, suites=[suite] * 12)
    assert len(StageReport.model_validate_json(sixteen.encode()).suites) == 12


def test_a_report_that_cannot_fit_says_so() -> None:
    with pytest.raises(ValueError, match=f"over the limit of {MAX_REPORT_BYTES}"):
        report(provenance={"tools": {f"tool-{n}": "v" * 200 for n in range(32)}}).encode()


def test_stage_input_is_read_by_its_stage() -> None:
    identity = {"namespace": "default", "cycle": "assistant", "storage_uri": "s3://ratchet/assistant"}
    raw = {"stage": "fetch", "identity": identity, "base_model": {"uri": "s3://models/m"}, "adapter": None}
    assert STAGE_INPUT.validate_python(raw).stage == "fetch"
    with pytest.raises(ValidationError, match="unknown_field"):
        STAGE_INPUT.validate_python(raw | {"unknown_field": 1})
    with pytest.raises(ValidationError, match="export"):
        STAGE_INPUT.validate_python(raw | {"stage": "export"})


def test_places_in_storage() -> None:
    assert dataset_uri("s3://b/c/", SHA) == f"s3://b/c/datasets/{digest_hex(SHA)}"
    assert attempt_uri("s3://b/c", "a-1", 2, "adapter") == "s3://b/c/versions/a-1/2/adapter"


def test_attempts_number_the_jobs() -> None:
    assert Attempts(infrastructure=2, out_of_memory=1, preempted=3).total == 6


# Artifacts


@given(st.dictionaries(st.text(min_size=1, max_size=20), st.binary(max_size=4), max_size=6), st.randoms())
def test_a_digest_depends_on_names_and_contents_only(files: dict[str, bytes], random: Random) -> None:
    entries = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    shuffled = list(entries.items())
    random.shuffle(shuffled)
    assert files_digest(dict(shuffled)) == files_digest(entries)


def test_a_changed_byte_or_name_is_another_digest() -> None:
    one = files_digest({"a": "0" * 64})
    assert one != files_digest({"a": "1" + "0" * 63})
    assert one != files_digest({"b": "0" * 64})
    assert one != files_digest({"a": "0" * 64, "b": "0" * 64})


def test_the_digest_is_fixed() -> None:
    """A change of the canonical form would orphan every artifact that exists."""
    known = "sha256:a9d318f7a6090f2c5fbce0b3ba39d3f2cf5e28efa28bae3805fd05625e6f1af1"
    assert files_digest({"adapter_model.safetensors": "0" * 64, "adapter_config.json": "1" * 64}) == known


def test_provenance_is_not_part_of_the_digest() -> None:
    files = {"x": FileEntry(sha256="0" * 64, size=1)}
    one = Manifest(kind="adapter", files=files, created_at=NOW, inputs={"dataset": SHA})
    other = Manifest(kind="adapter", files=files, created_at=LATER, tools={"torch": "2"})
    assert one.digest == other.digest
    assert Manifest.model_validate_json(one.model_dump_json()).digest == one.digest


# Records


def test_records_are_read_by_their_kind_and_leniently() -> None:
    feedback = {"kind": "feedback", "id": "f", "response_id": "r", "namespace": "n", "cycle": "c", "version": "v",
                "time": "2026-11-22T00:00:00Z", "value": "up", "from_the_future": 1}  # fmt: skip
    assert isinstance(RECORD.validate_python(feedback), Feedback)
    with pytest.raises(ValidationError, match="value"):
        RECORD.validate_python(feedback | {"value": "sideways"})


def test_a_record_is_one_line() -> None:
    record = Interaction(
        id="chatcmpl-1", session="s", namespace="n", cycle="c", version="v", arm="stable", time=NOW,
        messages=[{"role": "user", "content": "two\nlines"}], answer={"content": "\u2028"}, status=200, duration=0.1,
    )  # fmt: skip
    line = RECORD.dump_json(record)
    assert b"\n" not in line
    assert RECORD.validate_json(line) == record


# Resources

SUITE = {"name": "house", "role": "target", "cases": {"configMap": {"name": "suites", "key": "a.jsonl"}}}
LEAST = {
    "baseModel": {"uri": "s3://models/base"},
    "storage": {"uri": "s3://ratchet/assistant"},
    "evaluation": {"suites": [SUITE]},
}


def cycle(**spec: object) -> ImprovementCycle:
    return ImprovementCycle.model_validate({"metadata": {"name": "assistant"}, "spec": {**LEAST, **spec}})


def test_the_least_that_a_cycle_has_to_say() -> None:
    spec = cycle().spec
    assert [step.weight for step in spec.rollout.steps] == [5, 25, 50, 100]
    assert (spec.rollout.failure_limit, spec.rollout.unknown_limit) == (2, 5)
    assert spec.rollout.bake == timedelta(minutes=30)
    assert (spec.training.recipe.lora.rank, spec.training.recipe.lora.alpha) == (8, 16)
    assert spec.training.recipe.learning_rate == Decimal("0.00001")
    assert spec.trigger.min_examples == 20
    assert {c.name for c in spec.curation.categories} == {"security", "documentation", "deployment", "format", "error"}


@pytest.mark.parametrize(
    "spec",
    [
        {"sources": []},
        {"promotion": {"mode": "Svn"}},
        {"retention": 3},
        {"serving": {"runtime": "custom"}},
        {"serving": {"router": "mesh"}},
        {"rollout": {"strategy": "blueGreen"}},
        {"training": {"launcher": "MPIJob"}},
        {"baseModel": {"uri": "s3://models/base", "size": "small"}},
    ],
)
def test_what_is_not_supported_is_refused(spec: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        cycle(**spec)


def test_defaults_of_the_definition_are_the_models_own() -> None:
    """What the API server fills in is what a model without those fields would have."""
    whole = definitions()["ratchet.dev_improvementcycles.yaml"]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]

    def filled(value: object, node: dict[str, object]) -> object:
        properties = node.get("properties")
        if isinstance(properties, dict) and isinstance(value, dict):
            for name, child in properties.items():
                if name not in value and "default" in child:
                    value[name] = json.loads(json.dumps(child["default"]))
                if name in value:
                    value[name] = filled(value[name], child)
        if isinstance(value, list) and isinstance(node.get("items"), dict):
            return [filled(item, node["items"]) for item in value]  # type: ignore[arg-type]
        return value

    spec = filled(json.loads(json.dumps(LEAST)), whole["properties"]["spec"])
    assert ImprovementCycle.model_validate({"metadata": {"name": "assistant"}, "spec": spec}).spec == cycle().spec


def test_a_version_s_adapter_is_given_or_made() -> None:
    metadata = {"name": "assistant-1"}
    reference = {"uri": "s3://bucket/x", "digest": SHA}
    given_one = ModelVersion.model_validate({"metadata": metadata, "spec": {"cycle": "a", "adapter": reference}})
    made = ModelVersion.model_validate(
        {"metadata": metadata, "spec": {"cycle": "a"}, "status": {"artifacts": {"adapter": reference}}}
    )
    root = ModelVersion.model_validate({"metadata": {"name": "assistant-0"}, "spec": {"cycle": "a", "run": 0}})
    assert given_one.digest == made.digest == SHA
    assert (root.adapter, root.digest) == (None, None)


def test_points() -> None:
    assert (points(Decimal("0.062")), points(-0.098)) == ("+6.2", "-9.8")
