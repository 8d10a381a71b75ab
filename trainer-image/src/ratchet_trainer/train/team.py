"""Several GPUs: the first rank leads, the others compute their share of each gradient and nothing else.

Room: trainer. Starts processes of its own, and talks to them by torch.distributed; touches the scratch folder.

A step: the leader sends its number and the adapter's weights, every rank computes the gradient of its examples, divided
by the supervised tokens of *all* of them, and the leader gets the sum. So the number of ranks changes nothing but the
order in which numbers are added, and the dropout; and followers have no state: optimiser, checkpoints, curves and
SIGTERM are the leader's alone, as in a training on one GPU. An adapter is small, so that sending it is cheap.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import distributed

from ratchet_api.stage import ExitCode
from ratchet_trainer.errors import OutOfMemory, TryAgain
from ratchet_trainer.train.objective import FIGURES, Figures, Unit

END = -1
"""Instead of a step's number: there are no more."""
PATIENCE = timedelta(hours=12)
"""How long a rank waits for the others: the leader may save a checkpoint or load a model meanwhile. That one of them
has died is noticed at once, by its connection or its exit code."""
BOARD = "tcp://"
_POLL = 0.0005


@dataclass(frozen=True)
class Order:
    """What a follower is told at its start, as a file."""

    rank: int
    ranks: int
    device: int
    """Number of its GPU in its pod, if there are any."""
    meeting: str
    """By what the ranks find each other: a file, or `tcp://HOST:PORT` of a board (see `nodes`)."""
    stage: str
    """The stage's input, JSON."""
    base: str
    """Folder of the base model."""
    rows: str
    """Training rows."""
    rows_name: str
    """What messages call them."""
    packed: bool
    precision: str

    @classmethod
    def read(cls, path: Path) -> "Order":
        """From the file."""
        return cls(**json.loads(path.read_text()))


def ranks_wanted() -> int:
    """One a GPU."""
    return max(1, torch.cuda.device_count()) if torch.cuda.is_available() else 1


_U = TypeVar("_U", bound=Unit)


def share(batch: Sequence[_U], rank: int, ranks: int) -> list[_U]:
    """A rank's examples of a step: dealt by length, so that no rank waits long for another."""
    longest_first = sorted(range(len(batch)), key=lambda index: (-len(batch[index]), index))
    there_and_back = [*range(ranks), *reversed(range(ranks))]
    mine = {place for turn, place in enumerate(longest_first) if there_and_back[turn % (2 * ranks)] == rank}
    return [example for place, example in enumerate(batch) if place in mine]


def join(rank: int, ranks: int, meeting: str, device: torch.device, look: Callable[[], None] | None = None) -> None:
    """Enters the group. The leader waits for the others with `look`, before a call that cannot be interrupted.

    A pod's ranks are neighbours, so gloo is bound to the loopback; those of several pods are not."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    if meeting.startswith(BOARD):
        store: Any = connect(meeting, timedelta(seconds=60))
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store = distributed.FileStore(meeting, ranks)
    store.set(f"here/{rank}", "1")
    if look is not None:
        while not store.check([f"here/{other}" for other in range(ranks)]):
            look()
            time.sleep(0.05)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=PATIENCE)


def connect(meeting: str, timeout: timedelta) -> Any:
    """The board at `tcp://HOST:PORT`. Raises RuntimeError."""
    host, _, port = meeting.removeprefix(BOARD).rpartition(":")
    return distributed.TCPStore(host, int(port), is_master=False, timeout=timeout)


def killed(code: int | None) -> bool:
    """Whether a rank's exit code says that it was killed for memory, by itself or by the kernel."""
    return code in (ExitCode.KILLED, -signal.SIGKILL)


