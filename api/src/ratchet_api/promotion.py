"""Who lets a version go on: the evidence alone, also a person, or what Git says.

Room: api. Pure; touches nothing.
"""

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema

from ratchet_api.base import Duration, Model, ObjectName, Observed, Time, matches, rule, rules

Gate = Literal["Training", "Canary", "Promotion"]
"""Before the train stage; before the first traffic; before all of the traffic."""


Forge = Literal["GitHub", "GitLab", "Gitea", "None"]
"""What keeps the repository's pull requests. Gitea: Forgejo too. None: nothing does."""

_SEGMENT = r"[A-Za-z0-9_]([A-Za-z0-9_-]|\.[A-Za-z0-9_-])*"
REPOSITORY_PATTERN = (
    r"^https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?(/[A-Za-z0-9_~][A-Za-z0-9._~-]*)+/?$"
)
API_PATTERN = r"^https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?(/[A-Za-z0-9_~][A-Za-z0-9._~-]*)*/?$"
BRANCH_PATTERN = f"^{_SEGMENT}(/{_SEGMENT})*$"
PREFIX_PATTERN = f"^{_SEGMENT}(/{_SEGMENT})*/?$"
PATH_PATTERN = r"^(\.?[A-Za-z0-9_@+=-][A-Za-z0-9._@+=-]*/)*\.?[A-Za-z0-9_@+=-][A-Za-z0-9._@+=-]*$"
YAML_PATH_PATTERN = r"^([A-Za-z0-9_-]+|\[[0-9]{1,4}\])(\.[A-Za-z0-9_-]+|\[[0-9]{1,4}\])*$"
EMAIL_PATTERN = r"^[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+$"
AUTHOR_PATTERN = r"^[^<>\r\n\x00-\x1f]{1,128}$"
LABEL_PATTERN = r"^[^,\r\n]{1,64}$"


def _string(pattern: str, message: str, length: int = 256, *more: dict[str, str]) -> WithJsonSchema:
    schema = matches(pattern, message, length)
    schema["x-kubernetes-validations"] += more
    return WithJsonSchema(schema)


_NO_LOCK = rule("!(self + '/').contains('.lock/')", "git keeps .lock for itself: write another name")

Repository = Annotated[
    str,
    StringConstraints(pattern=REPOSITORY_PATTERN, max_length=512),
    _string(
        REPOSITORY_PATTERN,
        "write an http(s) address without a user or a password, such as https://github.com/acme/models.git, "
        "and put the credentials into promotion.git.credentialsSecret",
        512,
    ),
]
ApiUrl = Annotated[
    str,
    StringConstraints(pattern=API_PATTERN, max_length=512),
    _string(
        API_PATTERN, "write an http(s) address without a user or a password, such as https://git.acme.com/api/v3", 512
    ),
]
Branch = Annotated[
    str,
    StringConstraints(pattern=BRANCH_PATTERN, max_length=128),
    _string(BRANCH_PATTERN, "write the name of a branch, such as main", 128, _NO_LOCK),
]
BranchPrefix = Annotated[
    str,
    StringConstraints(pattern=PREFIX_PATTERN, max_length=64),
    _string(PREFIX_PATTERN, "write how branches shall begin, such as ratchet/", 64, _NO_LOCK),
]
RepositoryPath = Annotated[
    str,
    StringConstraints(pattern=PATH_PATTERN, max_length=512),
    _string(
        PATH_PATTERN,
        "write a file's path inside the repository, without leading slash and without .., "
        "such as clusters/prod/assistant.yaml",
        512,
    ),
]
YamlPath = Annotated[
    str,
    StringConstraints(pattern=YAML_PATH_PATTERN, max_length=256),
    _string(
        YAML_PATH_PATTERN, "write keys with dots and list positions in brackets, such as spec.serving.version", 256
    ),
]
Email = Annotated[
    str,
    StringConstraints(pattern=EMAIL_PATTERN, max_length=254),
    _string(EMAIL_PATTERN, "write an address such as ratchet@acme.com", 254),
]
AuthorName = Annotated[
    str,
    StringConstraints(pattern=AUTHOR_PATTERN, max_length=128),
    _string(AUTHOR_PATTERN, "write one line without angle brackets, such as Ratchet", 128),
]
Label = Annotated[
    str,
    StringConstraints(pattern=LABEL_PATTERN, max_length=64),
    _string(LABEL_PATTERN, "write one label, without commas, such as model-promotion", 64),
]


