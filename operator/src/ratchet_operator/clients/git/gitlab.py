"""GitLab's REST API, version 4: docs.gitlab.com/api/merge_requests.

Room: operator, clients.
"""

from typing import Any
from urllib.parse import quote

import aiohttp

from ratchet_api.promotion import GitPromotion
from ratchet_api.reasons import Reason
from ratchet_operator.clients.git.credentials import Credentials
from ratchet_operator.clients.git.forge import (
    AlreadyThere,
    ForgeApi,
    Pull,
    Refused,
    State,
    api_address,
    chosen,
    full_path,
)
from ratchet_operator.clients.git.trouble import Trouble

_STATES: dict[str, State] = {"opened": "Open", "locked": "Open", "merged": "Merged", "closed": "Closed"}


class GitLab:
    """A Forge."""

    def __init__(self, session: aiohttp.ClientSession, git: GitPromotion, credentials: Credentials) -> None:
        # A project goes by its whole path, subgroups and all, as one escaped word.
        self._requests = f"/projects/{quote(full_path(git.repository), safe='')}/merge_requests"
        base = api_address(git.api_url, git.repository, "api/v4")
        self._api = ForgeApi(session, base, {"Authorization": f"Bearer {credentials.password}"}, credentials)

    async def find_pull(self, branch: str, base: str) -> Pull | None:
        """See Forge."""
        query = {"source_branch": branch, "target_branch": base, "state": "all", "per_page": "100"}
        try:
            found = [
                item
                async for item in self._api.pages(self._requests, query)
                if item["source_branch"] == branch
                and item["target_branch"] == base
                and item["source_project_id"] == item["target_project_id"]
            ]
        except Refused as refused:
            raise self._missing(refused) from None
        return chosen([_pull(item) for item in found])

    async def open_pull(self, branch: str, base: str, title: str, body: str, labels: list[str]) -> Pull:
        """See Forge."""
        request = {"source_branch": branch, "target_branch": base, "title": title, "description": body}
        if labels:
            request["labels"] = ",".join(labels)
        try:
            return _pull(await self._api.call("POST", self._requests, request))
        except Refused as refused:
            if refused.status == 409:
                raise AlreadyThere(branch) from None
            raise self._missing(refused) from None

    async def pull_state(self, number: int) -> Pull | None:
        """See Forge."""
        try:
            return _pull(await self._api.call("GET", f"{self._requests}/{number}"))
        except Refused as refused:
            if refused.status == 404:
                return None
            raise refused.trouble("to show the merge request") from None

    async def label(self, number: int, labels: list[str]) -> None:
        """They were given when it was opened."""

    async def close_pull(self, number: int, comment: str) -> None:
        """See Forge."""
        try:
            await self._api.call("PUT", f"{self._requests}/{number}", {"state_event": "close"})
            await self._api.call("POST", f"{self._requests}/{number}/notes", {"body": comment})
        except Refused as refused:
            raise refused.trouble("to close the merge request") from None

    @staticmethod
    def _missing(refused: Refused) -> Trouble:
        if refused.status != 404:
            return refused.trouble("the merge request")
        text = "the forge has no such project, or hides it from this token"
        return Trouble(Reason.FORGE_DENIED, f"promotion.git.repository: {text}: correct it, or the Secret")


def _pull(item: Any) -> Pull:
    return Pull(item["iid"], _STATES.get(item["state"], "Open"), item["web_url"])