class Wire:
    """The messages of a step, each as one tensor on the device. Who sends or hears one gets back work to wait for."""

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        self._parameters = parameters
        self._sizes = [parameter.numel() for parameter in parameters]
        device = parameters[0].device
        self._number = torch.zeros(1, dtype=torch.int64, device=device)
        self._flat = torch.zeros(sum(self._sizes) + FIGURES, dtype=torch.float32, device=device)

    def number(self, step: int | None = None) -> Any:
        """The step's number, told (by the leader) or heard; `heard` has it once the work given back is done."""
        if step is not None:
            self._number.fill_(step)
        return distributed.broadcast(self._number, src=0, async_op=True)

    @property
    def heard(self) -> int:
        """The last number."""
        return int(self._number.item())

    def weights(self, leads: bool) -> Any:
        """The adapter, told or heard; `take_weights` puts what was heard in place."""
        if leads:
            self._gather([parameter.detach() for parameter in self._parameters])
        return distributed.broadcast(self._flat, src=0, async_op=True)

    def take_weights(self) -> None:
        """Into the parameters."""
        with torch.no_grad():
            for parameter, piece in zip(self._parameters, self._flat[:-FIGURES].split(self._sizes), strict=True):
                parameter.copy_(piece.view_as(parameter))

    def gradient(self, figures: Figures) -> Any:
        """This rank's gradient and figures, on their way to the leader, who gets the sums."""
        self._gather([torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters])
        self._flat[-FIGURES:] = torch.tensor(figures.numbers())
        return distributed.reduce(self._flat, dst=0, async_op=True)

    def take_gradient(self) -> Figures:
        """The sum into the parameters' gradients; returns the figures."""
        for parameter, piece in zip(self._parameters, self._flat[:-FIGURES].split(self._sizes), strict=True):
            parameter.grad = piece.view_as(parameter).to(parameter.dtype, copy=True)
        return Figures.of(self._flat[-FIGURES:].tolist())

    def _gather(self, tensors: Sequence[torch.Tensor]) -> None:
        with torch.no_grad():
            torch.cat([tensor.reshape(-1).float() for tensor in tensors], out=self._flat[:-FIGURES])


class Team:
    """The leader's side; a context manager, at the end of which no follower is left."""

    def __init__(
        self,
        orders: Sequence[Order],
        scratch: Path,
        device: torch.device,
        ranks: int,
        meeting: str,
        listen: Callable[[], None] | None = None,
    ) -> None:
        """`orders`: of the followers in this pod. `listen`: raises what other pods have to say, if there are any."""
        self.ranks = ranks
        self._orders, self._scratch, self._device = orders, scratch, device
        self._meeting, self._listen = meeting, listen
        self._followers: list[subprocess.Popen[bytes]] = []
        self._wire: Wire | None = None
        self._dismissed = False
        """Whether they may end well: one that is told so may be gone before this process sees that it has told it."""

    def __enter__(self) -> Self:
        for order in self._orders:
            path = self._scratch / f"rank-{order.rank}.json"
            path.write_text(json.dumps(asdict(order)))
            command = [sys.executable, "-m", "ratchet_trainer.train.follow", str(path)]
            self._followers.append(subprocess.Popen(command))
        try:
            join(0, self.ranks, self._meeting, self._device, self._look)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._dismiss()
        finally:
            self._end()

    def _dismiss(self) -> None:
        """Tell the others that there are no more steps. There may have been none, after a checkpoint of the last."""
        self._dismissed = True
        end = torch.full((1,), END, dtype=torch.int64, device=self._device)
        self._finish(distributed.broadcast(end, src=0, async_op=True))
        for follower in self._followers:
            follower.wait(timeout=60)

    def _end(self) -> None:
        for follower in self._followers:
            follower.kill()
            follower.wait()
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def share(self, batch: Sequence[_U]) -> list[_U]:
        """The leader's own examples of a step."""
        return share(batch, 0, self.ranks)

    def begin(self, step: int, parameters: Sequence[torch.Tensor]) -> None:
        """All ranks compute this step, with the leader's weights."""
        if self._wire is None:
            self._wire = Wire(parameters)
        self._finish(self._wire.number(step))
        self._finish(self._wire.weights(leads=True))

    def sum(self, figures: Figures) -> Figures:
        """The gradients of all ranks into the leader's parameters; their figures."""
        assert self._wire is not None
        self._finish(self._wire.gradient(figures))
        return self._wire.take_gradient()

    def _finish(self, work: Any) -> None:
        """Waits, with an eye on the followers: a group that lacks one would wait for ever."""
        while not work.is_completed():
            self._look()
            time.sleep(_POLL)
        try:
            work.wait()
        except RuntimeError as error:
            self._look(patience=10.0)
            raise TryAgain(f"the ranks lost each other: {error}") from None

    def _look(self, patience: float = 0.0) -> None:
        """Raises OutOfMemory or TryAgain when a follower has ended."""
        until = time.monotonic() + patience
        while True:
            if self._listen is not None:
                self._listen()
            for order, follower in zip(self._orders, self._followers, strict=True):
                code = follower.poll()
                if killed(code):
                    raise OutOfMemory(f"rank {order.rank} ran out of memory: lower microBatch, or raise its memory")
                if code is not None and not (self._dismissed and code == ExitCode.DONE):
                    raise TryAgain(f"rank {order.rank} of {self.ranks} ended with exit code {code}; its log is above")
            if time.monotonic() >= until:
                return
            time.sleep(0.05)
