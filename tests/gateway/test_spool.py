"""Durability on the local disk: what is promised is there, whatever the process or the disk does."""

import asyncio
import os
import random
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet_gateway import segments
from ratchet_gateway.metrics import Metrics
from ratchet_gateway.segments import Destination, Segment
from ratchet_gateway.settings import SpoolSettings
from ratchet_gateway.spool import Room, Spool, SpoolInUse
from ratchet_gateway.upload import Uploader

from .support import MakeArm, MakeFront, MemoryStore, eventually, table_of

PLACE = Destination("default", "assistant", "s3://bucket/prefix", None, "us-east-1")
DAY = "2026-11-22"


def line(number: int, size: int = 0) -> bytes:
    return orjson.dumps({"kind": "interaction", "version": "assistant-1", "id": number, "pad": "x" * size}) + b"\n"


def ids(store: MemoryStore) -> list[int]:
    return [orjson.loads(line)["id"] for line in store.lines()]


def settings(folder: Path, **options: Any) -> SpoolSettings:
    return SpoolSettings(folder=folder, writer="gateway-0", **{"retry_seconds": (0.01, 0.05), **options})


def upload(folder: Path, store: MemoryStore, metrics: Metrics | None = None) -> None:
    """One whole pass over what lies in a folder."""
    room = Room(segments.bytes_on_disk(folder), 2**40, lambda used: None)
    uploader = Uploader(folder, store, room, metrics or Metrics(), (0.01, 0.05))
    uploader.start()
    assert uploader.stop(60)


def segments_of(folder: Path) -> list[Path]:
    return list(folder.glob("*/dt=*/*"))


async def test_records_are_on_disk_when_the_future_says_so(tmp_path: Path) -> None:
    spool = Spool(settings(tmp_path), lambda used: None, lambda: None)
    kept = await asyncio.gather(*(spool.append(PLACE, DAY, line(number)) for number in range(100)))
    assert all(kept)
    [path] = segments_of(tmp_path)
    assert path.read_bytes() == b"".join(line(number) for number in range(100))
    assert spool.room.used == path.stat().st_size
    await spool.close()
    spool.release()


async def test_flushes_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes = 0
    sync = Segment.sync

    def count(self: Segment) -> None:
        nonlocal flushes
        flushes += 1
        sync(self)

    monkeypatch.setattr(Segment, "sync", count)
    spool = Spool(settings(tmp_path), lambda used: None, lambda: None)
    assert all(await asyncio.gather(*(spool.append(PLACE, DAY, line(number)) for number in range(1000))))
    assert flushes == 1
    await spool.close()
    spool.release()


async def test_segments_close_by_size_and_go_to_their_own_day_and_place(tmp_path: Path) -> None:
    closed = asyncio.Event()
    spool = Spool(settings(tmp_path, segment_bytes=1000), lambda used: None, closed.set)
    other = Destination("team", "other", "s3://elsewhere", "http://s3:8333", "eu-west-1")
    for number in range(10):
        await spool.append(PLACE, DAY, line(number, 300))
        await spool.append(other, "2026-11-23", line(100 + number, 300))
    assert closed.is_set()
    await spool.close()
    spool.release()
    store = MemoryStore()
    upload(tmp_path, store)
    assert sorted(ids(store)) == [*range(10), *range(100, 110)]
    assert {key.rpartition("/")[0] for key in store.objects} == {
        "bucket/prefix/sessions/dt=2026-11-22", "elsewhere/sessions/dt=2026-11-23",
    }  # fmt: skip
    assert all(Path(key).name.startswith("gateway-0-") and key.endswith(".jsonl.zst") for key in store.objects)
    assert len(store.objects) > 2
    assert segments.bytes_on_disk(tmp_path) == 0


async def test_segments_close_by_age(tmp_path: Path) -> None:
    closed = asyncio.Event()
    spool = Spool(settings(tmp_path, segment_seconds=0.01), lambda used: None, closed.set)
    spool.start()
    await spool.append(PLACE, DAY, line(1))
    await asyncio.wait_for(closed.wait(), 60)
    await spool.close()
    spool.release()


async def test_beyond_the_limit_the_newest_are_dropped(tmp_path: Path) -> None:
    spool = Spool(settings(tmp_path, limit_bytes=10 * len(line(10))), lambda used: None, lambda: None)
    kept = await asyncio.gather(*(spool.append(PLACE, DAY, line(10 + number)) for number in range(25)))
    assert kept == [True] * 10 + [False] * 15
    assert spool.writable, "a full spool is no broken disk"
    await spool.close()
    spool.release()


async def test_one_folder_has_one_process(tmp_path: Path) -> None:
    spool = Spool(settings(tmp_path), lambda used: None, lambda: None)
    with pytest.raises(SpoolInUse, match="give each its own"):
        Spool(settings(tmp_path), lambda used: None, lambda: None)
    await spool.close()
    spool.release()
    again = Spool(settings(tmp_path), lambda used: None, lambda: None)
    await again.close()
    again.release()


