"""The chart as an installer sees it: rendered by Helm's own engine."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

Values = dict[str, Any]
Manifest = dict[str, Any]

RELEASE, NAMESPACE = "ratchet", "ratchet-system"
PROMETHEUS = "http://prometheus.monitoring.svc:9090"


@dataclass(frozen=True)
class Rendered:
    """What one set of values gives."""

    objects: list[Manifest]
    """In the order of the templates' names."""
    notes: str
    """NOTES.txt."""

    def only(self, kind: str, name: str, namespace: str | None = None) -> Manifest:
        """The one object of that kind and name."""
        found = [o for o in self.of(kind) if o["metadata"]["name"] == name]
        if namespace is not None:
            found = [o for o in found if o["metadata"].get("namespace") == namespace]
        assert len(found) == 1, f"{len(found)} objects {kind} {name}"
        return found[0]

    def of(self, kind: str) -> list[Manifest]:
        """All objects of a kind."""
        return [o for o in self.objects if o["kind"] == kind]

    def container(self, component: str) -> Manifest:
        """The one container of a component's Deployment."""
        pod = self.only("Deployment", f"ratchet-{component}")["spec"]["template"]["spec"]
        assert len(pod["containers"]) == 1
        container: Manifest = pod["containers"][0]
        return container


Render = Callable[..., Rendered]


@pytest.fixture(scope="session")
def chart(repository: Path) -> Iterator[helm_python.Chart]:
    """The chart, loaded by Helm's engine."""
    with helm_python.Chart.load(repository / "charts" / "ratchet") as loaded:
        yield loaded


@pytest.fixture(scope="session")
def render(chart: helm_python.Chart) -> Render:
    """Values (prometheus.url is added when absent) -> rendered objects."""

    def _render(values: Values | None = None, release: str = RELEASE, namespace: str = NAMESPACE) -> Rendered:
        whole = {"prometheus": {"url": PROMETHEUS}} | copy.deepcopy(values or {})
        files = chart.render(whole, name=release, namespace=namespace)
        notes = files.pop("ratchet/templates/NOTES.txt")
        objects = [o for name in sorted(files) for o in yaml.safe_load_all(files[name]) if o is not None]
        return Rendered(objects, notes)

    return _render
