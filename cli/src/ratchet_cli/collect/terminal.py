"""A conversation's two ends: lines that a person types, and text that appears as it comes.

Room: cli. Reads and writes the given streams.
"""

import sys
from dataclasses import dataclass, field
from typing import TextIO


@dataclass
class Terminal:
    """Standard input and output, or what a test puts in their place."""

    source: TextIO = field(default_factory=lambda: sys.stdin)
    sink: TextIO = field(default_factory=lambda: sys.stdout)

    def ask(self, prompt: str) -> str | None:
        """One line; None at the end of the input. What is not typed by hand is echoed, so that a transcript is whole.

        Raises KeyboardInterrupt.
        """
        if self.source is sys.stdin and self.source.isatty():
            import readline  # noqa: F401  # gives `input` its line editing and history

            try:
                return input(prompt)
            except EOFError:
                return None
        self.say(prompt)
        line = self.source.readline()
        self.say(line if line.endswith("\n") else f"{line}\n")
        return line.removesuffix("\n") if line else None

    def say(self, text: str) -> None:
        """Text as it is, at once."""
        self.sink.write(text)
        self.sink.flush()

    def line(self, text: str = "") -> None:
        """Text and a new line."""
        self.say(f"{text}\n")
