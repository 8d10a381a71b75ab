"""promotion.mode Git, told with real repositories: what is proposed, once, and what people may do to it."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from operator_forges import MemoryForge
from operator_gitserver import MANIFEST, PASSWORD, USER, GitServer, Repository, git
from operator_shop import PATH, Shop
from operator_stories import champion, serving
from operator_world import World, digest, evaluated, version_manifest

from ratchet_api.reasons import ConditionType


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with GitServer(tmp_path_factory.mktemp("git")) as made:
        yield made


@pytest.fixture
def repository(server: GitServer, tmp_path: Path) -> Iterator[Repository]:
    made = Repository(server.root, f"{tmp_path.name}/models.git")
    made.commit({PATH: MANIFEST, "README.md": "Ours.\n"})
    yield made
    server.status = None
    server.before_push = None


@pytest.fixture
def forge() -> MemoryForge:
    return MemoryForge()


@pytest.fixture
def shop(fake_world: World, server: GitServer, repository: Repository, forge: MemoryForge) -> Shop:
    path = repository.bare.relative_to(server.root)
    made = Shop(fake_world, repository, forge, f"{server.url}/{path}")
    made.server = server
    return made


async def test_from_accepted_to_champion(shop: Shop) -> None:
    await shop.open()
    before = shop.repository.head("main")
    found = await shop.accepted()
    assert (found.kind, found.version, found.replaces, found.state) == ("Promote", "assistant-1", "assistant-0", "Open")
    assert found.pull_request == "https://forge.example.com/acme/models/pulls/1"
    assert shop.repository.head(found.branch) == found.commit
    assert shop.repository.head("main") == before
    assert shop.repository.diff("main", found.branch) == [
        "-    version: assistant-0   # moved by pull requests",
        "+    version: assistant-1   # moved by pull requests",
    ]
    title, body = shop.forge.texts[1]
    assert title == "assistant: promote assistant-1 (from assistant-0)"
    for words in (
        "| house | target | 100 | 0.0 % | 30.0 % | +30.0 | +22.0 | 0.001 |",
        digest("d"),
        digest("e"),
        "`errors`",
    ):
        assert words in body
    assert shop.forge.labels == {1: ["model"]}
    waits = await shop.condition(ConditionType.RECONCILING, "assistant-1")
    assert waits is not None
    assert waits[0] == "AwaitingPointer"
    assert found.pull_request in waits[1]
    assert await shop.condition(ConditionType.STALLED) is None
    assert list(await shop.world.deployments()) == ["assistant-0-arm"]

    await shop.merged(found.branch)
    assert (await shop.later()).state == "Merged"
    assert (await shop.condition(ConditionType.RECONCILING) or ("",))[0] == "Merged"
    await shop.synced()
    await champion(shop.world, "assistant-1")
    assert (await shop.proposal()).state == "Arrived"
    assert len(shop.forge.texts) == 1


async def test_a_rollback_proposes_the_way_back(shop: Shop) -> None:
    await shop.open()
    found = await shop.accepted()
    await shop.merged(found.branch)
    shop.world.prometheus.bad["assistant-1"] = 300.0
    await shop.synced()
    await shop.rolled_back("assistant-1")
    back = await shop.proposal()
    assert (back.kind, back.version, back.replaces, back.state) == ("Revert", "assistant-0", "assistant-1", "Open")
    assert shop.repository.diff("main", back.branch) == [
        "-    version: assistant-1   # moved by pull requests",
        "+    version: assistant-0   # moved by pull requests",
    ]
    title, body = shop.forge.texts[2]
    assert title == "assistant: back to assistant-0, assistant-1 was rolled back"
    assert "CheckFailed" in body
    said = await shop.condition(ConditionType.STALLED)
    assert said is not None
    assert said[0] == "RolledBackPendingGit"
    assert back.pull_request in said[1]
    # Git's old word again is not obeyed, and nothing more is proposed.
    await shop.synced()
    for _ in range(5):
        await shop.later()
    assert list(await shop.world.deployments()) == ["assistant-0-arm"]
    assert len(shop.forge.texts) == 2
    await shop.merged(back.branch)
    assert (await shop.later()).state == "Merged"
    said = await shop.condition(ConditionType.STALLED)
    assert said is not None
    assert "is not applied yet" in said[1]
    await shop.synced()
    await shop.world.settle()
    assert await shop.condition(ConditionType.STALLED) is None
    assert (await shop.proposal()).state == "Arrived"


async def test_without_a_forge_the_branch_is_pushed(shop: Shop) -> None:
    await shop.open(forge="None", labels=[])
    found = await shop.accepted()
    assert found.state == "Pushed"
    assert found.pull_request == ""
    waits = await shop.condition(ConditionType.RECONCILING, "assistant-1")
    assert waits is not None
    assert f"branch {found.branch}" in waits[1]
    shop.repository.merge(found.branch)
    assert (await shop.later()).state == "Merged"
    await shop.synced()
    await champion(shop.world, "assistant-1")


async def test_a_deleted_branch_without_a_forge_is_a_no(shop: Shop) -> None:
    await shop.open(forge="None", labels=[])
    found = await shop.accepted()
    git("update-ref", "-d", f"refs/heads/{found.branch}", cwd=shop.repository.bare)
    assert (await shop.later()).state == "Closed"
    for _ in range(3):
        await shop.later()
    assert shop.repository.head(found.branch) is None


async def test_a_closed_pull_request_stays_closed(shop: Shop) -> None:
    await shop.open()
    found = await shop.accepted()
    shop.forge.set(found.branch, "Closed")
    assert (await shop.later()).state == "Closed"
    said = await shop.condition(ConditionType.STALLED, "assistant-1")
    assert said is not None
    assert said[0] == "PullRequestClosed"
    assert "ratchet promote" in said[1]
    assert await shop.condition(ConditionType.STALLED) is None
    shop.world.restart()
    for _ in range(3):
        await shop.later()
    assert len(shop.forge.texts) == 1
    # A person may change her mind.
    shop.forge.set(found.branch, "Open")
    assert (await shop.later()).state == "Open"
    await shop.merged(found.branch)
    await shop.later()
    await shop.synced()
    await champion(shop.world, "assistant-1")


async def test_a_retry_of_a_closed_one_is_proposed_anew_and_the_closed_one_never(shop: Shop) -> None:
    """`ratchet retry` makes another version of the same adapter."""
    await shop.open()
    found = await shop.accepted()
    shop.forge.set(found.branch, "Closed")
    assert (await shop.later()).state == "Closed"
    manifest = version_manifest(shop.world.namespace, "assistant-1-try2", letter="e")
    await shop.world.apply(manifest)
    await shop.world.settle()
    await shop.world.finish("evaluate", evaluated())
    await shop.world.settle()
    again = await shop.proposal()
    assert (again.version, again.replaces, again.state) == ("assistant-1-try2", "assistant-0", "Open")
    assert again.branch != found.branch
    await shop.merged(again.branch)
    await shop.later()
    await shop.synced()
    await champion(shop.world, "assistant-1-try2")
    for _ in range(3):
        await shop.later()
    assert [pull.state for pull in shop.forge.pulls[found.branch]] == ["Closed"]
    assert len(shop.forge.texts) == 2


async def test_a_newer_version_replaces_the_proposal(shop: Shop) -> None:
    await shop.open()
    found = await shop.accepted()
    await shop.world.apply(version_manifest(shop.world.namespace, "mine"))
    await shop.world.settle()
    await shop.world.finish("evaluate", evaluated())
    await shop.world.settle()
    newer = await shop.proposal()
    assert (newer.version, newer.state) == ("mine", "Open")
    assert [pull.state for pull in shop.forge.pulls[found.branch]] == ["Closed"]
    assert shop.forge.comments == {1: ["Closed by Ratchet: mine is proposed instead."]}


async def test_a_rolled_back_candidate_that_is_still_proposed_is_withdrawn(shop: Shop) -> None:
    """A person promotes by hand what Git has not merged yet; it does harm, and Git never knew it."""
    await shop.open()
    found = await shop.accepted()
    shop.world.prometheus.bad["assistant-1"] = 300.0
    await shop.world.edit({"serving": {"version": "assistant-1"}})
    await shop.rolled_back("assistant-1")
    # Git says what the way back would write: there is nothing to propose.
    after = await shop.proposal()
    assert (after.kind, after.state) == ("Revert", "Merged")
    await shop.synced()
    await shop.world.settle()
    assert await shop.condition(ConditionType.STALLED) is None
    assert shop.repository.head(found.branch) == found.commit


async def test_the_target_moves_elsewhere_in_the_file(shop: Shop) -> None:
    await shop.open()
    found = await shop.accepted()
    shop.repository.commit({PATH: MANIFEST.replace("minExamples: 20", "minExamples: 30")})
    after = await shop.later()
    assert after.state == "Open"
    assert after.commit != found.commit
    assert shop.repository.diff("main", found.branch) == [
        "-    version: assistant-0   # moved by pull requests",
        "+    version: assistant-1   # moved by pull requests",
    ]
    assert len(shop.forge.texts) == 1


async def test_another_file_changes_and_our_branch_stays(shop: Shop) -> None:
    await shop.open()
    found = await shop.accepted()
    shop.repository.commit({"README.md": "Theirs.\n"})
    assert (await shop.later()).commit == found.commit


async def test_a_person_s_commit_on_our_branch_is_never_overwritten(shop: Shop) -> None:
    await shop.open()
    found = await shop.accepted()
    theirs = shop.repository.commit({"NOTES.md": "Look at this.\n"}, branch=found.branch)
    shop.repository.commit({PATH: MANIFEST.replace("minExamples: 20", "minExamples: 30")})
    assert (await shop.later()).commit == theirs
    assert shop.repository.head(found.branch) == theirs


async def test_a_branch_that_moves_while_it_is_pushed(shop: Shop) -> None:
    await shop.open()
    found = await shop.accepted()
    shop.repository.commit({PATH: MANIFEST.replace("minExamples: 20", "minExamples: 30")})
    shop.server.before_push = lambda: shop.repository.commit({"NOTES.md": "Mine.\n"}, branch=found.branch)
    after = await shop.later()
    assert after.state == "Open"
    assert shop.repository.show(found.branch, "NOTES.md") == "Mine.\n", "a person's commit is never overwritten"
    assert after.commit == shop.repository.head(found.branch)


async def test_git_says_something_else_already(shop: Shop) -> None:
    await shop.open()
    shop.repository.commit({PATH: MANIFEST.replace("assistant-0", "assistant-9")})
    found = await shop.accepted()
    assert (found.state, found.reason) == ("Pending", "AwaitingPointer")
    assert "main says assistant-9 while the cycle has assistant-0" in found.message
    assert shop.forge.texts == {}
    shop.repository.commit({PATH: MANIFEST})
    assert (await shop.later(301)).state == "Open"


async def test_a_merge_conflict_in_the_pointer_is_a_person_s_to_solve(shop: Shop) -> None:
    """Somebody else's commit gives the same line another value while the pull request is open."""
    await shop.open()
    found = await shop.accepted()
    shop.repository.commit({PATH: MANIFEST.replace("assistant-0", "assistant-9")})
    after = await shop.later()
    assert (after.state, after.reason) == ("Open", "AwaitingPointer")
    assert "main says assistant-9 while the cycle has assistant-0" in after.message
    assert shop.repository.head(found.branch) == found.commit, "nothing is written over theirs"
    said = await shop.condition(ConditionType.RECONCILING)
    assert said is not None
    assert said[0] == "AwaitingPointer"
    assert "main says assistant-9 while the cycle has assistant-0: waiting until it is applied" in said[1]
    assert len(shop.forge.texts) == 1
    # Taken back, the pull request merges as before.
    shop.repository.commit({PATH: MANIFEST})
    assert (await shop.later(301)).state == "Open"
    await shop.settled("assistant-1")
    await champion(shop.world, "assistant-1")


