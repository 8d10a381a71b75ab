"""What goes wrong: seeded dice, and the network between one operator process and the API server."""

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from ratchet_operator.clients.transport import JSON, NotFound, translated
from ratchet_operator.errors import OperatorError, Unavailable

if TYPE_CHECKING:
    from simulation import Simulation


class Killed(BaseException):
    """The operator's process ends here: no handler of ordinary errors sees it."""


REQUEST_FAULTS = (
    "kill before",  # the process dies, the request was never sent
    "kill after",  # the process dies, the request took effect
    "conflict",  # 409, nothing happened
    "throttled",  # 429
    "broken",  # 500, nothing happened
    "broken after",  # 500, and yet it took effect
    "lost answer",  # it took effect, and the answer is lost: 20 s until the client gives up
    "lost request",  # nothing happened: 20 s until the client gives up
    "late",  # the client gives up after 20 s; the request takes effect while the next ones are under way
    "slow",  # takes effect and answers, seconds later
    "stale",  # a list of children as it was some seconds ago
)
"""What may befall one request."""
EFFECTS = ("broken after", "lost answer", "late", "kill after")
"""Those of requests that have one."""
WORLD_FAULTS = (
    "lost event",  # a watch event never arrives
    "doubled event",  # it arrives twice
    "broken watch",  # 410: no events for a while, then everything is listed anew
    "silent gateway",
    "slow gateway",  # keeps the weights that it has for a while
    "restarted gateway",  # knows no cycle until it has read them again
    "silent arm",
    "blind prometheus",
    "eviction",  # a stage's pod has to give way
    "infrastructure",  # a stage ends with "try again"
    "drain",  # an arm's pod is deleted
    "intruder",  # a second operator acts at the same time, with no respect for the Lease
    "skew",  # the clocks of operators differ
    "deleted job",  # somebody deletes a running Job
    "slow controllers",
)
"""What may befall everything else."""
CLIENT_SECONDS = 20.0
LATE = " (late)"
"""Who makes a change that nobody waits for any more."""
STAGES_DISTURBED = 2
"""Disruptions of stages in one story: fewer than their retries, so that the end stays the same."""


@dataclass
class Dice:
    """Decides by a seed what goes wrong and when; quiet after `steps` requests, so that every story can end.

    Swarm testing: each seed has its own subset of faults, for a mixture of all hides what only a few of them do.
    """

    seed: int | None
    """None: nothing goes wrong."""
    schedule: list[str] = field(default_factory=list)
    """What went wrong, for people."""

    def __post_init__(self) -> None:
        self.random = random.Random(f"ratchet {self.seed}")
        self.rate = self.random.choice((0.01, 0.03, 0.08, 0.15))
        names = (*REQUEST_FAULTS, *WORLD_FAULTS)
        self.enabled = {name for name in names if self.random.random() < 0.35}
        self.steps = self.random.choice((60, 150, 400))
        self.quiet = self.seed is None
        self.elected = self.seed is not None and self.random.random() < 0.3
        """Whether two operators run and elect a leader."""
        self.disturbed = 0

    def step(self) -> None:
        """One request was made."""
        self.steps -= 1
        if self.steps <= 0:
            self.quiet = True

    def request(self, method: str) -> str | None:
        """What befalls this request."""
        if self.quiet or self.random.random() >= self.rate:
            return None
        possible = [name for name in REQUEST_FAULTS if name in self.enabled and _fits(name, method)]
        return self.random.choice(possible) if possible else None

    def strikes(self, name: str, chance: float) -> bool:
        """Whether this happens now."""
        return not self.quiet and name in self.enabled and self.random.random() < chance

    def disturbs(self, name: str, chance: float) -> bool:
        """As `strikes`, for what costs a stage an attempt."""
        if self.disturbed >= STAGES_DISTURBED or not self.strikes(name, chance):
            return False
        self.disturbed += 1
        return True

    def between(self, low: float, high: float) -> float:
        """A time; the low one when all is quiet."""
        return low if self.quiet else self.random.uniform(low, high)


