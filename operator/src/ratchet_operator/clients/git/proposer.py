"""One proposal, brought to Git and to the forge: branch first, pull request second, each only if it is not there.

Room: operator, clients. Level-based: a visit looks at what is there and does what is missing, so that a second one
after a crash, or after a thousand, finds the first one's branch and pull request. Only our own branch is ever written,
and only when it still is as it was read.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from ratchet_api.promotion import GitPromotion, Proposal
from ratchet_api.reasons import Reason
from ratchet_operator.clients.git.credentials import Credentials
from ratchet_operator.clients.git.forge import AlreadyThere, Forge, Pull
from ratchet_operator.clients.git.gitea import Gitea
from ratchet_operator.clients.git.github import GitHub
from ratchet_operator.clients.git.gitlab import GitLab
from ratchet_operator.clients.git.remote import Heads, Moved, Remote, Snapshot
from ratchet_operator.clients.git.trouble import Trouble
from ratchet_operator.domain.evidence import BRANCH_TRAILER
from ratchet_operator.domain.pointerfile import PointerError, Target, changed, current
from ratchet_operator.domain.proposal import Seen

ATTEMPTS = 3
"""Looks at branches that move meanwhile."""


@dataclass(frozen=True)
class Errand:
    """A proposal and all that is said in it."""

    git: GitPromotion
    namespace: str
    cycle: str
    proposal: Proposal
    title: str
    body: str
    commit_message: str

    @property
    def target(self) -> Target:
        """The pointer."""
        return Target(self.namespace, self.cycle, self.git.pointer)


Forges = Callable[[aiohttp.ClientSession, GitPromotion, Credentials], Forge | None]
Remotes = Callable[[str, Credentials], Remote]


def forge_of(session: aiohttp.ClientSession, git: GitPromotion, credentials: Credentials) -> Forge | None:
    """The forge that the settings name."""
    match git.forge:
        case "GitHub":
            return GitHub(session, git, credentials)
        case "GitLab":
            return GitLab(session, git, credentials)
        case "Gitea":
            return Gitea(session, git, credentials)
        case "None":
            return None


class Proposer:
    """Makes visits. `may_write` raises NotLeading when this process must not write."""

    def __init__(
        self, may_write: Callable[[], None], forges: Forges = forge_of, remotes: Remotes = Remote.http
    ) -> None:
        self._may_write = may_write
        self._forges = forges
        self._remotes = remotes
        self._settled: dict[tuple[str, str], tuple[Errand, Heads]] = {}
        """What was found in order, so that it is not fetched again until a branch moves."""

    async def visit(self, errand: Errand, credentials: Credentials) -> Seen:
        """Do what is missing. Raises Trouble."""
        if errand.proposal.branch == errand.git.branch:
            text = "promotion.git.branchPrefix: our branch would be the target branch itself: write another"
            raise Trouble(Reason.INVALID_SPEC, text)
        async with aiohttp.ClientSession(trust_env=False) as session:
            forge = self._forges(session, errand.git, credentials)
            remote = self._remotes(errand.git.repository, credentials)
            if errand.proposal.state == "Withdrawing":
                return await self._withdraw(errand, forge)
            for _ in range(ATTEMPTS):
                try:
                    return await self._propose(errand, forge, remote)
                except (Moved, AlreadyThere):
                    continue
        raise Trouble(Reason.FORGE_UNAVAILABLE, "the branches move faster than they can be read")

    async def _propose(self, errand: Errand, forge: Forge | None, remote: Remote) -> Seen:
        git, proposal = errand.git, errand.proposal
        pull = await _look_up(errand, forge) if forge is not None else None
        url, number = (pull.url, pull.number) if pull is not None else ("", None)
        if pull is not None and pull.state == "Closed":
            return Seen("Closed", url=url, number=number)
        heads = await asyncio.to_thread(remote.heads, git.branch, proposal.branch)
        state = "Pushed" if forge is None else "Open"
        if proposal.state == state and self._settled.get(_key(errand)) == (errand, heads):
            return Seen(state, url=url, number=number)
        if heads.target is None:
            text = f"promotion.git.branch: the repository has no branch {git.branch}: correct it, or push it"
            raise Trouble(Reason.POINTER_NOT_FOUND, text)
        wanted = [heads.target] if heads.ours is None else [heads.target, heads.ours]
        files = await asyncio.to_thread(remote.fetch, *wanted)
        after, says = _edited(errand, files, heads.target)
        if says == proposal.version:
            return Seen("Merged", url=url, number=number)
        if pull is not None and pull.state == "Merged":
            text = f"it was merged, and {git.branch} says {says} again"
            return Seen("Closed", url=url, number=number, message=text)
        if says != proposal.replaces:
            text = f"{git.branch} says {says} while the cycle has {proposal.replaces}: waiting until it is applied"
            raise Trouble(Reason.AWAITING_POINTER, text)
        if heads.ours is None and forge is None and proposal.commit:
            return Seen("Closed", message="the branch was deleted")
        commit = await self._branch(errand, remote, files, heads, after)
        if forge is None:
            self._note(errand, heads, commit)
            return Seen(state, commit=commit)
        if pull is None:
            self._may_write()
            pull = await forge.open_pull(proposal.branch, git.branch, errand.title, errand.body, list(git.labels))
        elif proposal.number is None:
            self._may_write()
            await forge.label(pull.number, list(git.labels))
        self._note(errand, heads, commit)
        return Seen(state, commit=commit, number=pull.number, url=pull.url)

    async def _branch(self, errand: Errand, remote: Remote, files: Snapshot, heads: Heads, after: str) -> str:
        """The commit at the head of our branch, which is made, or made again on a target that has moved."""
        git, proposal = errand.git, errand.proposal
        assert heads.target is not None
        if heads.ours is not None and not _to_rebuild(errand, files, heads.ours, after):
            return heads.ours
        new = files.with_file(heads.target, git.path, after, errand.commit_message, git.author, proposal.since)
        self._may_write()
        await asyncio.to_thread(remote.push, proposal.branch, heads.ours, new)
        return new.id

    async def _withdraw(self, errand: Errand, forge: Forge | None) -> Seen:
        if forge is None:
            return Seen("Withdrawn")
        pull = await _look_up(errand, forge)
        if pull is None or pull.state != "Open":
            return Seen("Withdrawn")
        self._may_write()
        await forge.close_pull(pull.number, f"Closed by Ratchet: {errand.proposal.message}.")
        return Seen("Withdrawn", number=pull.number, url=pull.url)

    def _note(self, errand: Errand, heads: Heads, commit: str) -> None:
        self._settled[_key(errand)] = (errand, Heads(heads.target, commit))


def _key(errand: Errand) -> tuple[str, str]:
    return errand.namespace, errand.cycle


async def _look_up(errand: Errand, forge: Forge) -> Pull | None:
    number = errand.proposal.number
    known = await forge.pull_state(number) if number is not None else None
    if known is not None and known.state == "Open":
        return known
    # A person may have opened another one from the same branch.
    return await forge.find_pull(errand.proposal.branch, errand.git.branch) or known


def _edited(errand: Errand, files: Snapshot, target: str) -> tuple[str, str]:
    """(the file with the version in it, what it says now). Raises Trouble."""
    path = errand.git.path
    text = files.file(target, path)
    try:
        return changed(text, errand.target, errand.proposal.version), current(text, errand.target)
    except PointerError as error:
        raise Trouble(Reason.POINTER_NOT_FOUND, f"promotion.git.path: {path} on {errand.git.branch}: {error}") from None


def _to_rebuild(errand: Errand, files: Snapshot, ours: str, after: str) -> bool:
    """Whether our branch's file is not the target's with the version in it, and nobody else has written the branch."""
    try:
        if files.file(ours, errand.git.path) == after:
            return False
    except Trouble:
        return _is_ours(errand, files, ours)
    return _is_ours(errand, files, ours)


def _is_ours(errand: Errand, files: Snapshot, commit: str) -> bool:
    trailer = f"{BRANCH_TRAILER}: {errand.proposal.branch}"
    return files.by_one_hand(commit) and trailer in files.message(commit).splitlines()
