"""A folder as an artifact in a container registry: the CNCF model format (ModelPack) over the distribution API.

Room: trainer/export. The only module that talks to a registry (urllib3). The login comes from config.json in
$DOCKER_CONFIG, as `docker login` writes it.

Every file is a layer of its own, uncompressed, so that equal files are stored once, and the digest of the manifest is
the same whenever the same files are pushed under the same name.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin

from ratchet_trainer.artifacts import file_entry, folder_entries
from ratchet_trainer.errors import TryAgain, UploadRefused

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
WEIGHT_TYPE = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG_TYPE = "application/vnd.cncf.model.weight.config.v1.raw"
DOC_TYPE = "application/vnd.cncf.model.doc.v1.raw"
FILE_PATH = "org.cncf.model.filepath"
_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Described:
    """What an artifact's configuration says of the model."""

    name: str
    version: str
    created: str
    """RFC 3339: of the files, not of the upload, so that the digest does not depend on it."""
    license: str
    form: str
    """safetensors, gguf or mlx."""
    precision: str
    quantization: str | None
    annotations: Mapping[str, str]


def media_type(name: str) -> str:
    """The layer type of a file, by its name."""
    if name.endswith((".safetensors", ".gguf")):
        return WEIGHT_TYPE
    return (
        DOC_TYPE if name.rpartition("/")[2].upper().startswith(("README", "LICENSE", "NOTICE")) else WEIGHT_CONFIG_TYPE
    )


