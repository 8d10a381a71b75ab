"""What is trained on and what is kept aside to look at the training's loss: split by session and by time.

Room: trainer. Pure. A conversation's turns resemble each other, so a session is never on both sides; and what is kept
aside is newer than what is trained on, as what people will say next is.
"""

from decimal import Decimal
from itertools import chain

import numpy as np

from ratchet_trainer.curate.columns import digest
from ratchet_trainer.curate.spill import Examples, microseconds


def split(share: Decimal | None, *groups: Examples) -> list[tuple[Examples, Examples]]:
    """Of each group (to train on, kept aside), in the given order; sessions are the same in all groups.

    Kept aside are the newest sessions (by their last example, then by the digest of their id), whole, as many as have
    at most `share` of all examples: so every session that is trained on ended before, or with, each that is kept aside.
    """
    if not share:
        return [(examples, examples[:0]) for examples in groups]
    count = sum(map(len, groups))
    sessions, times = np.empty(count, dtype=np.uint64), np.empty(count, dtype=np.int64)
    for index, example in enumerate(chain.from_iterable(groups)):
        sessions[index], times[index] = digest(example.session), microseconds(example.time)
    ids, session_of = np.unique(sessions, return_inverse=True)
    last = np.full(len(ids), np.iinfo(np.int64).min)
    np.maximum.at(last, session_of, times)
    newest = np.lexsort((ids, last))[::-1]
    sizes = np.bincount(session_of, minlength=len(ids))[newest]
    room = int(share * count)
    aside = np.zeros(len(ids), dtype=np.bool_)
    aside[newest[: np.searchsorted(np.cumsum(sizes), room, side="right")]] = True
    inside, ends = aside[session_of], np.cumsum([len(examples) for examples in groups])
    parts = zip(groups, np.split(inside, ends[:-1]), strict=True)
    return [(examples.where(~part), examples.where(part)) for examples, part in parts]
