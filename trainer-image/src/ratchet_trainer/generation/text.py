"""Tokens to text while they come, and where a stop string ends it.

Room: trainer. Pure, given a tokenizer.
"""

from collections.abc import Sequence

from ratchet_trainer.chat import Tokenizer

_INCOMPLETE = "\ufffd"


class TextStream:
    """Text of a growing list of tokens.

    A token may be half a character, and the space before a word may depend on the word before it: text is decoded
    together with the tokens that came before, and given out when it is whole (the scheme of vLLM's and TGI's
    incremental detokenisation).
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._context = 0
        """Tokens from here on are decoded for their context, ..."""
        self._read = 0
        """... those from here on are new."""
        self._text = ""
        self._given = 0
        self.stopped = False
        """Whether a stop string came; what follows it is dropped."""

    @property
    def text(self) -> str:
        """All that has been given out."""
        return self._text[: self._given]

    def push(self, tokens: Sequence[int], final: bool) -> str:
        """The text that has become certain, from all tokens so far. `final`: no more will come."""
        if self.stopped:
            return ""
        before = self._decode(tokens[self._context : self._read])
        now = self._decode(tokens[self._context :])
        if len(now) > len(before) and (final or not now.endswith(_INCOMPLETE)):
            self._text += now[len(before) :]
            self._context, self._read = self._read, len(tokens)
        return self._release(final)

    def _release(self, final: bool) -> str:
        found = [place for stop in self._stops if (place := self._text.find(stop, self._search_from(stop))) >= 0]
        if found:
            self.stopped = True
            self._text = self._text[: min(found)]
            end = len(self._text)
        elif final:
            end = len(self._text)
        else:
            end = len(self._text) - max((self._held_back(stop) for stop in self._stops), default=0)
        new = self._text[self._given : end]
        self._given = max(self._given, end)
        return new

    def _search_from(self, stop: str) -> int:
        return max(0, self._given - len(stop) + 1)

    def _held_back(self, stop: str) -> int:
        """Length of the longest end of the text that may become the stop string."""
        return next((size for size in range(len(stop) - 1, 0, -1) if self._text.endswith(stop[:size])), 0)

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True) if tokens else ""
