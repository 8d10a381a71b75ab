"""What is trained on and what is kept aside to look at the training's loss: split by session and by time.

Room: trainer. Pure. A conversation's turns resemble each other, so a session is never on both sides; and what is kept
aside is newer than what is trained on, as what people will say next is.
"""

from datetime import datetime
from decimal import Decimal
from itertools import chain

import numpy as np

from ratchet_trainer.curate.spill import Examples


def split(share: Decimal | None, *groups: Examples) -> list[tuple[Examples, Examples]]:
    """Of each group (to train on, kept aside), in the given order; sessions are the same in all groups.

    Kept aside are the newest sessions (by their last example, then by their id), whole, as many as have at most `share`
    of all examples: so every session that is trained on ended before, or with, each that is kept aside.
    """
    if not share:
        return [(examples, examples[:0]) for examples in groups]
    last: dict[str, datetime] = {}
    size: dict[str, int] = {}
    for example in chain.from_iterable(groups):
        last[example.session] = max(last.get(example.session, example.time), example.time)
        size[example.session] = size.get(example.session, 0) + 1
    room = int(share * sum(map(len, groups)))
    aside = set[str]()
    for session in sorted(last, key=lambda session: (last[session], session), reverse=True):
        room -= size[session]
        if room < 0:
            break
        aside.add(session)
    return [_parted(examples, aside) for examples in groups]


def _parted(examples: Examples, aside: set[str]) -> tuple[Examples, Examples]:
    inside = np.array([bool(aside) and example.session in aside for example in examples], dtype=np.bool_)
    return examples.where(~inside), examples.where(inside)
