"""Who we are to a Git server and its forge: the keys of a Secret.

Room: operator, clients. Pure. Nothing of it is ever written anywhere.
"""

import base64
import binascii
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

from ratchet_api.promotion import Forge
from ratchet_api.reasons import Reason
from ratchet_operator.clients.git.trouble import Trouble

TOKEN, USERNAME, PASSWORD, CA = "token", "username", "password", "ca.crt"
_TOKEN_USERS: dict[Forge, str] = {"GitHub": "x-access-token", "GitLab": "oauth2", "Gitea": "git", "None": "git"}
"""The user name that goes with a token over Git's basic authentication, as each forge documents it."""


@dataclass(frozen=True)
class Credentials:
    """For Git: user name and password. For the forge: the token. For both: the authorities that are trusted."""

    username: str = field(repr=False)
    password: str = field(repr=False)
    is_token: bool = True
    """Whether the password is a token."""
    authority: str | None = field(default=None, repr=False)
    """PEM; None trusts the system's authorities."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be seen, in every form in which it travels."""
        basic = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        return (self.password, basic)

    def tls(self) -> ssl.SSLContext:
        """For aiohttp and urllib3. Raises Trouble when ca.crt is no certificate."""
        try:
            return ssl.create_default_context(cadata=self.authority)
        except (ssl.SSLError, ValueError):
            raise Trouble(Reason.FORGE_DENIED, "ca.crt in the Secret is no certificate: write PEM") from None


def read(data: Mapping[str, str], name: str, forge: Forge) -> Credentials:
    """`data`: a Secret's, base64. Raises Trouble (ForgeDenied) with what is wanted."""
    values = {key: _decoded(data[key], key, name) for key in (TOKEN, USERNAME, PASSWORD, CA) if key in data}
    if any(mark in values.get(key, "") for key in (TOKEN, USERNAME, PASSWORD) for mark in "\r\n\0"):
        raise _denied(name, "a value has more than one line: write the token or password alone")
    authority = values.get(CA) or None
    if values.get(TOKEN):
        user = values.get(USERNAME) or _TOKEN_USERS[forge]
        return Credentials(user, values[TOKEN], is_token=True, authority=authority)
    if values.get(USERNAME) and values.get(PASSWORD):
        return Credentials(values[USERNAME], values[PASSWORD], is_token=False, authority=authority)
    raise _denied(name, "it needs the key token, or username and password")


def _decoded(value: str, key: str, name: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode().strip()
    except (binascii.Error, UnicodeDecodeError):
        raise _denied(name, f"{key} is no text") from None


def _denied(name: str, text: str) -> Trouble:
    return Trouble(Reason.FORGE_DENIED, f"promotion.git.credentialsSecret: Secret {name}: {text}")
