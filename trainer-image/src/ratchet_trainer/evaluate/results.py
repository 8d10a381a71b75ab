"""What came of the evaluation: suites, slices and cases in numbers, as the report and the gate read them.

Room: trainer. Pure.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter

from ratchet_api.evaluation import Suite
from ratchet_api.power import cases_needed, discordant_share
from ratchet_api.stage import EvaluateInput, Level
from ratchet_api.version import SliceResult, SuiteResult
from ratchet_trainer.evaluate.judge import Judged
from ratchet_trainer.evaluate.statistics import Paired, compare, power
from ratchet_trainer.scorers import Case

SMALLEST_P = Decimal("0.000000000001")
"""Resources carry decimals of twelve places; a smaller p is written as this, which is on the safe side."""
MAX_LOST_SLICES = 2
"""Lost slices that fit into a termination message, over all suites; the worst ones are kept, so that the gate decides
as if it saw all."""

_RESULTS: TypeAdapter[list[SuiteResult]] = TypeAdapter(list[SuiteResult])


@dataclass(frozen=True)
class Slice:
    """The cases of one category."""

    name: str
    result: Paired
    upper_bound: float
    """One-sided upper confidence bound of candidate - champion."""


@dataclass(frozen=True)
class Asked:
    """One suite with all sides' answers."""

    suite: Suite
    cases: Sequence[Case]
    champion: Sequence[Sequence[str]]
    """For each case its answers, as many as the suite's samples."""
    candidate: Sequence[Sequence[str]]
    confidence: float
    """One-sided, of every bound but a target's."""
    base: Sequence[Sequence[str]] | None = None
    """The bare base model's; None when it is the champion or the candidate itself."""
    judged: Judged | None = None
    """What the judge made of the answers, if the suite's scorer is the judge."""
    level: Level | None = None
    """Of a target: the error rate that earlier looks at its cases left."""
    measured: Mapping[str, Sequence[float]] | None = None
    """For each side, case by case, the score of a suite whose cases are measured rather than answered."""

    @property
    def alpha(self) -> float:
        """Error rate of the suite's own bound and test."""
        return 1 - self.confidence if self.level is None else float(self.level.alpha)

    @cached_property
    def scores(self) -> Mapping[str, Sequence[float]]:
        """For each side, case by case, the share of its answers that pass, or what the judge says they are worth."""
        if self.measured is not None:
            return self.measured
        if self.judged is not None:
            return {"champion": self.judged.champion, "candidate": self.judged.candidate}
        return {"champion": self._scored(self.champion), "candidate": self._scored(self.candidate)}

    @cached_property
    def base_scores(self) -> Sequence[float] | None:
        """The bare base's, case by case, for people to look at; None when it is a side itself, and with a judge."""
        return None if self.base is None or self.judged is not None else self._scored(self.base)

    def _scored(self, answers: Sequence[Sequence[str]]) -> list[float]:
        return [
            sum(case.passes(answer) for answer in found) / len(found)
            for case, found in zip(self.cases, answers, strict=True)
        ]

    @cached_property
    def compared(self) -> Paired:
        """The paired statistics of passing and failing."""
        return self._compare(range(len(self.cases)), 1 - self.alpha)

    @cached_property
    def slices(self) -> list[Slice]:
        """Each category by itself, in the order of their names. They veto like guardrails, so looks do not count."""
        found = []
        for name in sorted({case.category for case in self.cases if case.category is not None}):
            chosen = [index for index, case in enumerate(self.cases) if case.category == name]
            loss = self._compare(chosen, self.confidence, champion="candidate", candidate="champion")
            found.append(Slice(name, self._compare(chosen, self.confidence), -loss.lower_bound))
        return found

    def _compare(
        self, chosen: Sequence[int], confidence: float, champion: str = "champion", candidate: str = "candidate"
    ) -> Paired:
        return compare(
            [self.scores[champion][index] for index in chosen],
            [self.scores[candidate][index] for index in chosen],
            confidence,
            clusters=[self.cases[index].cluster for index in chosen],
        )

    def fell(self, entry: Slice) -> bool:
        """Whether a slice has enough cases and its loss is proven and past the margin: what the gate vetoes."""
        enough = entry.result.cases >= self.suite.slice_min_cases
        return enough and entry.upper_bound < 0 and entry.result.difference < -float(self.suite.slice_margin)


def suite_results(asked: Sequence[Asked]) -> list[SuiteResult]:
    """What the gate decides by."""
    lost = [
        (entry.result.difference + float(one.suite.slice_margin), one.suite.name, entry)
        for one in asked
        for entry in one.slices
        if entry.upper_bound < 0 and entry.result.cases >= one.suite.slice_min_cases
    ]
    worst = sorted(lost, key=lambda found: (found[0], found[1], found[2].name))[:MAX_LOST_SLICES]
    return [_result(one, [entry for _, name, entry in worst if name == one.suite.name]) for one in asked]


