"""How Prometheus lets us in: headers and TLS, from the files of a mounted Secret.

Room: operator, clients. Reads one folder, again whenever it has changed: tokens and certificates are rotated.
"""

import ssl
from collections.abc import Mapping
from pathlib import Path

import aiohttp

TOKEN, USERNAME, PASSWORD = "token", "username", "password"
CA, CERTIFICATE, KEY = "ca.crt", "tls.crt", "tls.key"
FILES = (TOKEN, USERNAME, PASSWORD, CA, CERTIFICATE, KEY)


class BadCredentials(Exception):
    """The folder's files do not fit together; the text says what is wanted."""


class Access:
    """Credentials in a folder with the keys of a Secret: `token` for a bearer token, or `username` and `password`;
    `ca.crt` to trust a private authority; `tls.crt` and `tls.key` for a client certificate. All are optional."""

    def __init__(self, folder: Path | None = None, headers: Mapping[str, str] | None = None) -> None:
        """`headers` go along with every request, for example X-Scope-OrgID, the tenant of Mimir and Cortex."""
        self._folder = folder
        self._given = dict(headers or {})
        self._seen: tuple[tuple[str, int], ...] | None = None
        self._headers: dict[str, str] = {}
        self._tls: ssl.SSLContext | bool = True

    def headers(self) -> dict[str, str]:
        """Headers of the next request. Raises BadCredentials."""
        self._refresh()
        return self._headers

    def tls(self) -> ssl.SSLContext | bool:
        """What aiohttp takes as `ssl`: a context, or True for the system's authorities. Raises BadCredentials."""
        self._refresh()
        return self._tls

    def _refresh(self) -> None:
        folder = self._folder
        try:
            # A kubelet replaces a Secret's files by switching a symbolic link, so the inode says more than the time.
            seen = tuple(
                (name, (folder / name).stat().st_ino)
                for name in FILES
                if folder is not None and (folder / name).exists()
            )
            if seen == self._seen:
                return
            present = {name for name, _ in seen}
            read = {name: folder.joinpath(name).read_text().strip() for name in present if folder is not None}
            self._headers = self._given | _authorization(read)
            self._tls = _context(folder, present) if folder is not None and present & {CA, CERTIFICATE} else True
        except (OSError, ValueError) as error:
            raise BadCredentials(f"Prometheus' credentials cannot be read: {error}") from error
        self._seen = seen


def _authorization(read: Mapping[str, str]) -> dict[str, str]:
    if TOKEN in read and USERNAME in read:
        raise ValueError("the Secret has both token and username: keep one of them")
    if any(character in read.get(TOKEN, "") for character in "\r\n"):
        raise ValueError("token has more than one line: write the token alone")
    if TOKEN in read:
        return {"Authorization": f"Bearer {read[TOKEN]}"}
    if (USERNAME in read) != (PASSWORD in read):
        raise ValueError("the Secret has only one of username and password: add the other")
    if USERNAME in read:
        return {"Authorization": aiohttp.encode_basic_auth(read[USERNAME], read[PASSWORD])}
    return {}


def _context(folder: Path, present: set[str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / CA) if CA in present else None)
    if (CERTIFICATE in present) != (KEY in present):
        raise ValueError("the Secret has only one of tls.crt and tls.key: add the other")
    if CERTIFICATE in present:
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    return context
