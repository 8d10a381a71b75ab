"""GitHub's REST API, on github.com and on servers of one's own: docs.github.com/rest/pulls.

Room: operator, clients.
"""

from typing import Any

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
    origin,
    owner_and_name,
)
from ratchet_operator.clients.git.trouble import Trouble

PUBLIC, PUBLIC_API = ("https://github.com", "https://www.github.com"), "https://api.github.com"


class GitHub:
    """A Forge."""

    def __init__(self, session: aiohttp.ClientSession, git: GitPromotion, credentials: Credentials) -> None:
        owner, name = owner_and_name(git.repository)
        self._owner = owner
        self._repository = f"/repos/{owner}/{name}"
        public = git.api_url is None and origin(git.repository) in PUBLIC
        base = PUBLIC_API if public else api_address(git.api_url, git.repository, "api/v3")
        headers = {
            "Authorization": f"Bearer {credentials.password}",
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28",
        }
        self._api = ForgeApi(session, base, headers, credentials)

    async def find_pull(self, branch: str, base: str) -> Pull | None:
        """See Forge."""
        query = {"state": "all", "head": f"{self._owner}:{branch}", "base": base, "per_page": "100"}
        try:
            # An unknown head is not an error but no filter at all, so the branch is compared here too.
            found = [
                item
                async for item in self._api.pages(f"{self._repository}/pulls", query)
                if item["head"]["ref"] == branch and item["base"]["ref"] == base
            ]
        except Refused as refused:
            raise self._missing(refused) from None
        return chosen([parsed(item) for item in found])

    async def open_pull(self, branch: str, base: str, title: str, body: str, labels: list[str]) -> Pull:
        """See Forge."""
        request = {"title": title, "head": branch, "base": base, "body": body}
        try:
            pull = parsed(await self._api.call("POST", f"{self._repository}/pulls", request))
        except Refused as refused:
            if refused.status == 422 and "already exists" in refused.text:
                raise AlreadyThere(branch) from None
            raise self._missing(refused) from None
        await self.label(pull.number, labels)
        return pull

    async def pull_state(self, number: int) -> Pull | None:
        """See Forge."""
        try:
            return parsed(await self._api.call("GET", f"{self._repository}/pulls/{number}"))
        except Refused as refused:
            if refused.status == 404:
                return None
            raise refused.trouble("to show the pull request") from None

    async def label(self, number: int, labels: list[str]) -> None:
        """See Forge."""
        if not labels:
            return
        try:
            await self._api.call("POST", f"{self._repository}/issues/{number}/labels", {"labels": labels})
        except Refused as refused:
            raise refused.trouble("the labels of promotion.git.labels") from None

    async def close_pull(self, number: int, comment: str) -> None:
        """See Forge."""
        try:
            await self._api.call("PATCH", f"{self._repository}/pulls/{number}", {"state": "closed"})
            await self._api.call("POST", f"{self._repository}/issues/{number}/comments", {"body": comment})
        except Refused as refused:
            raise refused.trouble("to close the pull request") from None

    @staticmethod
    def _missing(refused: Refused) -> Trouble:
        if refused.status != 404:
            return refused.trouble("the pull request")
        text = "the forge has no such repository, or hides it from this token"
        return Trouble(Reason.FORGE_DENIED, f"promotion.git.repository: {text}: correct it, or the Secret")


def parsed(item: Any) -> Pull:
    """A pull request in the form that GitHub and Gitea share."""
    merged = item.get("merged_at") is not None or bool(item.get("merged"))
    return Pull(
        item["number"], "Merged" if merged else "Open" if item["state"] == "open" else "Closed", item["html_url"]
    )
