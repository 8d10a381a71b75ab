"""The part of a kubelet's HTTPS API that `kubectl logs` needs.

Room: local. Serves the API server, and whoever else holds a certificate of the cluster's administrators.
"""

import datetime
import ssl
from collections.abc import Callable

from aiohttp import web

from ratchet_local.node.logs import LogQuery, read_log
from ratchet_local.node.pod import PodWorker
from ratchet_local.node.settings import Settings

FindPod = Callable[[str, str], PodWorker | None]
"""(namespace, name) to the worker of that pod."""


def server_context(settings: Settings) -> ssl.SSLContext:
    """TLS with the node's certificate; clients must show one of the platform's authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(settings.authority))
    context.load_cert_chain(settings.cert, settings.key)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@web.middleware
async def administrators_only(request: web.Request, handler: Callable[[web.Request], object]) -> web.StreamResponse:
    """Refuse every client certificate that is not of the group system:masters."""
    transport = request.transport
    certificate = transport.get_extra_info("peercert") if transport is not None else None
    subject = {key: value for part in (certificate or {}).get("subject", ()) for key, value in part}
    if subject.get("organizationName") != "system:masters":
        raise web.HTTPForbidden(text="only the API server may ask the process node")
    answer = await handler(request)  # type: ignore[misc]
    assert isinstance(answer, web.StreamResponse)
    return answer


def parse_query(request: web.Request) -> LogQuery:
    """The query of /containerLogs. Raises HTTPBadRequest for a number or a time that is none."""
    query = request.query
    try:
        since = None
        if "sinceTime" in query:
            since = datetime.datetime.fromisoformat(query["sinceTime"].replace("Z", "+00:00"))
        elif "sinceSeconds" in query:
            since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=int(query["sinceSeconds"]))
        return LogQuery(
            follow=query.get("follow") == "true",
            timestamps=query.get("timestamps") == "true",
            tail_lines=int(query["tailLines"]) if "tailLines" in query else None,
            since=since,
            limit_bytes=int(query["limitBytes"]) if "limitBytes" in query else None,
        )
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"malformed log query: {error}") from error


class KubeletApi:
    """The server."""

    def __init__(self, settings: Settings, find: FindPod) -> None:
        self._settings = settings
        self._find = find
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(middlewares=[administrators_only])
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        for name in ("exec", "attach", "portForward", "run"):
            app.router.add_route("*", f"/{name}/{{rest:.*}}", self._unsupported)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, self._settings.address, self._settings.port, ssl_context=server_context(self._settings)
        )
        await site.start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, request: web.Request) -> web.Response:
        del request
        return web.Response(text="ok")

    async def _unsupported(self, request: web.Request) -> web.Response:
        verb = request.path.split("/")[1]
        return web.Response(status=501, text=f"{verb} is not supported by the process node")

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        info = request.match_info
        worker = self._find(info["namespace"], info["pod"])
        if worker is None:
            raise web.HTTPNotFound(text=f'pod "{info["pod"]}" is not known to the process node')
        query = parse_query(request)
        container, previous = info["container"], request.query.get("previous") == "true"
        try:
            log = worker.log_of(container, previous)
        except LookupError as error:
            raise web.HTTPNotFound(text=str(error.args[0])) from error
        if log is None:
            what = f'container "{container}" in pod "{info["pod"]}"'
            if previous:
                raise web.HTTPBadRequest(text=f"previous terminated {what} not found")
            raise web.HTTPBadRequest(text=f"{what} is waiting to start: {worker.waiting_reason(container)}")
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        async for chunk in read_log(log, query):
            await response.write(chunk)
        await response.write_eof()
        return response