@pytest.mark.parametrize(
    ("what", "reason", "words"),
    [
        ({"path": "nowhere.yaml"}, "PointerNotFound", "there is no nowhere.yaml on the branch"),
        ({"branch": "develop"}, "PointerNotFound", "the repository has no branch develop"),
        ({"pointer": "spec.model.version"}, "PointerNotFound", "the file has no spec.model.version"),
        ({"path": "linked.yaml"}, "PointerNotFound", "linked.yaml is a link or a folder"),
        ({"credentialsSecret": {"name": "nobody"}}, "MissingSecret", "there is no Secret nobody"),
    ],
)
async def test_what_a_person_has_to_put_right(shop: Shop, what: dict[str, Any], reason: str, words: str) -> None:
    shop.repository.clone.joinpath("linked.yaml").symlink_to(PATH)
    shop.repository.commit({})
    await shop.open(**what)
    found = await shop.accepted()
    assert (found.state, found.reason) == ("Pending", reason)
    assert words in found.message
    said = await shop.condition(ConditionType.STALLED)
    assert said is not None
    assert said[0] == reason
    # Correcting the cycle is enough; nothing waits for a back-off.
    await shop.world.edit(
        shop.spec() | {"promotion": {"mode": "Git", "git": shop.spec()["promotion"]["git"] | _unset(what)}}
    )
    await shop.world.settle()
    assert (await shop.proposal()).state == "Open"
    assert await shop.condition(ConditionType.STALLED) is None


