"""The pointer in a person's YAML file: found by the document and the path, changed where it stands.

Room: operator/domain. Pure: text in, text out. Only the characters of the one value are replaced, so comments, order,
quotes and line ends stay as they are, and the diff is one line. Templates that are no YAML are not understood.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from ratchet_api.names import CYCLE_KIND, GROUP

DEFAULT_POINTER = "spec.serving.version"
MOST_CHARACTERS = 1_000_000
MOST_NODES = 100_000
"""Aliases can make a small file grow without end."""
_STEP = re.compile(r"\[([0-9]+)\]|([A-Za-z0-9_-]+)")


class PointerError(Exception):
    """The pointer is not there, or not clear; the text says what to write."""


@dataclass(frozen=True)
class Target:
    """Which pointer is meant."""

    namespace: str
    name: str
    """Of the cycle."""
    pointer: str = DEFAULT_POINTER
    """Keys with dots, list positions in brackets."""


def current(text: str, target: Target) -> str:
    """What the pointer says. Raises PointerError."""
    return str(_find(text, target).value)


def changed(text: str, target: Target, version: str) -> str:
    """The file with another version at the pointer, and not a character else changed. Raises PointerError."""
    node = _find(text, target)
    start, end = node.start_mark.index, node.end_mark.index
    quote = node.style if node.style in ("'", '"') else ""
    if not quote and (node.style is not None or not _reads_as_text(version)):
        quote = '"'
    # A block scalar's token ends after its line break.
    ending = "\n" if node.style in ("|", ">") and text[start:end].endswith("\n") else ""
    after = f"{text[:start]}{quote}{version}{quote}{ending}{text[end:]}"
    _check_only_change(text, after, target, version)
    return after


def _find(text: str, target: Target) -> yaml.ScalarNode:
    found = [node for node in (_walk(one, target) for one in _candidates(text, target)) if node is not None]
    if len(found) > 1:
        raise PointerError(f"{target.pointer} is in {len(found)} documents of the file: leave it in one")
    if not found:
        raise PointerError(f"the file has no {target.pointer}: write it there once, with the version that serves")
    node = found[0]
    if not isinstance(node, yaml.ScalarNode) or node.tag == "tag:yaml.org,2002:null" or not node.value:
        raise PointerError(f"{target.pointer} holds no version: write the one that serves there")
    return node


def _candidates(text: str, target: Target) -> list[yaml.Node]:
    documents = _documents(text)
    if target.pointer != DEFAULT_POINTER:
        own = [one for one in _objects(documents) if _is_cycle(one, target) and _walk(one, target) is not None]
        return own or documents
    own = [one for one in _objects(documents) if _is_cycle(one, target)]
    if len(own) > 1:
        raise PointerError(f"the file has {len(own)} {CYCLE_KIND} documents named {target.name}: leave one")
    if not own:
        where = f"{CYCLE_KIND} {target.name} of namespace {target.namespace}"
        raise PointerError(f"the file has no {where}: correct promotion.git.path, or write it there")
    return own


def _documents(text: str) -> list[yaml.Node]:
    if len(text) > MOST_CHARACTERS:
        raise PointerError(f"the file is longer than {MOST_CHARACTERS} characters: move the pointer to a smaller one")
    try:
        return [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        raise PointerError(
            f"the file is no YAML{where}: correct it, or keep the pointer in a file without templates"
        ) from None


def _objects(documents: list[yaml.Node]) -> Iterator[yaml.Node]:
    """The documents, and the items of those that are lists."""
    for document in documents:
        yield document
        items = _key(document, "items")
        if isinstance(items, yaml.SequenceNode):
            yield from items.value


def _is_cycle(node: yaml.Node, target: Target) -> bool:
    if _text(_key(node, "kind")) != CYCLE_KIND or not (_text(_key(node, "apiVersion")) or "").startswith(f"{GROUP}/"):
        return False
    metadata = _key(node, "metadata")
    named = metadata is not None and _text(_key(metadata, "name")) == target.name
    return named and (metadata is None or _text(_key(metadata, "namespace")) in (None, "", target.namespace))


def _walk(node: yaml.Node | None, target: Target) -> yaml.Node | None:
    for position, key in _STEP.findall(target.pointer):
        if position:
            items = node.value if isinstance(node, yaml.SequenceNode) else []
            node = items[int(position)] if int(position) < len(items) else None
        else:
            node = _key(node, key)
    return node


def _key(node: yaml.Node | None, name: str) -> yaml.Node | None:
    """The value of a key. Raises PointerError when it is there twice."""
    if not isinstance(node, yaml.MappingNode):
        return None
    found = [value for key, value in node.value if isinstance(key, yaml.ScalarNode) and key.value == name]
    if len(found) > 1:
        line = found[1].start_mark.line + 1
        raise PointerError(f"the key {name} is there twice in one mapping (line {line}): leave one")
    return found[0] if found else None


def _text(node: yaml.Node | None) -> str | None:
    return node.value if isinstance(node, yaml.ScalarNode) else None


def _reads_as_text(value: str) -> bool:
    """Whether every YAML takes it for text when it is not quoted: on it does not, nor, of some version of YAML or
    other, what begins with a digit (1e3) or is one letter (y)."""
    if len(value) < 2 or not value[0].isalpha():
        return False
    node = yaml.compose(value, Loader=yaml.SafeLoader)
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str" and node.value == value


def _check_only_change(before: str, after: str, target: Target, version: str) -> None:
    """The same documents but for the one value: an anchor that others refer to would change them as well."""
    shared = PointerError(
        f"{target.pointer} shares its value with another place of the file (an anchor): write the version itself"
    )
    old = _flat(_documents(before))
    try:
        new = _flat(_documents(after))
    except PointerError:
        raise shared from None  # the anchor went with the value, and somebody refers to it
    differing = [(a, b) for a, b in zip(old, new, strict=False) if a[:-1] != b[:-1]]
    if len(old) != len(new) or len(differing) > 1 or current(after, target) != version:
        raise shared


def _flat(documents: list[yaml.Node]) -> list[tuple[object, ...]]:
    """Every scalar with its place, aliases followed."""
    found: list[tuple[object, ...]] = []

    def visit(node: yaml.Node, path: tuple[object, ...]) -> None:
        if len(found) > MOST_NODES:
            raise PointerError(f"the file has more than {MOST_NODES} values: move the pointer to a smaller one")
        if isinstance(node, yaml.MappingNode):
            found.append((path, "mapping", node.tag))
            for number, (key, value) in enumerate(node.value):
                visit(key, (*path, number, "key"))
                visit(value, (*path, number))
        elif isinstance(node, yaml.SequenceNode):
            found.append((path, "sequence", node.tag))
            for number, item in enumerate(node.value):
                visit(item, (*path, number))
        else:
            found.append((path, "scalar", node.value, node.tag))

    try:
        for number, document in enumerate(documents):
            visit(document, (number,))
    except RecursionError:
        raise PointerError("the file's documents refer to themselves: move the pointer to another file") from None
    return found
