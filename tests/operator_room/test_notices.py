"""Notices: what receivers really get over HTTP, what happens when they do not take it, and what is never sent."""

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from operator_fake import FakeApi
from operator_stories import harmed, proven, serving
from operator_world import World, evaluated, version_manifest

from ratchet_api.base import ObjectMeta
from ratchet_api.cycle import ImprovementCycleStatus, Rejected, RolloutStatus
from ratchet_api.notifications import DEFAULT_EVENTS, OUTBOX_LIMIT, Notice, Notification
from ratchet_operator.clients.webhooks import Undelivered, Webhooks, forbidden
from ratchet_operator.domain import letters, notices
from ratchet_operator.reconcile import cycle as cycles

KEY = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)
META = ObjectMeta(name="assistant", namespace="default", uid="u")
NOTICE = Notice(
    id="1" * 32,
    event="RolledBack",
    at=NOW,
    version="bad",
    reason="CheckFailed",
    message="errors: 50 % <!channel> & more",
    check="errors",
    measured="0.5",  # type: ignore[arg-type]
    limit="0.05",  # type: ignore[arg-type]
    samples=400,
)


class Receiver:
    """A real HTTP server; `answer` decides on each request."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.answer: Callable[[int], web.Response | float] = lambda number: web.Response()
        """Number of the request -> answer, or seconds to be silent for."""
        self.url = ""
        self.over = asyncio.Event()

    async def take(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((dict(request.headers), await request.read()))
        answer = self.answer(len(self.requests))
        if isinstance(answer, web.Response):
            return answer
        await self.over.wait()
        return web.Response()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", made.take)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield made
    made.over.set()
    await runner.cleanup()


@pytest.fixture
async def webhooks() -> AsyncIterator[Webhooks]:
    made = Webhooks(seconds=5.0)
    yield made
    await made.close()


async def world_told(webhooks: Webhooks, **sink: Any) -> World:
    """A cycle that serves, with one receiver of everything about rollouts and stalling."""
    world = World(FakeApi(), "default")
    world.sender = webhooks
    world.restart()
    await world.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"namespace": "default", "name": "ops"},
            "data": {"hmac": base64.b64encode(KEY.encode()).decode()},
        }
    )
    await serving(world, notifications=[{"name": "ops", "events": ["RunStarted"], **sink}])
    return world


async def rest(world: World, passes: int = 6) -> None:
    for _ in range(passes):
        await world.step()


def verified(headers: dict[str, str], body: bytes) -> bool:
    """By the very code that docs/notifications.md gives to receivers."""
    page = (Path(__file__).parents[2] / "docs/notifications.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    return bool(names["verify"](headers, body, KEY, tolerance=300))


async def test_a_signed_cloud_event_answered_500_then_200(receiver: Receiver, webhooks: Webhooks) -> None:
    receiver.answer = lambda number: web.Response(status=500 if number == 1 else 204)
    world = await world_told(webhooks, url=receiver.url, hmacSecret={"name": "ops", "key": "hmac"})
    await world.annotate("run", "now")
    await rest(world)
    [(headers, body)] = receiver.requests
    status = (await world.cycle()).status
    assert status.notifications is not None
    assert [(one.name, one.message) for one in status.notifications.failing] == [("ops", "the receiver answers 500")]
    assert any(word.reason == "NotificationFailed" for word in status.announcements)
    world.clock.advance(1.5)
    await rest(world)
    assert len(receiver.requests) == 2
    later, again = receiver.requests[1]
    assert again == body
    for said in (headers, later):
        assert verified(said, body)
        assert said["Content-Type"] == "application/cloudevents+json; charset=utf-8"
        assert abs(int(said["webhook-timestamp"]) - world.clock().timestamp()) < 60
    assert not verified(headers, body + b" ")
    event = json.loads(body)
    assert event["specversion"] == "1.0"
    assert event["id"] == headers["webhook-id"]
    assert event["type"] == "dev.ratchet.cycle.RunStarted"
    assert event["source"] == "/apis/ratchet.dev/v1alpha1/namespaces/default/improvementcycles/assistant"
    assert event["subject"] == "run-1"
    assert event["data"]["run"] == 1
    assert (await world.cycle()).status.notifications is None, "at rest it takes no room"


async def test_a_silent_receiver_holds_up_nobody(receiver: Receiver) -> None:
    receiver.answer = lambda number: 1.0
    webhooks = Webhooks(seconds=3600.0)
    world = await world_told(webhooks, url=receiver.url, events=["RunStarted", "CanaryStarted", "Promoted"])
    await world.annotate("run", "now")
    # The courier's round is not waited for here, as in the real process.
    while not receiver.requests:
        await cycles.reconcile(world.context, "default", "assistant")
        await asyncio.sleep(0)
    before = (await world.cycle()).status.run
    assert before is not None
    for _ in range(5):
        await cycles.reconcile(world.context, "default", "assistant")
    assert len(receiver.requests) == 1, "one attempt at a time"
    assert await world.jobs(), "the run went on"
    await world.context.background.close()
    await webhooks.close()


async def test_retry_after_is_obeyed(receiver: Receiver, webhooks: Webhooks) -> None:
    receiver.answer = lambda number: web.Response(status=429 if number == 1 else 200, headers={"Retry-After": "90"})
    world = await world_told(webhooks, url=receiver.url)
    await world.annotate("run", "now")
    await rest(world)
    world.clock.advance(60)
    await rest(world)
    assert len(receiver.requests) == 1
    world.clock.advance(31)
    await rest(world)
    assert len(receiver.requests) == 2


async def test_a_refused_notice_is_given_up_and_said(receiver: Receiver, webhooks: Webhooks) -> None:
    receiver.answer = lambda number: web.Response(status=422)
    world = await world_told(webhooks, url=receiver.url)
    await world.annotate("run", "now")
    await rest(world)
    status = (await world.cycle()).status
    assert status.notifications is None
    assert any("RunStarted is given up: the receiver answers 422" in word.message for word in status.announcements)


async def test_given_up_after_a_day(receiver: Receiver, webhooks: Webhooks) -> None:
    receiver.answer = lambda number: web.Response(status=503)
    world = await world_told(webhooks, url=receiver.url)
    await world.annotate("run", "now")
    await rest(world)
    world.clock.advance(24 * 3600 + 60)
    await rest(world)
    status = (await world.cycle()).status
    assert status.notifications is None
    assert any("not delivered within 24 h" in word.message for word in status.announcements)


async def test_a_missing_secret_is_named_and_goes_on_when_it_comes(receiver: Receiver, webhooks: Webhooks) -> None:
    world = await world_told(webhooks, urlSecret={"name": "slack", "key": "url"}, type="Slack")
    await world.annotate("run", "now")
    await rest(world)
    owed = (await world.cycle()).status.notifications
    assert owed is not None
    assert owed.failing[0].message == "urlSecret: there is no Secret slack with the key url: create it"
    data = {"url": base64.b64encode(f"{receiver.url}/T0/secret\n".encode()).decode()}
    meta = {"namespace": "default", "name": "slack"}
    await world.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data})
    world.clock.advance(5)
    await rest(world)
    [(headers, body)] = receiver.requests
    assert "webhook-signature" not in headers
    assert [block["type"] for block in json.loads(body)["blocks"]] == ["section", "context"]


async def test_a_secret_address_is_in_no_status(webhooks: Webhooks, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    world = await world_told(webhooks, urlSecret={"name": "slack", "key": "url"})
    data = {"url": base64.b64encode(b"http://127.0.0.1:1/T0/verysecret").decode()}
    meta = {"namespace": "default", "name": "slack"}
    await world.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data})
    await world.annotate("run", "now")
    await rest(world)
    status = json.dumps((await world.cycle()).status.dump())
    assert "NotificationFailed" in status
    assert "verysecret" not in status + caplog.text


async def test_a_receiver_that_is_taken_away_is_owed_nothing(receiver: Receiver, webhooks: Webhooks) -> None:
    receiver.answer = lambda number: web.Response(status=503)
    world = await world_told(webhooks, url=receiver.url)
    await world.annotate("run", "now")
    await rest(world)
    await world.edit({"notifications": []})
    await rest(world)
    assert (await world.cycle()).status.notifications is None


async def test_an_approval_is_asked_for_once(receiver: Receiver, webhooks: Webhooks) -> None:
    world = await world_told(webhooks, url=receiver.url, events=["AwaitingApproval"])
    await world.edit({"promotion": {"mode": "Approval", "before": ["Canary"]}})
    await world.apply(version_manifest("default", "mine"))
    await world.settle()
    await world.finish("evaluate", evaluated())
    await rest(world, 10)
    world.context.courier.forget(("default", "assistant"))
    world.restart()
    await rest(world, 10)
    [(_, body)] = receiver.requests
    data = json.loads(body)["data"]
    assert data["version"] == "mine"
    assert "approve" in data["message"]


# One attempt


async def test_redirects_are_not_followed(receiver: Receiver, webhooks: Webhooks) -> None:
    receiver.answer = lambda number: web.Response(status=307, headers={"Location": receiver.url})
    with pytest.raises(Undelivered, match="redirects are not followed"):
        await webhooks.send(letters.webhook(META, NOTICE, receiver.url, None, NOW))
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]/x",
        "http://[::ffff:169.254.169.254]/x",
        "http://[fd00:ec2::254]/x",
    ],
)
async def test_metadata_addresses_are_not_spoken_to(webhooks: Webhooks, url: str) -> None:
    with pytest.raises(Undelivered, match="link-local"):
        await webhooks.send(letters.webhook(META, NOTICE, url, None, NOW))


@pytest.mark.parametrize("host", ["2852039166", "0xA9FEA9FE"])
async def test_no_spelling_of_a_metadata_address_is_spoken_to(webhooks: Webhooks, host: str) -> None:
    """Either it is refused as an address, or what it resolves to is."""
    with pytest.raises(Undelivered, match=r"not a canonical IPv4|link-local"):
        await webhooks.send(letters.webhook(META, NOTICE, f"http://{host}/latest", None, NOW))


async def test_a_name_that_leads_to_a_metadata_address_is_not_spoken_to(
    webhooks: Webhooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [found])
    with pytest.raises(Undelivered, match="leads to a link-local address"):
        await webhooks.send(letters.webhook(META, NOTICE, "http://hooks.example.com/x", None, NOW))


async def test_a_rollback_with_its_figures_and_a_gate_that_refuses(receiver: Receiver, webhooks: Webhooks) -> None:
    world = await world_told(webhooks, url=receiver.url, events=["CanaryStarted", "RolledBack", "GateRejected"])
    await proven(world, "bad")
    await harmed(world)
    await world.apply(version_manifest(world.namespace, "worse", "c"))
    await world.settle()
    await world.finish("evaluate", evaluated(better=0, worse=30))
    await rest(world)
    events = [json.loads(body) for _, body in receiver.requests]
    told = [(event["type"].rpartition(".")[2], event["subject"]) for event in events]
    assert told == [("CanaryStarted", "bad"), ("RolledBack", "bad"), ("GateRejected", "worse")]
    check = events[1]["data"]["check"]
    assert (check["name"], check["measured"], check["limit"], check["samples"]) == ("errors", "0.5", "0.05", 400)
    decision = (await world.cycle()).status.rollout
    assert decision is not None
    assert decision.decision is not None
    assert datetime.fromisoformat(events[1]["time"]) == decision.decision.at


def test_a_receiver_in_the_cluster_may_be_spoken_to() -> None:
    assert not forbidden("10.96.0.10")
    assert not forbidden("hooks.example.com")


async def test_a_slow_receiver_is_left_after_a_while(receiver: Receiver) -> None:
    receiver.answer = lambda number: 1.0
    impatient = Webhooks(seconds=0.2)
    with pytest.raises(Undelivered, match="Timeout"):
        await impatient.send(letters.webhook(META, NOTICE, receiver.url, None, NOW))
    await impatient.close()


# Words


def test_slack_takes_nothing_for_a_mention() -> None:
    said = letters.slack_message(META, NOTICE)
    assert "<!channel>" not in json.dumps(said)
    assert "&lt;!channel&gt; &amp; more" in said["blocks"][0]["text"]["text"]
    assert "errors 0.5 against 0.05" in said["blocks"][1]["elements"][0]["text"]


def test_a_cloud_event_holds_what_was_measured() -> None:
    data = letters.cloud_event(META, NOTICE)["data"]
    assert data["check"] == {"name": "errors", "measured": "0.5", "limit": "0.05", "samples": 400}


def test_a_letter_shows_no_secret() -> None:
    letter = letters.webhook(META, NOTICE, "https://hooks.example.com/T0/secret", KEY, NOW)
    assert "secret" not in repr(letter)
    assert KEY not in repr(letter)


@pytest.mark.parametrize("key", ["short", "whsec_%%%"])
def test_a_key_that_is_none(key: str) -> None:
    with pytest.raises(ValueError, match=r"shorter than 16|not base64"):
        letters.signing_key(key)


# Decisions


def test_every_default_is_an_event_that_can_be_chosen() -> None:
    assert Notification(name="ops", url="https://hooks.example.com").events == DEFAULT_EVENTS


def test_a_rejection_remembered_from_long_ago_is_no_news() -> None:
    entry = Rejected(digest="sha256:" + "a" * 64, version="v", reason="NotBetter", at=NOW)
    after = ImprovementCycleStatus(rejected=[entry])
    assert [n.event for n in notices.transitions(ImprovementCycleStatus(), after, "u", NOW)] == ["GateRejected"]
    later = NOW + timedelta(days=2)
    assert not [*notices.transitions(ImprovementCycleStatus(), after, "u", later)]


def test_the_same_status_is_no_news() -> None:
    rollout = RolloutStatus(
        version="v", digest="", phase="Canary", step=1, weight=50, started_at=NOW, step_since=NOW, held_since=NOW
    )
    status = ImprovementCycleStatus(rollout=rollout)
    assert not [*notices.transitions(status, status, "u", NOW)]
    told = [*notices.transitions(ImprovementCycleStatus(), status, "u", NOW)]
    assert [n.event for n in told] == ["CanaryStarted", "Held"]
    assert told == [*notices.transitions(ImprovementCycleStatus(), status, "u", NOW)], "the same ids"


async def test_the_outbox_is_bounded(webhooks: Webhooks) -> None:
    world = await world_told(webhooks, url="http://127.0.0.1:1/x")
    cycle = await world.cycle()
    owed = [NOTICE.model_copy(update={"id": str(n), "pending": ["ops"], "at": NOW}) for n in range(OUTBOX_LIMIT + 3)]
    status = cycle.status.model_copy(update={"notifications": notices.NotificationsStatus.model_construct(outbox=owed)})
    decision = notices.decide(cycle.model_copy(update={"status": status}), status, [], {}, {}, NOW)
    assert decision.status is not None
    assert [n.id for n in decision.status.outbox] == [n.id for n in owed[3:]]
    assert len(decision.warnings) == 3
