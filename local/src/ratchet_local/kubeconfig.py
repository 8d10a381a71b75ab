"""Kubeconfig files.

Room: local. Writes the file it is told to write.
"""

import base64
import os
from pathlib import Path

import yaml

from ratchet_local.pki import KeyPair


def _inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def write_kubeconfig(
    path: Path,
    server: str,
    authority: Path,
    user: str,
    client: KeyPair | None = None,
    token_file: Path | None = None,
    namespace: str | None = None,
    context: str = "local",
) -> None:
    """A kubeconfig whose user holds a client certificate (inlined) or reads its token from a file.

    Written aside and renamed, with mode 0600: a reader never sees half of it.
    """
    credentials: dict[str, str] = {}
    if client is not None:
        credentials = {
            "client-certificate-data": _inline(client.cert),
            "client-key-data": _inline(client.key),
        }
    if token_file is not None:
        credentials = {"tokenFile": str(token_file)}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": context, "cluster": {"server": server, "certificate-authority-data": _inline(authority)}}
        ],
        "users": [{"name": user, "user": credentials}],
        "contexts": [
            {
                "name": context,
                "context": {"cluster": context, "user": user} | ({"namespace": namespace} if namespace else {}),
            }
        ],
        "current-context": context,
    }
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        yaml.safe_dump(content, handle, sort_keys=False)
    temporary.replace(path)
