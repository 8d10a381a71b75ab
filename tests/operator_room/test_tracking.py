"""Aliases in MLflow follow the rollouts, and nothing follows MLflow."""

import base64
from collections.abc import Mapping
from typing import Any

import pytest
from operator_stories import champion, dataset, proven, resting, run, serving
from operator_world import World, digest, evaluated, trained

from ratchet_api.reasons import Reason
from ratchet_api.tracking import Mlflow
from ratchet_operator.clients.mlflow import NotTold
from ratchet_operator.errors import NotLeading
from ratchet_operator.reconcile.background import Background
from ratchet_operator.reconcile.registrar import Registrar

MLFLOW = {"mlflow": {"url": "http://mlflow.mlops.svc:5000"}}
MODEL = "default.assistant"


class Registry:
    """What an MLflow would have; `down` does not answer."""

    def __init__(self) -> None:
        self.aliases: dict[str, str | None] = {}
        self.seen: list[Mapping[str, str | None]] = []
        self.logins: list[Mapping[str, str]] = []
        self.down = False

    async def point(self, url: str, login: Mapping[str, str], model: str, wanted: Mapping[str, str | None]) -> None:
        if self.down:
            raise NotTold("no answer (TimeoutError)")
        assert (url, model) == (MLFLOW["mlflow"]["url"], MODEL)
        self.logins.append(login)
        self.seen.append(dict(wanted))
        self.aliases = {alias: value for alias, value in wanted.items() if value is not None}


@pytest.fixture
def registry(fake_world: World) -> Registry:
    made = Registry()
    fake_world.registry = made
    fake_world.restart()
    return made


async def failures(world: World) -> list[str]:
    """Events about it."""
    found = await world.raw.request("get", f"/apis/events.k8s.io/v1/namespaces/{world.namespace}/events")
    return [event["note"] for event in found["items"] if event["reason"] == Reason.TRACKING_FAILED]


async def test_champion_and_challenger_move_with_promote(fake_world: World, registry: Registry) -> None:
    world = fake_world
    await serving(world, tracking=MLFLOW)
    assert registry.aliases == {}, "the bare base model has no adapter"
    await run(world)
    await champion(world, "assistant-1")
    assert {"champion": None, "challenger": digest("e")} in registry.seen
    assert registry.aliases == {"champion": digest("e")}


async def test_and_with_roll_back(fake_world: World, registry: Registry) -> None:
    world = fake_world
    await serving(world, tracking=MLFLOW)
    await run(world)
    await champion(world, "assistant-1")
    world.prometheus.bad["bad"] = 300.0
    await proven(world, "bad")

    async def rejected() -> bool:
        return (await world.version("bad")).status.phase == "Rejected"

    await world.until(rejected, tick=0.5)
    await resting(world)
    assert {"champion": digest("e"), "challenger": digest("b")} in registry.seen
    assert registry.aliases == {"champion": digest("e")}


async def test_a_server_that_is_down_holds_up_nothing_and_is_told_later(fake_world: World, registry: Registry) -> None:
    world = fake_world
    registry.down = True
    await serving(world, tracking=MLFLOW)
    await run(world)
    await champion(world, "assistant-1")
    (said,) = await failures(world)
    assert "tracking.mlflow: http://mlflow.mlops.svc:5000: no answer (TimeoutError)" in said
    registry.down = False
    world.clock.advance(300)
    await world.settle()
    assert registry.aliases == {"champion": digest("e")}


async def test_at_rest_it_is_left_alone_until_it_is_looked_at_again(fake_world: World, registry: Registry) -> None:
    world = fake_world
    await serving(world, tracking=MLFLOW)
    await run(world)
    await champion(world, "assistant-1")
    before = len(registry.seen)
    for _ in range(5):
        world.clock.advance(60)
        await world.settle()
    assert len(registry.seen) == before
    registry.aliases = {"champion": "sha256:somebody-else"}
    world.clock.advance(600)
    await world.settle()
    assert registry.aliases == {"champion": digest("e")}
    world.restart()
    await world.settle()
    assert registry.seen[-1] == {"champion": digest("e"), "challenger": None}, "a new process asks again"


@pytest.mark.parametrize(
    ("keys", "header"),
    [
        ({"MLFLOW_TRACKING_TOKEN": "t"}, "Bearer t"),
        ({"MLFLOW_TRACKING_USERNAME": "u", "MLFLOW_TRACKING_PASSWORD": "p"}, "Basic dTpw"),
    ],
)
async def test_its_login(fake_world: World, registry: Registry, keys: dict[str, str], header: str) -> None:
    world = fake_world
    await serving(world, tracking={"mlflow": MLFLOW["mlflow"] | {"credentialsSecret": {"name": "mlflow"}}})
    (said,) = await failures(world)
    assert "there is no Secret mlflow in namespace default: create it" in said
    assert registry.seen == []
    data = {key: base64.b64encode(value.encode()).decode() for key, value in keys.items()}
    meta = {"namespace": world.namespace, "name": "mlflow"}
    await world.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data})
    world.clock.advance(300)
    await world.settle()
    assert registry.logins == [{"Authorization": header}]


async def test_the_train_stage_is_told_where(fake_world: World, registry: Registry) -> None:
    world = fake_world
    secret = {"credentialsSecret": {"name": "mlflow"}}
    await serving(world, tracking={"mlflow": MLFLOW["mlflow"] | secret})
    await dataset(world)

    async def environment(job: str) -> dict[str, Any]:
        path = f"/apis/batch/v1/namespaces/{world.namespace}/jobs/{job}"
        raw = await world.raw.request("get", path)
        (main,) = raw["spec"]["template"]["spec"]["containers"]
        return {entry["name"]: entry for entry in main["env"]}

    told = await environment("assistant-1-train-0")
    assert told["MLFLOW_TRACKING_URI"]["value"] == MLFLOW["mlflow"]["url"]
    key = told["MLFLOW_TRACKING_PASSWORD"]["valueFrom"]["secretKeyRef"]
    assert key == {"name": "mlflow", "key": "MLFLOW_TRACKING_PASSWORD", "optional": True}
    await world.finish("train", trained())
    await world.settle()
    assert "MLFLOW_TRACKING_URI" not in await environment("assistant-1-evaluate-0")
    await world.finish("evaluate", evaluated())


async def test_one_that_does_not_lead_moves_nothing(fake_world: World) -> None:
    def guard() -> None:
        raise NotLeading("another one leads")

    registry = Registry()
    world = fake_world
    await serving(world)
    background = Background()
    registrar = Registrar(world.kube, registry, background, guard)
    cycle = await world.cycle()

    assert (
        registrar.point(cycle.metadata, Mlflow(url=MLFLOW["mlflow"]["url"]), {"champion": None}, world.clock()) is None
    )
    await background.idle()
    assert registry.seen == []