async def test_a_broken_disk_loses_what_it_must_and_heals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes half a write and then has no space left: the segment stays readable."""
    spool = Spool(settings(tmp_path), lambda used: None, lambda: None)
    spool.start()
    assert await spool.append(PLACE, DAY, line(1))
    write, full = os.write, True

    def half(fd: int, data: Any) -> int:
        if not full:
            return write(fd, data)
        write(fd, bytes(data)[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    assert not await spool.append(PLACE, DAY, line(2))
    assert not spool.writable
    full = False
    await eventually(lambda: spool.writable, "the probe")
    assert await spool.append(PLACE, DAY, line(3))
    await spool.close()
    spool.release()
    store = MemoryStore()
    upload(tmp_path, store)
    assert ids(store) == [1, 3]


async def test_answers_go_out_though_the_disk_is_broken(
    make_arm: MakeArm, make_front: MakeFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = await make_front(table_of([await make_arm("assistant-1")]))

    def broken(self: Segment, data: bytes) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Segment, "append", broken)
    # The folder is looked at each second, and would be found writable again in between.
    monkeypatch.setattr("ratchet_gateway.spool._Writer.probe", lambda self: False)
    response = await front.ask()
    assert response.status == 200
    assert await front.metric("ratchet_gateway_interactions_total", "assistant-1", state="dropped") == 1
    async with front.http.get("/readyz") as ready:
        assert ready.status == 503
        assert "spool" in await ready.text()
    body = {"response_id": (await response.json())["id"], "value": "up"}
    async with front.http.post("/v1/feedback", json=body) as feedback:
        assert feedback.status == 503
        assert (await feedback.json())["error"]["code"] == "not_recorded"
    assert await front.metric("ratchet_gateway_feedback_total", "assistant-1", value="up") == 0


def leave(folder: Path, *lines: bytes, name: str = "gateway-0-1.open") -> Path:
    """What a killed process leaves."""
    path = segments.folder_of(folder, PLACE, DAY) / name
    path.write_bytes(b"".join(lines))
    return path


@given(st.integers(0, 400))
def test_a_killed_writer_loses_no_whole_line(cut: int) -> None:
    content = b"".join(line(number, 10) for number in range(5))[:cut]
    kept, census = segments.read_lines(content)
    assert kept == content[: content.rfind(b"\n") + 1]
    assert census.interactions.total() == content.count(b"\n")
    assert census.unreadable == 0


def test_recovery_carries_on_wherever_it_was_cut_off(tmp_path: Path) -> None:
    leave(tmp_path, line(1), line(2), b'{"torn')
    leave(tmp_path, line(3), name="gateway-0-2.jsonl")
    sealed = leave(tmp_path, name="gateway-0-3.jsonl.zst")
    sealed.write_bytes(segments.compress(line(4)))
    leave(tmp_path, line(4), name="gateway-0-3.jsonl")  # killed between the seal and the removal of what it replaces
    leave(tmp_path, line(5), name="gateway-0-4.jsonl")
    leave(tmp_path, b"half a s", name="gateway-0-4.jsonl.partial")
    segments.recover(tmp_path)
    store, metrics = MemoryStore(), Metrics()
    upload(tmp_path, store, metrics)
    assert sorted(ids(store)) == [1, 2, 3, 4, 5]
    assert list(tmp_path.glob("*/dt=*/*")) == []
    assert metrics.arm("default", "assistant", "assistant-1").interactions["uploaded"]._value.get() == 5


def test_an_upload_that_is_done_again_changes_nothing(tmp_path: Path) -> None:
    """Killed between the upload and the removal: the same name gets the same bytes."""
    path = leave(tmp_path, line(1), name="gateway-0-1.jsonl")
    content, store = path.read_bytes(), MemoryStore()
    upload(tmp_path, store)
    before = dict(store.objects)
    leave(tmp_path, content, name="gateway-0-1.jsonl")
    upload(tmp_path, store)
    assert store.objects == before


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    leave(tmp_path, line(1), b"\0\0\0\n", b'{"kind": "other"}\n', b"[]\n", line(2), name="gateway-0-1.jsonl")
    store = MemoryStore()
    upload(tmp_path, store)
    assert ids(store) == [1, 2]


def test_a_segment_without_a_record_is_no_object(tmp_path: Path) -> None:
    leave(tmp_path, b'{"torn', name="gateway-0-1.jsonl")
    leave(tmp_path, name="gateway-0-2.jsonl")
    store = MemoryStore()
    upload(tmp_path, store)
    assert store.objects == {}
    assert segments.bytes_on_disk(tmp_path) == 0


def test_a_disk_too_full_to_seal_still_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(closed: Path, content: bytes) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segments, "seal", full)
    leave(tmp_path, line(1), name="gateway-0-1.jsonl")
    store = MemoryStore()
    upload(tmp_path, store)
    assert ids(store) == [1]
    assert segments.bytes_on_disk(tmp_path) == 0


async def test_storage_that_is_away_loses_nothing_and_does_not_hold_up_others(tmp_path: Path) -> None:
    store, metrics = MemoryStore(away_for="assistant"), Metrics()
    spool = Spool(settings(tmp_path, segment_bytes=100), lambda used: None, lambda: uploader.wake())
    uploader = Uploader(tmp_path, store, spool.room, metrics, (0.01, 0.05))
    healthy = Destination("default", "healthy", "s3://healthy", None, "us-east-1")
    uploader.start()
    try:
        for number in range(10):
            assert await spool.append(PLACE, DAY, line(number, 100))
            assert await spool.append(healthy, DAY, line(100 + number, 100))
        await spool.close()
        await eventually(lambda: len(ids(store)) == 10, "the healthy destination")
        failures = metrics.upload_failures.labels("default", "assistant")._value
        await eventually(lambda: failures.get() > 3, "several tries")
        assert spool.room.used > 0
        store.away_for = ""
        await eventually(lambda: len(ids(store)) == 20, "what waited")
        assert sorted(ids(store)) == [*range(10), *range(100, 110)]
    finally:
        store.away_for = ""
        assert await asyncio.to_thread(uploader.stop, 60)
    assert spool.room.used == segments.bytes_on_disk(tmp_path) == 0
    spool.release()


async def test_a_past_day_may_be_tidied_away_while_a_segment_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record of 23:59:59 is written when the uploader already counts the next day."""
    folder_of, tidied = segments.folder_of, 0

    def then_tidied(root: Path, destination: Destination, day: str) -> Path:
        nonlocal tidied
        folder = folder_of(root, destination, day)
        if tidied < 3:
            tidied += 1
            segments.remove_empty_days(folder.parent, "2026-11-23")
            assert not folder.exists()
        return folder

    monkeypatch.setattr(segments, "folder_of", then_tidied)
    spool = Spool(settings(tmp_path), lambda used: None, lambda: None)
    assert await spool.append(PLACE, DAY, line(1))
    segments.remove_empty_days(tmp_path / PLACE.key, "2026-11-23")
    assert [path.read_bytes() for path in segments_of(tmp_path)] == [line(1)]
    await spool.close()
    spool.release()


