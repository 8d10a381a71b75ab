"""Whether a text is in another language than it should be, where that can be told.

Room: trainer. Pure. The identifier is langid.py's (Lui and Baldwin 2012, ACL system demonstrations) in the maintained
py3langid, whose model of 97 languages is part of the package; it is loaded when it is first asked.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ratchet_trainer.errors import UserError

LIKELY, UNLIKELY = 0.5, 0.1
"""A text is in another language when that one is at least as probable as the first, and all that are wanted together
are at most as probable as the second. In program text and tables no language is likely; between Russian and Bulgarian,
or Dutch and Afrikaans, a short text is likely in both."""
LEAST_LETTERS = 24
"""Fewer letters say too little; counted as bytes, because a letter of Chinese says as much as three of Latin."""


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def foreign(text: str, wanted: Sequence[str]) -> bool:
    """Whether a text is in another language than those, by their ISO 639-1 codes."""
    letters = "".join(filter(str.isalpha, text))
    if len(letters.encode("utf-8", "replace")) < LEAST_LETTERS:
        return False
    ranked = [(str(code), float(probability)) for code, probability in _identifier().rank(text)]
    best, probability = ranked[0]
    if best in wanted or best == "zxx" or probability < LIKELY:
        return False
    return sum(p for code, p in ranked if code in wanted) <= UNLIKELY


def check_languages(wanted: Sequence[str]) -> None:
    """Raises UserError naming one that cannot be told apart: with it in the list nothing of it would ever be kept."""
    known = set(_identifier().labels) if wanted else set()
    for code in wanted:
        if code not in known:
            listed = " ".join(sorted(known - {"zxx"}))
            raise UserError(f"curation.limits.languages: {code!r} is no language that can be told: write of {listed}")
