"""The simulated people in a thread of their own, so that the story can wait for other things while they talk.

Room: cli. Runs `ratchet_cli.people` on an event loop of its own.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Self

from ratchet_cli.demo.errors import DemoError, WaitExpired
from ratchet_cli.demo.screen import Screen
from ratchet_cli.demo.settings import Settings
from ratchet_cli.people import Failed, People, Snapshot

PROGRESS_SECONDS = 5.0


PEOPLE = 40
"""Questions under way at most: enough to keep a batch of answers full."""


class Crowd:
    """People who talk from `__enter__` to `__exit__`, at the pace that the story asks for."""

    def __init__(self, base_url: str, settings: Settings) -> None:
        profile = settings.profile
        self._people = People(
            base_url=base_url,
            model=settings.cycle,
            seed=settings.seed,
            rate=profile.quiet_rate,
            people=PEOPLE,
            mix=profile.house_share,
            correction_share=profile.correction_share,
            noise=profile.noise,
        )
        self._stop, self._cut_off = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._talk, name="people", daemon=True)
        self._ended: Future[None] = Future()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(patience=0)

    def _talk(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._until_stopped())
        except BaseException as error:  # noqa: BLE001  # handed to the story's thread, which raises it
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)

    async def _until_stopped(self) -> None:
        talking = asyncio.ensure_future(self._people.run_until(self._stop))
        cut_off = asyncio.ensure_future(self._cut_off.wait())
        await asyncio.wait({talking, cut_off}, return_when=asyncio.FIRST_COMPLETED)
        cut_off.cancel()
        if talking.done():
            await talking
        else:
            talking.cancel()
            await asyncio.wait({talking})

    def pace(self, rate: float) -> None:
        """Questions a second from now on."""
        self._people.rate = rate

    def seen(self) -> Snapshot:
        """What they have met so far. Raises DemoError when they had to stop talking."""
        if self._ended.done() and (error := self._ended.exception()) is not None:
            raise DemoError(f"the simulated people stopped talking: {error!r}") from error
        return self._people.snapshot()

    @property
    def sent(self) -> int:
        """Requests sent so far."""
        return self._people.snapshot().sent

    def failures(self) -> list[Failed]:
        """Every request that failed, oldest first."""
        return list(self._people.failures)

    def stop(self, patience: float = 70.0) -> None:
        """Let those under way finish for `patience` seconds, then cut them off. Harmless when called again."""
        for event, seconds in ((self._stop, patience), (self._cut_off, 10.0)):
            if self._thread.is_alive():
                self._loop.call_soon_threadsafe(event.set)
                self._thread.join(seconds)

    def until(self, done: Callable[[Snapshot], bool], timeout: float, screen: Screen) -> None:
        """Until they have met enough. Raises WaitExpired."""
        began = printed = time.monotonic()
        tick = threading.Event()
        while not done(seen := self.seen()):
            now = time.monotonic()
            if now - began > timeout:
                raise WaitExpired(f"people did not get enough answers within {timeout:.0f} s: {describe(seen)}")
            if now - printed >= PROGRESS_SECONDS:
                screen.say(describe(seen))
                printed = now
            tick.wait(0.5)
        screen.say(describe(seen))


def describe(seen: Snapshot) -> str:
    """One line of progress."""
    parts = [f"{seen.sent} asked, {seen.answered} answered and judged, {seen.failed} failed"]
    for version, met in seen.versions.items():
        if met.recent_up + met.recent_down:
            parts.append(f"{version}: {met.recent_up_share:.0%} thumbs up, p50 {met.p50:.1f} s, p95 {met.p95:.1f} s")
    return "; ".join(parts)
