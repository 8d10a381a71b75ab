"""The load: what people send, what they count, how they fail and how they stop. Real HTTP, a scripted gateway."""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from tests.people.gateway import Gateway, serving

from ratchet_cli.people import Habits, People
from ratchet_cli.people.__main__ import main
from ratchet_cli.people.talk import questions

PATIENCE = 60.0


async def until(done: Callable[[], bool]) -> None:
    """Until something that nobody signals holds; TimeoutError after PATIENCE."""
    async with asyncio.timeout(PATIENCE):
        while not done():  # noqa: ASYNC110  # the load is asked from outside, as the demonstration does
            await asyncio.sleep(0.01)


async def talk(gateway: Gateway, people: People, done: Callable[[], bool]) -> None:
    """Let them talk until `done`, then stop them."""
    stop = asyncio.Event()
    running = asyncio.create_task(people.run_until(stop))
    try:
        await until(done)
    finally:
        stop.set()
        gateway.gate.set()
        await asyncio.wait_for(running, PATIENCE)


def opened(gateway: Gateway) -> Gateway:
    gateway.gate.set()
    return gateway


async def test_they_ask_judge_by_the_rubric_and_correct() -> None:
    house = {q.case.prompt: q.case for q in islice(questions(3, Habits(mix=1)), 500)}
    right = [case for i, case in enumerate(house.values()) if i % 2]
    known = {case.prompt: case.reference for case in right}
    async with serving(opened(Gateway(answer=lambda body: known.get(body["messages"][0]["content"], "No idea.")))) as g:
        people = People(g.url, "assistant", seed=3, rate=200, mix=1, noise=0, correction_share=1)
        await talk(g, people, lambda: len(people.exchanges) >= 60)
        seen, exchanges = people.snapshot(), people.exchanges
    assert seen.failed == 0
    assert seen.sent == seen.answered == len(exchanges) == len(g.requests) == len(g.feedback)
    verdicts = {f["response_id"]: f for f in g.feedback}
    assert len(verdicts) == len(g.feedback), "one verdict for each answer"
    for number, request in enumerate(g.requests):
        case, verdict = house[request["messages"][0]["content"]], verdicts[f"chatcmpl-{number}"]
        assert request["model"] == "assistant"
        good = case.prompt in known
        assert verdict["value"] == ("up" if good else "down")
        assert verdict.get("correction") == (None if good else case.reference)
    assert {e.version for e in exchanges} == {"assistant-0"}
    assert {e.stream for e in exchanges} == {True, False}
    assert seen.versions["assistant-0"].up == sum(e.up for e in exchanges) > 0


async def test_a_streamed_answer_is_put_together() -> None:
    async with serving(opened(Gateway(answer=lambda _: "The capital of France is Paris."))) as g:
        people = People(g.url, "assistant", rate=100, stream_share=1)
        await talk(g, people, lambda: len(people.exchanges) >= 5)
    assert {e.answer for e in people.exchanges} == {"The capital of France is Paris."}
    assert all(request["stream"] for request in g.requests)


@pytest.mark.parametrize(
    ("fault", "stream", "reason", "version"),
    [
        ("refuse", 0, "HTTP 503: no arm is ready", "assistant-0"),
        ("refuse", 1, "HTTP 503: no arm is ready", "assistant-0"),
        ("cut", 0, "an answer without a finished choice", None),
        ("cut", 1, "a stream that broke off", None),
        ("anonymous", 0, "an answer without the header x-ratchet-version", None),
        ("mute", 0, "HTTP 507: the spool is full", "assistant-0"),
    ],
)
async def test_a_failure_is_counted_with_its_reason_and_not_retried(
    fault: str, stream: int, reason: str, version: str | None
) -> None:
    async with serving(opened(Gateway(fault=lambda number: fault if number % 2 else ""))) as g:
        people = People(g.url, "assistant", rate=100, stream_share=stream)
        await talk(g, people, lambda: people.snapshot().failed >= 3 and people.snapshot().answered >= 3)
    seen = people.snapshot()
    assert seen.sent == seen.answered + seen.failed == len(g.requests), "nothing is asked twice"
    assert abs(seen.failed - seen.sent / 2) <= 1
    for failure in people.failures:
        assert reason in failure.reason
        assert failure.version == version


async def test_a_gateway_that_is_not_there_is_a_failure_too() -> None:
    async with serving(Gateway()) as g:
        url = g.url
    people = People(url, "assistant", rate=100)
    await talk(g, people, lambda: people.snapshot().failed >= 3)
    assert people.snapshot().answered == 0
    assert "APIConnectionError" in people.failures[0].reason


