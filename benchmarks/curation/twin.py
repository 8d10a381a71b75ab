"""The twin: the same rules in plain Python, as one writes them in a notebook: json, re, sets of strings, datasketch."""

import io
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import zstandard
from datasketch import MinHash, MinHashLSH

SIMILARITY = 0.8
LETTERS = 5


def normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def shingles(text: str) -> set[str]:
    return {text[i : i + LETTERS] for i in range(max(1, len(text) - LETTERS + 1))}


def luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()][::-1]
    return (sum(digits[::2]) + sum(sum(divmod(2 * d, 10)) for d in digits[1::2])) % 10 == 0


FORMS: Mapping[str, re.Pattern[str]] = {
    "email": re.compile(r"[\w.+%-]+@(?:[\w-]+\.)+[a-z]{2,}", re.I),
    "aws": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "github": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36,}"),
    "iban": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
    "card": re.compile(r"\b\d(?:[ -]?\d){12,18}\b"),
    "phone": re.compile(r"\+\d{1,3}[ .-]?\d(?:[ .-]?\d){5,12}"),
    "ip": re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b"),
}


def redact(text: str) -> tuple[str, int]:
    total = 0
    for name, form in FORMS.items():
        if name == "card":
            text, count = form.subn(lambda match: "[CARD]" if luhn(match.group()) else match.group(), text)
        else:
            text, count = form.subn(f"[{name.upper()}]", text)
        total += count
    return text, total


def curate(files: Sequence[Path], held_out: Sequence[str]) -> tuple[list[str], set[str], set[str], set[str]]:
    """Ids kept, ids of exact and of near duplicates, ids with something redacted."""
    records, liked = [], set()
    for path in files:
        with path.open("rb") as raw:
            for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), encoding="utf-8"):
                record = json.loads(line)
                datetime.fromisoformat(record["time"])
                if record["kind"] == "feedback":
                    liked.add(record["response_id"])
                else:
                    records.append(record)
    grams = {tuple(w[i : i + 13]) for w in (normalised(p).split() for p in held_out) for i in range(len(w) - 12)}
    rows, redacted = {}, set()
    for record in sorted(records, key=lambda r: (r["time"], r["id"])):
        if record["id"] not in liked:
            continue
        prompt, one = redact(record["messages"][-1]["content"])
        answer, other = redact(record["answer"]["content"])
        if one or other:
            redacted.add(record["id"])
        words = normalised(f"{prompt} {answer}").split()
        if any(tuple(words[i : i + 13]) in grams for i in range(len(words) - 12)):
            continue
        rows[record["id"]] = (normalised(prompt), normalised(answer))
    last = {key: id for id, key in rows.items()}
    exact = {id for id, key in rows.items() if last[key] != id}
    index = MinHashLSH(threshold=SIMILARITY, num_perm=120, params=(20, 6))
    sets: dict[str, set[str]] = {}
    near = set()
    for id in reversed([id for id in rows if id not in exact]):
        found = shingles("\n".join(rows[id]))
        sketch = MinHash(num_perm=120)
        sketch.update_batch([shingle.encode() for shingle in found])
        if any(len(found & sets[o]) >= SIMILARITY * len(found | sets[o]) for o in index.query(sketch)):
            near.add(id)
        else:
            index.insert(id, sketch)
            sets[id] = found
    return [id for id in rows if id not in exact and id not in near], exact, near, redacted
