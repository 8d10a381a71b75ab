"""promotion.mode Git in a world: a real repository, a forge in memory, and the people who merge."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from dulwich.client import LocalGitClient
from dulwich.object_store import MemoryObjectStore, tree_lookup_path
from dulwich.objects import Blob, Commit, Tree
from dulwich.repo import Repo
from operator_forges import MemoryForge
from operator_gitserver import MANIFEST, PASSWORD, USER, Repository
from operator_stories import run, serving
from operator_world import World, resource

from ratchet_api.conditions import find
from ratchet_api.promotion import Proposal
from ratchet_api.reasons import ConditionType
from ratchet_operator.clients.git.credentials import Credentials
from ratchet_operator.clients.git.proposer import Proposer, Remotes
from ratchet_operator.clients.git.remote import NewCommit, Remote, Snapshot

PATH = "clusters/prod/assistant.yaml"
ANN = b"Ann <ann@example.com>"


class OnDisk(Remote):
    """A local remote in this process, which tells of its pushes; for stories that are told a hundred times."""

    def __init__(self, repository: Path, credentials: Credentials, happening: Callable[[str], None]) -> None:
        super().__init__(LocalGitClient(), str(repository), credentials)
        self._repository, self._happening = repository, happening

    def fetch(self, *commits: str) -> Snapshot:
        store = MemoryObjectStore()
        with Repo(str(self._repository)) as repository:
            for commit in commits:
                store.add_objects([(repository.object_store[i], None) for i in repository.object_store])
                assert commit.encode() in store
        return Snapshot(store)

    def push(self, branch: str, expected: str | None, new: NewCommit) -> None:
        before = self.heads(branch, branch).ours
        super().push(branch, expected, new)
        if before != new.id:
            self._happening("the push")


def on_disk(world: World, folder: Path) -> "Shop":
    """A shop without processes: a bare repository of its own, and merges that move the branch forward."""
    with Repo.init_bare(str(folder), mkdir=True) as made:
        tree, blob = Tree(), Blob.from_string(MANIFEST.encode())
        folders: list[Tree] = []
        tree.add(b"assistant.yaml", 0o100644, blob.id)
        for name in reversed(PATH.split("/")[:-1]):
            outer = Tree()
            outer.add(name.encode(), 0o040000, tree.id)
            folders.append(tree)
            tree = outer
        commit = Commit()
        commit.tree, commit.author, commit.committer, commit.message = tree.id, ANN, ANN, b"by hand"
        commit.author_time = commit.commit_time = 1_790_000_000
        commit.author_timezone = commit.commit_timezone = 0
        for one in (blob, *folders, tree, commit):
            made.object_store.add_object(one)
        made.refs[b"refs/heads/main"] = commit.id
    forge = MemoryForge(happening=world.transport.outside)
    happening = world.transport.outside
    remotes = lambda url, credentials: OnDisk(folder, credentials, happening)  # noqa: E731
    return Shop(world, Quick(folder), forge, "https://git.example.com/acme/models.git", remotes)


class Quick:
    """The part of a Repository that the stories need, in this process."""

    def __init__(self, bare: Path) -> None:
        self.bare = bare

    def branches(self) -> dict[str, str]:
        with Repo(str(self.bare)) as repository:
            heads = repository.refs.as_dict(b"refs/heads")
            return {name.decode(): commit.decode() for name, commit in heads.items()}

    def merge(self, branch: str) -> None:
        """A fast-forward."""
        with Repo(str(self.bare)) as repository:
            repository.refs[b"refs/heads/main"] = repository.refs[f"refs/heads/{branch}".encode()]

    def show(self, branch: str, path: str) -> str:
        with Repo(str(self.bare)) as repository:
            head = repository.refs[f"refs/heads/{branch}".encode()]
            _, blob = tree_lookup_path(repository.object_store.__getitem__, repository[head].tree, path.encode())
            return str(repository[blob].data, "utf-8")


class Shop:
    """A world with a repository and a forge."""

    def __init__(
        self,
        world: World,
        repository: "Repository | Quick",
        forge: MemoryForge,
        url: str,
        remotes: Remotes = Remote.http,
    ) -> None:
        self.world, self.repository, self.forge, self.url = world, repository, forge, url
        world.proposer = lambda: Proposer(lambda: None, lambda session, git, credentials: self.of(git.forge), remotes)
        world.shop = self
        world.restart()

    def of(self, name: str) -> MemoryForge | None:
        return self.forge if name != "None" else None

    def spec(self, **more: Any) -> dict[str, Any]:
        git = {
            "repository": self.url,
            "path": PATH,
            "forge": "Gitea",
            "credentialsSecret": {"name": "git"},
            "labels": ["model"],
        }
        return {
            "promotion": {"mode": "Git", "git": git | more},
            "serving": {"runtime": "transformers", "version": "assistant-0"},
        }

    async def secret(self, **data: str) -> None:
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "git", "namespace": self.world.namespace}}
        await self.world.raw.request("post", resource("Secret").path(self.world.namespace), body | {"data": encoded})

    async def open(self, **more: Any) -> None:
        """The base model serves, and Git says so."""
        await self.secret(username=USER, password=PASSWORD)
        await serving(self.world, **self.spec(**more))

    async def accepted(self) -> Proposal:
        """A run's version is accepted, and what is proposed then."""
        await run(self.world)
        await self.world.settle()
        return await self.proposal()

    async def proposal(self) -> Proposal:
        found = (await self.world.cycle()).status.promotion
        assert found is not None
        return found

    async def synced(self) -> None:
        """What Argo CD and Flux do."""
        manifest = yaml.safe_load(self.repository.show("main", PATH))
        await self.world.edit({"serving": {"version": manifest["spec"]["serving"]["version"]}})

    async def merged(self, branch: str) -> None:
        self.repository.merge(branch)
        self.forge.set(branch, "Merged")

    async def later(self, seconds: float = 61.0) -> Proposal:
        """Some time later, all passes done."""
        self.world.clock.advance(seconds)
        await self.world.settle()
        return await self.proposal()

    async def rolled_back(self, name: str) -> None:
        """The version is rejected, and the arm of the base model is alone."""

        async def alone() -> bool:
            gone = list(await self.world.deployments()) == ["assistant-0-arm"]
            return gone and (await self.world.version(name)).status.phase == "Rejected"

        await self.world.until(alone, tick=0.5)
        await self.world.settle()

    async def settled(self, version: str) -> None:
        """The proposal of a version is merged and applied."""
        found = await self.proposal()
        assert (found.version, found.state) == (version, "Open"), found
        await self.merged(found.branch)
        await self.synced()

    async def condition(self, kind: ConditionType, version: str = "") -> tuple[str, str] | None:
        """Reason and message, if it is True."""
        owner = await self.world.version(version) if version else await self.world.cycle()
        found = find(owner.status.conditions, kind)
        return (found.reason, found.message) if found is not None and found.status == "True" else None
