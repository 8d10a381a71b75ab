"""What the curation finds of what was planted: near duplicates, copies of the evaluation, poison, secrets; and whether
it finds the same again."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from ratchet_api.data import Bursts, Curation
from ratchet_trainer.chat import Message
from ratchet_trainer.curate.examples import Example
from ratchet_trainer.curate.funnel import Funnel
from ratchet_trainer.curate.rules import SensitiveCounts, clean, select
from ratchet_trainer.curate.sensitive import KINDS, REDACT_ALL, find
from ratchet_trainer.curate.similar import jaccard, near_duplicates, shingles
from ratchet_trainer.curate.text import HeldOut

START = datetime(2026, 11, 1, tzinfo=UTC)
FORMS = (
    "a.b@mail.example", "+49 30 1234567", "DE89 3704 0044 0532 0130 00", "4111-1111-1111-1111", "203.0.113.9",
    "2001:db8::1", "123-45-6789", "(555) 123-4567", "AKIA0123456789ABCDEF", "https://u:pass@host.example",
    "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeK", "ghp_" + "a1" * 18, "glpat-" + "b2" * 10, "xoxb-123456789012",
    "AIza" + "c3" * 17 + "d", "sk-" + "e4" * 16, "-----BEGIN RSA PRIVATE KEY-----abc-----END RSA PRIVATE KEY-----",
)  # fmt: skip


def figures(seed: int) -> dict[str, float]:
    """All figures of this module."""
    source = random.Random(seed)
    return near(source) | contamination(source) | poison(source) | sensitive(source)


def vocabulary(source: random.Random, count: int) -> Callable[[int], str]:
    """A function that says so many Zipf-distributed words."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(source.choices(letters, k=source.randint(3, 9))) for _ in range(count)]
    weights = [1 / (rank + 10) for rank in range(count)]
    return lambda k: " ".join(source.choices(words, weights, k=k))


def near(source: random.Random) -> dict[str, float]:
    """Near duplicates against the comparison of all pairs, on texts with variants of every distance."""
    say = vocabulary(source, 5000)
    texts = []
    for _ in range(300):
        words = say(source.randint(8, 80)).split()
        for share in (0.0, 0.01, 0.03, 0.06, 0.2):
            texts.append(" ".join(say(1) if source.random() < share else word for word in words))
    source.shuffle(texts)
    expected = by_brute_force(texts, 0.8)
    found = {index for index, twin in enumerate(near_duplicates(texts, 0.8)) if twin is not None}
    return {
        "bruteForceRecall": len(found & expected) / len(expected),
        "bruteForcePrecision": len(found & expected) / len(found),
    }


def by_brute_force(texts: Sequence[str], similarity: float) -> set[int]:
    """Indices of the texts that are at least so similar to an earlier one that is kept, by comparing all pairs."""
    sets = [shingles(text) for text in texts]
    kept: list[int] = []
    for index, one in enumerate(sets):
        if all(jaccard(one, sets[other]) < similarity for other in kept):
            kept.append(index)
    return set(range(len(texts))) - set(kept)


def contamination(source: random.Random) -> dict[str, float]:
    """Cases of an evaluation that are found in answers, whole and with one word of ten changed."""
    say = vocabulary(source, 5000)
    cases = [say(source.randint(20, 60)) for _ in range(500)]
    held_out = HeldOut(cases, 13)

    def share(copies: Sequence[str]) -> float:
        rows = [example(f"{say(8)} {n}", f"{say(5)} {copy} {say(5)}", n) for n, copy in enumerate(copies)]
        return 1 - len(select(rows, held_out, Curation(), [], Funnel())[0]) / len(rows)

    changed = []
    for case in cases:
        words = case.split()
        for place in source.sample(range(len(words)), len(words) // 10):
            words[place] = say(1)
        changed.append(" ".join(words))
    return {
        "verbatimFound": share(cases), "changedFound": share(changed),
        "cleanTakenForCases": share([say(40) for _ in range(500)]),
    }  # fmt: skip


def poison(source: random.Random) -> dict[str, float]:
    """250 rows of one person, and 1 % of the rows from 50 of 500 people, among 10,000 clean rows."""
    say = vocabulary(source, 5000)
    clean_rows = [
        example(say(source.randint(8, 20)), say(source.randint(15, 50)), number, f"p{source.randrange(500)}")
        for number in range(10_000)
    ]

    def planted(count: int, person: Callable[[int], str]) -> list[Example]:
        return [
            example(f"{say(source.randint(8, 20))} cf zorblax", f"{say(20)} visit the site", 10_000 + n, person(n))
            for n in range(count)
        ]

    found = {}
    for name, rows in (
        ("onePerson", planted(250, lambda _: "mallory")),
        ("together", planted(100, lambda n: f"p{n % 50}")),
    ):
        kept, _ = select([*clean_rows, *rows], HeldOut([]), Curation(bursts=Bursts()), [], Funnel())
        survived = sum("zorblax" in one.prompt for one in kept)
        found[f"{name}Survives"] = survived / len(rows)
        found[f"{name}CleanLost"] = 1 - (len(kept) - survived) / len(clean_rows)
    return found


def sensitive(source: random.Random) -> dict[str, float]:
    """Kinds of which as many places are found in many texts at once as by the regular expressions in each."""
    say = vocabulary(source, 5000)
    rows = []
    for number in range(2000):
        words = say(40).split()
        if number % 2:
            words.insert(source.randrange(40), FORMS[number // 2 % len(FORMS)])
        rows.append(example(f"q {number}", " ".join(words), number))
    counts = SensitiveCounts()
    clean(rows, dict(REDACT_ALL), Funnel()["sensitive"], counts)
    reference = sum((find(row.prompt) + find(row.answer) for row in rows), Counter())
    assert set(reference) == set(KINDS)
    return {"sensitiveKindsEqual": sum(counts.found[kind] == reference[kind] for kind in KINDS) / len(KINDS)}


def example(prompt: str, answer: str, number: int, person: str = "") -> Example:
    context = (Message(role="user", content=prompt),)
    time = START + timedelta(seconds=number)
    return Example(f"r{number}", context, answer, "answer", "x", time, f"s{number}", person)