async def test_a_gateway_that_never_answers_is_given_up_after_the_timeout() -> None:
    async with serving(Gateway()) as g:
        people = People(g.url, "assistant", rate=100, people=3, timeout=0.2)
        await talk(g, people, lambda: people.snapshot().failed >= 3)
    assert "Timeout" in people.failures[0].reason


async def test_the_load_is_open_but_bounded_by_the_people() -> None:
    async with serving(Gateway()) as g:
        people = People(g.url, "assistant", rate=200, people=4)
        stop = asyncio.Event()
        running = asyncio.create_task(people.run_until(stop))
        await until(lambda: len(g.requests) == 4 and people.snapshot().shed >= 10)
        assert people.snapshot().under_way == len(g.requests) == 4
        stop.set()
        await asyncio.sleep(0)
        assert not running.done(), "answers under way are waited for"
        g.gate.set()
        await asyncio.wait_for(running, PATIENCE)
    seen = people.snapshot()
    assert (seen.answered, seen.under_way, seen.failed) == (4, 0, 0)


async def test_sessions_are_short_and_many() -> None:
    async with serving(opened(Gateway())) as g:
        people = People(g.url, "assistant", rate=300, people=5)
        await talk(g, people, lambda: len(g.sessions) >= 120)
    lengths = Counter(g.sessions)
    assert max(lengths.values()) <= Habits.questions
    assert len(lengths) >= 40


async def test_silence_and_then_a_new_pace() -> None:
    async with serving(opened(Gateway())) as g:
        people = People(g.url, "assistant", rate=0)
        stop = asyncio.Event()
        running = asyncio.create_task(people.run_until(stop))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(running), 0.6)
        assert people.snapshot().sent == 0
        people.rate = 100
        await until(lambda: people.snapshot().answered >= 5)
        stop.set()
        await asyncio.wait_for(running, PATIENCE)


async def test_the_pace_is_kept_over_time() -> None:
    async with serving(opened(Gateway())) as g:
        people = People(g.url, "assistant", rate=40, people=200)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await talk(g, people, lambda: people.snapshot().sent + people.snapshot().shed >= 120)
        took = loop.time() - began
    # 120 arrivals of a Poisson process of 40/s take 3.0 s, give or take 0.27; a busy machine only makes it longer.
    assert took > 1.8


def test_the_questions_follow_from_the_seed_and_the_shares() -> None:
    habits = Habits(mix=0.4, noise=0.1, correction_share=0.8, stream_share=0.25)
    asked = list(islice(questions(11, habits), 4000))
    assert asked == list(islice(questions(11, habits), 4000))
    shares = {
        "mix": sum(q.case.kind == "house" for q in asked) / 4000,
        "noise": sum(q.mistaken for q in asked) / 4000,
        "correction_share": sum(q.corrects for q in asked) / 4000,
        "stream_share": sum(q.stream for q in asked) / 4000,
    }
    for name, share in shares.items():
        assert share == pytest.approx(getattr(habits, name), abs=0.03), name


def test_noise_turns_verdicts_round() -> None:
    wrong = next(q for q in questions(1, Habits(noise=1)) if q.case.kind == "general")
    assert wrong.mistaken


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mix": 1.5}, "mix: 1.5 is not a share"),
        ({"noise": -0.1}, "noise: -0.1 is not a share"),
        ({"people": 0}, "people: 0 is too few"),
        ({"rate": -1}, "rate: -1 is not a number of questions"),
        ({"max_tokens": 0}, "max_tokens: 0 is too small"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        People("http://127.0.0.1:1/v1", "assistant", **arguments)  # type: ignore[arg-type]


async def test_the_command_talks_for_a_while_and_says_what_it_saw(repository: Path) -> None:
    async with serving(opened(Gateway())) as g:
        arguments = [
            "assistant",
            "--gateway",
            g.url.removesuffix("/v1"),
            "--rate",
            "40",
            "--seconds",
            "2",
            "--every",
            "1",
        ]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ratchet_cli.people", *arguments, cwd=repository, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 0, out.decode()
    last = out.decode().splitlines()[-1]
    assert f"{len(g.requests)} sent, {len(g.feedback)} answered, 0 failed, 0 under way; assistant-0: " in last


@pytest.mark.parametrize(("arguments", "code"), [(["--mix", "7"], 64), (["--seconds", "0.5", "--rate", "30"], 1)])
def test_the_command_fails_when_it_should(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["assistant", "--gateway", "http://127.0.0.1:9", *arguments]) == code
    said = capsys.readouterr()
    assert "mix: 7.0 is not a share" in said.err or "APIConnectionError" in said.out
