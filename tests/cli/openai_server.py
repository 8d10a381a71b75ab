"""A server that speaks the OpenAI API and answers as it is told: no gateway, and none of ours."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class OpenAIServer:
    """What it says, and what it was asked."""

    says: list[str] = field(default_factory=list)
    """Answers in their order; the last one again and again. `<cut>` ends the connection there, `<503>` refuses."""
    models: list[str] | None = field(default_factory=lambda: ["tiny"])
    """None: it lists nothing."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def next(self) -> str:
        """Of the request that has just come."""
        return self.says[min(len(self.requests), len(self.says)) - 1]


@contextmanager
def openai_server(says: list[str], models: list[str] | None = None) -> Iterator[OpenAIServer]:
    """Serves on a free port of the loopback address."""
    told = OpenAIServer(says, models if models is not None else ["tiny"])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            data = [{"id": name, "object": "model", "created": 1, "owned_by": "me"} for name in told.models or []]
            self._json(200 if told.models else 404, {"object": "list", "data": data})

        def do_POST(self) -> None:
            told.requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            text = told.next()
            if text == "<503>":
                self._json(503, {"error": {"message": "the model is still loading"}})
                return
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            cut = text.endswith("<cut>")
            for word in text.removesuffix("<cut>").split(" "):
                self._event({"content": f"{word} "})
            if cut:
                self.close_connection = True
                return
            self._event({}, "stop")
            self._piece(b"data: [DONE]\n\n")
            self._piece(b"")

        def _event(self, delta: dict[str, str], reason: str | None = None) -> None:
            chunk = {
                "id": f"answer-{len(told.requests)}", "object": "chat.completion.chunk", "created": 1, "model": "tiny",
                "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
            }  # fmt: skip
            self._piece(f"data: {json.dumps(chunk)}\n\n".encode())

        def _piece(self, data: bytes) -> None:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

        def _json(self, status: int, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
