"""The model card: what it is, what it was made from, how it was proven, what it may be used for.

Room: trainer/export. Pure.
"""

import json
from collections.abc import Sequence

from ratchet_api.export import Exported
from ratchet_api.stage import ExportInput


def render(stage: ExportInput, base_digest: str, formats: Sequence[Exported]) -> str:
    """README.md with the hub's YAML front matter."""
    who = stage.identity
    return "\n".join(
        [
            *_front_matter(stage, formats),
            f"# {who.version}",
            "",
            f"A version of the improvement cycle `{who.cycle}`: the base model below with a LoRA adapter merged in.",
            "",
            "| | |",
            "| --- | --- |",
            f"| base model | `{stage.base_model.uri}` |",
            f"| base model's files | `{base_digest}` |",
            f"| adapter | `{stage.adapter.digest}` |",
            f"| training data | {f'`{stage.dataset_digest}`' if stage.dataset_digest else 'not recorded'} |",
            f"| licence | {stage.license or 'not stated'} |",
            "",
            *_evaluation(stage),
            *_formats(formats),
            "",
        ]
    )


def _front_matter(stage: ExportInput, formats: Sequence[Exported]) -> list[str]:
    scheme, _, rest = stage.base_model.uri.partition("://")
    quantised = all(one.format in ("gguf-q8_0", "gguf-q4_k_m") for one in formats)
    lines = ["---"]
    if stage.license:
        lines.append(f"license: {json.dumps(stage.license.lower())}")
    lines.append(f"library_name: {_library(formats)}")
    lines.append("pipeline_tag: text-generation")
    if scheme == "hf":
        lines.append(f"base_model: {json.dumps(rest.partition('@')[0])}")
        lines.append(f"base_model_relation: {'quantized' if quantised else 'finetune'}")
    lines += ["tags:", "- ratchet", "- lora-merged", "---", ""]
    return lines


def _library(formats: Sequence[Exported]) -> str:
    names = {one.format for one in formats}
    if "safetensors" in names:
        return "transformers"
    return "mlx" if "mlx" in names else "gguf"


def _evaluation(stage: ExportInput) -> list[str]:
    if not stage.suites:
        return ["## Evaluation", "", "Not evaluated by this cycle.", ""]
    lines = [
        "## Evaluation", "",
        f"Against `{stage.champion}` on the same held-out cases; scores out of 100, one-sided bound and p value.", "",
        "| suite | role | cases | before | now | difference | lower bound | p |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for suite in stage.suites:
        numbers = (suite.champion, suite.candidate, suite.difference, suite.lower_bound)
        scores = " | ".join(f"{float(value) * 100:.1f}" for value in numbers)
        lines.append(f"| {suite.name} | {suite.role} | {suite.cases} | {scores} | {float(suite.p_value):.2g} |")
    return [*lines, ""]


def _formats(formats: Sequence[Exported]) -> list[str]:
    lines = [
        "## Formats", "",
        "Each was loaded again and compared with base and adapter on the same tokens: root mean square error of the",
        "logits, share of the adapter's effect that it shows, share of positions with the same most likely token.", "",
        "| format | MB | error | effect | agreement |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for one in formats:
        figures = f"{float(one.error):.4f} | {float(one.effect):.3f} | {float(one.agreement):.3f}"
        lines.append(f"| {one.format} | {one.bytes / 1e6:.1f} | {figures} |")
    return lines
