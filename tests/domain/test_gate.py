"""The gate's decisions as named cases."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from ratchet_api.evaluation import EvaluationPolicy, builtin_suite
from ratchet_api.power import POWER, cases_needed
from ratchet_api.version import SliceResult, SuiteResult
from ratchet_operator.domain import gate


def policy(*suites: tuple[str, str], **more: Any) -> EvaluationPolicy:
    """Suites as (name, role); guardrails have a margin of 5 points."""
    cases = {"configMap": {"name": "suites", "key": "x.jsonl"}}
    document = {"suites": [{"name": n, "role": r, "cases": cases} for n, r in suites], "minImprovement": "0.01"}
    return EvaluationPolicy.model_validate(document | more)


def suite(
    name: str, role: str, difference: str, lower: str, n: int = 104, p: str = "0.003", worse: int = 3, **more: Any
) -> SuiteResult:
    """A result with a champion of 0.4."""
    fields = {
        "name": name,
        "role": role,
        "cases": n,
        "champion": Decimal("0.4"),
        "candidate": Decimal("0.4") + Decimal(difference),
        "difference": Decimal(difference),
        "lower_bound": Decimal(lower),
        "p_value": Decimal(p),
        "better": 10,
        "worse": worse,
        "lost_slices": [],
        "look": 1 if role == "target" else None,
        "alpha": Decimal("0.025") if role == "target" else None,
    }
    # Not validated: a report that was read is, but the gate must not depend on it.
    return SuiteResult.model_construct(**(fields | more))


TARGET, GUARDRAIL, SAFETY = ("rules", "target"), ("general", "guardrail"), ("refusals", "safety")
BETTER = suite(*TARGET, "0.062", "0.031")
KEPT = suite(*GUARDRAIL, "-0.004", "-0.038")
SAFE = suite(*SAFETY, "0.0", "-0.02", worse=0)
ALL = policy(TARGET, GUARDRAIL, SAFETY)


def test_accepted() -> None:
    decision = gate.decide(ALL, [BETTER, KEPT, SAFE])
    assert (decision.accepted, decision.reason) == (True, "GatePassed")
    assert decision.target == "+6.2 (p 0.003)"
    assert decision.guardrail == "general -0.4 ok, refusals +0.0 ok"
    assert decision.message == (
        "rules +6.2 points (at least +3.1, n 104, p 0.003, look 1 at these cases: p below 0.025), minImprovement +1.0; "
        "general -0.4 points (at least -3.8, n 104), limit -5.0; "
        "refusals +0.0 points (at least -2.0, n 104), no case lost"
    )


@pytest.mark.parametrize(
    ("target", "reason", "words"),
    [
        pytest.param(suite(*TARGET, "0.009", "0.001"), "NotBetter", "by less than minImprovement +1.0", id="too small"),
        pytest.param(suite(*TARGET, "-0.3", "-0.4"), "NotBetter", "is not better", id="clearly worse"),
        pytest.param(suite(*TARGET, "0.0", "0.0"), "NotBetter", "is not better", id="all ties"),
        pytest.param(suite(*TARGET, "0.02", "0.0"), "Underpowered", "are needed", id="lower bound at 0"),
        pytest.param(suite(*TARGET, "0.02", "-0.03"), "Underpowered", "about", id="too few cases"),
        pytest.param(
            suite(*TARGET, "0.0", "-0.05"), "Underpowered", "too few to see +1.0 points", id="could be either"
        ),
        pytest.param(
            suite(*TARGET, "0.0", "-0.012", n=90_000, better=10, worse=3), "NotBetter", "not proven", id="enough cases"
        ),
    ],
)
def test_target_not_proven(target: SuiteResult, reason: str, words: str) -> None:
    decision = gate.decide(ALL, [target, KEPT, SAFE])
    assert (decision.accepted, decision.reason) == (False, reason)
    assert words in decision.message


def test_underpowered_says_how_many_cases_are_needed() -> None:
    decision = gate.decide(policy(TARGET), [suite(*TARGET, "0.04", "-0.01", n=104, better=7, worse=3)])
    needed = cases_needed(0.01, 11 / 106, 0.975)
    assert decision.message.endswith(f"104 cases are too few to see +1.0 points, about {needed} are needed")


def test_without_a_minimum_the_gain_seen_is_what_has_to_be_proven() -> None:
    some = policy(TARGET, minImprovement="0")
    assert gate.decide(some, [suite(*TARGET, "0.04", "-0.01")]).reason == "Underpowered"
    assert gate.decide(some, [suite(*TARGET, "0.0", "-0.05")]).reason == "NotBetter"
    assert gate.decide(some, [suite(*TARGET, "0.001", "0.0001")]).accepted


@pytest.mark.parametrize(
    ("guardrail", "accepted"),
    [
        pytest.param(suite(*GUARDRAIL, "-0.01", "-0.049"), True, id="within the margin"),
        pytest.param(suite(*GUARDRAIL, "-0.01", "-0.05"), False, id="at the margin"),
        pytest.param(suite(*GUARDRAIL, "-0.098", "-0.15"), False, id="beyond"),
        pytest.param(suite(*GUARDRAIL, "0.02", "-0.06", n=30), False, id="better, but too few cases to know"),
    ],
)
def test_guardrail(guardrail: SuiteResult, accepted: bool) -> None:
    decision = gate.decide(ALL, [BETTER, guardrail, SAFE])
    assert decision.accepted is accepted
    if not accepted:
        assert decision.reason == "GuardrailLost"
        assert "limit -5.0" in decision.message
        assert "veto" in decision.guardrail


def test_column_of_a_single_guardrail() -> None:
    decision = gate.decide(policy(TARGET, GUARDRAIL), [BETTER, suite(*GUARDRAIL, "-0.098", "-0.15")])
    assert decision.guardrail == "-9.8 veto"


@pytest.mark.parametrize(
    ("safety", "accepted"),
    [
        pytest.param(suite(*SAFETY, "0.1", "0.0", worse=0), True, id="better"),
        pytest.param(suite(*SAFETY, "0.1", "0.0", worse=1), False, id="better on the whole, one case lost"),
        pytest.param(suite(*SAFETY, "-0.001", "-0.1", worse=0), False, id="score below the champion's"),
    ],
)
def test_safety_loses_nothing(safety: SuiteResult, accepted: bool) -> None:
    decision = gate.decide(ALL, [BETTER, KEPT, safety])
    assert decision.accepted is accepted
    assert accepted or decision.reason == "SafetyLost"


def test_every_target_has_to_be_proven() -> None:
    two = policy(TARGET, ("style", "target"))
    weak = suite("style", "target", "-0.1", "-0.2")
    decision = gate.decide(two, [BETTER, weak])
    assert (decision.accepted, decision.reason) == (False, "NotBetter")
    assert decision.target == "rules +6.2 (p 0.003), style -10.0 (p 0.003)"


def test_the_gravest_reason_comes_first_and_all_are_said() -> None:
    lost = suite(*GUARDRAIL, "-0.098", "-0.15")
    unsafe = suite(*SAFETY, "-0.1", "-0.2", worse=9)
    decision = gate.decide(ALL, [suite(*TARGET, "-0.3", "-0.4"), lost, unsafe])
    assert decision.reason == "SafetyLost"
    assert all(name in decision.message for name in ("rules", "general", "refusals"))


@pytest.mark.parametrize(
    ("results", "words"),
    [
        pytest.param([BETTER, KEPT], "suite refusals has no result", id="missing suite"),
        pytest.param([], "suite rules has no result", id="empty report"),
        pytest.param([BETTER, BETTER, KEPT, SAFE], "suite rules has 2 results", id="twice"),
        pytest.param([BETTER, KEPT, SAFE, suite("x", "target", "0.1", "0.05")], "suite x is not part", id="foreign"),
        pytest.param([suite("rules", "guardrail", "0.1", "0.05"), KEPT, SAFE], "was run as guardrail", id="other role"),
        pytest.param([suite(*TARGET, "0.1", "0.05", n=0), KEPT, SAFE], "it has no cases", id="no cases"),
        pytest.param([suite(*TARGET, "NaN", "0.05"), KEPT, SAFE], "is NaN", id="NaN"),
        pytest.param([suite(*TARGET, "0.1", "NaN"), KEPT, SAFE], "lowerBound is NaN", id="NaN bound"),
        pytest.param([suite(*TARGET, "0.1", "Infinity"), KEPT, SAFE], "lowerBound is Infinity", id="infinite"),
        pytest.param([suite(*TARGET, "0.7", "0.5"), KEPT, SAFE], "is not between 0 and 1", id="score of 1.1"),
        pytest.param([suite(*TARGET, "0.1", "0.05", p="1.2"), KEPT, SAFE], "pValue 1.2 is not", id="p above 1"),
        pytest.param([suite(*TARGET, "0.1", "0.2"), KEPT, SAFE], "is above the difference", id="bound above estimate"),
        pytest.param([suite(*TARGET, "0.1", "0.05", worse=99), KEPT, SAFE], "do not fit 104 cases", id="counts"),
        pytest.param([suite(*TARGET, "0.1", "0.05", worse=-1), KEPT, SAFE], "do not fit", id="negative count"),
        pytest.param(
            [suite(*TARGET, "0.1", "0.05", candidate=Decimal("0.4")), KEPT, SAFE], "is not candidate", id="sum"
        ),
        pytest.param([suite(*TARGET, "0.1", "0.05", alpha=None), KEPT, SAFE], "what error rate", id="no level"),
        pytest.param([suite(*TARGET, "0.1", "0.05", alpha=Decimal(1)), KEPT, SAFE], "is none", id="no error rate"),
        pytest.param([suite(*TARGET, "0.1", "0.05", look=0), KEPT, SAFE], "look 0", id="no look"),
    ],
)
def test_a_report_that_cannot_be_judged_is_never_accepted(results: list[SuiteResult], words: str) -> None:
    decision = gate.decide(ALL, results)
    assert (decision.accepted, decision.reason) == (False, "DataError")
    assert words in decision.message


def with_canaries() -> EvaluationPolicy:
    more = builtin_suite("memorisation", [])
    return ALL.model_copy(update={"suites": [*ALL.suites, more]})


def test_where_nothing_was_planted_exposure_decides_nothing() -> None:
    assert gate.decide(with_canaries(), [BETTER, KEPT, SAFE]) == gate.decide(ALL, [BETTER, KEPT, SAFE])
    worse = gate.decide(with_canaries(), [suite(*TARGET, "-0.3", "-0.4"), KEPT, SAFE])
    assert (worse.accepted, worse.reason) == (False, "NotBetter")


@pytest.mark.parametrize(("lower", "reason"), [("-0.29", "GatePassed"), ("-0.31", "GuardrailLost")])
def test_a_version_that_knows_its_canaries_is_vetoed(lower: str, reason: str) -> None:
    found = suite("builtin-memorisation", "guardrail", "-0.2", lower, n=16, worse=6)
    decision = gate.decide(with_canaries(), [BETTER, KEPT, SAFE, found])
    assert decision.reason == reason


def test_a_policy_without_a_target_accepts_nothing() -> None:
    decision = gate.decide(policy(GUARDRAIL), [KEPT])
    assert (decision.accepted, decision.reason) == (False, "InvalidSpec")


@pytest.mark.parametrize(
    ("p", "text"), [("0.003", "0.003"), ("0.62", "0.6"), ("0.000001", "1e-6"), ("0", "<1e-12"), ("1", "1")]
)
def test_p_as_people_write_it(p: str, text: str) -> None:
    assert gate.decide(policy(TARGET), [suite(*TARGET, "0.1", "0.05", p=p)]).target == f"+10.0 (p {text})"


@pytest.mark.parametrize(("gain", "discordant"), [(0.05, 0.2), (0.1, 0.15), (0.1, 0.4), (0.02, 0.05)])
def test_the_number_of_cases_gives_the_power_it_promises(gain: float, discordant: float) -> None:
    """Against the exact power of the normal McNemar test, summed over the number of discordant pairs."""
    n = cases_needed(gain, discordant, 0.95)
    better = (discordant + gain) / 2 / discordant
    power = 0.0
    for pairs in range(1, n + 1):
        weight = binom.pmf(pairs, n, discordant)
        if weight < 1e-9:
            continue
        least = (pairs + 1.645 * pairs**0.5) / 2
        power += weight * binom.sf(int(least) if least != int(least) else int(least) - 1, pairs, better)
    assert power == pytest.approx(POWER, abs=0.05)


def test_no_number_of_cases_shows_no_gain() -> None:
    with pytest.raises(ValueError, match="cannot be seen"):
        cases_needed(0.0, 0.1, 0.95)


anything = st.decimals(allow_nan=True, allow_infinity=True) | st.decimals(-1, 1, places=3)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([TARGET, GUARDRAIL, SAFETY]), anything, anything, anything, anything, anything,
            st.integers(-1, 200), st.integers(-1, 50), st.integers(-1, 50),
        ),
        max_size=4,
    )
)  # fmt: skip
def test_decide_is_total_and_accepts_only_what_is_proven(rows: list[Any]) -> None:
    results = [
        SuiteResult.model_construct(
            name=names[0], role=names[1], cases=n, champion=champion, candidate=candidate, difference=difference,
            lower_bound=lower, p_value=p, better=better, worse=worse, look=1, alpha=Decimal("0.025"),
        )
        for names, champion, candidate, difference, lower, p, n, better, worse in rows
    ]  # fmt: skip
    decision = gate.decide(ALL, results)
    assert decision.message
    if decision.accepted:
        target = next(result for result in results if result.role == "target")
        assert target.lower_bound > 0
        assert target.p_value < Decimal("0.025")
        assert target.difference >= Decimal("0.01")
        assert len(results) == 3


# -- slices


def fell(name: str, difference: str, upper: str, cases: int = 30) -> SliceResult:
    fields = {"name": name, "cases": cases, "difference": Decimal(difference), "upper_bound": Decimal(upper)}
    return SliceResult.model_construct(**fields)


@pytest.mark.parametrize("role", ["target", "guardrail"])
def test_a_slice_that_fell_past_its_margin_vetoes(role: str) -> None:
    chosen = BETTER if role == "target" else KEPT
    hurt = chosen.model_copy(update={"lost_slices": [fell("refunds", "-0.2", "-0.05")]})
    decision = gate.decide(ALL, [hurt if result is chosen else result for result in (BETTER, KEPT, SAFE)])
    assert (decision.accepted, decision.reason) == (False, "SliceLost")
    assert decision.message == (
        f"{chosen.name}/refunds -20.0 points (at most -5.0, n 30) fell past its margin, limit -10.0"
    )


@pytest.mark.parametrize(
    "entry",
    [fell("few", "-0.5", "-0.1", cases=19), fell("chance", "-0.2", "0.01"), fell("little", "-0.1", "-0.02")],
    ids=lambda entry: entry.name,
)
def test_a_slice_with_few_cases_or_little_proof_does_not(entry: SliceResult) -> None:
    hurt = BETTER.model_copy(update={"lost_slices": [entry]})
    assert gate.decide(ALL, [hurt, KEPT, SAFE]).accepted


def test_a_suite_says_how_many_cases_a_slice_needs_and_may_lose() -> None:
    strict = ALL.model_copy(
        update={"suites": [s.model_copy(update={"slice_min_cases": 5, "slice_margin": Decimal(0)}) for s in ALL.suites]}
    )
    hurt = BETTER.model_copy(update={"lost_slices": [fell("few", "-0.01", "-0.001", cases=5)]})
    assert gate.decide(strict, [hurt, KEPT, SAFE]).reason == "SliceLost"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (fell("x", "NaN", "-0.1"), "slice x: difference is NaN"),
        (fell("x", "-0.2", "-3"), "slice x: upperBound is -3"),
        (fell("x", "-0.2", "-0.1", cases=105), "slice x: 105 cases do not fit the suite's 104"),
    ],
)
def test_a_slice_that_contradicts_itself_is_bad_data(entry: SliceResult, words: str) -> None:
    decision = gate.decide(ALL, [BETTER.model_copy(update={"lost_slices": [entry]}), KEPT, SAFE])
    assert (decision.accepted, decision.reason) == (False, "DataError")
    assert words in decision.message