def _result(one: Asked, lost: Sequence[Slice]) -> SuiteResult:
    found = one.compared
    p_value = Decimal(repr(found.p_value)).quantize(SMALLEST_P)
    return SuiteResult(
        name=one.suite.name, role=one.suite.role, cases=found.cases, champion=_decimal(found.champion),
        candidate=_decimal(found.candidate), difference=_decimal(found.difference),
        lower_bound=_decimal(found.lower_bound), p_value=max(SMALLEST_P, p_value), better=found.better,
        worse=found.worse, digest=cases_digest(one.cases) if one.suite.role == "target" else None,
        look=None if one.level is None else one.level.number, alpha=None if one.level is None else one.level.alpha,
        lost_slices=[
            SliceResult(
                name=entry.name, cases=entry.result.cases, difference=_decimal(entry.result.difference),
                upper_bound=_decimal(entry.upper_bound),
            )
            for entry in lost
        ],
    )  # fmt: skip


def cases_digest(cases: Sequence[Case]) -> str:
    """What the cases ask, in 12 hexadecimal digits, whatever their order, ids, slices and clusters."""
    names = {"id", "category", "cluster"}
    asked = sorted(case.model_dump_json(by_alias=True, exclude=names, exclude_defaults=True) for case in cases)
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]


def report_document(stage: EvaluateInput, asked: Sequence[Asked]) -> dict[str, Any]:
    """report.json: what the gate sees, and what only people look at."""
    return {
        "champion": stage.champion_version,
        "confidence": str(stage.policy.confidence),
        "minImprovement": str(stage.policy.min_improvement),
        "suites": [result.dump() for result in suite_results(asked)],
        "details": {one.suite.name: _details(one, float(stage.policy.min_improvement)) for one in asked},
    }


def _details(one: Asked, asked_gain: float) -> dict[str, Any]:
    found, strength = one.compared, Strength.of(one, asked_gain)
    return {
        "scorer": one.suite.scorer,
        **_verdicts(one.judged),
        "base": None if one.base_scores is None else round(sum(one.base_scores) / len(one.base_scores), 6),
        "clusters": found.clusters,
        "designEffect": round(found.design_effect, 3),
        "power": None if strength is None else round(strength.power, 4),
        "casesNeeded": None if strength is None else strength.cases_needed,
        "slices": [
            {
                "name": entry.name, "cases": entry.result.cases, "clusters": entry.result.clusters,
                "champion": round(entry.result.champion, 6), "candidate": round(entry.result.candidate, 6),
                "difference": round(entry.result.difference, 6), "lowerBound": round(entry.result.lower_bound, 6),
                "upperBound": round(entry.upper_bound, 6), "enoughCases": entry.result.cases
                >= one.suite.slice_min_cases, "fell": one.fell(entry),
            }
            for entry in one.slices
        ],
    }  # fmt: skip


def _verdicts(judged: Judged | None) -> dict[str, Any]:
    if judged is None:
        return {}
    numbers = {"verdicts": judged.verdicts, "ties": judged.ties, "invalid": judged.invalid, "torn": judged.torn}
    return {"judge": numbers}


@dataclass(frozen=True)
class Strength:
    """What a suite of this size can show."""

    gain: float
    """The gain that is asked for."""
    discordant: float
    """Share of the cases that change, as this evaluation lets one expect it."""
    power: float
    """Chance to prove that gain with as many cases, at the error rate that is left for the look."""
    cases_needed: int
    """Cases that prove it so in 80 of 100 evaluations; more by the design effect when they come in clusters."""

    @classmethod
    def of(cls, one: Asked, gain: float) -> "Strength | None":
        """None when no gain is asked for."""
        found = one.compared
        if gain <= 0:
            return None
        share = discordant_share(found.better, found.worse, found.cases)
        effective = max(1, int(found.cases / found.design_effect))
        needed = cases_needed(gain, share, 1 - one.alpha)
        chance = power(effective, gain, share, 1 - one.alpha)
        return cls(gain, share, chance, int(-(-needed * found.design_effect // 1)))


def case_lines(asked: Sequence[Asked]) -> Iterator[dict[str, object]]:
    """cases.jsonl: every case with all sides' answers, those of sealed suites left out."""
    for one in asked:
        if one.suite.sealed:
            continue
        for index, case in enumerate(one.cases):
            line: dict[str, object] = {
                "suite": one.suite.name,
                "case": case.model_dump(mode="json", by_alias=True, exclude_defaults=True),
                "champion": {"answers": list(one.champion[index]), "score": round(one.scores["champion"][index], 6)},
                "candidate": {"answers": list(one.candidate[index]), "score": round(one.scores["candidate"][index], 6)},
            }
            if one.base is not None:
                score = None if one.base_scores is None else round(one.base_scores[index], 6)
                line["base"] = {"answers": list(one.base[index]), "score": score}
            yield line


def read_results(data: bytes) -> list[SuiteResult]:
    """The suites of a report.json."""
    return _RESULTS.validate_python(json.loads(data)["suites"])


def _decimal(value: float) -> Decimal:
    return Decimal(repr(value)).quantize(Decimal("0.000001"), rounding=ROUND_HALF_EVEN)
