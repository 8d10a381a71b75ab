"""kill -9 under load, and a storage that goes away: no interaction whose answer a client got is ever lost."""

import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import APIError, AsyncOpenAI

from ratchet_local import Platform, PlatformConfig, S3Access

from .support import PATIENCE, FakeArm, MakeArm, eventually, free_port, read_interactions

PROGRAM = Path(__file__).with_name("gateway_process.py")


@pytest.fixture
def bucket(s3: S3Access) -> str:
    """A bucket of one's own."""
    name = f"gateway-{secrets.token_hex(4)}"
    s3.create_bucket(name)
    return name


class Process:
    """The gateway as a process that may be killed."""

    def __init__(self, arm: FakeArm, folder: Path, access: S3Access, bucket: str) -> None:
        self.folder = folder
        self._arguments = [str(arm.port), str(folder)]
        self._environment = {**os.environ, **access.env()}
        self._uri = f"s3://{bucket}/assistant"
        self._process: asyncio.subprocess.Process | None = None
        self.url = ""

    async def start(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, str(PROGRAM), *self._arguments, str(port), self._uri, env=self._environment
        )
        async with aiohttp.ClientSession(self.url) as http:
            for _ in range(int(PATIENCE / 0.05)):
                assert self._process.returncode is None, "the gateway died at its start"
                with contextlib.suppress(aiohttp.ClientError):
                    async with http.get("/readyz") as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(0.05)
        raise AssertionError("the gateway did not become ready")

    async def end(self, number: int) -> int:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await asyncio.wait_for(self._process.wait(), PATIENCE)


class Crowd:
    """Clients that ask without a pause and note the ids of the answers that they got to the end."""

    def __init__(self, url: str) -> None:
        self._client = AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
        self.whole: set[str] = set()
        self._tasks = [asyncio.create_task(self._ask(number)) for number in range(16)]

    async def _ask(self, number: int) -> None:
        words: Any = [{"role": "user", "content": f"client {number} " + "x" * 200}]
        with contextlib.suppress(APIError):
            while True:
                if number % 2:
                    stream = await self._client.chat.completions.create(model="assistant", messages=words, stream=True)
                    ids = {event.id async for event in stream}
                else:
                    ids = {(await self._client.chat.completions.create(model="assistant", messages=words)).id}
                self.whole |= ids

    async def stop(self) -> set[str]:
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
        await self._client.close()
        return self.whole

    async def until_killed(self) -> set[str]:
        await asyncio.wait_for(asyncio.gather(*self._tasks), PATIENCE)
        return await self.stop()


@pytest.fixture
async def process(make_arm: MakeArm, tmp_path: Path, s3: S3Access, bucket: str) -> AsyncIterator[Process]:
    process = Process(await make_arm("assistant-1", "a few words of answer"), tmp_path / "spool", s3, bucket)
    yield process
    await process.end(signal.SIGKILL)


@pytest.mark.slow
async def test_kill_9_loses_no_answered_interaction(process: Process, s3: S3Access, bucket: str) -> None:
    acknowledged: set[str] = set()
    for round_ in range(3):
        await process.start()
        crowd = Crowd(process.url)
        enough = 200 * (round_ + 1)
        await eventually(lambda crowd=crowd, enough=enough: len(crowd.whole) >= enough, "answers")  # type: ignore[misc]
        assert await process.end(signal.SIGKILL) == -signal.SIGKILL
        acknowledged |= await crowd.until_killed()
    await process.start()
    assert await process.end(signal.SIGTERM) == 0
    recorded = [record.id for record in await asyncio.to_thread(read_interactions, s3, bucket)]
    assert len(acknowledged) >= 1200
    assert acknowledged <= set(recorded), f"{len(acknowledged - set(recorded))} answered interactions are lost"
    assert len(recorded) == len(set(recorded)), "none is there twice"
    assert list(process.folder.glob("*/dt=*/*")) == []


@pytest.mark.slow
async def test_sigterm_under_load_records_everything(process: Process, s3: S3Access, bucket: str) -> None:
    await process.start()
    crowd = Crowd(process.url)
    await eventually(lambda: len(crowd.whole) >= 300, "answers")
    assert await process.end(signal.SIGTERM) == 0
    acknowledged = await crowd.until_killed()
    recorded = {record.id for record in await asyncio.to_thread(read_interactions, s3, bucket)}
    assert acknowledged <= recorded


@pytest.fixture
def outage(tmp_path: Path) -> Iterator[Platform]:
    """An S3 server of one's own, to be stopped."""
    config = PlatformConfig(state=tmp_path / "s3-state", parts=frozenset({"s3"}), name="outage")
    with Platform(config, progress=print) as platform:
        platform.s3.create_bucket("sessions")
        yield platform


@pytest.mark.slow
async def test_s3_that_is_away_for_a_while_loses_nothing(make_arm: MakeArm, tmp_path: Path, outage: Platform) -> None:
    process = Process(await make_arm("assistant-1", "a few words"), tmp_path / "spool", outage.s3, "sessions")
    await process.start()
    try:
        crowd = Crowd(process.url)
        await eventually(lambda: len(crowd.whole) >= 100, "answers before")
        await asyncio.to_thread(outage.stop, "s3")
        before = len(crowd.whole)
        await eventually(lambda: len(crowd.whole) >= before + 300, "answers during the outage")
        async with aiohttp.ClientSession(process.url) as http, http.get("/metrics") as response:
            assert 'ratchet_gateway_upload_failures_total{cycle="assistant"' in await response.text()
        await asyncio.to_thread(outage.start, "s3")
        acknowledged = await crowd.stop()
        assert await process.end(signal.SIGTERM) == 0
        recorded = {record.id for record in await asyncio.to_thread(read_interactions, outage.s3, "sessions")}
        assert acknowledged <= recorded
    finally:
        await process.end(signal.SIGKILL)


async def test_a_missing_bucket_says_what_to_do(
    make_arm: MakeArm, tmp_path: Path, s3: S3Access, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ratchet_gateway.segments import Destination
    from ratchet_gateway.upload import S3Store, StoreError

    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    store = S3Store(s3.endpoint)
    nowhere = Destination("default", "assistant", "s3://no-such-bucket-here/x", None, "us-east-1")
    with pytest.raises(StoreError, match=r"bucket no-such-bucket-here does not exist: create it"):
        await asyncio.to_thread(store.put, nowhere, "x/y", b"z")
    bad = Destination("default", "assistant", "s3://bucket/x", "http://127.0.0.1:1", "us-east-1")
    with pytest.raises(StoreError, match="storage of default/assistant: Could not connect"):
        await asyncio.to_thread(store.put, bad, "x/y", b"z")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(StoreError, match="correct the gateway's storage Secret"):
        await asyncio.to_thread(S3Store(s3.endpoint).put, nowhere, "x/y", b"z")
