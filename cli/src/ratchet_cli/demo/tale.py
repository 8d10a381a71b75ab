"""What every step of the story has at hand, and how it asserts.

Room: cli. Holds the resources; the steps themselves are in `story`.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ratchet_cli.demo.cluster import Cluster, View
from ratchet_cli.demo.crowd import Crowd
from ratchet_cli.demo.errors import CameOutOtherwise, WaitExpired
from ratchet_cli.demo.notebook import Notebook
from ratchet_cli.demo.prometheus import Prometheus
from ratchet_cli.demo.screen import Screen
from ratchet_cli.demo.settings import Settings
from ratchet_cli.demo.storage import ArtifactStore
from ratchet_cli.demo.summary import Fact, StepTime
from ratchet_cli.demo.watching import Progress, Waiter
from ratchet_local import Platform


@dataclass
class Tale:
    """The running story."""

    settings: Settings
    screen: Screen
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    facts: list[Fact] = field(default_factory=list)
    steps: list[StepTime] = field(default_factory=list)
    notebook: Notebook = field(default_factory=Notebook)
    base_model_digest: str = ""
    """Digest of the base model's files."""
    stay: bool = False
    """Leave the platform running at the end."""
    _platform: Platform | None = None
    _cluster: Cluster | None = None
    _waiter: Waiter | None = None
    _crowd: Crowd | None = None

    @property
    def platform(self) -> Platform:
        assert self._platform is not None, "step 1 starts the platform"
        return self._platform

    @platform.setter
    def platform(self, platform: Platform) -> None:
        self._platform = platform

    @property
    def cluster(self) -> Cluster:
        assert self._cluster is not None, "step 1 connects to the API server"
        return self._cluster

    @property
    def has_cluster(self) -> bool:
        return self._cluster is not None

    def follow(self, cluster: Cluster, namespaces: list[str]) -> None:
        """Follow this cluster from now on, and write down what is seen."""
        self._cluster = cluster
        self._waiter = Waiter(cluster, self.screen, namespaces)
        cluster.observers.append(lambda view: self.notebook.see(view, datetime.now(UTC)))

    @property
    def crowd(self) -> Crowd:
        assert self._crowd is not None, "step 3 lets people in"
        return self._crowd

    @crowd.setter
    def crowd(self, crowd: Crowd) -> None:
        self._crowd = crowd

    @property
    def has_crowd(self) -> bool:
        return self._crowd is not None

    @property
    def prometheus(self) -> Prometheus:
        return Prometheus(self.platform.prometheus_url)

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.platform.s3.client())

    @property
    def gateway_url(self) -> str:
        """Of a ready gateway pod."""
        from ratchet_cli.demo.platform import SYSTEM_NAMESPACE

        url = self.cluster.gateway_url(SYSTEM_NAMESPACE)
        if url is None:
            raise CameOutOtherwise("no gateway pod is ready", self.cluster.diagnosis([SYSTEM_NAMESPACE]))
        return url

    def version(self, number: int) -> str:
        """Name of the version that a run makes."""
        return f"{self.settings.cycle}-{number}"

    def until(
        self,
        what: str,
        done: Callable[[View], bool],
        timeout: float,
        progress: Callable[[View], Progress | None] = lambda view: None,
        impossible: Callable[[View], str | None] = lambda view: None,
    ) -> View:
        """`Waiter.until` with this machine's patience."""
        assert self._waiter is not None, "step 1 connects to the API server"
        return self._waiter.until(what, done, self.settings.patience(timeout), progress, impossible)

    def poll(self, what: str, done: Callable[[], bool], timeout: float) -> None:
        """Until something that nobody can be watched for holds: it is asked each second. Raises WaitExpired."""
        deadline = time.monotonic() + self.settings.patience(timeout)
        pause = threading.Event()
        while not done():
            if time.monotonic() > deadline:
                raise WaitExpired(f"{what}: did not come within {timeout:.0f} s")
            pause.wait(1.0)

    def expect(self, holds: bool, text: str) -> bool:
        """Assert something on screen and in the summary; the story goes on either way."""
        self.facts.append(Fact(text=text, holds=holds))
        (self.screen.good if holds else self.screen.bad)(text)
        return holds

    def kubectl(self, *args: str, input: str | None = None, show: bool = True) -> str:
        """Run kubectl, shown as a person would type it, with its output."""
        if show:
            self.screen.command(f"kubectl {' '.join(args)}")
        output = self.platform.kubectl(*args, input=input)
        if show:
            self.screen.block(output)
        return output

    @contextmanager
    def step(self, number: int, title: str) -> Iterator[None]:
        """One numbered step with its wall time."""
        self.screen.heading(f"Step {number}: {title}")
        began = time.monotonic()
        yield
        self.steps.append(StepTime(number=number, title=title, wall_seconds=round(time.monotonic() - began, 1)))
