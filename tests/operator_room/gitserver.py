"""A real Git server over HTTP: `git http-backend` behind basic authentication, and bare repositories to look into."""

import base64
import os
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

USER, PASSWORD = "robot", "s3cret-pass"
MANIFEST = """\
# The assistant of the shop. Ask before you change it.
apiVersion: ratchet.dev/v1alpha1
kind: ImprovementCycle
metadata:
  name: assistant   # one for all
spec:
  serving:
    runtime: transformers
    version: assistant-0   # moved by pull requests
  trigger: {minExamples: 20}
"""


def git(*args: str, cwd: Path | None = None, text: str | None = None) -> str:
    """A git command's output."""
    identity = {"GIT_AUTHOR_NAME": "Ann", "GIT_AUTHOR_EMAIL": "ann@example.com"}
    identity |= {"GIT_COMMITTER_NAME": "Ann", "GIT_COMMITTER_EMAIL": "ann@example.com"}
    clean = {"HOME": str(cwd or "/"), "GIT_CONFIG_NOSYSTEM": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["git", *args], cwd=cwd, env=clean | identity, input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"git {' '.join(args)}: {done.stderr}"
    return done.stdout.strip()


class Repository:
    """A bare repository and a person's clone of it."""

    def __init__(self, root: Path, name: str) -> None:
        self.bare = root / name
        self.clone = root / f"{name}-clone"
        self.bare.parent.mkdir(parents=True, exist_ok=True)
        git("init", "--quiet", "--bare", "--initial-branch=main", str(self.bare))
        git("config", "http.receivepack", "true", cwd=self.bare)
        git("config", "uploadpack.allowFilter", "true", cwd=self.bare)
        git("clone", "--quiet", str(self.bare), str(self.clone))
        git("checkout", "--quiet", "-B", "main", cwd=self.clone)

    def commit(self, files: dict[str, str], message: str = "by hand", branch: str = "main") -> str:
        """A person's commit, pushed."""
        git("fetch", "--quiet", "origin", cwd=self.clone)
        if self.head(branch) is not None:
            git("checkout", "--quiet", "-B", branch, f"origin/{branch}", cwd=self.clone)
        else:
            git("checkout", "--quiet", "-B", branch, cwd=self.clone)
        for path, content in files.items():
            self.clone.joinpath(path).parent.mkdir(parents=True, exist_ok=True)
            self.clone.joinpath(path).write_text(content, newline="")
        git("add", "--all", cwd=self.clone)
        git("commit", "--quiet", "--allow-empty", "-m", message, cwd=self.clone)
        git("push", "--quiet", "origin", branch, cwd=self.clone)
        return git("rev-parse", "HEAD", cwd=self.clone)

    def merge(self, branch: str) -> str:
        """What the green button does."""
        git("fetch", "--quiet", "origin", cwd=self.clone)
        git("checkout", "--quiet", "-B", "main", "origin/main", cwd=self.clone)
        git("merge", "--quiet", "--no-ff", "--no-edit", f"origin/{branch}", cwd=self.clone)
        git("push", "--quiet", "origin", "main", cwd=self.clone)
        return git("rev-parse", "HEAD", cwd=self.clone)

    def head(self, branch: str) -> str | None:
        """The commit of a branch."""
        return self.branches().get(branch)

    def branches(self) -> dict[str, str]:
        """Branch -> commit."""
        lines = git("for-each-ref", "--format=%(refname:short) %(objectname)", "refs/heads", cwd=self.bare).splitlines()
        return dict(line.split(" ", 1) for line in lines)

    def show(self, branch: str, path: str) -> str:
        """A file on a branch."""
        done = subprocess.run(["git", "show", f"{branch}:{path}"], cwd=self.bare, capture_output=True, check=True)
        return done.stdout.decode()

    def diff(self, old: str, new: str) -> list[str]:
        """Changed lines, without the context."""
        lines = git("diff", "-U0", old, new, cwd=self.bare).splitlines()
        return [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]

    def protect(self, prefix: str) -> None:
        """No push to branches that begin so."""
        hook = self.bare / "hooks" / "update"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f'#!/bin/sh\ncase "$1" in refs/heads/{prefix}*) echo "protected branch"; exit 1;; esac\n')
        hook.chmod(0o755)


class GitServer:
    """Serves the bare repositories of a folder to one user."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.status: int | None = None
        """Answer everything with it."""
        self.requests: list[str] = []
        self.before_push: Callable[[], object] | None = None
        """Something that happens just before a push is taken."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                server.requests.append(f"{self.command} {self.path}")

            def do_GET(self) -> None:
                server._answer(self, b"")

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                server._answer(self, self.rfile.read(length) if length else self._chunks())

            def _chunks(self) -> bytes:
                body = b""
                while size := int(self.rfile.readline().strip() or b"0", 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Base address."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        wanted = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.status is not None:
            self._plain(request, self.status)
        elif request.headers.get("Authorization") != wanted:
            self._plain(request, 401, {"WWW-Authenticate": 'Basic realm="git"'})
        else:
            self._backend(request, body)

    @staticmethod
    def _plain(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str] | None = None) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": "0", **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()

    def _backend(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        path, _, query = request.path.partition("?")
        if path.endswith("/git-receive-pack") and self.before_push is not None:
            happening, self.before_push = self.before_push, None
            happening()
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            "HOME": str(self.root),
            "REMOTE_USER": USER,
            "REMOTE_ADDR": "127.0.0.1",
            "REQUEST_METHOD": request.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(["git", "http-backend"], env=environment, input=body, capture_output=True, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        request.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(content)
