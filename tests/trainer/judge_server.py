"""A stand-in for a judge: a server that speaks OpenAI's chat completions, and misbehaves when it is told to."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]


def completion(content: str, model: str = "judge-70b", tokens: int = 100) -> Reply:
    """A chat completion as OpenAI's servers send it."""
    message = {"role": "assistant", "content": content}
    body = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": tokens - 1, "completion_tokens": 1, "total_tokens": tokens},
    }  # fmt: skip
    return 200, {}, json.dumps(body).encode()


def answers(request: dict[str, Any]) -> tuple[str, str]:
    """The two answers that the judge is shown, in their order."""
    text = request["messages"][-1]["content"]
    found = [re.search(rf"<{name} (\w+)>\n(.*?)\n</{name} \1>", text, re.DOTALL) for name in "AB"]
    assert all(found), text
    first, second = (match[2] for match in found if match is not None)
    return first, second


def fair(request: dict[str, Any]) -> str:
    """Likes the answer with more exclamation marks."""
    first, second = (text.count("!") for text in answers(request))
    return "TIE" if first == second else "A" if first > second else "B"


@dataclass
class JudgeServer:
    """What was asked of it, and how it answers."""

    url: str = ""
    reply: Callable[[dict[str, Any], int], Reply] = lambda request, number: completion(fair(request))
    """The request and its number, from 1."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)


@contextmanager
def judge_server() -> Iterator[JudgeServer]:
    """Serves on a free port of the loopback address."""
    state, lock = JudgeServer(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                state.requests.append(request)
                state.authorizations.append(self.headers["authorization"])
                number = len(state.requests)
            assert self.path == "/v1/chat/completions"
            status, headers, body = state.reply(request, number)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
