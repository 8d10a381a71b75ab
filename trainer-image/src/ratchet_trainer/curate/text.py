"""Normal forms of text: for equality, and for finding held-out prompts.

Room: trainer. Pure.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

_WORDS = re.compile(r"\w+")
CONTAINED_WORDS = 4
"""A held-out prompt of at least so many words is also found inside a longer turn; a shorter one ("Who are you?") is
held out only when it is the whole turn, or nearly every turn with these words would be lost."""


def normalised(text: str) -> str:
    """Unicode NFKC, case folded, white space collapsed: what counts as the same text."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words(text: str) -> tuple[str, ...]:
    """The words of a text in normal form, without punctuation."""
    return tuple(_WORDS.findall(normalised(text)))


class HeldOut:
    """Prompts that must never be trained on."""

    def __init__(self, prompts: Iterable[str]) -> None:
        self._whole: set[tuple[str, ...]] = set()
        self._texts: set[str] = set()
        by_head: defaultdict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
        for prompt in prompts:
            found = words(prompt)
            self._texts.add(normalised(prompt))
            if found:
                self._whole.add(found)
            if len(found) >= CONTAINED_WORDS:
                by_head[found[:CONTAINED_WORDS]].add(found)
        self._by_head = dict(by_head)

    def covers(self, turn: str) -> bool:
        """Whether a person's turn is a held-out prompt or contains one, punctuation and case aside."""
        found = words(turn)
        if found in self._whole or normalised(turn) in self._texts:
            return True
        return any(
            found[start : start + len(prompt)] == prompt
            for start in range(len(found) - CONTAINED_WORDS + 1)
            for prompt in self._by_head.get(found[start : start + CONTAINED_WORDS], ())
        )
