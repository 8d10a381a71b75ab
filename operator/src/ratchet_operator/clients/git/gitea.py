"""Gitea's and Forgejo's REST API: a server describes its own at /api/swagger.

Room: operator, clients.
"""

import aiohttp

from ratchet_api.promotion import GitPromotion
from ratchet_api.reasons import Reason
from ratchet_operator.clients.git.credentials import Credentials
from ratchet_operator.clients.git.forge import (
    AlreadyThere,
    ForgeApi,
    Pull,
    Refused,
    api_address,
    chosen,
    owner_and_name,
)
from ratchet_operator.clients.git.github import parsed
from ratchet_operator.clients.git.trouble import Trouble


class Gitea:
    """A Forge."""

    def __init__(self, session: aiohttp.ClientSession, git: GitPromotion, credentials: Credentials) -> None:
        owner, name = owner_and_name(git.repository)
        self._owner = owner
        self._repository = f"/repos/{owner}/{name}"
        base = api_address(git.api_url, git.repository, "api/v1")
        bearer = f"token {credentials.password}"
        basic = aiohttp.encode_basic_auth(credentials.username, credentials.password)
        self._api = ForgeApi(session, base, {"Authorization": bearer if credentials.is_token else basic}, credentials)

    async def find_pull(self, branch: str, base: str) -> Pull | None:
        """See Forge."""
        query = {"state": "all", "sort": "recentupdate", "limit": "50"}
        try:
            found = [
                item
                async for item in self._api.pages(f"{self._repository}/pulls", query)
                # The head is the branch, also after it was deleted: then ref is refs/pull/N/head and label keeps it.
                if branch in (item["head"]["ref"], item["head"]["label"])
                and item["base"]["ref"] == base
                and item["head"]["repo_id"] == item["base"]["repo_id"]
            ]
        except Refused as refused:
            raise self._missing(refused) from None
        return chosen([parsed(item) for item in found])

    async def open_pull(self, branch: str, base: str, title: str, body: str, labels: list[str]) -> Pull:
        """See Forge."""
        request = {"title": title, "head": branch, "base": base, "body": body, "labels": await self._ids(labels)}
        try:
            return parsed(await self._api.call("POST", f"{self._repository}/pulls", request))
        except Refused as refused:
            if refused.status == 409:
                raise AlreadyThere(branch) from None
            raise self._missing(refused) from None

    async def pull_state(self, number: int) -> Pull | None:
        """See Forge."""
        try:
            return parsed(await self._api.call("GET", f"{self._repository}/pulls/{number}"))
        except Refused as refused:
            if refused.status == 404:
                return None
            raise refused.trouble("to show the pull request") from None

    async def label(self, number: int, labels: list[str]) -> None:
        """They were given when it was opened."""

    async def close_pull(self, number: int, comment: str) -> None:
        """See Forge."""
        try:
            await self._api.call("PATCH", f"{self._repository}/pulls/{number}", {"state": "closed"})
            await self._api.call("POST", f"{self._repository}/issues/{number}/comments", {"body": comment})
        except Refused as refused:
            raise refused.trouble("to close the pull request") from None

    async def _ids(self, labels: list[str]) -> list[int]:
        """Labels go by their numbers here: those of the repository, and of its organisation if it has one."""
        if not labels:
            return []
        known: dict[str, int] = {}
        for path in (f"/orgs/{self._owner}/labels", f"{self._repository}/labels"):
            try:
                async for item in self._api.pages(path, {"limit": "50"}):
                    known[item["name"]] = item["id"]
            except Refused as refused:
                if refused.status != 404:
                    raise refused.trouble("to list the labels") from None
        missing = [label for label in labels if label not in known]
        if missing:
            text = f"promotion.git.labels: the repository has no label {missing[0]}: make it, or take it out"
            raise Trouble(Reason.INVALID_SPEC, text)
        return [known[label] for label in labels]

    @staticmethod
    def _missing(refused: Refused) -> Trouble:
        if refused.status != 404:
            return refused.trouble("the pull request")
        text = "the forge has no such repository, or hides it from this account"
        return Trouble(Reason.FORGE_DENIED, f"promotion.git.repository: {text}: correct it, or the Secret")
