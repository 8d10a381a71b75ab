"""The pointer in people's own YAML: which characters change, and which files are refused by name."""

import difflib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet_operator.domain.pointerfile import PointerError, Target, changed, current

TARGET = Target("models", "assistant")


def cycle(version: str, name: str = "assistant", namespace: str | None = "models", more: str = "") -> str:
    """A cycle as people write it."""
    space = "" if namespace is None else f", namespace: {namespace}"
    return (
        "apiVersion: ratchet.dev/v1alpha1\n"
        "kind: ImprovementCycle   # the policy\n"
        f"metadata: {{name: {name}{space}}}\n"
        "spec:\n"
        f"{more}"
        "  serving:\n"
        f"    version: {version}\n"
    )


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param("assistant-6", "assistant-7", id="plain"),
        pytest.param("assistant-6   # moved by pull requests", "assistant-7   # moved by pull requests", id="comment"),
        pytest.param('"assistant-6"', '"assistant-7"', id="double quotes"),
        pytest.param("'assistant-6'", "'assistant-7'", id="single quotes"),
        pytest.param("|-\n      assistant-6", '"assistant-7"', id="a block scalar"),
        pytest.param("!!str assistant-6", "assistant-7", id="a tag goes with its value"),
    ],
)
def test_only_the_value_changes(written: str, expected: str) -> None:
    assert current(cycle(written), TARGET) == "assistant-6"
    assert changed(cycle(written), TARGET, "assistant-7").rstrip("\n") == cycle(expected).rstrip("\n")


def test_a_flow_mapping_keeps_its_form() -> None:
    text = cycle("x").partition("  serving:")[0] + "  serving: {version: assistant-6, replicas: 2} # two\n"
    assert changed(text, TARGET, "assistant-7") == text.replace("assistant-6", "assistant-7")


def test_line_ends_and_a_byte_order_mark_stay() -> None:
    text = "\ufeff" + cycle("assistant-6").replace("\n", "\r\n")
    assert changed(text, TARGET, "assistant-7") == text.replace("assistant-6", "assistant-7")


@pytest.mark.parametrize("name", ["123", "1e3", "on", "2026-11-23", "null", "y"])
def test_a_name_that_yaml_takes_for_something_else_is_quoted(name: str) -> None:
    assert f'version: "{name}"' in changed(cycle("assistant-6"), TARGET, name)


def test_the_document_of_this_name_and_namespace_is_meant() -> None:
    others = [cycle("a-1", name="another"), cycle("b-1", namespace="elsewhere"), "kind: ConfigMap\n", "# nothing\n"]
    text = "---\n".join([*others, cycle("assistant-6")])
    assert changed(text, TARGET, "assistant-7") == text.replace("assistant-6", "assistant-7")


def test_a_document_without_a_namespace_is_of_this_one() -> None:
    assert "version: assistant-7" in changed(cycle("assistant-6", namespace=None), TARGET, "assistant-7")


def test_the_items_of_a_list_are_documents() -> None:
    lines = cycle("assistant-6").splitlines()
    text = "kind: List\nitems:\n- " + "\n  ".join(lines) + "\n"
    assert changed(text, TARGET, "assistant-7") == text.replace("assistant-6", "assistant-7")


@pytest.mark.parametrize(
    ("pointer", "text"),
    [
        pytest.param("assistant.version", "# values\nassistant:\n  version: assistant-6\n", id="values of a chart"),
        pytest.param(
            "[0].value", "- op: replace\n  path: /spec/serving/version\n  value: assistant-6\n", id="a Kustomize patch"
        ),
        pytest.param("a[1].b", "a: [x, {b: assistant-6}]\n", id="a position in a list"),
    ],
)
def test_a_pointer_of_ones_own(pointer: str, text: str) -> None:
    target = Target("models", "assistant", pointer)
    assert changed(text, target, "assistant-7") == text.replace("assistant-6", "assistant-7")


ANCHOR = "  description: &v assistant-6\n"
OWN = Target("models", "assistant", "a.b")


@pytest.mark.parametrize(
    ("text", "target", "words"),
    [
        pytest.param("kind: ConfigMap\n", TARGET, "no ImprovementCycle assistant of namespace models", id="no cycle"),
        pytest.param(cycle("a-1", name="another"), TARGET, "no ImprovementCycle assistant", id="another one"),
        pytest.param(cycle("a-1") + "---\n" + cycle("a-1"), TARGET, "has 2 ImprovementCycle documents", id="two"),
        pytest.param(cycle(""), TARGET, "holds no version", id="empty"),
        pytest.param(cycle("{a: b}"), TARGET, "holds no version", id="a mapping"),
        pytest.param(cycle("x").replace("version", "versions"), TARGET, "has no spec.serving.version", id="no key"),
        pytest.param(cycle("a-1\n    version: a-2"), TARGET, "twice in one mapping (line 7)", id="a key twice"),
        pytest.param(cycle("*v", more=ANCHOR), TARGET, "shares its value", id="an alias"),
        pytest.param("a: {b: x}\n---\na: {b: y}\n", OWN, "in 2 documents", id="two documents"),
        pytest.param("a: [\n", OWN, "no YAML at line 2", id="no YAML"),
        pytest.param("a: {{ .Values.x }}\n", OWN, "a.b", id="a template"),
        pytest.param("a: &a\n  b: x\n  c: *a\n", OWN, "refer to themselves", id="a loop"),
        pytest.param("a: {b: x}\n" + "#" * 1_000_000, OWN, "longer than", id="too long"),
    ],
)
def test_what_is_not_clear_is_refused_by_name(text: str, target: Target, words: str) -> None:
    with pytest.raises(PointerError) as caught:
        changed(text, target, "assistant-7")
    assert words in str(caught.value)


def test_an_anchor_at_the_pointer_that_others_use_is_refused() -> None:
    text = cycle("&v assistant-6") + "  note: *v\n"
    with pytest.raises(PointerError, match="shares its value"):
        changed(text, TARGET, "assistant-7")


Line = st.sampled_from(["# a comment\n", "\n", "  description: 'it''s'\n", "  # indented\n"])


@given(before=st.lists(Line.filter(lambda line: "desc" not in line), max_size=4), number=st.integers(0, 10**6))
def test_the_difference_is_one_line(before: list[str], number: int) -> None:
    text = "".join(before) + cycle("assistant-6  # here") + "".join(before)
    after = changed(text, TARGET, f"assistant-{number}")
    assert current(after, TARGET) == f"assistant-{number}"
    lines = [line for line in difflib.ndiff(text.splitlines(), after.splitlines()) if line[0] in "+-"]
    assert len(lines) in (0, 2)
