"""One request, one answer, over a unix socket: how commands reach the supervisor and the process node.

Room: local. Touches the socket it is given. A request is a JSON object with `command`; the answer is
`{"result": ...}` or `{"error": "sentence"}`, each on one line.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ratchet_local.errors import LocalError, PlatformError

Handler = Callable[[str, dict[str, Any]], Awaitable[Any]]
MAX_LINE = 4 << 20


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of the socket that fits into the 108 bytes of a unix address, however deep the state folder lies."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def request(path: Path, command: str, timeout: float = 60.0, **arguments: Any) -> Any:
    """Send one command and wait for its result.

    Raises LocalError with the other side's sentence; PlatformError when nobody listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            with _short(path) as name:
                connection.connect(name)
            connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline(MAX_LINE)
        except OSError as error:
            raise PlatformError(f"the local platform does not answer on {path.name} ({error})") from error
    if not line:
        raise PlatformError(f"the local platform closed {path.name} without an answer to {command!r}")
    answer = json.loads(line)
    if "error" in answer:
        raise LocalError(answer["error"])
    return answer.get("result")


class ControlServer:
    """Serves a handler on a unix socket that only the owner of the folder can reach."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _short(self._path) as name:
            listener.bind(name)
        self._path.chmod(0o600)
        listener.listen(16)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_LINE)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            if not line:
                return
            answer: dict[str, Any]
            try:
                message = json.loads(line)
                answer = {"result": await self._handler(message.pop("command"), message)}
            except LocalError as error:
                answer = {"error": str(error)}
            except (ValueError, KeyError, TypeError) as error:
                answer = {"error": f"malformed request: {error!r}"}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except ConnectionError:
            return  # the one who asked has gone: nobody to tell
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
