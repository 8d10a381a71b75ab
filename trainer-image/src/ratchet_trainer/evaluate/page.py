"""report.html: the evaluation for people, in one file that needs nothing else.

Room: trainer. Pure: numbers and answers in, HTML out; the same evaluation gives the same bytes. No scripts, nothing
from elsewhere; what people and models wrote is escaped, and personal data and secrets in it are redacted as curation
does it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from ratchet_api.stage import EvaluateInput
from ratchet_trainer.chat import Message
from ratchet_trainer.curate.sensitive import REDACT_ALL, redact
from ratchet_trainer.evaluate.results import Asked, Slice, Strength
from ratchet_trainer.scorers import Case

SHOWN_CASES = 400
"""Cases of a suite that the page shows, those first whose outcome changed; cases.jsonl has them all."""
_LONGEST = 4000
"""Characters of a text that the page shows."""

_WIDTH, _LABEL, _RIGHT, _ROW = 860, 220, 40, 30
"""Of a plot, in pixels: whole, names at the left, rest at the right, height of a row."""


@dataclass(frozen=True)
class Bar:
    """One row of a plot: an estimate with its bounds, and the limit that it is held against."""

    name: str
    text: str
    low: float
    middle: float
    high: float | None
    """None: one-sided, open to the right."""
    limit: float | None
    good: bool | None
    """None: neither proven nor refuted."""


@dataclass(frozen=True)
class Plot:
    """Bars with their axis, in pixels."""

    bars: Sequence[Bar]
    least: float
    most: float

    width = _WIDTH
    label = _LABEL
    row = _ROW

    @property
    def height(self) -> int:
        """Of the whole plot."""
        return _ROW * len(self.bars) + 34

    def x(self, value: float) -> float:
        """Place of a difference on the axis."""
        share = (min(max(value, self.least), self.most) - self.least) / (self.most - self.least)
        return round(_LABEL + share * (_WIDTH - _LABEL - _RIGHT), 1)

    @property
    def ticks(self) -> list[float]:
        """Round values along the axis, zero among them."""
        step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if (self.most - self.least) / s <= 9)
        return [round(index * step, 2) for index in range(round(self.least / step), round(self.most / step) + 1)]


@dataclass(frozen=True)
class ShownCase:
    """One case side by side."""

    id: str
    category: str
    conversation: Sequence[Message]
    wanted: str
    champion: Sequence[str]
    candidate: Sequence[str]
    champion_score: float
    candidate_score: float
    scorer: str
    base: Sequence[str] = ()
    """Empty when the bare base is a side itself."""
    base_score: float | None = None

    @property
    def base_word(self) -> str:
        """What became of the bare base's answers; a judge does not look at them."""
        return "" if self.base_score is None else _said(self.base_score, self.scorer)

    @property
    def champion_word(self) -> str:
        """What became of the champion's answers."""
        return _said(self.champion_score, self.scorer)

    @property
    def candidate_word(self) -> str:
        """What became of the candidate's answers."""
        return _said(self.candidate_score, self.scorer)

    @property
    def change(self) -> str:
        """better, worse, or same."""
        if self.champion_score == self.candidate_score:
            return "same"
        return "better" if self.candidate_score > self.champion_score else "worse"


@dataclass(frozen=True)
class ShownSuite:
    """One suite as the template needs it."""

    asked: Asked
    strength: Strength | None
    plot: Plot | None
    cases: Sequence[ShownCase]
    left_out: int


