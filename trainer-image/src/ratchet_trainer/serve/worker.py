"""The thread that owns the model: requests in, tokens out.

Room: trainer. One thread drives the engine; the event loop talks to it through `submit` and gets its tokens by
`call_soon_threadsafe`.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ratchet_trainer.generation.conversation import Conversation

log = logging.getLogger("ratchet")


class Overloaded(Exception):
    """As many requests wait as may."""


class Driver(Protocol):
    """What the thread needs of an engine."""

    @property
    def active(self) -> int: ...
    @property
    def busy(self) -> bool: ...
    @property
    def waiting(self) -> deque[Conversation]: ...
    def add(self, conversation: Conversation) -> None: ...
    def step(self) -> list[Conversation]: ...


@dataclass(frozen=True)
class Progress:
    """News of one conversation."""

    tokens: int
    """How many there are now."""
    finish: str | None
    error: BaseException | None = None


@dataclass(eq=False)
class Ticket:
    """One submitted conversation and where its news go."""

    conversation: Conversation
    loop: asyncio.AbstractEventLoop
    news: "asyncio.Queue[Progress]" = field(default_factory=asyncio.Queue)

    def tell(self, progress: Progress) -> None:
        """From the model's thread."""
        self.loop.call_soon_threadsafe(self.news.put_nowait, progress)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.conversation.cancelled = True


class Worker:
    """Loads an engine in a thread of its own and drives it until it is stopped."""

    def __init__(
        self, load: Callable[[], Driver], max_waiting: int, on_end: Callable[[BaseException | None], None]
    ) -> None:
        self._load = load
        self._max_waiting = max_waiting
        self._on_end = on_end
        self._inbox: deque[Ticket] = deque()
        self._tickets: dict[int, Ticket] = {}
        self._wake = threading.Condition()
        self._stopping = False
        self._engine: Driver | None = None
        self.ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Begins to load."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its present step and waits for it."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    @property
    def running(self) -> int:
        """Conversations in the engine's slots."""
        return 0 if self._engine is None else self._engine.active

    @property
    def waiting(self) -> int:
        """Conversations that wait for a slot."""
        return len(self._inbox) + (0 if self._engine is None else len(self._engine.waiting))

    def submit(self, conversation: Conversation, loop: asyncio.AbstractEventLoop) -> Ticket:
        """Queues a conversation. Raises Overloaded."""
        with self._wake:
            if self.waiting >= self._max_waiting:
                raise Overloaded
            ticket = Ticket(conversation, loop)
            self._inbox.append(ticket)
            self._wake.notify()
        return ticket

    def _run(self) -> None:
        try:
            self._engine = self._load()
            self.ready.set()
            while self._wait():
                self._step(self._engine)
        except BaseException as error:  # noqa: BLE001  # a dead model thread must end the process, whatever killed it
            self.ready.clear()
            for ticket in [*self._tickets.values(), *self._inbox]:
                ticket.tell(Progress(len(ticket.conversation.tokens), None, error))
            self._on_end(error)
        else:
            self._on_end(None)

    def _wait(self) -> bool:
        """Until there is something to do. False: stop."""
        assert self._engine is not None
        with self._wake:
            engine = self._engine
            self._wake.wait_for(lambda: self._stopping or self._inbox or engine.busy)
            if self._stopping:
                return False
            while self._inbox:
                ticket = self._inbox.popleft()
                if not ticket.conversation.cancelled:
                    self._tickets[id(ticket.conversation)] = ticket
                    engine.add(ticket.conversation)
        return True

    def _step(self, engine: Driver) -> None:
        for conversation in dict.fromkeys(engine.step()):
            ticket = self._tickets.get(id(conversation))
            if ticket is None:
                continue
            ticket.tell(Progress(len(conversation.tokens), conversation.finish))
            if conversation.finish is not None:
                del self._tickets[id(conversation)]
        for key in [key for key, ticket in self._tickets.items() if ticket.conversation.cancelled]:
            del self._tickets[key]
