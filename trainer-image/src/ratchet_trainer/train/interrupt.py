"""What SIGTERM may not tear apart.

Room: trainer. Touches this process's handler of SIGTERM, for moments.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uninterrupted() -> Iterator[None]:
    """SIGTERM that comes inside the block is delivered at its end. Signals only reach the main thread; in another one
    nothing has to be held back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = False

    def note(signum: int, frame: object) -> None:
        nonlocal came
        came = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if came:
            signal.raise_signal(signal.SIGTERM)
