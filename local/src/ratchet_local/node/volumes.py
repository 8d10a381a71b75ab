"""A pod's volumes as folders of the node's state.

Room: local. Touches the pod's folder and reads ConfigMaps, Secrets and tokens from the API server.

ConfigMap, Secret, projected and downward-API volumes are written as a kubelet does (a dated folder behind the link
`..data`, switched in one step), and written anew when their content has changed.
"""

import base64
import datetime
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ratchet_local.node.client import Api, ApiError
from ratchet_local.node.environment import ConfigError, NodeFacts, field_value, resource_value
from ratchet_local.node.model import (
    ConfigMapSource,
    DownwardSource,
    HostPathSource,
    KeyToPath,
    Pod,
    ProjectedSource,
    SecretSource,
    TokenSource,
    Volume,
    VolumeMount,
)

TOKEN_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


class VolumeError(Exception):
    """A volume cannot be set up yet; a kubelet says FailedMount and tries again."""


@dataclass(frozen=True)
class File:
    content: bytes
    mode: int


Payload = dict[str, File]
"""Relative path to file."""


class DataReader:
    """Reads ConfigMaps and Secrets of one namespace."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._namespace = namespace

    async def config_map(self, name: str) -> dict[str, bytes] | None:
        """Keys to contents, text and binary alike; None when there is none of that name."""
        found = await self._get("configmaps", name)
        if found is None:
            return None
        binary = {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}
        return {key: value.encode() for key, value in (found.get("data") or {}).items()} | binary

    async def secret(self, name: str) -> dict[str, bytes] | None:
        """Keys to decoded contents; None when there is none of that name."""
        found = await self._get("secrets", name)
        if found is None:
            return None
        return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}

    async def text(self, names: set[str], kind: str) -> dict[str, Mapping[str, str] | None]:
        """Several of one kind, for environment variables."""
        result: dict[str, Mapping[str, str] | None] = {}
        for name in names:
            data = await (self.config_map(name) if kind == "configmaps" else self.secret(name))
            texts = {key: value.decode(errors="replace") for key, value in (data or {}).items()}
            result[name] = None if data is None else texts
        return result

    async def _get(self, kind: str, name: str) -> dict[str, Any] | None:
        return await self._api.get(f"/api/v1/namespaces/{self._namespace}/{kind}/{name}")


@dataclass
class _Token:
    token: str
    renew_at: float
    """time.monotonic() after which a fifth or less of its life is left."""


@dataclass
class PodVolumes:
    """The volumes of one pod."""

    pod: Pod
    root: Path
    """The folder of the pod's volumes."""
    pod_ip: str
    node: NodeFacts
    api: Api
    _written: dict[str, Payload] = field(default_factory=dict)
    _tokens: dict[str, _Token] = field(default_factory=dict)

    async def set_up(self) -> None:
        """Create every volume. Raises VolumeError, in a kubelet's words, when one cannot be had yet."""
        for volume in self.pod.spec.volumes:
            try:
                await self._set_up(volume)
            except (ConfigError, ApiError, OSError) as error:
                raise VolumeError(f'MountVolume.SetUp failed for volume "{volume.name}" : {error}') from error

    async def refresh(self) -> None:
        """Write anew what has changed: ConfigMaps, Secrets, labels, tokens that grow old."""
        for volume in self.pod.spec.volumes:
            if volume.empty_dir is None and volume.host_path is None:
                await self._set_up(volume)

    def host_path(self, volume_name: str) -> Path:
        """Where a volume's content lies on this machine."""
        volume = next(volume for volume in self.pod.spec.volumes if volume.name == volume_name)
        return Path(volume.host_path.path) if volume.host_path else self.root / volume.name

    def mount(self, mount: VolumeMount) -> Path:
        """Where a container finds what it mounted. Raises ConfigError for a subPath that leaves its volume."""
        base = self.host_path(mount.name)
        if not mount.sub_path:
            return base
        if ".." in Path(mount.sub_path).parts or mount.sub_path.startswith("/"):
            raise ConfigError(f'subPath "{mount.sub_path}" must be a relative path without ".."')
        target = base / mount.sub_path
        volume = next(volume for volume in self.pod.spec.volumes if volume.name == mount.name)
        if volume.empty_dir is not None and not target.exists():
            target.mkdir(parents=True)
        return target

    def token_file(self) -> Path | None:
        """The pod's own service-account token, if it is mounted into any container."""
        for container in (*self.pod.spec.init_containers, *self.pod.spec.containers):
            for mount in container.volume_mounts:
                if mount.mount_path.rstrip("/") == TOKEN_MOUNT:
                    return self.mount(mount) / "token"
        return None

    async def _set_up(self, volume: Volume) -> None:
        if volume.empty_dir is not None:
            (self.root / volume.name).mkdir(parents=True, exist_ok=True)
        elif volume.host_path is not None:
            check_host_path(volume.host_path)
        else:
            payload = await self._payload(volume)
            if self._written.get(volume.name) != payload:
                write_atomically(self.root / volume.name, payload)
                self._written[volume.name] = payload

    async def _payload(self, volume: Volume) -> Payload:
        if volume.config_map is not None:
            return await self._config_map(volume.config_map, volume.config_map.default_mode)
        if volume.secret is not None:
            return await self._secret(volume.secret, volume.secret.default_mode)
        if volume.downward_api is not None:
            return self._downward(volume.downward_api, volume.downward_api.default_mode)
        if volume.projected is not None:
            return await self._projected(volume.projected)
        raise ConfigError("the process node supports configMap, secret, emptyDir, projected, downwardAPI and hostPath")

    async def _config_map(self, source: ConfigMapSource, mode: int) -> Payload:
        data = await self._reader().config_map(source.name)
        return self._select(data, source.items, source.optional, mode, f'configmap "{source.name}"')

    async def _secret(self, source: SecretSource, mode: int) -> Payload:
        name = source.secret_name or source.name
        data = await self._reader().secret(name)
        return self._select(data, source.items, source.optional, mode, f'secret "{name}"')

    def _reader(self) -> DataReader:
        return DataReader(self.api, self.pod.metadata.namespace)

    @staticmethod
    def _select(
        data: Mapping[str, bytes] | None, items: list[KeyToPath], optional: bool, mode: int, what: str
    ) -> Payload:
        if data is None:
            if optional:
                return {}
            raise ConfigError(f"{what} not found")
        if not items:
            return {key: File(content, mode) for key, content in data.items()}
        payload: Payload = {}
        for item in items:
            if item.key in data:
                payload[item.path] = File(data[item.key], item.mode or mode)
            elif not optional:
                raise ConfigError(f"{what} references non-existent config key: {item.key}")
        return payload

    def _downward(self, source: DownwardSource, mode: int) -> Payload:
        payload: Payload = {}
        for item in source.items:
            if item.field_ref is not None:
                value = field_value(self.pod, item.field_ref.field_path, self.pod_ip, self.node)
            elif item.resource_field_ref is not None:
                value = resource_value(self.pod, None, item.resource_field_ref, self.node)
            else:
                raise ConfigError(f"downwardAPI item {item.path} has neither fieldRef nor resourceFieldRef")
            payload[item.path] = File(value.encode(), item.mode or mode)
        return payload

    async def _projected(self, source: ProjectedSource) -> Payload:
        payload: Payload = {}
        for part in source.sources:
            if part.config_map is not None:
                payload |= await self._config_map(part.config_map, source.default_mode)
            if part.secret is not None:
                payload |= await self._secret(part.secret, source.default_mode)
            if part.downward_api is not None:
                payload |= self._downward(part.downward_api, source.default_mode)
            if part.service_account_token is not None:
                token = await self._token(part.service_account_token)
                payload[part.service_account_token.path] = File(token.encode(), 0o600)
        return payload

    async def _token(self, source: TokenSource) -> str:
        kept = self._tokens.get(source.path)
        if kept is not None and time.monotonic() < kept.renew_at:
            return kept.token
        metadata = self.pod.metadata
        answer = await self.api.post(
            f"/api/v1/namespaces/{metadata.namespace}/serviceaccounts/{self.pod.spec.service_account_name}/token",
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {
                    "audiences": [source.audience] if source.audience else [],
                    "expirationSeconds": source.expiration_seconds,
                    "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": metadata.name, "uid": metadata.uid},
                },
            },
        )
        token = str(answer["status"]["token"])
        self._tokens[source.path] = _Token(token, time.monotonic() + 0.8 * source.expiration_seconds)
        return token


