"""Whether an answer does what its task asks for: by words in it, or by a command that gets it.

Room: cli. `by_words` is pure; `by_command` runs a program of the task's author, on this machine, as this user.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

_TOLD = 400
"""Characters of a command's words that are passed on."""


@dataclass(frozen=True)
class Judgement:
    """Success, or why not."""

    success: bool
    why: str = ""
    """One line; empty for success."""


def by_words(answer: str, every: Sequence[str], some: Sequence[str], none: Sequence[str]) -> Judgement:
    """All of `every`, one of `some` and none of `none` must be in the answer, whatever the case of their letters: as
    the scorer `keywords` of a suite judges."""
    text = answer.casefold()

    def has(word: str) -> bool:
        return word.casefold() in text

    parts = [f"lacks {word!r}" for word in every if not has(word)]
    if some and not any(map(has, some)):
        parts.append("has none of " + ", ".join(map(repr, some)))
    parts += [f"has {word!r}" for word in none if has(word)]
    return Judgement(not parts, "; ".join(parts))


def by_command(answer: str, command: Sequence[str], timeout: float) -> Judgement:
    """Success is exit code 0 within `timeout` seconds; the answer is the command's standard input. A command that runs
    on is ended with all its children. No shell is involved. Raises OSError when it cannot be started."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as given:
        # Files and not pipes: neither a command that reads nothing nor a child that keeps a pipe open can hold us up.
        given.write(answer.encode("utf-8", "surrogateescape"))
        given.seek(0)
        process = subprocess.Popen(command, stdin=given, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return Judgement(False, f"the command did not end within {timeout:g} s")
        finally:
            _end(process)
        if code == 0:
            return Judgement(True)
        length = said.seek(0, os.SEEK_END)
        said.seek(max(0, length - _TOLD))
        words = " ".join(said.read().decode(errors="replace").split())
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return Judgement(False, f"{how}: {words}" if words else how)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends what the command left running: its session is its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
