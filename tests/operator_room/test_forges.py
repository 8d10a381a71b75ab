"""The three forges' REST clients against stand-ins that speak the documented APIs: pages, states, refusals."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from operator_forges import GiteaStandIn, GitHubStandIn, GitLabStandIn, StandIn

from ratchet_api.promotion import GitPromotion
from ratchet_api.reasons import Reason
from ratchet_operator.clients.git.credentials import Credentials
from ratchet_operator.clients.git.forge import AlreadyThere, Forge
from ratchet_operator.clients.git.gitea import Gitea
from ratchet_operator.clients.git.github import GitHub
from ratchet_operator.clients.git.gitlab import GitLab
from ratchet_operator.clients.git.trouble import Trouble

TOKEN = Credentials("x", StandIn.token)
BRANCH = "ratchet/models-assistant-7-0a1b2c3d"


@dataclass
class Place:
    """A forge and what stands in for it."""

    forge: Forge
    server: Any
    make: Callable[[Credentials], Forge]
    merged: str
    closed: str
    key: str

    def add(self, head: str, state: str, **more: Any) -> int:
        """A pull request that somebody made."""
        words = {"Open": "opened" if self.key == "iid" else "open", "Merged": self.merged, "Closed": self.closed}
        if state == "Merged" and self.key != "iid":
            more["merged"] = True
        return int(self.server.add(head, state=words[state], **more)[self.key])


KINDS: dict[str, tuple[type[StandIn], type[Any], str, str, str, str]] = {
    "GitHub": (GitHubStandIn, GitHub, "acme/models", "closed", "closed", "number"),
    "GitLab": (GitLabStandIn, GitLab, "acme/team/models", "merged", "closed", "iid"),
    "Gitea": (GiteaStandIn, Gitea, "acme/models", "closed", "closed", "number"),
}


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    stand_in, client, path, merged, closed, key = KINDS[request.param]
    async with stand_in() as server, aiohttp.ClientSession() as session:
        git = GitPromotion.model_validate(
            {
                "repository": f"{server.url}/{path}.git",
                "path": "clusters/prod/assistant.yaml",
                "forge": request.param,
                "credentialsSecret": {"name": "git"},
            }
        )

        def make(credentials: Credentials) -> Forge:
            forge: Forge = client(session, git, credentials)
            return forge

        yield Place(make(TOKEN), server, make, merged, closed, key)


async def test_one_is_opened_found_and_closed_with_a_comment(place: Place) -> None:
    forge = place.forge
    assert await forge.find_pull(BRANCH, "main") is None
    made = await forge.open_pull(BRANCH, "main", "assistant-7", "the evidence", ["label-4"])
    assert made.state == "Open"
    assert made.url.startswith("https://")
    assert await forge.find_pull(BRANCH, "main") == made
    assert await forge.pull_state(made.number) == made
    assert place.server.labels[made.number] in (["label-4"], [4])
    with pytest.raises(AlreadyThere):
        await forge.open_pull(BRANCH, "main", "assistant-7", "the evidence", [])
    await forge.close_pull(made.number, "assistant-8 is proposed instead")
    found = await forge.pull_state(made.number)
    assert found is not None
    assert found.state == "Closed"
    assert place.server.comments[made.number] == ["assistant-8 is proposed instead"]
    assert await forge.pull_state(99) is None


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        pytest.param(["Closed", "Merged", "Open", "Closed"], ("Open", 3), id="an open one first"),
        pytest.param(["Closed", "Merged", "Closed"], ("Merged", 2), id="then a merged one"),
        pytest.param(["Closed", "Closed", "Closed"], ("Closed", 3), id="then the newest closed one"),
        pytest.param(["Closed"] * 7 + ["Open"], ("Open", 8), id="on the fourth page"),
    ],
)
async def test_which_one_counts(place: Place, states: list[str], expected: tuple[str, int]) -> None:
    for state in states:
        place.add(BRANCH, state)
    found = await place.forge.find_pull(BRANCH, "main")
    assert found is not None
    assert (found.state, found.number) == expected


async def test_other_branches_targets_and_forks_are_nothing_of_ours(place: Place) -> None:
    place.add("ratchet/another", "Open")
    place.add(BRANCH, "Open", base="release")
    if place.key == "iid" or isinstance(place.server, GiteaStandIn):
        place.add(BRANCH, "Open", fork=True)
    assert await place.forge.find_pull(BRANCH, "main") is None


@pytest.mark.parametrize(
    ("status", "content", "headers", "reason", "words"),
    [
        pytest.param(401, {"message": "Bad credentials"}, {}, Reason.FORGE_DENIED, "credentialsSecret", id="401"),
        pytest.param(403, {"message": "no"}, {}, Reason.FORGE_DENIED, "rights on pull requests", id="403"),
        pytest.param(
            403, {"message": "no"}, {"X-RateLimit-Remaining": "0"}, Reason.FORGE_UNAVAILABLE, "403", id="rate limit"
        ),
        pytest.param(429, {"message": "slowly"}, {}, Reason.FORGE_UNAVAILABLE, "slowly", id="429"),
        pytest.param(500, "x", {}, Reason.FORGE_UNAVAILABLE, "500", id="500"),
        pytest.param(301, {}, {"Location": "https://b.example.com"}, Reason.FORGE_DENIED, "has moved", id="301"),
        pytest.param(404, {"message": "Not Found"}, {}, Reason.FORGE_DENIED, "promotion.git.repository", id="404"),
        pytest.param(422, {"message": "no", "errors": [{"code": "bad"}]}, {}, Reason.FORGE_DENIED, "no; bad", id="422"),
        pytest.param(200, {"not": "a list"}, {}, Reason.FORGE_UNAVAILABLE, "than a list", id="no list"),
    ],
)
async def test_what_a_refusal_means(
    place: Place, status: int, content: Any, headers: dict[str, str], reason: Reason, words: str
) -> None:
    place.server.failure = (status, content, headers)
    with pytest.raises(Trouble) as caught:
        await place.forge.find_pull(BRANCH, "main")
    assert caught.value.reason is reason
    assert words in caught.value.message
    assert len(place.server.requests) == 1, "a redirect is not followed, nothing is repeated"


async def test_a_secret_that_a_server_repeats_is_not_passed_on(place: Place) -> None:
    place.server.failure = (403, {"message": f"{StandIn.token} may not"}, {})
    with pytest.raises(Trouble) as caught:
        await place.forge.open_pull(BRANCH, "main", "t", "b", [])
    assert StandIn.token not in caught.value.message
    assert "***" in caught.value.message


async def test_wrong_credentials_are_denied(place: Place) -> None:
    with pytest.raises(Trouble) as caught:
        await place.make(Credentials("x", "wrong")).pull_state(1)
    assert caught.value.reason is Reason.FORGE_DENIED


async def test_a_server_that_is_gone_is_unavailable(place: Place) -> None:
    await place.server.__aexit__()
    with pytest.raises(Trouble) as caught:
        await place.forge.find_pull(BRANCH, "main")
    assert caught.value.reason is Reason.FORGE_UNAVAILABLE


@pytest.mark.parametrize("place", ["Gitea"], indirect=True)
async def test_gitea_keeps_a_deleted_branch_in_the_label(place: Place) -> None:
    place.add(BRANCH, "Closed", deleted=True)
    found = await place.forge.find_pull(BRANCH, "main")
    assert found is not None
    assert found.state == "Closed"


@pytest.mark.parametrize("place", ["Gitea"], indirect=True)
async def test_gitea_takes_labels_that_it_has(place: Place) -> None:
    with pytest.raises(Trouble, match="the repository has no label new") as caught:
        await place.forge.open_pull(BRANCH, "main", "t", "b", ["label-1", "new"])
    assert caught.value.reason is Reason.INVALID_SPEC
    assert place.server.pulls == []


@pytest.mark.parametrize("place", ["Gitea"], indirect=True)
async def test_gitea_takes_a_password(place: Place) -> None:
    forge = place.make(Credentials("robot", "s3cret-pass", is_token=False))
    assert await forge.find_pull(BRANCH, "main") is None
