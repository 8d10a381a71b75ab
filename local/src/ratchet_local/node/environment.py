"""A container's environment: where each value comes from, and `$(VAR)` expansion.

Room: local. Pure: ConfigMaps and Secrets are handed in.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from ratchet_local.node.model import Container, EnvSource, Pod, ResourceFieldRef


class ConfigError(Exception):
    """A container cannot be configured yet: CreateContainerConfigError, tried again later."""


_REFERENCE = re.compile(r"\$(?:\$|\(([^()$]*)\))")
_SUBSCRIPT = re.compile(r"^metadata\.(labels|annotations)\['([^']*)'\]$")
_SUFFIXES = {
    "": Decimal(1), "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15),
    "E": Decimal(10**18), "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
    "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip


def expand(text: str, known: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by its value; `$$` is a dollar; an unknown name stays as it is written (Kubernetes' rules)."""

    def replacement(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return known.get(match[1], match[0])

    return _REFERENCE.sub(replacement, text)


def quantity(text: str) -> Decimal:
    """A Kubernetes quantity as a number: `"500m"` is 0.5, `"1Gi"` 1073741824. Raises ValueError for anything else."""
    match = re.fullmatch(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([A-Za-z]*)", text.strip())
    if match is None or match[2] not in _SUFFIXES:
        raise ValueError(f'{text!r} is not a quantity: write a number with a unit, such as "500m" or "8Gi"')
    return Decimal(match[1]) * _SUFFIXES[match[2]]


@dataclass(frozen=True)
class NodeFacts:
    """What field and resource references can say about the node."""

    name: str
    address: str
    cpus: int
    memory_bytes: int


def field_value(pod: Pod, path: str, pod_ip: str, node: NodeFacts) -> str:
    """The value of a `fieldRef`. Raises ConfigError for a path that Kubernetes does not know."""
    if match := _SUBSCRIPT.match(path):
        return (pod.metadata.labels if match[1] == "labels" else pod.metadata.annotations).get(match[2], "")
    values = {
        "metadata.name": pod.metadata.name,
        "metadata.namespace": pod.metadata.namespace,
        "metadata.uid": pod.metadata.uid,
        "metadata.labels": _pairs(pod.metadata.labels),
        "metadata.annotations": _pairs(pod.metadata.annotations),
        "spec.nodeName": node.name,
        "spec.serviceAccountName": pod.spec.service_account_name,
        "status.hostIP": node.address,
        "status.hostIPs": node.address,
        "status.podIP": pod_ip,
        "status.podIPs": pod_ip,
    }
    if path not in values:
        raise ConfigError(f"unsupported fieldPath: {path}")
    return values[path]


def _pairs(values: Mapping[str, str]) -> str:
    return "\n".join(f'{key}="{_escape(value)}"' for key, value in sorted(values.items()))


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def resource_value(pod: Pod, own: Container | None, reference: ResourceFieldRef, node: NodeFacts) -> str:
    """The value of a `resourceFieldRef`, rounded up to its divisor; a missing limit is the node's own size."""
    container = own
    if reference.container_name:
        container = next((c for c in pod.spec.containers if c.name == reference.container_name), None)
    if container is None:
        raise ConfigError(f'resourceFieldRef names no container of this pod: "{reference.container_name}"')
    kind, _, name = reference.resource.partition(".")
    amounts = container.resources.limits if kind == "limits" else container.resources.requests
    default = {"cpu": str(node.cpus), "memory": str(node.memory_bytes)}.get(name, "0") if kind == "limits" else "0"
    amount = quantity(amounts.get(name, default))
    divisor = quantity(reference.divisor) or Decimal(1)
    return str(int((amount / divisor).to_integral_value(ROUND_CEILING)))


Data = Mapping[str, Mapping[str, str] | None]
"""ConfigMaps, or Secrets (decoded), by name; None for one that does not exist."""


def needed(container: Container) -> tuple[set[str], set[str]]:
    """Names of the ConfigMaps and of the Secrets that the container's environment refers to."""
    maps, secrets = set(), set()
    for source in container.env_from:
        if source.config_map_ref:
            maps.add(source.config_map_ref.name)
        if source.secret_ref:
            secrets.add(source.secret_ref.name)
    for variable in container.env:
        if variable.value_from and variable.value_from.config_map_key_ref:
            maps.add(variable.value_from.config_map_key_ref.name)
        if variable.value_from and variable.value_from.secret_key_ref:
            secrets.add(variable.value_from.secret_key_ref.name)
    return maps, secrets


def container_environment(
    pod: Pod, container: Container, pod_ip: str, node: NodeFacts, config_maps: Data, secrets: Data
) -> dict[str, str]:
    """The pod's say on the environment: `envFrom` first, then `env` in order, each seeing those before it.

    Raises ConfigError, in a kubelet's words, when something that is not optional is missing.
    """
    result: dict[str, str] = {}
    for source in container.env_from:
        for reference, data, kind in (
            (source.config_map_ref, config_maps, "configmap"),
            (source.secret_ref, secrets, "secret"),
        ):
            if reference is None:
                continue
            found = data.get(reference.name)
            if found is None and not reference.optional:
                raise ConfigError(f'{kind} "{reference.name}" not found')
            result |= {f"{source.prefix}{key}": value for key, value in (found or {}).items()}
    for variable in container.env:
        if variable.value_from is None:
            result[variable.name] = expand(variable.value, result)
            continue
        value = _from_source(pod, container, variable.value_from, pod_ip, node, config_maps, secrets)
        if value is not None:
            result[variable.name] = value
    return result


def _from_source(
    pod: Pod, container: Container, source: EnvSource, pod_ip: str, node: NodeFacts, config_maps: Data, secrets: Data
) -> str | None:
    if source.field_ref is not None:
        return field_value(pod, source.field_ref.field_path, pod_ip, node)
    if source.resource_field_ref is not None:
        return resource_value(pod, container, source.resource_field_ref, node)
    for selector, data, kind in (
        (source.config_map_key_ref, config_maps, "configmap"),
        (source.secret_key_ref, secrets, "secret"),
    ):
        if selector is None:
            continue
        found = data.get(selector.name)
        if found is not None and selector.key in found:
            return found[selector.key]
        if selector.optional:
            return None
        if found is None:
            raise ConfigError(f'{kind} "{selector.name}" not found')
        title = "ConfigMap" if kind == "configmap" else "Secret"
        raise ConfigError(f"couldn't find key {selector.key} in {title} {pod.metadata.namespace}/{selector.name}")
    return None