def config(described: Described, digests: list[str]) -> bytes:
    """The artifact's configuration; `digests` are those of its layers, which are not compressed."""
    inner: dict[str, Any] = {"architecture": "transformer", "format": described.form, "precision": described.precision}
    if described.quantization is not None:
        inner["quantization"] = described.quantization
    inner["capabilities"] = {"inputTypes": ["text"], "outputTypes": ["text"]}
    document = {
        "descriptor": {
            "createdAt": described.created, "name": described.name, "version": described.version,
            "licenses": [described.license],
        },
        "config": inner,
        "modelfs": {"type": "layers", "diffIds": digests},
    }  # fmt: skip
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def push(folder: Path, described: Described, registry: "Registry", tags: list[str]) -> str:
    """Every file that is not there yet, then the manifest under each tag. Gives back the manifest's digest.

    Raises UploadRefused or TryAgain.
    """
    layers: list[dict[str, Any]] = []
    for name, entry in folder_entries(folder).items():
        digest = f"sha256:{entry.sha256}"
        registry.blob(digest, entry.size, folder / name)
        layers.append(
            {"mediaType": media_type(name), "digest": digest, "size": entry.size, "annotations": {FILE_PATH: name}}
        )
    settings = config(described, [layer["digest"] for layer in layers])
    settings_digest = _digest(settings)
    registry.blob(settings_digest, len(settings), settings)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": settings_digest, "size": len(settings)},
        "layers": layers,
        "annotations": dict(described.annotations),
    }
    data = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    for tag in tags:
        registry.manifest(tag, data)
    return _digest(data)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Registry:
    """One repository of a registry."""

    repository: str
    """registry/name, without scheme and tag."""
    plain_http: bool = False
    _authorization: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        import urllib3

        host, _, self._name = self.repository.partition("/")
        self._host = host
        self._base = f"{'http' if self.plain_http else 'https'}://{host}"
        ca = os.environ.get("SSL_CERT_FILE")
        timeout = urllib3.Timeout(connect=10.0, read=_TIMEOUT_SECONDS)
        self._pool = urllib3.PoolManager(timeout=timeout, retries=False, ca_certs=ca)

    def blob(self, digest: str, size: int, content: Path | bytes) -> None:
        """Makes sure that the registry has these bytes."""
        if self._ask("HEAD", f"/v2/{self._name}/blobs/{digest}", (200, 404)).status == 200:
            return
        begun = self._ask("POST", f"/v2/{self._name}/blobs/uploads/", (202,))
        place = urljoin(self._base, begun.headers["Location"])
        place += f"{'&' if '?' in place else '?'}{urlencode({'digest': digest})}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        if isinstance(content, bytes):
            self._ask("PUT", place, (201,), headers, content)
            return
        with content.open("rb") as body:
            self._ask("PUT", place, (201,), headers, body)
        if file_entry(content).size != size:
            raise TryAgain(f"{content.name} changed while it was uploaded")

    def manifest(self, tag: str, data: bytes) -> None:
        """Puts a manifest under a tag; harmless when it is there."""
        answer = self._ask("PUT", f"/v2/{self._name}/manifests/{tag}", (201,), {"Content-Type": MANIFEST_TYPE}, data)
        found = answer.headers.get("Docker-Content-Digest", _digest(data))
        if found != _digest(data):
            raise TryAgain(f"{self.repository}:{tag} was stored as {found}, not as {_digest(data)}")

    def _ask(
        self, method: str, place: str, good: tuple[int, ...], headers: Mapping[str, str] | None = None, body: Any = None
    ) -> Any:
        """One request, repeated once with a login when the registry asks for one."""
        answer = self._request(method, place, headers, body)
        if answer.status == 401:
            self._log_in(answer.headers.get("WWW-Authenticate", ""))
            if hasattr(body, "seek"):
                body.seek(0)
            answer = self._request(method, place, headers, body)
        if answer.status in good:
            return answer
        said = answer.data.decode(errors="replace").strip()[:200] or answer.reason
        if answer.status in (400, 401, 403, 404, 405):
            raise UploadRefused(
                f"export.oci: {self._host} refuses {self._name} ({answer.status}: {said}): correct "
                "export.oci.repository, or the Secret in export.oci.credentialsSecret and its rights"
            )
        raise TryAgain(f"the registry {self._host} failed ({answer.status}: {said}): it is tried again")

    def _request(self, method: str, place: str, headers: Mapping[str, str] | None, body: Any) -> Any:
        import urllib3

        sent = dict(headers or {})
        url = urljoin(self._base, place)
        # A place that the registry sends us to elsewhere is not told the password.
        if self._authorization is not None and url.startswith(f"{self._base}/"):
            sent["Authorization"] = self._authorization
        try:
            return self._pool.request(method, url, body=body, headers=sent, redirect=method == "HEAD")
        except urllib3.exceptions.HTTPError as error:
            raise TryAgain(
                f"the registry {self._host} does not answer ({type(error).__name__}): check that it is up, and "
                "export.oci.repository and export.oci.plainHttp"
            ) from error

    def _log_in(self, challenge: str) -> None:
        """By what a 401 asks for: Basic, or a Bearer token from where it says (RFC 6750, distribution's token spec)."""
        kind, _, rest = challenge.partition(" ")
        login = _login(self._host)
        if kind.lower() == "basic" and login is not None:
            self._authorization = f"Basic {login}"
            return
        if kind.lower() != "bearer":
            raise UploadRefused(
                f"export.oci: {self._host} asks for a login and there is none for it in the Secret that "
                "export.oci.credentialsSecret names"
            )
        asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        query = {key: asked[key] for key in ("service", "scope") if key in asked}
        url = f"{asked.get('realm', '')}?{urlencode(query)}"
        headers = {"Authorization": f"Basic {login}"} if login is not None else {}
        answer = self._pool.request("GET", url, headers=headers)
        if answer.status != 200:
            raise UploadRefused(
                f"export.oci: {self._host} gives no token ({answer.status}): correct the Secret in "
                "export.oci.credentialsSecret"
            )
        token = json.loads(answer.data)
        self._authorization = f"Bearer {token.get('token') or token['access_token']}"


def _login(host: str) -> str | None:
    """The base64 of user:password for a registry, from config.json; None when there is none."""
    folder = os.environ.get("DOCKER_CONFIG")
    if folder is None:
        return None
    try:
        logins = json.loads((Path(folder) / "config.json").read_bytes()).get("auths", {})
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError):
        raise UploadRefused(
            "export.oci.credentialsSecret: its .dockerconfigjson is no JSON: make it by `kubectl create secret "
            "docker-registry`"
        ) from None
    entry = logins.get(host) or logins.get(f"https://{host}") or {}
    if entry.get("auth"):
        return str(entry["auth"])
    if "username" in entry:
        return base64.b64encode(f"{entry['username']}:{entry.get('password', '')}".encode()).decode()
    return None
