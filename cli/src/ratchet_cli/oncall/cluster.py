"""The API server as the on-call commands see it: typed objects out, plans in, and a bell that rings on every change.

Room: cli. The only module here, with `probes`, that talks to Kubernetes.
"""

import os
import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import kubernetes.client
import kubernetes.config
import kubernetes.watch
import urllib3
from kubernetes.client.exceptions import ApiException
from pydantic import ValidationError

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.names import API_VERSION, CYCLE_KIND, CYCLE_PLURAL, GROUP, VERSION_KIND, VERSION_PLURAL
from ratchet_api.version import ModelVersion
from ratchet_cli.oncall.errors import NotFound, OncallError, Refused, Unreachable
from ratchet_cli.oncall.view import View, Where

FIELD_MANAGER = "kubectl-ratchet"
_SECONDS = 20
"""Longest wait for one answer."""
_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_PLURALS = {CYCLE_KIND: CYCLE_PLURAL, VERSION_KIND: VERSION_PLURAL}
_Resource = TypeVar("_Resource", ImprovementCycle, ModelVersion)


class Cluster:
    """One API server, as one user. Raises OncallErrors only."""

    def __init__(self, where: Where, kubeconfig: str | None = None, context: str | None = None) -> None:
        configuration = kubernetes.client.Configuration()
        try:
            self.namespace = where.namespace or _configure(configuration, kubeconfig, context)
            if where.namespace:
                _configure(configuration, kubeconfig, context)
        except (kubernetes.config.ConfigException, OSError) as error:
            raise Unreachable(
                f"no cluster is configured ({error}): write --kubeconfig FILE, or set KUBECONFIG"
            ) from error
        # An API server that is busy says when to come back; nothing that may have been done is done twice.
        configuration.retries = urllib3.Retry(
            connect=2, read=0, redirect=0, status=5, allowed_methods=None, backoff_factor=0.2
        )
        self.where = where
        self.client = kubernetes.client.ApiClient(configuration)
        self._objects = kubernetes.client.CustomObjectsApi(self.client)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    # Reading

    def raw(self, kind: str, name: str) -> dict[str, Any]:
        """One object as it is. Raises NotFound."""
        with _spoken(f"{kind} {name} in namespace {self.namespace}"):
            found: dict[str, Any] = self._objects.get_namespaced_custom_object(
                GROUP, API_VERSION, self.namespace, _PLURALS[kind], name, _request_timeout=_SECONDS
            )
            return found

    def raw_list(self, kind: str, everywhere: bool = False) -> dict[str, Any]:
        """All objects of a kind in the namespace, or in all namespaces, as they are."""
        with _spoken(f"{kind}s"):
            if everywhere:
                found: dict[str, Any] = self._objects.list_cluster_custom_object(
                    GROUP, API_VERSION, _PLURALS[kind], _request_timeout=_SECONDS
                )
            else:
                found = self._objects.list_namespaced_custom_object(
                    GROUP, API_VERSION, self.namespace, _PLURALS[kind], _request_timeout=_SECONDS
                )
            return found

    def cycles(self, everywhere: bool = False) -> list[ImprovementCycle]:
        """All cycles, by namespace and name."""
        found = [_parsed(ImprovementCycle, item) for item in self.raw_list(CYCLE_KIND, everywhere)["items"]]
        return sorted(found, key=lambda c: (c.metadata.namespace, c.metadata.name))

    def version(self, name: str) -> ModelVersion:
        """One version. Raises NotFound."""
        return _parsed(ModelVersion, self.raw(VERSION_KIND, name))

    def view(self, name: str) -> View:
        """A cycle with its versions. Raises NotFound."""
        cycle = _parsed(ImprovementCycle, self.raw(CYCLE_KIND, name))
        items = self.raw_list(VERSION_KIND)["items"]
        versions = [_parsed(ModelVersion, item) for item in items if item["spec"].get("cycle") == name]
        versions.sort(key=lambda v: (str(v.metadata.creation_timestamp), v.metadata.name))
        return View(cycle, tuple(versions), self.where)

    def find(self, name: str) -> tuple[View, ModelVersion | None]:
        """The cycle of that name; or the version of that name, with its cycle. Raises NotFound."""
        try:
            return self.view(name), None
        except NotFound:
            pass
        try:
            version = self.version(name)
        except NotFound as error:
            here = f"namespace {self.namespace}"
            list_them = self.where.ratchet("get")
            raise NotFound(f"there is no cycle and no version {name} in {here}: `{list_them}` lists them") from error
        return self.view(version.spec.cycle), version

    # Writing

    def patch(self, kind: str, name: str, body: Mapping[str, Any], dry_run: bool) -> None:
        """JSON merge patch of a cycle or a version, as the field manager `kubectl-ratchet`."""
        options = {"dry_run": "All"} if dry_run else {}
        with _spoken(f"{kind} {name} in namespace {self.namespace}"):
            self._objects.patch_namespaced_custom_object(
                GROUP, API_VERSION, self.namespace, _PLURALS[kind], name, dict(body), field_manager=FIELD_MANAGER,
                _content_type="application/merge-patch+json", _request_timeout=_SECONDS, **options,
            )  # fmt: skip

    def create_version(self, body: Mapping[str, Any], dry_run: bool) -> None:
        """A new ModelVersion."""
        options = {"dry_run": "All"} if dry_run else {}
        with _spoken(f"version {body['metadata']['name']} in namespace {self.namespace}"):
            self._objects.create_namespaced_custom_object(
                GROUP, API_VERSION, self.namespace, VERSION_PLURAL, dict(body), field_manager=FIELD_MANAGER,
                _request_timeout=_SECONDS, **options,
            )  # fmt: skip

    def try_apply(self, kind: str, body: Mapping[str, Any]) -> str | None:
        """Server-side apply as a dry run, by the strictest validation; the API server's Status when it refuses."""
        namespace = body["metadata"].get("namespace") or self.namespace
        try:
            self._objects.patch_namespaced_custom_object(
                GROUP, API_VERSION, namespace, _PLURALS[kind], body["metadata"]["name"], dict(body),
                field_manager=FIELD_MANAGER, force=True, dry_run="All", field_validation="Strict",
                _content_type="application/apply-patch+yaml", _request_timeout=_SECONDS,
            )  # fmt: skip
        except ApiException as error:
            if error.status in (400, 422):
                return str(error.body)
            raise _answer(f"namespace {namespace}", error) from error
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"the API server does not answer: {error}") from error
        return None

    # Watching

    @contextmanager
    def bell(self) -> Iterator["Bell"]:
        """Rings whenever a cycle or a version of the namespace changes."""
        bell = Bell(self._objects, self.namespace)
        try:
            yield bell
        finally:
            bell.stop()


