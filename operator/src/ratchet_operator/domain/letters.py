"""A notice as the bytes that a receiver is sent: a signed CloudEvent, or a message for Slack.

Room: operator/domain. Pure. CloudEvents 1.0, JSON format, structured mode; signatures as in the Standard Webhooks
specification 1.0 (symmetric, `v1`).
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ratchet_api.base import ObjectMeta, format_time
from ratchet_api.names import CYCLE_PLURAL, GROUP_VERSION
from ratchet_api.notifications import Notice

EVENT_PREFIX = "dev.ratchet.cycle."
_CHECK = ("measured", "limit", "lower", "upper", "samples")
_ICONS = {
    "Promoted": ":white_check_mark:",
    "GateAccepted": ":white_check_mark:",
    "Recovered": ":white_check_mark:",
    "RolledBack": ":rotating_light:",
    "Stalled": ":warning:",
    "RunFailed": ":warning:",
    "GateRejected": ":no_entry:",
    "AwaitingApproval": ":raised_hand:",
    "ProposalOpened": ":raised_hand:",
    "Held": ":hourglass_flowing_sand:",
}
_SECTION = 2900
"""Slack takes 3000 characters in a section."""


@dataclass(frozen=True)
class Letter:
    """One request; its address and its key are in no representation."""

    url: str = field(repr=False)
    body: bytes
    headers: Mapping[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What must not be in any message about it."""


def cloud_event(meta: ObjectMeta, notice: Notice) -> dict[str, Any]:
    """CloudEvents 1.0 as JSON; decimals are strings, as in the status."""
    said = notice.dump()
    data: dict[str, Any] = {"namespace": meta.namespace, "cycle": meta.name, "event": notice.event}
    data |= {key: said[key] for key in ("version", "digest", "run", "reason", "message", "url") if said.get(key)}
    data |= {key: said[key] for key in ("weight", "step") if key in said}
    if notice.check:
        data["check"] = {"name": notice.check} | {key: said[key] for key in _CHECK if key in said}
    return {
        "specversion": "1.0",
        "id": notice.id,
        "source": f"/apis/{GROUP_VERSION}/namespaces/{meta.namespace}/{CYCLE_PLURAL}/{meta.name}",
        "type": EVENT_PREFIX + notice.event,
        "subject": notice.version or (f"run-{notice.run}" if notice.run is not None else meta.name),
        "time": format_time(notice.at),
        "datacontenttype": "application/json",
        "data": data,
    }


def slack_message(meta: ObjectMeta, notice: Notice) -> dict[str, Any]:
    """An incoming webhook's JSON: `text` for previews, blocks for the channel."""
    icon = _ICONS.get(notice.event, ":information_source:")
    title = f"{notice.event}: {_plain(meta.namespace)}/{_plain(meta.name)}"
    if notice.version:
        title += f" {_plain(notice.version)}"
    facts = [f"reason `{notice.reason}`"] if notice.reason else []
    if notice.measured is not None:
        against = f" against {notice.limit}" if notice.limit is not None else ""
        facts.append(f"{_plain(notice.check)} {notice.measured}{against}")
    if notice.weight is not None:
        facts.append(f"weight {notice.weight} %")
    if notice.digest:
        facts.append(f"`{notice.digest[:19]}`")
    if notice.url:
        facts.append(f"<{_plain(notice.url)}|pull request>")
    facts.append(format_time(notice.at))
    text = f"{icon} *{title}*\n{_plain(notice.message)}"
    return {
        "text": f"{title}: {_plain(notice.message)}"[:_SECTION],
        "blocks": [
            {"type": "section", "text": {"type": "mrkdwn", "text": text[:_SECTION]}},
            {"type": "context", "elements": [{"type": "mrkdwn", "text": " · ".join(facts)[:_SECTION]}]},
        ],
    }


def _plain(text: str) -> str:
    """Slack's own three escapes: nothing in it is a link or a mention then."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def webhook(meta: ObjectMeta, notice: Notice, url: str, key: str | None, now: datetime) -> Letter:
    """A CloudEvent; signed when there is a key. `now`: the time of this attempt. Raises ValueError for a bad key."""
    body = json.dumps(cloud_event(meta, notice), separators=(",", ":"), ensure_ascii=False).encode()
    stamp = str(int(now.timestamp()))
    headers = {"Content-Type": "application/cloudevents+json; charset=utf-8"}
    if key is not None:
        signed = f"v1,{signature(signing_key(key), notice.id, stamp, body)}"
        headers |= {"webhook-id": notice.id, "webhook-timestamp": stamp, "webhook-signature": signed}
    return Letter(url, body, headers, (url,) if key is None else (url, key))


def slack(meta: ObjectMeta, notice: Notice, url: str) -> Letter:
    """A message for an incoming webhook."""
    body = json.dumps(slack_message(meta, notice), separators=(",", ":"), ensure_ascii=False).encode()
    return Letter(url, body, {"Content-Type": "application/json; charset=utf-8"}, (url,))


def signing_key(key: str) -> bytes:
    """What HMAC is keyed with: after `whsec_` base64, else the characters themselves. Raises ValueError."""
    if not key.startswith("whsec_"):
        raw = key.encode()
    else:
        try:
            raw = base64.b64decode(key.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            raise ValueError("is not base64 after whsec_") from None
    if len(raw) < 16:
        raise ValueError("is shorter than 16 bytes: write a longer key")
    return raw


def signature(key: bytes, id: str, timestamp: str, body: bytes) -> str:
    """base64(HMAC-SHA256(key, id.timestamp.body))."""
    said = f"{id}.{timestamp}.".encode() + body
    return base64.b64encode(hmac.new(key, said, hashlib.sha256).digest()).decode()
