"""Rows that all sides train on: short ones, as people's corrections are, and sessions of uneven length.

Sessions are lognormal in length, with a median of 300 tokens and a 99th percentile of 2,000 (issue 6's figures): turns
of the house generator, as many as the drawn length takes.
"""

import json
import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from ratchet_cli.people.cases import Case
from ratchet_cli.people.house import session_cases

MEDIAN, SIGMA = 300, 0.815
"""ln(2000 / 300) / 2.326, the normal distribution's 99th percentile, gives the sigma."""
LONGEST = 2000
Row = dict[str, list[dict[str, str]]]


def short(count: int, seed: int) -> list[Row]:
    """Single turns."""
    return [_row([case]) for case in islice(session_cases(seed), count)]


def sessions(count: int, seed: int, tokens: Callable[[Row], int]) -> list[Row]:
    """Sessions of several turns; the lengths are the lognormal's quantiles, so that few rows show the whole spread."""
    rng = random.Random(f"sessions/{seed}")
    cases = session_cases(seed)
    wanted = [min(LONGEST, round(MEDIAN * 2.718281828 ** (SIGMA * _normal((k + 0.5) / count)))) for k in range(count)]
    rng.shuffle(wanted)
    return [_session(cases, length, tokens) for length in wanted]


def _session(cases: Iterator[Case], length: int, tokens: Callable[[Row], int]) -> Row:
    turns = [next(cases)]
    while True:
        longer = [*turns, next(cases)]
        if tokens(_row(longer)) > length:
            return _row(turns)
        turns = longer


def _row(turns: list[Case]) -> Row:
    said = [
        message
        for case in turns
        for message in ({"role": "user", "content": case.prompt}, {"role": "assistant", "content": case.reference})
    ]
    return {"messages": said}


def _normal(quantile: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(quantile)


def write(path: Path, rows: list[Row]) -> None:
    """As JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