def check_host_path(source: HostPathSource) -> None:
    """A host path must be there already: the node creates nothing outside its own state.

    Raises ConfigError in a kubelet's words.
    """
    path = Path(source.path)
    if source.type in ("Directory", "DirectoryOrCreate") and not path.is_dir():
        raise ConfigError(f"hostPath type check failed: {path} is not a directory")
    if source.type in ("File", "FileOrCreate") and not path.is_file():
        raise ConfigError(f"hostPath type check failed: {path} is not a file")
    if not path.exists():
        raise ConfigError(f"hostPath type check failed: {path} does not exist")


def write_atomically(folder: Path, payload: Payload) -> None:
    """Replace a volume's content in one step, so that a reader sees either all of the old or all of the new."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.datetime.now(datetime.UTC).strftime("..%Y_%m_%d_%H_%M_%S.") + uuid.uuid4().hex[:8]
    dated = folder / stamp
    dated.mkdir()
    for name, file in payload.items():
        target = dated / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise ConfigError(f'path "{name}" must be relative and must not contain ".."')
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(file.content)
        # Read-only, as the mount would be.
        target.chmod(file.mode & 0o555)
    current = folder / "..data"
    old = os.readlink(current) if current.is_symlink() else None
    link = folder / "..data_tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(stamp)
    link.replace(current)
    tops = {Path(name).parts[0] for name in payload}
    for name in tops:
        entry = folder / name
        if not entry.is_symlink():
            entry.symlink_to(f"..data/{name}")
    for entry in folder.iterdir():
        if not entry.name.startswith("..") and entry.name not in tops:
            entry.unlink()
    if old is not None:
        shutil.rmtree(folder / old, ignore_errors=True)
