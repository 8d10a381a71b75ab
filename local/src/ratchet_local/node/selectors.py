"""Label selectors in kubectl's notation.

Room: local. Pure.
"""

import re
from collections.abc import Callable, Mapping

Matcher = Callable[[Mapping[str, str]], bool]
_SET = re.compile(r"^([\w./-]+)\s+(in|notin)\s+\(([^)]*)\)$")
_EQUAL = re.compile(r"^([\w./-]+)\s*(==|=|!=)\s*([\w.-]*)$")
_EXISTS = re.compile(r"^(!?)\s*([\w./-]+)$")


def parse_selector(text: str) -> Matcher:
    """`a=b,c!=d,e in (f,g),h,!i` as a predicate over labels. Raises ValueError, naming the part, for anything else."""
    parts = [part.strip() for part in re.split(r",(?![^()]*\))", text) if part.strip()]
    if not parts:
        raise ValueError('the label selector is empty: write for example "ratchet.dev/version=assistant-3"')
    tests = [_requirement(part) for part in parts]
    return lambda labels: all(test(labels) for test in tests)


def _requirement(part: str) -> Matcher:
    if match := _SET.match(part):
        key, operator = match[1], match[2]
        values = {value.strip() for value in match[3].split(",")}
        if operator == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if match := _EQUAL.match(part):
        key, operator, value = match[1], match[2], match[3]
        if operator == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if match := _EXISTS.match(part):
        key, wanted = match[2], not match[1]
        return lambda labels: (key in labels) == wanted
    raise ValueError(f'{part!r} is not a label requirement: write "key=value", "key!=value" or "key in (a,b)"')
