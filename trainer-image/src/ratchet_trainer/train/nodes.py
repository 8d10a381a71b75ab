"""Several nodes: node 0 leads as in `team`, the others fetch the same inputs and lend it their GPUs.

Room: trainer. Talks to the other nodes by a TCPStore of torch, starts processes of its own.

A pod learns its place from what torchrun understands and Kubeflow Trainer sets: PET_NNODES, PET_NODE_RANK,
PET_MASTER_ADDR, PET_MASTER_PORT. Before the ranks compute, and beside them, nodes leave each other words on a board
that node 0 keeps: what each one brings, the plan, and that one has to leave.
"""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import distributed

from ratchet_api.stage import ExitCode
from ratchet_trainer.errors import DataError, OutOfMemory, Preempted, TryAgain, UserError
from ratchet_trainer.train.team import PATIENCE, Order, connect, killed

log = logging.getLogger("ratchet")

LEAVING_SECONDS = 20.0
"""A node that is told to leave stays for so long, while node 0 saves a checkpoint: shorter than the pod's grace."""
LISTEN_SECONDS = 0.5
"""Node 0 looks at the board so often."""
_POLL = 0.05


@dataclass(frozen=True)
class Place:
    """This pod's place among the nodes of a training."""

    node: int
    """From 0."""
    nodes: int
    address: str
    """Of node 0."""
    port: int

    @property
    def meeting(self) -> str:
        """Where ranks of this node find the others."""
        # A pod's own name in the cluster's DNS need not be known to it yet.
        return f"tcp://{'127.0.0.1' if self.node == 0 else self.address}:{self.port}"


def here(environment: Mapping[str, str] = os.environ) -> Place | None:
    """This pod's place; None when it is alone. Raises UserError."""
    asked = environment.get("PET_NNODES", "1")
    if asked == "1":
        return None
    try:
        place = Place(
            int(environment["PET_NODE_RANK"]), int(asked), environment["PET_MASTER_ADDR"],
            int(environment["PET_MASTER_PORT"]),
        )  # fmt: skip
    except KeyError as error:
        raise UserError(
            f"PET_NNODES is {asked}, but {error.args[0]} is not set: use a torch training runtime"
        ) from None
    except ValueError as error:
        raise UserError(f"PET_NNODES, PET_NODE_RANK or PET_MASTER_PORT is no number: {error}") from None
    if not 0 <= place.node < place.nodes:
        raise UserError(f"PET_NODE_RANK is {place.node}: write 0 to {place.nodes - 1}, as PET_NNODES is {asked}")
    return place


@dataclass(frozen=True)
class Brings:
    """What a node brings."""

    ranks: int
    base: str
    """Digest of the base model that it has."""


@dataclass(frozen=True)
class Plan:
    """What node 0 has decided."""

    ranks: Sequence[int]
    """Of each node."""
    packed: bool
    precision: str

    def first(self, node: int) -> int:
        """Number of a node's first rank."""
        return sum(self.ranks[:node])


class Board:
    """Node 0's side."""

    def __init__(self, place: Place) -> None:
        self._place = place
        try:
            self._store = distributed.TCPStore(
                "127.0.0.1", place.port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30)
            )
        except RuntimeError as error:
            raise TryAgain(f"port {place.port} of node 0 cannot be listened at: {error}") from None
        self._next = 0.0

    def gather(self, mine: Brings) -> list[int]:
        """Ranks of all nodes, once all are there. Raises DataError when they do not have the same base model."""
        found = [mine]
        for node in range(1, self._place.nodes):
            while not self._store.check([f"brings/{node}"]):
                self.listen()
                time.sleep(_POLL)
            found.append(Brings(**json.loads(self._store.get(f"brings/{node}"))))
            if found[-1].base != mine.base:
                raise DataError(f"node {node} has another base model ({found[-1].base}) than node 0 ({mine.base})")
        return [one.ranks for one in found]

    def tell(self, plan: Plan) -> None:
        """To all nodes."""
        self._store.set("plan", json.dumps(asdict(plan)))

    def listen(self) -> None:
        """Raises what a node says when it has to leave: Preempted, OutOfMemory or TryAgain."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + LISTEN_SECONDS
        if not self._store.check(["leaves"]):
            return
        kind, _, text = self._store.get("leaves").decode().partition(" ")
        if kind == "Preempted":
            log.info("%s", text)
            raise Preempted
        raise {"OutOfMemory": OutOfMemory}.get(kind, TryAgain)(text)


def lend(place: Place, base_digest: str, ranks: int, order: Callable[[Plan, int], Order], scratch: Path) -> None:
    """The part of a node other than 0: brings its ranks, and ends when node 0 has no more work for them.

    `order`: of a rank by the plan and its number. Raises OutOfMemory, TryAgain, Preempted.
    """
    store = _reach(place)
    started: list[subprocess.Popen[bytes]] = []
    try:
        plan = _plan(store, place, Brings(ranks, base_digest))
        for rank in range(plan.first(place.node), plan.first(place.node) + ranks):
            path = scratch / f"rank-{rank}.json"
            path.write_text(json.dumps(asdict(order(plan, rank))))
            started.append(subprocess.Popen([sys.executable, "-m", "ratchet_trainer.train.follow", str(path)]))
        _watch(place, started)
    except Preempted:
        _say(store, "Preempted", f"node {place.node} has to leave")
        until = time.monotonic() + LEAVING_SECONDS
        while time.monotonic() < until and any(process.poll() is None for process in started):
            time.sleep(_POLL)
        raise
    except (OutOfMemory, TryAgain) as error:
        _say(store, type(error).__name__, str(error))
        raise
    finally:
        for process in started:
            process.kill()
            process.wait()


def _plan(store: Any, place: Place, brings: Brings) -> Plan:
    """What node 0 has decided, once it knows what this node brings. Raises TryAgain."""
    try:
        store.set(f"brings/{place.node}", json.dumps(asdict(brings)))
        while not store.check(["plan"]):
            time.sleep(_POLL)
        return Plan(**json.loads(store.get("plan")))
    except RuntimeError as error:
        raise TryAgain(f"node 0 is gone: {error}") from None


def _watch(place: Place, started: "Sequence[subprocess.Popen[bytes]]") -> None:
    """Until all have ended well. Raises OutOfMemory or TryAgain."""
    while True:
        codes = [process.poll() for process in started]
        if any(killed(code) for code in codes):
            raise OutOfMemory(f"a rank of node {place.node} ran out of memory: lower microBatch, or raise its memory")
        if any(code not in (None, ExitCode.DONE) for code in codes):
            raise TryAgain(f"a rank of node {place.node} ended with exit codes {codes}; its log is above")
        if all(code == ExitCode.DONE for code in codes):
            return
        time.sleep(_POLL)


def _reach(place: Place) -> Any:
    """The board, once node 0 has put it up: its pod may be scheduled later, or its image take longer."""
    until = time.monotonic() + PATIENCE.total_seconds()
    while True:
        try:
            return connect(place.meeting, timedelta(seconds=5))
        except RuntimeError as error:
            if time.monotonic() >= until:
                raise TryAgain(f"node 0 is not to be reached at {place.address}:{place.port}: {error}") from None
            log.info("waiting for node 0 at %s:%d", place.address, place.port)


def _say(store: Any, kind: str, text: str) -> None:
    try:
        store.set("leaves", f"{kind} {text}")
    except RuntimeError:
        log.info("node 0 is gone already")
