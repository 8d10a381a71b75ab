"""What /metrics says after a story: read from the statuses, so that an operator that was just born says it too."""

from operator_stories import back, forward
from operator_world import World

from ratchet_operator.reconcile import cycle

CYCLE = "ratchet_operator"


def value(world: World, name: str, **labels: str) -> float | None:
    """One sample of the assistant's; None when there is none."""
    where = {"cycle_namespace": world.namespace, "cycle": "assistant"} | labels
    return world.context.metrics.registry.get_sample_value(f"{CYCLE}_{name}", where)


async def seen_anew(world: World) -> None:
    """Another process, which has looked at everything once."""
    world.restart()
    assert value(world, "cycle_phase", phase="Idle") is None, "it has seen nothing yet"
    await world.settle()


async def test_a_champion_after_a_restart(fake_world: World) -> None:
    await forward(fake_world)
    await seen_anew(fake_world)
    status = (await fake_world.cycle()).status
    assert status.run is not None
    assert status.run.finished_at is not None
    assert value(fake_world, "cycle_phase", phase="Idle") == 1
    assert value(fake_world, "cycle_condition", condition="Ready") == 1
    assert value(fake_world, "champion_info", version="assistant-1") == 1
    assert value(fake_world, "run_ended_timestamp_seconds", outcome="Promoted") == status.run.finished_at.timestamp()
    assert value(fake_world, "history_last_timestamp_seconds", outcome="RolledBack") is None
    assert value(fake_world, "candidate_weight_percent") is None
    assert value(fake_world, "rejected_digests") == 0


async def test_a_rollback_is_not_forgotten_by_a_restart(fake_world: World) -> None:
    """A counter would be at 0 again, and an alert on its increase would never see it."""
    await back(fake_world)
    await seen_anew(fake_world)
    [entry] = (await fake_world.cycle()).status.history
    assert value(fake_world, "history_last_timestamp_seconds", outcome="RolledBack") == entry.at.timestamp()
    assert value(fake_world, "rejected_digests") == 1
    assert value(fake_world, "champion_info", version="assistant-0") == 1


async def test_a_deleted_cycle_is_not_exported(fake_world: World) -> None:
    await forward(fake_world)
    await fake_world.kube.delete("ImprovementCycle", fake_world.namespace, "assistant")
    assert value(fake_world, "champion_info", version="assistant-1") == 1
    await cycle.reconcile(fake_world.context, fake_world.namespace, "assistant")  # the watch's event does that
    assert value(fake_world, "champion_info", version="assistant-1") is None
    assert value(fake_world, "rejected_digests") is None
