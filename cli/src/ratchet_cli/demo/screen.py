"""What the person sees: headings, lines with the time elapsed, facts held against limits.

Room: cli. Writes to the given stream only. Colour on a terminal, plain lines when piped.
"""

import sys
import threading
import time
from typing import TextIO

from rich.console import Console
from rich.text import Text


def clock(seconds: float) -> str:
    """`m:ss`, for the margin of every line."""
    whole = max(0, int(seconds))
    return f"{whole // 60:d}:{whole % 60:02d}"


class Screen:
    """Lines of progress. Safe to use from several threads."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.began = time.monotonic()
        self._console = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True, emoji=False, markup=False)
        self._lock = threading.Lock()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def heading(self, text: str) -> None:
        """Begin of a step."""
        self._line(text, "bold", mark="==>", blank=True)

    def say(self, text: str) -> None:
        """Progress."""
        self._line(text, "")

    def explain(self, text: str) -> None:
        """A sentence that tells why."""
        self._line(text, "dim")

    def command(self, text: str) -> None:
        """A command that a person could type, before it is run."""
        self._line(f"$ {text}", "cyan")

    def good(self, text: str) -> None:
        """A fact that is as told."""
        self._line(text, "green", mark="ok ")

    def bad(self, text: str) -> None:
        """A fact that is not."""
        self._line(text, "bold red", mark="!! ")

    def block(self, text: str) -> None:
        """Several lines as they are, indented: output of a command."""
        for line in text.rstrip("\n").splitlines():
            self._line(f"  {line}", "")

    def _line(self, text: str, style: str, mark: str = "   ", blank: bool = False) -> None:
        line = Text(f"{clock(self.elapsed):>6} ", style="dim")
        line.append(f"{mark} ", style=style)
        line.append(text, style=style)
        with self._lock:
            if blank:
                self._console.print()
            self._console.print(line)
            self._console.file.flush()
