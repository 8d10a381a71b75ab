"""Twins of Flagger's and Argo Rollouts' rules, written from their documents, on the streams that Ratchet gets.

Flagger (docs.flagger.app: "How it works", "Metrics Analysis"): a tick each analysis interval. Each tick asks every
metric; a value outside thresholdRange, no values, NaN or an error is a failed check, which is counted and halts the
advancement; when the count has reached `threshold`, the next tick rolls back. Else the weight takes its next step, and
after the last one the canary is promoted, whereupon nothing is looked at any more.

Argo Rollouts (argo-rollouts.readthedocs.io: "Analysis & Progressive Delivery", "Canary"): setWeight and pause by steps,
with a background analysis that measures each interval. successCondition `result[0] <= 0.02` without a
failureCondition: a measurement that is not successful, NaN included, has failed; more than failureLimit failures abort
at once. No result or no answer is an Error; more than consecutiveErrorLimit (4) in a row abort. Full promotion ends
the analysis.

Both are given the error rate of the canary over `window`: sum(rate(5xx)) / sum(rate(all)).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from ratchet_operator.domain.analysis import NoSample, Sample
from ratchet_operator.simulate.store import Store
from ratchet_operator.simulate.traffic import SCRAPE, Scraped

WEIGHTS = (25, 50, 75, 100)
INTERVAL = 10.0
WINDOW = 30.0
LIMIT = 0.02
ERRORS_IN_A_ROW = 4


@dataclass
class End:
    """How a peer's rollout went."""

    outcome: str = "Unfinished"
    weights: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])
    rose_failing: bool = False
    ended_at: float | None = None


def rate(store: Store, now: float) -> float | None:
    """The canary's error rate; NaN for 0/0; None: no result, or no answer."""
    found = store.readings("candidate", "errors", "proportion", WINDOW, now)
    if isinstance(found.all, NoSample) and "nan" in found.all.message:
        return math.nan
    if not isinstance(found.all, Sample) or not isinstance(found.bad, Sample):
        return None
    return math.nan if found.all.value == 0 else found.bad.value / found.all.value


def flagger(source: Scraped, threshold: int, horizon: float) -> End:
    """One rollout under Flagger's rules."""
    end, failed, step = End(), 0, -1
    for now in _ticks(source, end, horizon):
        if now % INTERVAL:
            continue
        if failed >= threshold:
            return _ended(end, "RolledBack", 0, now)
        if step >= 0:
            value = rate(source.store, now)
            if value is None or math.isnan(value) or value > LIMIT:
                failed += 1
                continue
        step += 1
        if step == len(WEIGHTS):
            return _watched(source, _ended(end, "Promoted", 100, now))
        end.weights.append((now, WEIGHTS[step]))
    return end


def argo(source: Scraped, failure_limit: int, horizon: float) -> End:
    """One rollout under Argo Rollouts' rules; a pause of one interval a step."""
    end, failed, errors, step = End(), 0, 0, 0
    end.weights.append((0.0, WEIGHTS[0]))
    for now in _ticks(source, end, horizon):
        if now % INTERVAL:
            continue
        value, bad = rate(source.store, now), False
        if value is None:
            errors += 1
            if errors > ERRORS_IN_A_ROW:
                return _ended(end, "RolledBack", 0, now)
        else:
            errors = 0
            bad = not value <= LIMIT
            failed += bad
            if failed > failure_limit:
                return _ended(end, "RolledBack", 0, now)
        step += 1
        if step == len(WEIGHTS):
            return _watched(source, _ended(end, "Promoted", 100, now))
        end.rose_failing |= bad
        end.weights.append((now, WEIGHTS[step]))
    return end


def _ticks(source: Scraped, end: End, horizon: float) -> Iterator[float]:
    """The end of each scrape, with the traffic before it under the weight in force."""
    now = 0.0
    while now < horizon:
        source.flow(end.weights[-1][1])
        now += SCRAPE
        yield now


def _ended(end: End, outcome: str, weight: int, now: float) -> End:
    end.outcome, end.ended_at = outcome, now
    if weight != end.weights[-1][1]:
        end.weights.append((now, weight))
    return end


def _watched(source: Scraped, end: End) -> End:
    """After the promotion nothing is looked at; traffic goes on, so that a late regression has its moment."""
    for _ in range(30):
        source.flow(100)
    return end