def _unset(what: dict[str, Any]) -> dict[str, Any]:
    """Fields that a merge patch has to take out."""
    return {key: None for key in what if key in ("branch", "pointer")}


async def test_wrong_credentials(shop: Shop) -> None:
    await shop.secret(username=USER, password="wr0ng-secret")
    await serving(shop.world, **shop.spec())
    found = await shop.accepted()
    assert (found.state, found.reason) == ("Pending", "ForgeDenied")
    assert "does not know the credentials" in found.message
    assert (await shop.condition(ConditionType.STALLED) or ("",))[0] == "ForgeDenied"


async def test_a_protected_branch(shop: Shop) -> None:
    shop.repository.protect("ratchet/")
    await shop.open()
    found = await shop.accepted()
    assert (found.state, found.reason) == ("Pending", "PushRefused")
    assert found.branch in found.message
    assert shop.forge.texts == {}
    shop.repository.protect("nothing")
    assert (await shop.later(301)).state == "Open"


async def test_a_forge_that_is_down_holds_up_nothing(shop: Shop) -> None:
    await shop.open()
    shop.server.status = 503
    found = await shop.accepted()
    assert (found.state, found.reason) == ("Pending", "ForgeUnavailable")
    assert await shop.condition(ConditionType.STALLED) is None
    assert (await shop.condition(ConditionType.RECONCILING) or ("",))[0] == "ForgeUnavailable"
    assert (await shop.world.cycle()).status.serving.stable is not None
    # It is asked ever more seldom, and nothing is written meanwhile.
    writes, requests = len(shop.world.transport.writes), len(shop.server.requests)
    for _ in range(60):
        shop.world.clock.advance(60)
        await shop.world.step()
    assert len(shop.world.transport.writes) == writes
    assert 10 <= len(shop.server.requests) - requests <= 20
    # Another version, named by a person, is rolled out all the same.
    await shop.world.edit({"serving": {"version": "assistant-1"}})
    await champion(shop.world, "assistant-1")
    shop.server.status = None