async def test_a_client_that_goes_away_during_the_flush_leaves_its_record(
    make_arm: MakeArm, make_front: MakeFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = await make_front(table_of([await make_arm("assistant-1")]))
    flushing, go_on, sync = asyncio.Event(), threading.Event(), Segment.sync
    loop = asyncio.get_running_loop()

    def slow(self: Segment) -> None:
        loop.call_soon_threadsafe(flushing.set)
        go_on.wait(60)
        sync(self)

    monkeypatch.setattr(Segment, "sync", slow)
    asking = asyncio.create_task(front.ask())
    await asyncio.wait_for(flushing.wait(), 60)
    asking.cancel()
    await asyncio.wait({asking})
    await eventually(lambda: front.gateway.inflight == 0, "the handler to end")
    go_on.set()
    await eventually(lambda: front.gateway.spool.room.used > 0, "the flush")
    assert await front.metric("ratchet_gateway_interactions_total", "assistant-1", state="spooled") == 1
    [record] = await front.recorded()
    assert record.status == 200


async def test_the_day_of_a_record_is_that_of_its_request(make_arm: MakeArm, make_front: MakeFront) -> None:
    front = await make_front(table_of([await make_arm("assistant-1")]))
    before = datetime.now(UTC)
    await front.ask()
    [record] = await front.recorded()
    assert before <= record.time <= datetime.now(UTC)
    [key] = front.store.objects
    assert key.startswith(f"bucket/prefix/sessions/dt={record.time:%Y-%m-%d}/gateway-test-")


async def test_what_is_spooled_is_uploaded_and_counted(make_arm: MakeArm, make_front: MakeFront) -> None:
    front = await make_front(table_of([await make_arm("assistant-1")]), segment_seconds=0.05)
    order = random.Random(1)
    for _ in range(30):
        await front.ask(stream=order.random() < 0.5)
    await eventually(lambda: len(front.store.interactions()) == 30, "the upload")
    await eventually(lambda: front.gateway.spool.room.used == 0, "an empty spool")
    for state, count in (("spooled", 30), ("uploaded", 30), ("dropped", 0)):
        assert await front.metric("ratchet_gateway_interactions_total", "assistant-1", state=state) == count
    assert (await front.metrics())["ratchet_gateway_spool_bytes"] == 0