def _fits(name: str, method: str) -> bool:
    if method == "ask":
        return name in ("kill before", "slow")
    if method in ("look", "tell"):
        # Git and forges: nobody answers 409, and no list is stale.
        return name not in ("conflict", "stale") and (method == "tell" or name not in EFFECTS)
    if name == "stale":
        return method == "list"
    if name in EFFECTS:
        return method not in ("get", "list")
    return name != "conflict" or method in ("put", "patch", "delete")


class Link:
    """A Transport: one process' requests, each of which takes its time and may go wrong."""

    def __init__(self, simulation: "Simulation", who: str) -> None:
        self._simulation = simulation
        self._who = who
        self.dead = False
        self.die = lambda: None
        """Ends the process."""

    async def request(
        self,
        method: str,
        path: str,
        body: JSON | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str | None = None,
        accept: str | None = None,
    ) -> JSON:
        """See Transport."""
        lease = "/leases" in path
        listing = method == "get" and "/" + path.rsplit("/", 1)[1] in ("/pods", "/deployments", "/modelversions")
        fault = await self.pause("list" if listing else method, path, lease)

        def act(late: bool = False) -> JSON:
            if fault == "stale":
                return self._simulation.stale(path, query)
            who = f"{self._who}{LATE}" if late else self._who
            return self._simulation.server.request(who, method, path, body, query, content_type)

        where = f"{method.upper()} {path}"

        def silent(what: str) -> Exception:
            return Unavailable(f"{where}: TimeoutError")

        match fault:
            case "conflict":
                raise translated(method, path, 409, "Operation cannot be fulfilled: the object has been modified")
            case "throttled":
                raise translated(method, path, 429, "Too many requests, please try again later (Retry-After: 1)")
            case "broken":
                raise translated(method, path, 500, "etcdserver: request timed out")
            case "late":
                self.later(lambda: act(late=True), OperatorError, NotFound)
        await self.fails(fault, silent)
        answer = act()
        if fault == "broken after":
            raise translated(method, path, 500, "etcdserver: leader changed")
        await self.fails_after(fault, silent)
        return answer

    async def fails(self, fault: str | None, silent: Callable[[str], Exception]) -> None:
        """No answer, before the request has had an effect."""
        if fault in ("broken", "throttled"):
            raise silent(fault)
        if fault in ("lost request", "late"):
            await self._sleep(CLIENT_SECONDS)
            raise silent(fault)

    async def fails_after(self, fault: str | None, silent: Callable[[str], Exception]) -> None:
        """No answer, though the request has had its effect."""
        if fault == "kill after":
            self.kill()
        if fault == "broken after":
            raise silent(fault)
        if fault == "lost answer":
            await self._sleep(CLIENT_SECONDS)
            raise silent(fault)

    def at_once(self, method: str, what: str) -> str | None:
        """As `pause`, for work in a thread, which awaits nothing."""
        if self.dead:
            raise Killed
        self._simulation.dice.step()
        fault = self._simulation.dice.request(method)
        if fault is not None:
            self._simulation.note(f"{fault}: {self._who} {method.upper()} {what}")
        if fault == "kill before":
            self.kill()
        return fault

    async def pause(self, method: str, what: str, quietly: bool = False) -> str | None:
        """The way there: an await at which the process may die; returns what else goes wrong."""
        if self.dead:
            raise Killed
        dice = self._simulation.dice
        dice.step()
        fault = None if quietly else dice.request(method)
        if fault is not None:
            self._simulation.note(f"{fault}: {self._who} {method.upper()} {what}")
        if fault == "kill before":
            self.kill()
        await self._sleep(dice.between(2.0, 15.0) if fault == "slow" else dice.between(0.01, 0.05))
        return fault

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self.dead:
            raise Killed

    def kill(self) -> NoReturn:
        """The process ends here."""
        self.die()
        raise Killed

    def later(self, act: Callable[[], object], *errors: type[Exception]) -> None:
        """It takes effect when nobody waits for its answer any more."""

        def late() -> None:
            with suppress(*errors):
                act()

        loop = asyncio.get_running_loop()
        loop.call_later(self._simulation.dice.between(0.0, CLIENT_SECONDS + 10.0), late)