class GitAuthor(Model):
    """Who the commits are from."""

    name: AuthorName = "Ratchet"
    """Name of author and committer."""
    email: Email = "ratchet@localhost"
    """Their address; some forges take only those that they know."""


class GitSecret(Model):
    """A Secret in the cycle's namespace with `token`, or `username` and `password`; with `ca.crt` a private authority
    is trusted. With a token, `username` may be added for servers that ask for one."""

    name: ObjectName
    """Name of the Secret."""


class GitPromotion(Model):
    """Where the pointer is kept in Git, and how a change of it is proposed."""

    repository: Repository
    """Address of the repository over https or http."""
    branch: Branch = "main"
    """The branch that the cluster follows: pull requests go there."""
    path: RepositoryPath
    """The YAML file that holds the pointer, from the repository's root. Links are not followed."""
    pointer: YamlPath = "spec.serving.version"
    """Where the version stands in it. With the default, in the ImprovementCycle of this name and namespace, also as an
    item of a list; any other path must be in exactly one document of the file."""
    forge: Forge = "None"
    """GitHub, GitLab, Gitea (Forgejo too), or None: a branch is pushed, and people open the pull request themselves."""
    api_url: ApiUrl | None = None
    """Address of the forge's API; absent means what belongs to the repository's host."""
    credentials_secret: GitSecret
    """Who may push the branch and open the pull request."""
    branch_prefix: BranchPrefix = "ratchet/"
    """How the names of our branches begin."""
    author: GitAuthor = Field(default_factory=GitAuthor)
    """Who the commits are from."""
    labels: list[Label] = Field(default_factory=list, max_length=10)
    """Labels of the pull request; they have to exist in Gitea."""


class Promotion(Model):
    """Whether a person has a say, and where."""

    mode: Literal["Automatic", "Approval", "Git"] = "Automatic"
    """Automatic: the evidence decides. Approval: at the gates below a person has to name the digest of what goes on, by
    an annotation on the ModelVersion. Git: an accepted version is proposed by a pull request that changes
    serving.version, and its canary starts when that arrives. The evidence is asked for in every mode."""
    git: GitPromotion | None = None
    """Git: where the pointer is kept."""
    before: list[Gate] = Field(default=["Canary"], min_length=1, max_length=3)
    """Approval: Training (annotation ratchet.dev/approve-training, digest of the dataset), Canary (approve-canary,
    digest of the adapter), Promotion (approve-promotion, digest of the adapter: before it gets 100 percent)."""
    expiry: Duration = timedelta(days=7)
    """How long a version waits for its approval; afterwards its run ends and its arm is taken back, without blame."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.before) || self.before.all(g, self.before.exists_one(h, h == g))",
                "promotion.before: a gate is named twice; name each of Training, Canary and Promotion once",
            ),
            rule(
                "(has(self.mode) && self.mode == 'Git') == has(self.git)",
                "promotion.git: mode Git needs it (repository, path, credentialsSecret), and no other mode takes it",
            ),
            rule(
                "!has(self.git) || !has(self.git.apiUrl) || (has(self.git.forge) && self.git.forge != 'None')",
                "promotion.git.apiUrl: without a forge there is no API; write forge: GitHub, GitLab or Gitea",
            ),
        )
    )


ProposalKind = Literal["Promote", "Revert"]
ProposalState = Literal["Pending", "Pushed", "Open", "Merged", "Arrived", "Closed", "Withdrawing", "Withdrawn"]
"""Pending: to be made. Pushed: the branch is there, and people open the pull request. Open: the pull request is.
Merged: the target branch says it, the cycle not yet. Arrived: serving.version says it. Closed: a person said no.
Withdrawing, Withdrawn: not wanted any more."""


class Proposal(Observed):
    """The change of the pointer that is proposed now, or was last."""

    kind: ProposalKind
    """Promote: an accepted version. Revert: back to the champion after a rollback."""
    version: str
    """What the pointer shall say."""
    replaces: str
    """What it says until then."""
    state: ProposalState
    """How far it is."""
    branch: str
    """Our branch; its name follows from the version, so that it is made once."""
    commit: str = ""
    """The commit at its head; empty until it is pushed."""
    pull_request: str = ""
    """Address of the pull request."""
    number: int | None = None
    """Its number."""
    since: Time
    """When it was decided; the commit has this time."""
    generation: int = 0
    """Generation of the cycle that was last acted upon."""
    reason: str = ""
    """A Reason: why it does not go on; empty when it does."""
    message: str = ""
    """What it waits for, or what is wrong and what to do."""
    failed_since: Time | None = None
    """Since when it does not go on."""