def render(stage: EvaluateInput, asked: Sequence[Asked]) -> str:
    """The page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "points": _points,
        "percent": lambda value: f"{100 * value:.1f}",
        "mean": _mean,
        "p": _p,
    }
    template = files("ratchet_trainer.evaluate").joinpath("report.html.j2").read_text(encoding="utf-8")
    gain = float(stage.policy.min_improvement)
    return environment.from_string(template).render(
        version=stage.identity.version, champion=stage.champion_version, cycle=stage.identity.cycle,
        confidence=f"{100 * float(stage.policy.confidence):g}", gain=gain,
        plot=_plot([_suite_bar(one, gain) for one in asked]), suites=[_suite(one, gain) for one in asked],
        with_base=any(one.base is not None for one in asked),
    )  # fmt: skip


def _suite(one: Asked, gain: float) -> ShownSuite:
    every = () if one.suite.sealed else range(len(one.cases))
    order = sorted(every, key=lambda index: (_rank(one, index), index))
    shown = [_case(one, index) for index in order[:SHOWN_CASES]]
    bars = [_slice_bar(one, entry) for entry in one.slices]
    strength = Strength.of(one, gain) if one.suite.role == "target" else None
    return ShownSuite(one, strength, _plot(bars) if bars else None, shown, len(order) - len(shown))


def _rank(one: Asked, index: int) -> int:
    before, after = one.scores["champion"][index], one.scores["candidate"][index]
    if before == after:
        return 3 if after == 1 else 2
    return 0 if after < before else 1


def _case(one: Asked, index: int) -> ShownCase:
    case: Case = one.cases[index]
    turns = [Message(role=turn.role, content=_clean(turn.content)) for turn in case.conversation]
    return ShownCase(
        _clean(case.id), case.category or "", turns, _clean(case.wanted),
        [_clean(answer) for answer in one.champion[index]], [_clean(answer) for answer in one.candidate[index]],
        one.scores["champion"][index], one.scores["candidate"][index], one.suite.scorer,
        [_clean(answer) for answer in one.base[index]] if one.base is not None else (),
        one.base_scores[index] if one.base_scores is not None else None,
    )  # fmt: skip


def _clean(text: str) -> str:
    found = redact(text, REDACT_ALL)[0]
    return found if len(found) <= _LONGEST else f"{found[:_LONGEST]} … ({len(found)} characters)"


def _suite_bar(one: Asked, gain: float) -> Bar:
    found, suite = one.compared, one.suite
    match suite.role:
        case "target":
            limit: float | None = 0.0
            good = found.lower_bound > 0 and found.difference >= gain
        case "guardrail":
            limit = -float(suite.margin)
            good = found.lower_bound > limit
        case "safety":
            limit, good = None, found.worse == 0
    text = f"{_points(found.difference)}, at least {_points(found.lower_bound)}"
    return Bar(f"{suite.name} ({suite.role})", text, found.lower_bound, found.difference, None, limit, good)


def _slice_bar(one: Asked, entry: Slice) -> Bar:
    found = entry.result
    enough = found.cases >= one.suite.slice_min_cases
    text = f"{_points(found.difference)} ({_points(found.lower_bound)} to {_points(entry.upper_bound)})"
    return Bar(
        f"{entry.name}, n {found.cases}", text, found.lower_bound, found.difference, entry.upper_bound,
        -float(one.suite.slice_margin) if enough else None, not one.fell(entry) if enough else None,
    )  # fmt: skip


def _plot(bars: Sequence[Bar]) -> Plot:
    ends = [0.0, *(value for bar in bars for value in _ends(bar))]
    room = 0.05 * max(max(ends) - min(ends), 0.05)
    return Plot(bars, max(-1.0, min(ends) - room), min(1.0, max(ends) + room))


def _ends(bar: Bar) -> Iterator[float]:
    yield from (bar.low, bar.middle)
    if bar.high is not None:
        yield bar.high
    if bar.limit is not None:
        yield bar.limit


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _said(score: float, scorer: str) -> str:
    if scorer == "exposure":
        return f"leaves {100 * score:.0f} of 100 unexposed"
    if scorer == "judge":
        return f"is worth {100 * score:.0f} of 100 to the judge"
    return {0.0: "fails", 1.0: "passes"}.get(score, f"passes {100 * score:.0f} % of its answers")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _p(value: float | Decimal) -> str:
    return f"{float(value):.2g}"
