"""One side of the benchmark, as a process: `side.py noop|ratchet REPORT EXPECTED BEGAN [arguments of the operator]`.

`noop` is kopf with a handler for each of the two kinds that does nothing; `ratchet` is the operator's own entry point.
What is added to both: a count of requests by verb, and a note of every object when it is `observed`: the handler was
called, or the operator has it in its memory. Of the operator also when it is `passed`: its first pass has ended. REPORT
is rewritten as JSON while it runs.
"""

import asyncio
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp

EVERY = 0.2
"""Seconds between two reports."""


class Report:
    """What this process has done so far."""

    def __init__(self, path: Path, expected: int, began: float) -> None:
        self._path = path
        self._expected = expected
        self._began = began
        """time.monotonic() of the parent when it started us: on Linux all processes share that clock."""
        self._noted: dict[str, set[tuple[str, ...]]] = {"observed": set(), "passed": set()}
        self._requests: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}

    def note(self, what: str, *key: str) -> None:
        """An object was observed, or a pass over it has ended."""
        noted = self._noted[what]
        noted.add(key)
        if what not in self._seconds and len(noted) >= self._expected:
            self._seconds[what] = round(time.monotonic() - self._began, 2)

    def count_requests(self) -> None:
        """All that aiohttp sends: kopf's requests, the Kubernetes client's, and those to gateways and arms."""
        send = aiohttp.ClientSession._request

        async def counted(session: aiohttp.ClientSession, method: str, url: Any, **more: Any) -> Any:
            self._requests[verb(method, str(url), more.get("params"))] += 1
            return await send(session, method, url, **more)

        aiohttp.ClientSession._request = counted  # type: ignore[method-assign]

    async def keep_writing(self) -> None:
        """Until cancelled."""
        while True:
            so_far = {what: len(noted) for what, noted in self._noted.items()}
            told = {"seconds": self._seconds, "so far": so_far, "requests": dict(self._requests)}
            draft = self._path.with_suffix(".draft")
            draft.write_text(json.dumps(told), encoding="utf-8")
            draft.replace(self._path)
            await asyncio.sleep(EVERY)


def verb(method: str, url: str, params: Any) -> str:
    """The API server's word for a request; `lease` for all of the election, `probe` for what goes elsewhere."""
    method, parts = method.upper(), urlsplit(url)
    pieces = parts.path.strip("/").split("/")
    if pieces[0] not in ("api", "apis"):
        return "other" if method == "GET" and parts.scheme == "https" else "probe"
    if "leases" in pieces:
        return "lease"
    if method != "GET":
        return {"POST": "create", "PUT": "update"}.get(method, method.lower())
    asked = {**parse_qs(parts.query), **(dict(params) if params else {})}
    if "watch" in asked:
        return "watch"
    rest = pieces[2 if pieces[0] == "api" else 3 :]
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        rest = rest[2:]
    if not rest:
        return "discovery"
    return "get" if len(rest) > 1 else "list"


def noop(report: Report) -> None:
    """kopf, and handlers that do nothing, with the operator's own way of logging in."""
    import kopf

    from ratchet_api.names import CYCLE_PLURAL, GROUP, VERSION_PLURAL
    from ratchet_operator.clients.transport import load_configuration

    @kopf.on.startup()
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = True

    @kopf.on.login()
    async def log_in(**_: Any) -> kopf.ConnectionInfo:
        found = await load_configuration()
        return kopf.ConnectionInfo(
            server=found.host, ca_path=found.ssl_ca_cert, certificate_path=found.cert_file,
            private_key_path=found.key_file,
        )  # fmt: skip

    async def seen(body: Any, **_: Any) -> None:
        for what in ("observed", "passed"):
            report.note(what, body["kind"], body["metadata"]["namespace"], body["metadata"]["name"])

    for plural in (CYCLE_PLURAL, VERSION_PLURAL):
        kopf.on.event(GROUP, plural)(seen)

    async def run() -> None:
        writing = asyncio.create_task(report.keep_writing())
        await kopf.operator(standalone=True, clusterwide=True)
        writing.cancel()

    asyncio.run(run())


def ratchet(report: Report, arguments: list[str]) -> None:
    """The operator."""
    from ratchet_operator import __main__, application

    class Observed(application.Application):
        """Tells of every pass."""

        async def __aenter__(self) -> "Observed":
            self._writing = asyncio.create_task(report.keep_writing())
            await super().__aenter__()
            return self

        async def process(self, key: Any) -> None:
            await super().process(key)
            report.note("passed", key.kind, key.namespace, key.name)

        def seen(self, kind: str, body: Any) -> None:
            super().seen(kind, body)
            if kind in application.RECONCILERS:
                report.note("observed", kind, body["metadata"]["namespace"], body["metadata"]["name"])

    __main__.Application = Observed  # type: ignore[misc]
    __main__.main(arguments)


if __name__ == "__main__":
    side, path, expected, began, *arguments = sys.argv[1:]
    os.environ.setdefault("POD_NAME", "benchmark")
    made = Report(Path(path), int(expected), float(began))
    made.count_requests()
    if side == "noop":
        noop(made)
    else:
        ratchet(made, arguments)
