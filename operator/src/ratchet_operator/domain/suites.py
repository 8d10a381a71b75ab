"""What can be seen of a suite's cases before a Job is made for them: that there are some, each with an id of its own.

Room: operator/domain. Pure. Whether a case fits its suite's scorer is the trainer's to say.
"""

import json


def trouble(text: str, named: bool = True) -> str | None:
    """What is wrong with a suite's JSONL and what to write instead; None: nothing that can be seen from here. Unless
    they are `named`, the ids of its cases are a matter of their own."""
    seen: dict[object, int] = {}
    numbered = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not numbered:
        return "has no cases: write one JSON object a line"
    for number, line in numbered:
        try:
            case = json.loads(line)
        except (ValueError, RecursionError):
            return f"line {number} is no JSON: write one object a line"
        if not isinstance(case, dict):
            return f"line {number} is no JSON object: write one a line"
        name = case.get("id")
        if not named or not isinstance(name, str):
            continue
        if name in seen:
            return f"line {number}: the id {name[:80]!r} is that of line {seen[name]}; give each case its own"
        seen[name] = number
    return None
