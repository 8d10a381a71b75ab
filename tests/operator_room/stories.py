"""Stories that tests tell in several ways: told once, told with the operator killed at any point."""

from typing import Any

from operator_world import World, curated, cycle_manifest, evaluated, trained, version_manifest


async def serving(world: World, **spec: Any) -> None:
    """The base model serves."""
    await world.storage()
    await world.apply(cycle_manifest(world.namespace, **spec))

    async def ready() -> bool:
        cycle = await world.cycle()
        return cycle.status.serving.stable is not None and cycle.status.serving.stable.ready_replicas == 1

    await world.until(ready)
    await world.settle()


async def run(world: World, letter: str = "e") -> None:
    """A run is asked for; its version is trained, proven and accepted."""
    await world.annotate("run", letter)
    await world.settle()
    await world.finish("curate", curated())
    await world.settle()
    await world.finish("train", trained(letter))
    await world.settle()
    await world.finish("evaluate", evaluated())


async def champion(world: World, name: str) -> None:
    """The version takes all traffic, and the old arm is gone."""

    async def alone() -> bool:
        return list(await world.deployments()) == [f"{name}-arm"]

    await world.until(alone, tick=0.5)
    await world.settle()


async def forward(world: World) -> None:
    """One run, from the annotation to the champion."""
    await serving(world)
    await run(world)
    await champion(world, "assistant-1")


async def back(world: World) -> None:
    """A hand-applied version that passes its gate and does harm."""
    await serving(world)
    await world.apply(version_manifest(world.namespace, "bad"))
    await world.settle()
    await world.finish("evaluate", evaluated())
    world.prometheus.bad["bad"] = 200.0

    async def rejected() -> bool:
        gone = list(await world.deployments()) == ["assistant-0-arm"]
        return gone and (await world.version("bad")).status.phase == "Rejected"

    await world.until(rejected, tick=0.5)
    await world.settle()


async def there_and_back(world: World) -> None:
    """A person names the base model again: it returns without gate and steps."""
    await forward(world)
    await world.edit({"serving": {"version": "assistant-0"}})
    await champion(world, "assistant-0")


def _test(**settings: Any) -> dict[str, Any]:
    """A rollout by an A/B test, quick like the manifest's own."""
    metrics = [{"name": "errors", "preset": "errors", "minSamples": 20}]
    quick = {"interval": "1s", "bake": "2s", "scaleDownDelay": "1s", "metrics": metrics}
    return quick | {"strategy": "abTest", "abTest": {"minSamples": 20, "maxDuration": "4s"} | settings}


async def _tested(world: World, outcome: str, /, **settings: Any) -> None:
    """A version that a person applies is tested against the base model, and comes to its end."""
    await serving(world, rollout=_test(**settings))
    world.prometheus.bad["assistant-0"] = 200.0
    await world.apply(version_manifest(world.namespace, "other"))
    await world.settle()
    await world.finish("evaluate", evaluated())

    async def ended() -> bool:
        history = (await world.cycle()).status.history
        return len(await world.deployments()) == 1 and [entry.outcome for entry in history] == [outcome]

    await world.until(ended, tick=0.5)
    await world.settle()


async def tested_better(world: World) -> None:
    """The base model's thumbs are down half of the time, the candidate's never."""
    await _tested(world, "Promoted")


async def tested_worse(world: World) -> None:
    """Half of the base model's conversations are resolved, none of the candidate's."""
    query = 'x{version="{{ version }}"}'
    await _tested(world, "RolledBack", outcome={"good": query, "all": query})


async def tested_nothing(world: World) -> None:
    """The time is over before there are outcomes enough."""
    await _tested(world, "Returned", minSamples=1_000_000)


async def ending(world: World) -> dict[str, Any]:
    """Everything that should not depend on how often the operator died."""
    status = (await world.cycle()).status
    made = sorted(path for method, path in world.transport.writes if method == "post" and path.endswith("/jobs"))
    return {
        "phase": status.phase,
        "stable": status.serving.stable and (status.serving.stable.version, status.serving.stable.weight),
        "candidate": status.serving.candidate,
        "retired": status.serving.retired,
        "rejected": [(entry.version, entry.reason) for entry in status.rejected],
        "lastGood": [entry.version for entry in status.last_good],
        "history": [(entry.version, entry.run, entry.outcome) for entry in status.history],
        "run": status.run and (status.run.number, status.run.outcome, status.run.version),
        "versions": {name: (v.status.phase, v.status.outcome) for name, v in (await world.versions()).items()},
        "jobs": sorted(await world.jobs()),
        "attempts": [
            (name, stage.stage, stage.attempts.total)
            for name, v in (await world.versions()).items()
            for stage in v.status.stages
        ],
        "deployments": sorted(await world.deployments()),
        "some job was made": bool(made),
    }
