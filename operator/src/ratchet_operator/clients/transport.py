"""HTTP to the API server: credentials, time limits, and errors as ours.

Room: operator, clients. `kubernetes.aio` supplies credentials, TLS and requests; generated API classes are not used,
because server-side apply, status updates with a resource version and metadata-only reads are plain requests.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, Protocol

import aiohttp
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.dynamic import DynamicClient
from kubernetes.aio.dynamic.exceptions import DynamicApiError

from ratchet_api.reasons import Reason
from ratchet_operator.errors import Conflict, Forbidden, Stalling, Unavailable

JSON = dict[str, Any]
REQUEST_SECONDS = 20.0


class NotFound(Exception):
    """404: a read answers None for it, a delete is content with it."""


class AlreadyExists(Conflict):
    """409 on create, because there is an object of that name; a create can be refused by 409 for other reasons too."""


class Transport(Protocol):
    """One request to the API server."""

    async def request(
        self,
        method: str,
        path: str,
        body: JSON | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str | None = None,
        accept: str | None = None,
    ) -> JSON:
        """Answer's JSON. Raises NotFound, AlreadyExists, Conflict, Forbidden, Stalling (422, 400) or Unavailable."""
        ...


async def load_configuration() -> Configuration:
    """KUBECONFIG when it is set, else the pod's own service account. Raises kubernetes' ConfigException."""
    configuration = Configuration()
    path = os.environ.get("KUBECONFIG")
    if path:
        # Named outright, because the library remembers the variable as it was when it was imported.
        await kubernetes_config.load_kube_config(config_file=path, client_configuration=configuration)
    else:
        kubernetes_config.load_incluster_config(client_configuration=configuration)
    return configuration


class Api:
    """The real Transport."""

    def __init__(self, configuration: Configuration) -> None:
        self._client = ApiClient(configuration)
        self._dynamic = DynamicClient(self._client)

    @classmethod
    async def connect(cls) -> "Api":
        """With the credentials of the environment."""
        return cls(await load_configuration())

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def request(
        self,
        method: str,
        path: str,
        body: JSON | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str | None = None,
        accept: str | None = None,
    ) -> JSON:
        """See Transport."""
        try:
            return await self._once(method, path, body, query, content_type, accept)
        except _Unauthorized:
            # A token read from a file has been renewed since; the client library only does so in a cluster.
            await self._log_in_again()
            try:
                return await self._once(method, path, body, query, content_type, accept)
            except _Unauthorized as error:
                raise Unavailable(f"the API server does not know us any more: {error}") from error

    async def _log_in_again(self) -> None:
        old = self._client
        self._client = ApiClient(await load_configuration())
        self._dynamic = DynamicClient(self._client)
        await old.close()

    async def _once(
        self,
        method: str,
        path: str,
        body: JSON | None,
        query: Mapping[str, str] | None,
        content_type: str | None,
        accept: str | None,
    ) -> JSON:
        try:
            response = await self._dynamic.request(
                method,
                path,
                body=body,
                query_params=list((query or {}).items()),
                content_type=content_type,
                header_params={"Accept": accept} if accept else {},
                serialize=False,
                _request_timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
            )
            answer: JSON = await response.json(content_type=None)
        except DynamicApiError as error:
            raise translated(method, path, error.status, _text(error), _reason(error)) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"{method.upper()} {path}: {type(error).__name__}: {error}") from error
        return answer


class _Unauthorized(Exception):
    pass


def _text(error: DynamicApiError) -> str:
    body = error.body
    if isinstance(body, bytes):
        body = body.decode(errors="replace")
    try:
        summary: str = error.summary() if body else str(error.reason)
    except (ValueError, KeyError, TypeError):
        summary = str(body)
    return summary


def _reason(error: DynamicApiError) -> str:
    """The machine's word in the API server's Status object; empty if something else than it has answered."""
    try:
        body = json.loads(error.body or "{}")
    except ValueError:
        return ""
    return str(body.get("reason", "")) if isinstance(body, dict) else ""


def translated(method: str, path: str, status: int, text: str, reason: str = "") -> Exception:
    """The error of ours for an HTTP status and the API server's reason (metav1.StatusReason)."""
    sentence = f"{method.upper()} {path}: {status}: {text}"
    if status == 401:
        return _Unauthorized(sentence)
    if status == 403 and "is being terminated" not in text and "exceeded quota" not in text:
        return Forbidden(sentence)
    if status == 404:
        return NotFound(sentence)
    if status == 409:
        # A create is also answered by 409 when another one was counted against the quota at the same moment.
        return AlreadyExists(sentence) if reason == "AlreadyExists" else Conflict(sentence)
    if status in (400, 403, 422):
        return Stalling(Reason.INVALID_SPEC, f"the API server refuses what the spec asks for: {text}")
    return Unavailable(sentence)
