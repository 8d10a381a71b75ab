"""Forges that the tests can look into: one in memory, and stand-ins that speak the documented REST APIs."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

from ratchet_operator.clients.git.forge import AlreadyThere, Pull, chosen


@dataclass
class MemoryForge:
    """A Forge in a dict; `happening` is called after every write."""

    pulls: dict[str, list[Pull]] = field(default_factory=dict)
    """By branch."""
    texts: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Title and body by number."""
    labels: dict[int, list[str]] = field(default_factory=dict)
    comments: dict[int, list[str]] = field(default_factory=dict)
    happening: Callable[[str], None] = lambda what: None

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)

    def set(self, branch: str, state: Any) -> None:
        """What a person does to the newest one."""
        self.pulls[branch][-1] = replace(self.pulls[branch][-1], state=state)

    async def find_pull(self, branch: str, base: str) -> Pull | None:
        return chosen(self.pulls.get(branch, []))

    async def open_pull(self, branch: str, base: str, title: str, body: str, labels: list[str]) -> Pull:
        if any(pull.state == "Open" for pull in self.pulls.get(branch, [])):
            raise AlreadyThere(branch)
        number = next(self._numbers)
        pull = Pull(number, "Open", f"https://forge.example.com/acme/models/pulls/{number}")
        self.pulls.setdefault(branch, []).append(pull)
        self.texts[number] = (title, body)
        self.happening("the pull request")
        await self.label(number, labels)
        return pull

    async def pull_state(self, number: int) -> Pull | None:
        return next((p for pulls in self.pulls.values() for p in pulls if p.number == number), None)

    async def label(self, number: int, labels: list[str]) -> None:
        self.labels[number] = sorted({*self.labels.get(number, []), *labels})

    async def close_pull(self, number: int, comment: str) -> None:
        for branch, pulls in self.pulls.items():
            self.pulls[branch] = [replace(p, state="Closed") if p.number == number else p for p in pulls]
        self.happening("the close")
        self.comments.setdefault(number, []).append(comment)


class StandIn:
    """An HTTP server that speaks one forge's API; it remembers requests and can be told to fail."""

    token = "t0ken"

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        """Method, path with query, body."""
        self.pulls: list[dict[str, Any]] = []
        self.labels: dict[int, list[Any]] = {}
        self.comments: dict[int, list[str]] = {}
        self.failure: tuple[int, Any, dict[str, str]] | None = None
        """Status, JSON and headers of every answer."""
        self.page = 2
        """Items a page, whatever is asked for."""
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> "StandIn":
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        self.requests.append((request.method, request.raw_path, body))
        if self.failure is not None:
            status, content, headers = self.failure
            return web.json_response(content, status=status, headers=headers)
        if request.headers.get("Authorization") not in self.authorizations():
            return web.json_response({"message": "Bad credentials"}, status=401)
        return self.answer(request, body)

    def authorizations(self) -> list[str]:
        return [f"Bearer {self.token}"]

    def answer(self, request: web.Request, body: Any) -> web.Response:
        raise NotImplementedError

    def listed(self, request: web.Request, items: list[Any]) -> web.Response:
        """One page of a list, with a Link header that names the next one."""
        number = int(request.query.get("page", "1"))
        start = (number - 1) * self.page
        headers = {}
        if start + self.page < len(items):
            following = request.url.update_query(page=str(number + 1))
            headers["Link"] = f'<https://elsewhere.example.com{following.raw_path_qs}>; rel="next"'
        return web.json_response(items[start : start + self.page], headers=headers)

    def find(self, number: int, key: str) -> dict[str, Any] | None:
        return next((pull for pull in self.pulls if pull[key] == number), None)


class GitHubStandIn(StandIn):
    """docs.github.com/rest/pulls, as far as it is used."""

    root = "/api/v3/repos/acme/models"

    def answer(self, request: web.Request, body: Any) -> web.Response:
        path = request.path.removeprefix(self.root)
        parts = path.strip("/").split("/")
        match (request.method, *parts):
            case ("GET", "pulls"):
                owner, _, branch = request.query["head"].partition(":")
                found = [p for p in self.pulls if p["head"]["ref"] == branch and owner == "acme"]
                return self.listed(request, found)
            case ("POST", "pulls"):
                return self._open(body)
            case ("GET", "pulls", number):
                found_one = self.find(int(number), "number")
                return web.json_response(found_one or {"message": "Not Found"}, status=200 if found_one else 404)
            case ("PATCH", "pulls", number):
                changed = self.find(int(number), "number")
                assert changed is not None
                changed |= body
                return web.json_response(changed)
            case ("POST", "issues", number, "labels"):
                self.labels.setdefault(int(number), []).extend(body["labels"])
                return web.json_response([])
            case ("POST", "issues", number, "comments"):
                self.comments.setdefault(int(number), []).append(body["body"])
                return web.json_response({}, status=201)
        return web.json_response({"message": "Not Found"}, status=404)

    def _open(self, body: Any) -> web.Response:
        if any(p["head"]["ref"] == body["head"] and p["state"] == "open" for p in self.pulls):
            error = {"message": f"A pull request already exists for acme:{body['head']}.", "resource": "PullRequest"}
            return web.json_response({"message": "Validation Failed", "errors": [error]}, status=422)
        return web.json_response(self.add(body["head"], body["base"]) | {"body": body["body"]}, status=201)

    def add(self, head: str, base: str = "main", state: str = "open", merged: bool = False) -> dict[str, Any]:
        number = len(self.pulls) + 1
        pull = {
            "number": number,
            "state": state,
            "merged_at": "2026-11-01T00:00:00Z" if merged else None,
            "html_url": f"https://github.example.com/acme/models/pull/{number}",
            "head": {"ref": head},
            "base": {"ref": base},
        }
        self.pulls.append(pull)
        return pull