async def test_nothing_is_written_while_people_think(shop: Shop) -> None:
    await shop.open()
    await shop.accepted()
    # The look after one's own push finds the branch changed, and fetches it; a slow machine has had it by now.
    shop.world.clock.advance(61)
    await shop.world.step()
    writes = len(shop.world.transport.writes)
    fetches = sum("POST" in line for line in shop.server.requests)
    for _ in range(10):
        shop.world.clock.advance(61)
        await shop.world.step()
    assert len(shop.world.transport.writes) == writes
    asked = sum("git-upload-pack" in line and "POST" in line for line in shop.server.requests) - fetches
    assert asked <= 10, "heads are asked for, and nothing is fetched"


async def test_no_secret_is_seen_anywhere(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    await shop.open()
    await shop.accepted()
    shop.server.status = 500
    await shop.later()
    shop.server.status = None
    everything = repr(shop.world.raw.objects) + caplog.text + repr(shop.forge.texts)  # type: ignore[attr-defined]
    encoded = base64.b64encode(PASSWORD.encode()).decode()
    assert PASSWORD not in everything.replace(encoded, "")
    assert everything.count(encoded) == 1, "in the Secret itself"
    assert base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode() not in everything


async def test_another_mode_forgets_the_proposal(shop: Shop) -> None:
    await shop.open()
    await shop.accepted()
    await shop.world.edit({"promotion": {"mode": "Automatic", "git": None}})
    await shop.world.settle()
    assert (await shop.world.cycle()).status.promotion is None
