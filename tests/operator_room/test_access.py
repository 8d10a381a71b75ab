"""A Prometheus that does not let everybody in: tokens, passwords, tenants, private authorities, client certificates."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from ratchet_local.pki import Authority
from ratchet_operator.clients.access import Access, BadCredentials
from ratchet_operator.clients.http import Http
from ratchet_operator.clients.prometheus import Prometheus
from ratchet_operator.domain.analysis import NoSample, Sample


def secret(folder: Path, **values: str) -> Path:
    """A mounted Secret; keys with a dot are written with two underscores."""
    folder.mkdir(exist_ok=True)
    for key, value in values.items():
        new = folder / f".{key}"
        new.write_text(value)
        new.rename(folder / key.replace("__", "."))
    return folder


class Guarded:
    """A Prometheus over HTTPS that wants a client certificate of its authority and one Authorization."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.authority = Authority(folder)
        self.wanted = ""
        self.tenants: list[str | None] = []
        self.port = 0
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        pair = self.authority.issue("server", "prometheus", names=["127.0.0.1"])
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.authority.pair.cert))
        context.load_cert_chain(pair.cert, pair.key)
        context.verify_mode = ssl.CERT_REQUIRED
        app = web.Application()
        app.router.add_get("/prefix/api/v1/query", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        server = site._server
        assert isinstance(server, asyncio.Server)
        self.port = int(server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.tenants.append(request.headers.get("X-Scope-OrgID"))
        if request.headers.get("Authorization", "") != self.wanted:
            return web.json_response({"status": "error", "error": "who are you?"}, status=401)
        value = {"resultType": "vector", "result": [{"value": [1, "7"]}]}
        return web.json_response({"status": "success", "data": value})

    def certificates(self) -> dict[str, str]:
        """What a Secret for it holds besides the Authorization."""
        pair = self.authority.issue("operator", "operator")
        return {
            "ca__crt": self.authority.pair.cert.read_text(),
            "tls__crt": pair.cert.read_text(),
            "tls__key": pair.key.read_text(),
        }


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    session = Http()
    yield session
    await session.close()


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    server = Guarded(tmp_path / "pki")
    await server.start()
    yield server
    await server.stop()


def asking(http: Http, guarded: Guarded, access: Access) -> Prometheus:
    return Prometheus(http, f"https://127.0.0.1:{guarded.port}/prefix", access)


async def test_with_everything(http: Http, guarded: Guarded, tmp_path: Path) -> None:
    guarded.wanted = "Bearer first"
    folder = secret(tmp_path / "secret", token="first\n", **guarded.certificates())
    prometheus = asking(http, guarded, Access(folder, {"X-Scope-OrgID": "team-a"}))
    assert await prometheus.reading("up") == Sample(7.0)
    assert guarded.tenants == ["team-a"]
    # The token is rotated while we run.
    guarded.wanted = "Bearer second"
    refused = await prometheus.reading("up")
    assert isinstance(refused, NoSample)
    assert refused.reason == "QueryError"
    assert "prometheus.credentialsSecret" in refused.message
    secret(folder, token="second")
    assert await prometheus.reading("up") == Sample(7.0)


async def test_user_and_password(http: Http, guarded: Guarded, tmp_path: Path) -> None:
    guarded.wanted = "Basic b3BlcmF0b3I6c8O8w58="
    folder = secret(tmp_path / "secret", username="operator", password="süß", **guarded.certificates())
    assert await asking(http, guarded, Access(folder)).reading("up") == Sample(7.0)


@pytest.mark.parametrize("left_out", ["ca__crt", "tls__crt"])
async def test_tls_is_not_optional(http: Http, guarded: Guarded, tmp_path: Path, left_out: str) -> None:
    values = guarded.certificates()
    del values[left_out]
    if left_out == "tls__crt":
        del values["tls__key"]
    reading = await asking(http, guarded, Access(secret(tmp_path / "secret", **values))).reading("up")
    assert isinstance(reading, NoSample)
    assert reading.reason == "QueryError"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"token": "a", "username": "b", "password": "c"}, "both token and username"),
        ({"username": "b"}, "only one of username and password"),
        ({"ca__crt": "no certificate"}, "cannot be read"),
        ({"token": "two\nlines"}, "token"),
    ],
)
async def test_what_does_not_fit_is_unknown_and_said(
    http: Http, guarded: Guarded, tmp_path: Path, values: dict[str, str], words: str
) -> None:
    access = Access(secret(tmp_path / "secret", **values))
    with pytest.raises(BadCredentials, match=words):
        access.headers()
    reading = await asking(http, guarded, access).reading("up")
    assert isinstance(reading, NoSample)
    assert reading.reason == "QueryError"


async def test_a_secret_that_is_not_mounted_yet(http: Http, guarded: Guarded, tmp_path: Path) -> None:
    assert Access(tmp_path / "nowhere").headers() == {}
    assert Access().tls() is True