class GiteaStandIn(StandIn):
    """Gitea's /api/v1, as far as it is used: no filter by head, labels by number, a deleted branch's ref is odd."""

    root = "/api/v1/repos/acme/models"

    def authorizations(self) -> list[str]:
        return [f"token {self.token}", "Basic cm9ib3Q6czNjcmV0LXBhc3M="]

    def answer(self, request: web.Request, body: Any) -> web.Response:
        if request.path == "/api/v1/orgs/acme/labels":
            return web.json_response({"message": "org does not exist"}, status=404)
        parts = request.path.removeprefix(self.root).strip("/").split("/")
        match (request.method, *parts):
            case ("GET", "pulls"):
                return self.listed(request, self.pulls)
            case ("GET", "labels"):
                return self.listed(request, [{"id": n, "name": f"label-{n}"} for n in range(1, 6)])
            case ("POST", "pulls"):
                return self._open(body)
            case ("GET", "pulls", number):
                found_one = self.find(int(number), "number")
                return web.json_response(found_one or {"message": "not found"}, status=200 if found_one else 404)
            case ("PATCH", "pulls", number):
                changed = self.find(int(number), "number")
                assert changed is not None
                changed |= body
                return web.json_response(changed, status=201)
            case ("POST", "issues", number, "comments"):
                self.comments.setdefault(int(number), []).append(body["body"])
                return web.json_response({}, status=201)
        return web.json_response({"message": "The target couldn't be found."}, status=404)

    def _open(self, body: Any) -> web.Response:
        if any(p["head"]["label"] == body["head"] and p["state"] == "open" for p in self.pulls):
            text = "pull request already exists for these targets [id: 1, issue_id: 1]"
            return web.json_response({"message": text, "url": ""}, status=409)
        made = self.add(body["head"], body["base"])
        self.labels[made["number"]] = body["labels"]
        return web.json_response(made, status=201)

    def add(
        self, head: str, base: str = "main", state: str = "open", merged: bool = False, deleted: bool = False,
        fork: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        number = len(self.pulls) + 1
        pull = {
            "number": number,
            "state": state,
            "merged": merged,
            "merged_at": "2026-11-01T00:00:00Z" if merged else None,
            "html_url": f"https://gitea.example.com/acme/models/pulls/{number}",
            "head": {
                "label": head,
                "ref": f"refs/pull/{number}/head" if deleted else head,
                "repo_id": 2 if fork else 1,
            },
            "base": {"label": base, "ref": base, "repo_id": 1},
        }
        self.pulls.append(pull)
        return pull


class GitLabStandIn(StandIn):
    """docs.gitlab.com/api/merge_requests, as far as it is used: one escaped word for the project."""

    root = "/api/v4/projects/acme%2Fteam%2Fmodels/merge_requests"

    def answer(self, request: web.Request, body: Any) -> web.Response:
        path = request.raw_path.partition("?")[0]
        if not path.startswith(self.root):
            return web.json_response({"message": "404 Project Not Found"}, status=404)
        parts = path.removeprefix(self.root).strip("/").split("/")
        match (request.method, *parts):
            case ("GET", ""):
                wanted = request.query["source_branch"]
                return self.listed(request, [p for p in self.pulls if p["source_branch"] == wanted])
            case ("POST", ""):
                return self._open(body)
            case ("GET", number):
                found_one = self.find(int(number), "iid")
                content = found_one or {"message": "404 Not found"}
                return web.json_response(content, status=200 if found_one else 404)
            case ("PUT", number):
                changed = self.find(int(number), "iid")
                assert changed is not None
                assert body == {"state_event": "close"}
                changed["state"] = "closed"
                return web.json_response(changed)
            case ("POST", number, "notes"):
                self.comments.setdefault(int(number), []).append(body["body"])
                return web.json_response({}, status=201)
        return web.json_response({"message": "404 Not found"}, status=404)

    def _open(self, body: Any) -> web.Response:
        if any(p["source_branch"] == body["source_branch"] and p["state"] == "opened" for p in self.pulls):
            text = "Another open merge request already exists for this source branch: !1"
            return web.json_response({"message": [text]}, status=409)
        made = self.add(body["source_branch"], body["target_branch"])
        self.labels[made["iid"]] = body.get("labels", "").split(",")
        return web.json_response(made, status=201)

    def add(self, head: str, base: str = "main", state: str = "opened", fork: bool = False) -> dict[str, Any]:
        number = len(self.pulls) + 1
        pull = {
            "id": 1000 + number,
            "iid": number,
            "state": state,
            "web_url": f"https://gitlab.example.com/acme/team/models/-/merge_requests/{number}",
            "source_branch": head,
            "target_branch": base,
            "source_project_id": 8 if fork else 7,
            "target_project_id": 7,
        }
        self.pulls.append(pull)
        return pull
