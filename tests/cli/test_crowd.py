"""People in a thread of their own: they talk while the story does something else, and they end when it does."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.people.gateway import Gateway, serving

from ratchet_cli.demo.crowd import Crowd
from ratchet_cli.demo.errors import WaitExpired
from ratchet_cli.demo.screen import Screen
from ratchet_cli.demo.settings import Settings


@contextmanager
def in_a_thread(gateway: Gateway) -> Iterator[str]:
    """Base URL of the scripted gateway, which runs on an event loop of its own."""
    loop, stop, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

    async def serve() -> None:
        async with serving(gateway):
            ready.set()
            await stop.wait()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(60)
        yield gateway.url
    finally:
        loop.call_soon_threadsafe(gateway.gate.set)
        loop.call_soon_threadsafe(stop.set)
        thread.join()


@pytest.fixture
def gateway() -> Gateway:
    """It answers at once."""
    opened = Gateway()
    opened.gate.set()
    return opened


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path, checkout=tmp_path)


@pytest.fixture
def screen() -> Screen:
    return Screen()


def test_they_talk_until_there_is_enough(gateway: Gateway, settings: Settings, screen: Screen) -> None:
    with in_a_thread(gateway) as url, Crowd(url, settings) as crowd:
        crowd.pace(200)
        crowd.until(lambda seen: seen.answered >= 20, 60, screen)
        crowd.stop()
        seen = crowd.seen()
        assert seen.answered == seen.sent == crowd.sent
        assert len(gateway.feedback) == seen.answered
        assert crowd.failures() == []
    assert "people" not in {thread.name for thread in threading.enumerate()}


def test_too_few_answers_in_time_are_said(settings: Settings, screen: Screen) -> None:
    with (
        in_a_thread(Gateway()) as url,
        Crowd(url, settings) as crowd,
        pytest.raises(WaitExpired, match=r"within 0 s: \d+ asked, 0 answered"),
    ):
        crowd.until(lambda seen: seen.answered >= 1, 0.01, screen)


def test_who_waits_for_ever_is_cut_off(settings: Settings, screen: Screen) -> None:
    with in_a_thread(Gateway()) as url:
        with Crowd(url, settings) as crowd:
            crowd.pace(200)
            crowd.until(lambda seen: seen.under_way > 0, 60, screen)
            began = time.monotonic()
        assert time.monotonic() - began < 10
    assert "people" not in {thread.name for thread in threading.enumerate()}


def test_stopping_twice_is_harmless(gateway: Gateway, settings: Settings) -> None:
    with in_a_thread(gateway) as url, Crowd(url, settings) as crowd:
        crowd.stop()
        crowd.stop()
        assert crowd.seen().failed == 0
