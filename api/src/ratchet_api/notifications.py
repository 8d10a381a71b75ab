"""Who is told outside the cluster what happens to a cycle, and what is still to be told.

Room: api. Pure; touches nothing.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema

from ratchet_api.base import Model, Name, ObjectName, Observed, Signed, Time, matches, rule, rules

CycleEvent = Literal[
    "RunStarted",
    "RunSkipped",
    "RunFailed",
    "GateAccepted",
    "GateRejected",
    "AwaitingApproval",
    "ProposalOpened",
    "ProposalClosed",
    "CanaryStarted",
    "StepAdvanced",
    "Held",
    "BakeStarted",
    "Promoted",
    "RolledBack",
    "Returned",
    "Stalled",
    "Recovered",
]
"""Returned: back to stable without blame. Recovered: Stalled no more."""
DEFAULT_EVENTS: list[CycleEvent] = [
    "RunFailed",
    "GateRejected",
    "AwaitingApproval",
    "ProposalOpened",
    "ProposalClosed",
    "CanaryStarted",
    "Held",
    "Promoted",
    "RolledBack",
    "Returned",
    "Stalled",
]
SINKS_LIMIT = 8
OUTBOX_LIMIT = 32
"""Notices kept for receivers that do not answer; the oldest gives way."""

URL_PATTERN = (
    r"^https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?(/[A-Za-z0-9._~%!$&()*+,;=:@/-]*)?"
    r"(\?[A-Za-z0-9._~%!$&()*+,;=:@/?-]*)?$"
)
KEY_PATTERN = r"^[-._a-zA-Z0-9]{1,253}$"
_URL_SCHEMA = matches(
    URL_PATTERN, "write an http(s) address without a user or a password, such as https://hooks.example.com/ratchet"
)
_URL_SCHEMA["x-kubernetes-validations"].append(
    rule(
        "!self.contains('://169.254.') && !self.contains('://metadata.')",
        "link-local addresses and metadata names are the cloud's own: write the receiver's address",
    )
)
Url = Annotated[str, StringConstraints(pattern=URL_PATTERN, max_length=512), WithJsonSchema(_URL_SCHEMA)]
SecretKeyName = Annotated[
    str,
    StringConstraints(pattern=KEY_PATTERN),
    WithJsonSchema(matches(KEY_PATTERN, "write a key of the Secret, such as url", 253)),
]


class SecretKey(Model):
    """One key of a Secret in the cycle's namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: SecretKeyName
    """The key in it."""


class Notification(Model):
    """One receiver."""

    name: Name
    """How it is called in the status and in events."""
    type: Literal["Webhook", "Slack"] = "Webhook"
    """Webhook: CloudEvents 1.0 as structured JSON. Slack: the JSON of an incoming webhook."""
    url: Url | None = None
    """Where to; readable by everybody who may read the cycle."""
    url_secret: SecretKey | None = None
    """Where to, kept in a Secret: what Slack gives out is one."""
    hmac_secret: SecretKey | None = None
    """Webhook: key of the signature (Standard Webhooks, HMAC-SHA256); without it notices are not signed."""
    events: Annotated[
        list[CycleEvent], Field(min_length=1, max_length=17, json_schema_extra={"x-kubernetes-list-type": "set"})
    ] = Field(default=DEFAULT_EVENTS)
    """What it is told."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("has(self.url) != has(self.urlSecret)", "a notification has exactly one of url and urlSecret"),
            rule(
                "!has(self.hmacSecret) || !has(self.type) || self.type == 'Webhook'",
                "hmacSecret: Slack checks no signature; take it away, or write type: Webhook",
            ),
        )
    )


class Notice(Observed):
    """One transition that a receiver has not been told yet."""

    id: str
    """The same however often it is sent."""
    event: str
    """A CycleEvent."""
    at: Time
    """When it happened."""
    version: str = ""
    """The ModelVersion that it is about."""
    digest: str = ""
    """Digest of its adapter."""
    run: int | None = None
    """Number of the run that it is about."""
    reason: str = ""
    """A Reason."""
    message: str = ""
    """One sentence for a person."""
    weight: int | None = None
    """Percent of the sessions asked for the version."""
    step: int | None = None
    """Index in rollout.steps."""
    url: str = ""
    """Address of the pull request."""
    check: str = ""
    """The metric that decided."""
    measured: Signed | None = None
    """Its value for the version."""
    limit: Signed | None = None
    """What it was held against."""
    lower: Signed | None = None
    """Lower end of the interval."""
    upper: Signed | None = None
    """Upper end of the interval."""
    samples: int | None = None
    """Events behind the value."""
    pending: list[str] = Field(default_factory=list, max_length=SINKS_LIMIT)
    """Receivers that have not taken it yet."""


class SinkTrouble(Observed):
    """A receiver that does not take what it is sent."""

    name: str
    """Its name in spec.notifications."""
    since: Time
    """Since when."""
    message: str
    """What is wrong."""


class NotificationsStatus(Observed):
    """What is still to be told."""

    outbox: list[Notice] = Field(default_factory=list, max_length=OUTBOX_LIMIT)
    """Notices that some receiver has not taken yet, oldest first."""
    failing: list[SinkTrouble] = Field(default_factory=list, max_length=SINKS_LIMIT)
    """Receivers that do not take them."""
    awaiting: list[str] = Field(default_factory=list, max_length=16)
    """Marks of the approvals that are waited for and have been told."""
