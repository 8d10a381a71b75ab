"""Durations, decimals, digests, uris, times: what is taken, what is refused and in which words."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ratchet_api.base import (
    ArtifactURI,
    Digest,
    Duration,
    Fraction,
    Model,
    Name,
    Observed,
    Signed,
    Time,
    Unsigned,
    format_duration,
    parse_duration,
)
from ratchet_api.cycle import Schedule, TimeZone
from ratchet_api.data import ModelURI
from ratchet_api.pods import Quantity


def taken(kind: object, value: object) -> object:
    """What the type makes of a value."""
    return TypeAdapter(kind).validate_python(value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0),
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("28d", 2_419_200),
        ("250ms", 0.25),
        ("1d2h3m4s5ms", 93784.005),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert taken(Duration, text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "m", "-5m", "1.5h", "5 m", "5M", "1h-30m", "5w", 300, None, "5m\n"])
def test_no_durations(text: object) -> None:
    with pytest.raises(ValidationError, match=r'write a number with a unit, such as "30s", "5m" or "6h"'):
        taken(Duration, text)


@given(st.integers(min_value=0, max_value=10**12))
def test_durations_survive_a_round_trip(milliseconds: int) -> None:
    value = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(value)) == value


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=9999)))
def test_written_durations_match_the_definition_s_pattern(value: timedelta) -> None:
    message = TypeAdapter(Duration).json_schema()["x-kubernetes-validations"][0]["rule"]
    pattern = message.removeprefix("self.matches('").removesuffix("')")
    assert re.fullmatch(pattern, format_duration(value))


@pytest.mark.parametrize("kind", [Fraction, Unsigned, Signed])
def test_floats_are_refused_with_the_fix(kind: object) -> None:
    with pytest.raises(ValidationError, match=re.escape('0.05 must be quoted: write "0.05"')):
        taken(kind, 0.05)


@pytest.mark.parametrize(("kind", "text"), [(Fraction, "1.01"), (Fraction, "-0.1"), (Unsigned, "-1"), (Signed, "one")])
def test_decimals_out_of_bounds(kind: object, text: str) -> None:
    with pytest.raises(ValidationError):
        taken(kind, text)


@given(st.decimals(min_value=0, max_value=1, places=9))
def test_fractions_are_written_without_exponent(value: Decimal) -> None:
    text = json.loads(TypeAdapter(Fraction).dump_json(value))
    assert "E" not in text
    assert Decimal(text) == value


@pytest.mark.parametrize("text", ["1e-6", "0.000000000001"])
def test_small_decimals_keep_their_digits(text: str) -> None:
    assert json.loads(TypeAdapter(Unsigned).dump_json(Decimal(text))).startswith("0.00000")


SHA = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Digest, [SHA], [SHA[:-1], SHA.upper(), "md5:" + "0" * 32, SHA + "\n"]),
        (Name, ["a", "a-1", "1a", "a" * 63], ["", "-a", "a-", "A", "a_b", "a" * 64, "a.b"]),
        (ArtifactURI, ["s3://abc/x", "s3://a.b-c/x/y=1/", "s3://abc"],
         ["s3://A/x", "s3://ab", "https://a/b", "s3://abc/a b"]),
        (ModelURI, ["hf://o/n@main", "s3://abc/m", "pvc://claim", "pvc://claim/p", "file:///models/x"],
         ["hf://o/n", "o/n", "s3://abc", "file://x", "pvc://Claim"]),
        (Schedule, ["0 2 * * 1", "*/5 * * * *", "0 0 1,15 * MON-FRI", "59 23 31 12 7"],
         ["@daily", "* * * *", "60 * * * *", "0 24 * * *", "0 0 0 * *", "0 0 * 13 *", "a b c d e", "* * * * * *"]),
        (TimeZone, ["Etc/UTC", "America/Argentina/Buenos_Aires"], ["", "Europe Berlin", "../etc"]),
        (Quantity, ["1", "500m", "8Gi", "0.5", "1e3"], ["-1", "8 Gi", "", "8gb"]),
    ],
)  # fmt: skip
def test_patterns(kind: object, good: list[str], bad: list[str]) -> None:
    for text in good:
        assert taken(kind, text) == text
    for text in bad:
        with pytest.raises(ValidationError):
            taken(kind, text)


def test_times_carry_their_zone() -> None:
    with pytest.raises(ValidationError, match="a time must carry its zone"):
        taken(Time, datetime(2026, 11, 22))
    east = datetime(2026, 11, 22, 2, 0, tzinfo=timezone(timedelta(hours=2)))
    assert json.loads(TypeAdapter(Time).dump_json(east)) == "2026-11-22T00:00:00.000000Z"
    assert taken(Time, "2026-11-22T00:00:00Z") == datetime(2026, 11, 22, tzinfo=UTC)


class Block(Model):
    """A spec."""

    some_field: int = 1
    """A field."""


class Seen(Observed):
    """A status."""

    some_field: int = 1
    """A field."""


def test_specs_are_strict_and_statuses_are_not() -> None:
    with pytest.raises(ValidationError, match="otherField"):
        Block.model_validate({"otherField": 1})
    assert Seen.model_validate({"otherField": 1}) == Seen()


def test_blocks_speak_camel_case_and_are_immutable() -> None:
    block = Block.model_validate({"someField": 2})
    assert block.dump() == {"someField": 2}
    with pytest.raises(ValidationError):
        block.some_field = 3  # type: ignore[misc]
