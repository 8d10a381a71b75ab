"""A repository over Git's own protocol: heads, one file at one commit, and a push of one commit to one branch.

Room: operator, clients. Blocking: call it in a thread. Nothing is kept on disk; only the newest commits are fetched.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import urllib3
from dulwich.client import GitClient, HTTPProxyUnauthorized, HTTPUnauthorized, Urllib3HttpGitClient
from dulwich.errors import GitProtocolError, HangupException, NotGitRepository, SendPackError
from dulwich.object_store import MemoryObjectStore
from dulwich.objects import Blob, Commit, ObjectID, ShaFile, Tree
from dulwich.pack import UnpackedObject, pack_objects_to_data
from dulwich.refs import Ref
from dulwich.repo import InvalidUserIdentity, check_user_identity

from ratchet_api.promotion import GitAuthor
from ratchet_api.reasons import Reason
from ratchet_operator.clients.git.credentials import Credentials
from ratchet_operator.clients.git.trouble import Trouble, said

CONNECT_SECONDS, READ_SECONDS, FETCH_SECONDS = 10.0, 30.0, 180.0
MOST_BYTES = 256 * 1024 * 1024
"""Of a fetch; larger files than FILTER are not even sent by servers that can leave them out."""
FILTER = b"blob:limit=1m"
_LINK, _FILE_TYPE, _REGULAR = 0o120000, 0o170000, 0o100000


class Moved(Exception):
    """A head is not where it was when it was read: look again."""


@dataclass(frozen=True)
class Heads:
    """Where two branches stand; None: there is no such branch."""

    target: str | None
    ours: str | None


class Remote:
    """One repository."""

    def __init__(self, client: GitClient, path: str, credentials: Credentials) -> None:
        self._client = client
        self._path = path
        self._secrets = credentials.secrets

    @classmethod
    def http(cls, url: str, credentials: Credentials) -> "Remote":
        """Over https or http. A redirect is not followed: the credentials are for this address alone."""
        pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
            retries=False,
            ssl_context=credentials.tls(),
            headers={"User-Agent": "git/ratchet"},
        )
        client = Urllib3HttpGitClient(
            url,
            pool_manager=pool,
            username=credentials.username,
            password=credentials.password,
            thin_packs=False,
            quiet=True,
        )
        return cls(client, "", credentials)

    def heads(self, target: str, ours: str) -> Heads:
        """Raises Trouble."""
        wanted = [_ref(target), _ref(ours)]
        refs = self._attempt(lambda: self._client.get_refs(self._path.encode(), ref_prefix=wanted).refs)
        return Heads(*(_text(refs.get(one)) for one in wanted))

    def fetch(self, *commits: str) -> "Snapshot":
        """These commits without their history. Raises Trouble."""
        store, begun = MemoryObjectStore(), time.monotonic()
        data, commit, _ = store.add_pack()

        def take(chunk: bytes) -> int:
            if data.tell() + len(chunk) > MOST_BYTES:
                text = f"the branch's files come to more than {MOST_BYTES >> 20} MiB"
                raise Trouble(Reason.POINTER_NOT_FOUND, f"promotion.git.repository: {text}: keep it in a smaller one")
            if time.monotonic() - begun > FETCH_SECONDS:
                raise Trouble(Reason.FORGE_UNAVAILABLE, f"the fetch takes longer than {FETCH_SECONDS:.0f} s")
            return data.write(chunk)

        wanted = [ObjectID(one.encode()) for one in commits]
        self._attempt(
            lambda: self._client.fetch_pack(
                self._path.encode(),
                lambda refs, depth=None: wanted,
                _Nothing(),
                take,
                depth=1,
                ref_prefix=[b"refs/heads/"],
                filter_spec=FILTER,
            )
        )
        self._attempt(commit)
        return Snapshot(store)

    def push(self, branch: str, expected: str | None, new: "NewCommit") -> None:
        """Our branch is this commit, if it still is what was expected (None: not there). Raises Moved and Trouble."""
        ref = _ref(branch)
        moved = False

        def update(refs: dict[Ref, ObjectID]) -> dict[Ref, ObjectID]:
            nonlocal moved
            moved = _text(refs.get(ref)) not in (expected, new.id)
            return {} if moved else {ref: ObjectID(new.id.encode())}

        def pack(*_: Any, **__: Any) -> tuple[int, Iterator[UnpackedObject]]:
            count, records = pack_objects_to_data([(one, None) for one in new.objects])
            return count, iter(records)

        result = self._attempt(lambda: self._client.send_pack(self._path.encode(), update, pack))
        if moved:
            raise Moved(branch)
        refusal = (result.ref_status or {}).get(ref)
        if refusal:
            self._refused(branch, refusal)

    def _refused(self, branch: str, text: str) -> NoReturn:
        if any(words in text for words in ("cannot lock ref", "failed to update ref", "fetch first", "stale info")):
            raise Moved(branch)
        raise Trouble(
            Reason.PUSH_REFUSED,
            f"the Git server refuses the branch {branch} ({said(text, self._secrets)}): "
            "let this account push it, or choose another promotion.git.branchPrefix",
        )

    def _attempt(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except (HTTPUnauthorized, HTTPProxyUnauthorized):
            raise self._denied("does not know the credentials") from None
        except NotGitRepository:
            text = "the Git server has no such repository, or hides it from this account"
            raise Trouble(Reason.FORGE_DENIED, f"promotion.git.repository: {text}: correct it, or the Secret") from None
        except (SendPackError, HangupException) as error:
            raise Trouble(Reason.PUSH_REFUSED, f"the Git server refuses: {said(error, self._secrets)}") from None
        except GitProtocolError as error:
            raise self._protocol(str(error)) from None
        except (urllib3.exceptions.HTTPError, OSError, EOFError) as error:
            raise Trouble(
                Reason.FORGE_UNAVAILABLE, f"the Git server does not answer: {said(error, self._secrets)}"
            ) from None

    def _protocol(self, text: str) -> Trouble:
        if "http resp 403" in text:
            return self._denied("does not let this account do it")
        if any(f"http resp {code}" in text for code in (301, 302, 303, 307, 308)):
            return Trouble(
                Reason.FORGE_DENIED,
                "promotion.git.repository: the repository has moved, and credentials do not follow: "
                "write its new address",
            )
        return Trouble(Reason.FORGE_UNAVAILABLE, f"the Git server does not answer: {said(text, self._secrets)}")

    @staticmethod
    def _denied(what: str) -> Trouble:
        return Trouble(
            Reason.FORGE_DENIED, f"the Git server {what}: correct promotion.git.credentialsSecret, or the rights"
        )


@dataclass(frozen=True)
class NewCommit:
    """A commit with all objects that are new in it."""

    id: str
    objects: tuple[ShaFile, ...]


class Snapshot:
    """Some commits and their files."""

    def __init__(self, store: MemoryObjectStore) -> None:
        self._store = store

    def file(self, commit: str, path: str) -> str:
        """A file's text. Raises Trouble (PointerNotFound) when it is none, or a link."""
        *folders, name = path.split("/")
        tree = self._tree(self._commit(commit).tree)
        for folder in folders:
            tree = self._tree(self._entry(tree, folder, path)[1], path)
        mode, entry = self._entry(tree, name, path)
        if mode & _FILE_TYPE != _REGULAR:
            raise _not_found(path, "a link or a folder: name the file itself")
        if entry not in self._store:
            raise _not_found(path, "larger than 1 MiB: move the pointer to a smaller file")
        blob = self._store[entry]
        assert isinstance(blob, Blob)
        content: bytes = blob.data
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise _not_found(path, "no text in UTF-8") from None

    def message(self, commit: str) -> str:
        """A commit's message."""
        message: bytes = self._commit(commit).message
        return message.decode(errors="replace")

    def by_one_hand(self, commit: str) -> bool:
        """Whether author and committer are the same, as of a commit that nobody has amended or rebased."""
        found = self._commit(commit)
        same = (found.author, found.author_time) == (found.committer, found.commit_time)
        return same and len(found.parents) == 1

    def with_file(self, parent: str, path: str, text: str, message: str, author: GitAuthor, at: datetime) -> NewCommit:
        """A commit on the parent with one file changed. The same arguments give the same commit."""
        blob = Blob.from_string(text.encode())
        objects: list[ShaFile] = [blob]
        root = self._changed(self._tree(self._commit(parent).tree), path.split("/"), blob, objects)
        commit = Commit()
        commit.tree = root.id
        commit.parents = [ObjectID(parent.encode())]
        commit.author = commit.committer = _identity(author)
        commit.author_time = commit.commit_time = int(at.timestamp())
        commit.author_timezone = commit.commit_timezone = 0
        commit.encoding = b"UTF-8"
        commit.message = message.encode()
        return NewCommit(commit.id.decode(), (*objects, commit))

    def _changed(self, tree: Tree, path: list[str], blob: Blob, objects: list[ShaFile]) -> Tree:
        name = path[0].encode()
        mode, entry = tree[name]
        new = tree.copy()
        assert isinstance(new, Tree)
        if len(path) == 1:
            new[name] = (mode, blob.id)
        else:
            new[name] = (mode, self._changed(self._tree(entry), path[1:], blob, objects).id)
        objects.append(new)
        return new

    def _commit(self, commit: str) -> Commit:
        found = self._store[ObjectID(commit.encode())]
        assert isinstance(found, Commit)
        return found

    def _tree(self, tree: ObjectID, path: str = "") -> Tree:
        found: ShaFile | None = None
        with suppress(KeyError):
            found = self._store[tree]
        if not isinstance(found, Tree):
            raise _not_found(path, "below a link, a submodule or a file: name the file itself")
        return found

    @staticmethod
    def _entry(tree: Tree, name: str, path: str) -> tuple[int, ObjectID]:
        try:
            mode, entry = tree[name.encode()]
        except KeyError:
            raise Trouble(
                Reason.POINTER_NOT_FOUND,
                f"promotion.git.path: there is no {path} on the branch: correct it, or commit the file",
            ) from None
        return mode, entry


class _Nothing:
    """We have nothing yet: a graph walker with no commits to offer."""

    def __init__(self) -> None:
        self.shallow: set[ObjectID] = set()

    def __next__(self) -> None:
        return None

    def ack(self, sha: ObjectID) -> None:
        """Never called with anything that we have offered."""

    def nak(self) -> None:
        """As above."""


def _not_found(path: str, what: str) -> Trouble:
    return Trouble(Reason.POINTER_NOT_FOUND, f"promotion.git.path: {path} is {what}")


def _identity(author: GitAuthor) -> bytes:
    text = f"{author.name} <{author.email}>".encode()
    try:
        check_user_identity(text)
    except InvalidUserIdentity:
        raise Trouble(Reason.INVALID_SPEC, "promotion.git.author: git takes no such name: write another") from None
    return text


def _ref(branch: str) -> Ref:
    return Ref(f"refs/heads/{branch}".encode())


def _text(value: bytes | None) -> str | None:
    return value.decode() if value is not None else None
