"""What is trained on and what is kept aside to look at the training's loss: split by session and by time.

Room: trainer. Pure. A conversation's turns resemble each other, so a session is never on both sides; and what is kept
aside is newer than what is trained on, as what people will say next is.
"""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

from ratchet_trainer.curate.examples import Example


def split(examples: Sequence[Example], share: Decimal | None) -> tuple[list[Example], list[Example]]:
    """(to train on, kept aside), each in the given order.

    Kept aside are the newest sessions (by their last example, then by their id), whole, as many as have at most `share`
    of the examples: so every session that is trained on ended before, or with, each that is kept aside.
    """
    last: dict[str, datetime] = {}
    size: dict[str, int] = {}
    for example in examples:
        last[example.session] = max(last.get(example.session, example.time), example.time)
        size[example.session] = size.get(example.session, 0) + 1
    room = int((share or 0) * len(examples))
    aside = set[str]()
    for session in sorted(last, key=lambda session: (last[session], session), reverse=True):
        room -= size[session]
        if room < 0:
            break
        aside.add(session)
    train = [example for example in examples if example.session not in aside]
    return train, [example for example in examples if example.session in aside]
