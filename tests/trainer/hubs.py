"""A model hub on this machine: the part of the Hugging Face protocol by which its own client uploads, in memory.

Repositories, preupload, Git LFS batch / upload / verify, commits, tags; a token is asked for everywhere.
"""

import asyncio
import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

TOKEN = "hf_secret"
LFS_SUFFIXES = (".safetensors", ".gguf")


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)

    def commit(self, what: object) -> str:
        oid = hashlib.sha1(json.dumps([self.commits, str(what)]).encode()).hexdigest()
        self.commits.append(oid)
        return oid


@dataclass
class Hub:
    """What it holds; `url` once it is up."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: int = 0
    broken: bool = False

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=1 << 30)
        model = "/api/models/{owner}/{name}"
        app.add_routes(
            [
                web.post("/api/repos/create", self._create),
                web.post("/api/validate-yaml", self._validate),
                web.get(model, self._info),
                web.get(model + "/revision/{revision}", self._info),
                web.get(model + "/refs", self._refs),
                web.post(model + "/preupload/{revision}", self._preupload),
                web.post(model + "/commit/{revision}", self._commit),
                web.post(model + "/tag/{revision}", self._tag),
                web.delete(model + "/tag/{revision}", self._untag),
                web.post("/{owner}/{name}.git/info/lfs/objects/batch", self._batch),
                web.put("/lfs/{oid}", self._put),
                web.post("/lfs/verify", self._verify),
            ]
        )
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.broken:
            return web.json_response({"error": "maintenance"}, status=503)
        # The upload itself goes to a signed address.
        if not request.path.startswith("/lfs/") and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({"error": "Invalid username or password."}, status=401)
        answer: web.StreamResponse = await handler(request)
        return answer

    def _repository(self, request: web.Request) -> Repository:
        name = f"{request.match_info['owner']}/{request.match_info['name']}"
        if name not in self.repositories:
            raise web.HTTPNotFound(headers={"X-Error-Code": "RepoNotFound"})
        return self.repositories[name]

    async def _create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "strangers":
            return web.json_response({"error": "You don't have the rights to create a model here"}, status=403)
        if name in self.repositories:
            told = {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
            return web.json_response(told, status=409)
        self.repositories[name] = Repository(asked.get("visibility") == "private" or bool(asked.get("private")))
        self.repositories[name].commit("initial")
        return web.json_response({"url": f"{self.url}/{name}", "name": name, "id": name})

    async def _validate(self, request: web.Request) -> web.Response:
        return web.json_response({"errors": [], "warnings": []})

    async def _info(self, request: web.Request) -> web.Response:
        found = self._repository(request)
        name = f"{request.match_info['owner']}/{request.match_info['name']}"
        files = [{"rfilename": path} for path in sorted(found.files)]
        return web.json_response(
            {"id": name, "modelId": name, "sha": found.commits[-1], "private": found.private, "siblings": files,
             "tags": [], "downloads": 0, "likes": 0}
        )  # fmt: skip

    async def _refs(self, request: web.Request) -> web.Response:
        tags = self._repository(request).tags
        told = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid} for name, oid in tags.items()]
        return web.json_response({"branches": [], "converts": [], "tags": told})

    async def _preupload(self, request: web.Request) -> web.Response:
        found, told = self._repository(request), []
        for file in (await request.json())["files"]:
            path = file["path"]
            large = path.endswith(LFS_SUFFIXES)
            data = found.files.get(path)
            oid = None if data is None else hashlib.sha256(data).hexdigest() if large else git_oid(data)
            mode = "lfs" if large else "regular"
            told.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return web.json_response({"files": told})

    async def _batch(self, request: web.Request) -> web.Response:
        asked, told = await request.json(), []
        for entry in asked["objects"]:
            one = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.objects:
                one["actions"] = {
                    "upload": {"href": f"{self.url}/lfs/{entry['oid']}"},
                    "verify": {"href": f"{self.url}/lfs/verify"},
                }
            told.append(one)
        return web.json_response({"transfer": "basic", "objects": told})

    async def _put(self, request: web.Request) -> web.Response:
        data, oid = await request.read(), request.match_info["oid"]
        if hashlib.sha256(data).hexdigest() != oid:
            raise web.HTTPBadRequest(text="not what its oid says")
        self.objects[oid] = data
        self.uploads += 1
        return web.Response()

    async def _verify(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if len(self.objects.get(asked["oid"], b"")) != asked["size"]:
            raise web.HTTPUnprocessableEntity
        return web.json_response({})

    async def _commit(self, request: web.Request) -> web.Response:
        found = self._repository(request)
        lines = [json.loads(line) for line in (await request.text()).splitlines()]
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "file":
                    found.files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    found.files[value["path"]] = self.objects[value["oid"]]
                    found.large.add(value["path"])
                case "deletedFile":
                    del found.files[value["path"]]
        oid = found.commit(lines)
        name = f"{request.match_info['owner']}/{request.match_info['name']}"
        return web.json_response({"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{name}/commit/{oid}"})

    async def _tag(self, request: web.Request) -> web.Response:
        found, tag = self._repository(request), (await request.json())["tag"]
        if tag in found.tags:
            return web.json_response({"error": "Tag reference exists already"}, status=409)
        found.tags[tag] = request.match_info["revision"]
        return web.json_response({})

    async def _untag(self, request: web.Request) -> web.Response:
        del self._repository(request).tags[request.match_info["revision"]]
        return web.json_response({})


@contextmanager
def running() -> Iterator[Hub]:
    """A hub on a free port, in a thread of its own."""
    hub, up, loop = Hub(), threading.Event(), asyncio.new_event_loop()

    async def serve() -> web.AppRunner:
        runner = web.AppRunner(hub.app())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        hub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    def work() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(serve())
        up.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert up.wait(30)
    try:
        yield hub
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
