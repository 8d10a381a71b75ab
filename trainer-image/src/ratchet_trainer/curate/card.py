"""The dataset's card: README.md, for people who meet the dataset without its cycle.

Room: trainer. Pure. Equal statistics give equal text.
"""

from collections.abc import Mapping
from typing import Any

from ratchet_trainer.curate.funnel import Funnel

CARD = "README.md"


def card(statistics: Mapping[str, Any], funnel: Funnel, rejected: Funnel | None = None) -> str:
    """The card in Markdown, with the front matter that dataset hubs read; `rejected`: of what people preferred."""
    rows = statistics["rows"]
    total = sum(rows.values())
    size = next(name for most, name in _SIZES if total < most)
    interactions = statistics["interactions"]
    window = statistics.get("window")
    times = f" recorded from {window['since'][:10]} to {window['until'][:10]}" if window else ""
    parts = [
        f"---\ntask_categories:\n- text-generation\nsize_categories:\n- {size}\ntags:\n- ratchet\nconfigs:\n"
        "- config_name: default\n  data_files: train.jsonl\n---\n",
        f"# A training set of {total} rows, curated by Ratchet\n",
        f"From {funnel['reading'].kept} interactions{times}, "
        f"of which {interactions['judged']} were judged and {interactions['successful']} were good. "
        "Every line that was read is accounted for below; `statistics.json` has the same numbers for machines.\n",
        _targets(statistics),
        "## What was kept, and what was not\n",
        *_steps(funnel),
        "\n`reading` counts lines (feedback is joined to the interaction that it judges), the other rules count "
        "interactions.\n",
        *_samples(funnel),
        f"Kept aside to look at the loss: {statistics['validation']} examples.\n" if statistics["validation"] else "",
        _table("Rows by origin", "origin", rows),
        _table("Examples by category", "category", statistics["categories"] | _others(statistics)),
        _sensitive(statistics["sensitive"]),
        _canaries(statistics.get("canaries")),
        *([] if rejected is None else _preferences(statistics["preferences"], rejected)),
        _FILES,
    ]
    return "\n".join(part for part in parts if part)


def _steps(funnel: Funnel) -> list[str]:
    return [
        "| rule | what is left after it | read | kept | changed | dropped |\n|---|---|---:|---:|---:|---|",
        *(
            f"| {step.rule} | {funnel.rules[step.rule]} | {step.read} | {step.kept} | {step.changed} | "
            f"{_counts(step.dropped)} |"
            for step in funnel.steps
        ),
    ]


def _preferences(said: Mapping[str, Any], funnel: Funnel) -> list[str]:
    counts = ", ".join(f"{said[name]} {name}" for name in ("pairs", "desirable", "undesirable") if name in said)
    return [
        f"## What people preferred\n\nFor training by {said['method']}: {counts}, in {said['rows']} rows"
        + (f"; {said['validation']} are kept aside" if said["validation"] else "")
        + ". What became of the answers that people did not want:\n",
        *_steps(funnel),
        "",
        *_samples(funnel),
        f"Personal data and secrets found in them: {_counts(said['sensitive']['found'])}.\n",
        _PREFERENCE_FILES,
    ]


_PREFERENCE_FILES = """| file | what |
|---|---|
| `preferences.jsonl` | what is trained on, in TRL's columns: `prompt`, `chosen` and `rejected` (dpo), or `prompt`, \
`completion` and `label` (kto) |
| `preferences_validation.jsonl` | the same of the newest sessions, kept aside, if that was asked for |
| `preferences.parquet`, `preferences_alpaca.json` | the same as columns, and for LLaMA-Factory |
"""


_SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
          (float("inf"), "n>1M"))  # fmt: skip
_FILES = """## Files

| file | what |
|---|---|
| `train.jsonl` | OpenAI messages, with each row's origin, category and interaction; `weight: 0` is context only |
| `validation.jsonl` | the newest sessions, kept aside to look at the loss, if that was asked for |
| `train.parquet` | the same as columns |
| `alpaca.json`, `sharegpt.json`, `dataset_info.json`, `train.yaml` | the same for LLaMA-Factory: \
`llamafactory-cli train train.yaml`, in this folder |
| `croissant.json` | the files and their columns in the Croissant format |
| `card.html` | this page with plots, in one file |
| `statistics.json` | every number of this page |
| `quarantine.jsonl` | places of the lines that could not be read, if there were any |
| `subjects.jsonl` | session and hashed person of each example, so that those who withdraw can be found |
| `canaries.json` | invented secrets among the rows, if any were planted |
| `manifest.json` | the SHA-256 of every file |
"""


def reached(statistics: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """The numbers that a training set is first looked at for: name, number, and what it should be at least."""
    targets = statistics["targets"]
    numbers = {
        "interactions": statistics["lines"]["interactions"],
        "successful": statistics["interactions"]["successful"],
        "categories": len(statistics["categories"]),
        "examples": sum(number for origin, number in statistics["rows"].items() if origin != "canary"),
    }
    return [(name, number, targets[name]) for name, number in numbers.items()]


def _targets(statistics: Mapping[str, Any]) -> str:
    lines = [
        f"| {name} | {number} | {target}+ | {'yes' if number >= target else 'no'} |"
        for name, number, target in reached(statistics)
    ]
    return "| number | here | rule of thumb | reached |\n|---|---:|---:|---|\n" + "\n".join(lines) + "\n"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "–"


def _samples(funnel: Funnel) -> list[str]:
    lines = [
        f"- **{reason}** ({step.rule}): {_quoted(text)}"
        for step in funnel.steps
        for reason, texts in step.samples().items()
        for text in texts
    ]
    return ["### Some of what was dropped (redacted)\n", *lines, ""] if lines else []


def _quoted(text: str) -> str:
    """Text of people as code, so that it is neither markup nor a link."""
    fence = "`" * (max((len(run) for run in _runs(text)), default=0) + 1)
    return f"{fence} {text} {fence}"


def _runs(text: str) -> list[str]:
    return [run for run in "".join(c if c == "`" else " " for c in text).split(" ") if run]


def _table(title: str, noun: str, counts: Mapping[str, int]) -> str:
    lines = [f"| {name} | {count} |" for name, count in sorted(counts.items())]
    return f"## {title}\n\n| {noun} | number |\n|---|---:|\n" + "\n".join(lines) + "\n"


def _others(statistics: Mapping[str, Any]) -> dict[str, int]:
    return {"uncategorised": statistics["uncategorised"]} if statistics["uncategorised"] else {}


def _canaries(said: Mapping[str, Any] | None) -> str:
    if said is None:
        return ""
    rows = said["planted"] * said["repeats"]
    return (
        f"## Canaries\n\n{said['planted']} invented secrets, each in {said['repeats']} phrasings, were planted among "
        f"the rows (origin `canary`, {rows} rows), to measure how much a training memorises (Carlini et al. 2019, "
        "arXiv:1802.08232). Nobody said them, and they count neither as examples nor as interactions. Leave out the "
        "rows of that origin to train without them.\n"
    )


def _sensitive(found: Mapping[str, Any]) -> str:
    return (
        "## Personal data and secrets\n\nFound by form (names and addresses have none): "
        f"{_counts(found['found'])}. Examples in which a second look still found some: {found['residualExamples']}.\n"
    )