class Bell:
    """Two watches as one signal. What has changed is then read anew, so a lost event costs nothing but time."""

    def __init__(self, objects: Any, namespace: str) -> None:
        self._objects, self._namespace = objects, namespace
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._watches = {plural: kubernetes.watch.Watch() for plural in _PLURALS.values()}
        for plural in self._watches:
            threading.Thread(target=self._listen, args=(plural,), name=f"watch-{plural}", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Until something changes, for at most `seconds`; whether something did. Several changes are one."""
        try:
            self._rings.get(timeout=max(0.0, seconds))
            while not self._rings.empty():
                self._rings.get()
        except queue.Empty:
            return False
        return True

    def stop(self) -> None:
        """Rings no more. The threads end with their watches."""
        self._ended.set()
        for watch in self._watches.values():
            watch.stop()

    def _listen(self, plural: str) -> None:
        while not self._ended.is_set():
            try:
                stream = self._watches[plural].stream(
                    self._objects.list_namespaced_custom_object, GROUP, API_VERSION, self._namespace, plural,
                    timeout_seconds=60, _request_timeout=(5, 90),
                )  # fmt: skip
                for _ in stream:
                    self._rings.put(None)
                    if self._ended.is_set():
                        return
            except (ApiException, urllib3.exceptions.HTTPError):
                # The next look says what is wrong; until then the watch is tried again.
                self._rings.put(None)
                self._ended.wait(2)


def _configure(configuration: Any, kubeconfig: str | None, context: str | None) -> str:
    """Fill in the kubeconfig's or the pod's access; returns the namespace that it means."""
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and kubeconfig is None and "KUBECONFIG" not in os.environ
    if in_pod and not Path(kubernetes.config.KUBE_CONFIG_DEFAULT_LOCATION).expanduser().exists():
        kubernetes.config.load_incluster_config(client_configuration=configuration)
        return _ACCOUNT_NAMESPACE.read_text(encoding="utf-8").strip()
    kubernetes.config.load_kube_config(kubeconfig, context=context, client_configuration=configuration)
    contexts, active = kubernetes.config.list_kube_config_contexts(kubeconfig)
    chosen = next((one for one in contexts if one["name"] == context), active)
    return str(chosen["context"].get("namespace") or "default")


def _parsed(model: type[_Resource], item: dict[str, Any]) -> _Resource:
    try:
        return model.model_validate(item)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise OncallError(
            f"{model.__name__} {item['metadata']['name']} has a field that this program does not understand, "
            f"{path}: {first['msg']}; use the ratchet command of the operator's version"
        ) from error


@contextmanager
def _spoken(what: str) -> Iterator[None]:
    """Turns the client's errors into ours."""
    try:
        yield
    except ApiException as error:
        raise _answer(what, error) from error
    except urllib3.exceptions.HTTPError as error:
        raise Unreachable(f"the API server does not answer: {error}") from error


def _answer(what: str, error: ApiException) -> OncallError:
    said = message_of(error)
    match error.status:
        case 404 if "could not find the requested resource" in said or "page not found" in said:
            return Unreachable(
                "the cluster does not know Ratchet's resources: install the chart, or `kubectl apply -f crds/`"
            )
        case 404:
            return NotFound(f"there is no {what}")
        case 401:
            return Unreachable("the API server does not know you: log in again, or write another --context")
        case 403:
            return Unreachable(f"you may not do this: {said}")
        case 409:
            return Refused(f"{what} was changed or made by somebody else meanwhile: type the command again ({said})")
        case 422:
            return Refused(f"the API server refuses it: {said}")
        case _:
            return Unreachable(f"the API server answered {error.status}: {said}")


def message_of(error: ApiException) -> str:
    """The sentence in an API server's Status object, or what there is instead."""
    import json

    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.body or error.reason or "").strip()
