"""Where the on-call commands print: colour on a terminal, plain text that is never cut or folded when piped.

Room: cli. Writes to the given stream.
"""

import sys
from typing import TextIO

from rich.console import Console, RenderableType

_PIPED_WIDTH = 400
_LEAST_WIDTH = 160


def console(stream: TextIO | None = None, exact: bool = False) -> Console:
    """NO_COLOR and TERM=dumb are honoured. `exact` keeps to the terminal's width, as redrawing needs it; otherwise a
    narrow terminal wraps long lines itself, so that nothing is cut off."""
    out = stream or sys.stdout
    piped = not out.isatty()
    made = _console(out, piped)
    if not piped and not exact and made.width < _LEAST_WIDTH:
        made.width = _LEAST_WIDTH
    return made


def _console(out: TextIO, piped: bool) -> Console:
    return Console(
        file=out, highlight=False, emoji=False, markup=False, width=_PIPED_WIDTH if piped else None,
        no_color=True if piped else None, force_terminal=False if piped else None,
    )  # fmt: skip


def plain(renderable: RenderableType) -> str:
    """As it looks when piped, without spaces at the ends of lines."""
    made = Console(width=_PIPED_WIDTH, highlight=False, emoji=False, markup=False, no_color=True, force_terminal=False)
    with made.capture() as captured:
        made.print(renderable)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"
