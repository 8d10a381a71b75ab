"""The reference pages: committed files are current and complete; the reason catalogue is documented."""

from enum import StrEnum
from pathlib import Path

import pytest

from ratchet_api.crd import definitions
from ratchet_api.reasons import ConditionType, Reason
from ratchet_api.reference import fields_page, members, pages, reasons_page


@pytest.mark.parametrize("name", sorted(pages()))
def test_committed_pages_are_what_the_vocabulary_says(repository: Path, name: str) -> None:
    current = (repository / "docs" / name).read_text() == pages()[name]
    assert current, "run `make docs`"


@pytest.mark.parametrize("enumeration", [Reason, ConditionType])
def test_every_member_is_documented(enumeration: type[StrEnum]) -> None:
    found = members(enumeration)
    assert [member.value for member in found] == [str(value) for value in enumeration]
    assert all(member.meaning.endswith((".", "?")) for member in found)


def test_reasons_are_camel_case_and_different() -> None:
    values = [str(reason) for reason in Reason]
    assert all(value.isalnum() and value[0].isupper() for value in values)
    assert len({value.lower() for value in values}) == len(values)


def test_a_member_without_a_docstring_is_refused() -> None:
    class Bare(StrEnum):
        SAID = "Said"
        """It has one."""
        SILENT = "Silent"

    # A class inside a function is indented, which the parser must not mind either.
    with pytest.raises(ValueError, match="SILENT has no docstring"):
        members(Bare)


def test_groups_of_the_source_become_headings() -> None:
    page = reasons_page()
    assert "\n## The gate\n" in page
    assert page.index("## The gate") < page.index("`GuardrailLost`") < page.index("## The rollout")


def test_every_field_is_on_the_page() -> None:
    page = fields_page()
    for document in definitions().values():
        spec = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        for name in spec["properties"]:
            assert f"| `{name}` |" in page
    assert "### spec.evaluation.suites[].cases.configMap" in page
    assert "### status.rollout.decision" in page


def test_rows_keep_their_columns() -> None:
    """A pipe inside a description must not open another column."""
    for page in pages().values():
        width = 0
        for line in page.splitlines():
            if not line.startswith("|"):
                width = 0
                continue
            columns = line.replace("\\|", "").count("|")
            assert width in (0, columns), line
            width = columns
