"""A stage that waits in a queue of Kueue: made suspended, started and taken back by Kueue, without a lost attempt."""

import json

import pytest
from operator_stories import champion, dataset, serving
from operator_world import World, curated, evaluated, running, terminated, trained

from ratchet_api.conditions import find
from ratchet_api.reasons import ConditionType
from ratchet_api.stage import ExitCode
from ratchet_api.version import Attempts
from ratchet_operator.clients.objects import Job, Pod
from ratchet_operator.manifests.stages import QUEUE_LABEL

TRAIN = "assistant-1-train-0"


async def suspend(world: World, value: bool) -> None:
    """What Kueue does when it admits a Job, and when it takes the room back."""
    path = f"/apis/batch/v1/namespaces/{world.namespace}/jobs/{TRAIN}"
    body = {"spec": {"suspend": value}}
    await world.raw.request("patch", path, body, content_type="application/merge-patch+json")


async def bind(world: World, pod: str) -> None:
    """What the scheduler does; a pod of a node is not gone before its kubelet says so."""
    path = f"/api/v1/namespaces/{world.namespace}/pods/{pod}/binding"
    target = {"apiVersion": "v1", "kind": "Node", "name": "gpu-1"}
    await world.raw.request("post", path, {"metadata": {"name": pod}, "target": target})


async def remove_at_once(world: World, pod: str) -> None:
    """What the kubelet does when the containers have ended."""
    path = f"/api/v1/namespaces/{world.namespace}/pods/{pod}"
    await world.raw.request("delete", path, {"gracePeriodSeconds": 0})


async def train_job(world: World) -> Job:
    return (await world.jobs())[TRAIN]


async def words(world: World) -> str:
    """What the version says that it waits for."""
    found = find((await world.version("assistant-1")).status.conditions, ConditionType.RECONCILING)
    assert found is not None
    return found.message


async def queued(world: World) -> bool:
    return f"Job {TRAIN} waits in queue gpus" in await words(world)


async def started(world: World) -> bool:
    return not await queued(world)


@pytest.mark.apiserver
async def test_a_training_waits_in_a_queue_and_gives_way(world: World) -> None:
    await serving(world, training={"queueName": "gpus"})
    await world.annotate("run", "now")
    await world.settle()
    assert QUEUE_LABEL not in (await world.stage_pod("curate")).metadata.labels
    await world.finish("curate", curated())
    await world.settle()
    await world.until(lambda: queued(world))
    waits = await train_job(world)
    assert waits.spec.suspend
    assert waits.metadata.labels[QUEUE_LABEL] == "gpus"
    assert waits.status.start_time is None, "the deadline does not run in the queue"
    assert "waits in queue gpus" in json.dumps([c.message for c in (await world.cycle()).status.conditions])

    await suspend(world, False)
    pod = await world.stage_pod("train")
    await bind(world, pod.metadata.name)
    await world.pod_status(pod.metadata.name, running("stage"))
    await world.until(lambda: started(world))

    await suspend(world, True)

    async def taken_back() -> bool:
        gives_way = await world.kube.get(Pod, world.namespace, pod.metadata.name)
        assert gives_way is not None
        return gives_way.metadata.deletion_timestamp is not None

    await world.until(taken_back)
    await world.pod_status(pod.metadata.name, terminated("stage", ExitCode.PREEMPTED, reason="Error"))
    await remove_at_once(world, pod.metadata.name)
    await world.until(lambda: queued(world))
    assert (await train_job(world)).status.start_time is None

    await suspend(world, False)
    await world.finish("train", trained())
    await world.settle()
    (stage,) = [s for s in (await world.version("assistant-1")).status.stages if s.stage == "train"]
    assert (stage.job, stage.attempts) == (TRAIN, Attempts())
    await world.finish("evaluate", evaluated())
    await champion(world, "assistant-1")


async def test_a_job_that_a_person_suspended_says_how_to_go_on(fake_world: World) -> None:
    world = fake_world
    await serving(world)
    await dataset(world)
    await suspend(world, True)

    async def said() -> bool:
        text = f"""`kubectl patch job {TRAIN} -p '{{"spec":{{"suspend":false}}}}'` lets it go on"""
        return text in await words(world)

    await world.until(said)
    await suspend(world, False)
    await world.finish("train", trained())
    await world.settle()
    assert (await world.version("assistant-1")).status.artifacts.adapter is not None
