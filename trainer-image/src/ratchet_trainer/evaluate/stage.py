"""The evaluate stage: candidate, champion and bare base answer the same cases, on one loaded base model.

Room: trainer. Touches storage, the suites' folder, the scratch folder and the device. Reads top to bottom.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

from ratchet_api.artifacts import Manifest
from ratchet_api.data import AdapterRef
from ratchet_api.evaluation import Suite
from ratchet_api.judge import under_test
from ratchet_api.reasons import Reason
from ratchet_api.stage import EvaluateInput, Level, StageReport, attempt_uri
from ratchet_api.version import Artifact, Provenance
from ratchet_trainer.artifacts import tool_versions
from ratchet_trainer.canaries import CANDIDATES, Planted, unexposed
from ratchet_trainer.chat import TemplateError, Tokenizer, encode, prompt_ids, render, stop_ids
from ratchet_trainer.dataset import write_json
from ratchet_trainer.errors import UserError
from ratchet_trainer.evaluate import page
from ratchet_trainer.evaluate.judge import Bench, Judged, calls_at_most, check_budget
from ratchet_trainer.evaluate.memorisation import cases_of, exposures, planted_in, texts_of
from ratchet_trainer.evaluate.memory import Asking, Memory
from ratchet_trainer.evaluate.results import Asked, case_lines, cases_digest, read_results, report_document
from ratchet_trainer.harness import ChoiceCase
from ratchet_trainer.loading import inference_dtype, load_adapters, load_model, load_tokenizer, pick_device, use_threads
from ratchet_trainer.metrics import Progress
from ratchet_trainer.models import LocalModel, fetch_adapter, resolve_base
from ratchet_trainer.scorers import Case, JudgeCase
from ratchet_trainer.storage import Location, Store
from ratchet_trainer.suites import read_suite

log = logging.getLogger("ratchet")

REPORT = "report.json"
CASES = "cases.jsonl"
PAGE = "report.html"


def run(
    stage: EvaluateInput, store: Store, scratch: Path, progress: Progress, suites: Path | None, pvc_root: Path | None
) -> StageReport:
    """Asks, compares, publishes and reports; reports again without work when the same evaluation was published before.

    Raises StageError's children.
    """
    cases, planted = _cases(stage, store, suites)
    bench = _bench(stage, store, cases)
    levels = {
        suite.name: stage.levels.of(cases_digest(cases[suite.name]))
        for suite in stage.policy.suites
        if suite.role == "target"
    }
    recipe = _recipe(stage, cases, levels)
    uri = attempt_uri(stage.identity.storage_uri, stage.identity.version, stage.identity.attempt, "report")
    uri, finished = store.place(uri, "report", recipe)
    if finished is not None:
        return _report(store, stage, uri, finished)

    base = resolve_base(stage.base_model, store, scratch / "base", pvc_root)
    sides = {"candidate": stage.candidate, "champion": stage.champion}
    folders = {}
    for name, adapter in sides.items():
        if adapter is not None:
            fetch_adapter(adapter, store, scratch / name)
            folders[name] = scratch / name
    memory = Memory(store, stage.identity.storage_uri)
    asked = _ask(stage, base, folders, cases, planted, levels, progress, memory, bench)
    folder = scratch / "report"
    _write(folder, stage, asked)
    inputs = {"recipe": recipe, "base": base.digest}
    inputs |= {name: adapter.digest for name, adapter in sides.items() if adapter is not None}
    numbers: dict[str, int | float | str] = {"cases": sum(len(found) for found in cases.values())}
    return _report(store, stage, uri, store.publish(folder, uri, "report", inputs, numbers))


def _cases(
    stage: EvaluateInput, store: Store, suites: Path | None
) -> tuple[dict[str, list[Case]], Planted | None]:  # fmt: skip
    """The cases of each suite, and what was planted for the one that looks for it. That has none when nothing was."""
    planted = None
    if any(suite.scorer == "exposure" for suite in stage.policy.suites):
        planted = planted_in(stage.dataset, store)
    cases: dict[str, list[Case]] = {}
    for suite in stage.policy.suites:
        cases[suite.name] = (
            [*cases_of(planted)] if suite.scorer == "exposure" else read_suite(suite, suites, store)
        )  # fmt: skip
    return cases, planted


def _recipe(stage: EvaluateInput, cases: dict[str, list[Case]], levels: dict[str, Level]) -> str:
    """Digest of all that determines the report."""
    recipe = {
        "base": stage.base_model.dump(),
        "candidate": _digest(stage.candidate),
        "champion": _digest(stage.champion),
        "policy": stage.policy.dump(),
        "levels": {name: level.model_dump(mode="json") for name, level in levels.items()},
        "dataset": None if stage.dataset is None else stage.dataset.digest,
        "cases": {
            name: [case.model_dump(mode="json", by_alias=True) for case in found] for name, found in cases.items()
        },
    }
    return "sha256:" + hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def _digest(adapter: AdapterRef | None) -> str:
    return "" if adapter is None else adapter.digest


def _ask(
    stage: EvaluateInput,
    base: LocalModel,
    adapters: dict[str, Path],
    cases: dict[str, list[Case]],
    planted: Planted | None,
    levels: dict[str, Level],
    progress: Progress,
    memory: Memory,
    bench: Bench | None,
) -> list[Asked]:
    sides = _sides(stage)
    suites = [suite for suite in stage.policy.suites if suite.scorer != "exposure"]
    questions = sum(len(cases[suite.name]) * suite.samples for suite in suites)
    models = _Models(stage, base, adapters, sides, memory, _Ticker(progress, len(sides) * questions))
    asked = []
    confidence = float(stage.policy.confidence)
    for suite in stage.policy.suites:
        if suite.scorer == "exposure":
            asked += [] if planted is None else [_exposed(models, suite, cases[suite.name], planted, confidence)]
            continue
        prompts = _prompts(models.tokenizer, suite, cases[suite.name])
        choices = [_continuations(models.tokenizer, one) for one in cases[suite.name] if isinstance(one, ChoiceCase)]
        answers = {
            side: models.choices(side, suite, cases[suite.name], choices)
            if choices
            else models.answers(side, suite, prompts)
            for side in sides
        }
        candidate = answers["candidate"]
        champion = answers.get("champion", candidate)
        judged = _judged(bench, suite, cases[suite.name], champion, candidate)
        asked.append(
            Asked(
                suite, cases[suite.name], champion, candidate, confidence, answers.get("base"), judged,
                levels.get(suite.name),
            )
        )  # fmt: skip
    for one in asked:
        result = one.compared
        log.info(
            "suite %s: champion %.1f, candidate %.1f of 100 (%d better, %d worse of %d, p %.2g)", one.suite.name,
            100 * result.champion, 100 * result.candidate, result.better, result.worse, result.cases, result.p_value,
        )  # fmt: skip
    return asked


def _exposed(
    models: "_Models", suite: Suite, cases: Sequence[Case], planted: Planted, confidence: float
) -> Asked:  # fmt: skip
    """The suite that looks for what was planted."""
    bits = models.exposures(planted)
    said = {side: [[f"exposure {one:.1f} of {math.log2(CANDIDATES):.0f} bits"] for one in found]
            for side, found in bits.items()}  # fmt: skip
    scores = {side: [unexposed(one) for one in found] for side, found in bits.items()}
    return Asked(suite, cases, said["champion"], said["candidate"], confidence, measured=scores)


class _Models:
    """All sides on one loaded base, and what they answered in earlier evaluations. The base is loaded when the first
    question has to be asked: not for an evaluation that is only made anew at another error rate."""

    def __init__(
        self,
        stage: EvaluateInput,
        base: LocalModel,
        adapters: dict[str, Path],
        sides: dict[str, AdapterRef | None],
        memory: Memory,
        ticker: "_Ticker",
    ) -> None:
        use_threads()
        self._name, self._device = stage.base_model.uri, pick_device()
        self._dtype = inference_dtype(self._device)
        self.tokenizer = load_tokenizer(base.path, self._name)
        self._base, self._adapters, self._sides, self._batch_size = base, adapters, sides, stage.batch_size
        self._memory, self._ticker = memory, ticker

    @cached_property
    def _loaded(self) -> tuple[Callable[[str], AbstractContextManager[Any]], frozenset[int]]:
        """How to switch between the sides, and the tokens that end an answer."""
        from ratchet_trainer.frozen import freeze_linears

        model = load_model(self._base.path, self._name, self._device, self._dtype)
        stops = stop_ids(self.tokenizer, model.generation_config)
        switch = load_adapters(model, self._adapters)
        freeze_linears(model)
        return switch, stops

    def answers(self, side: str, suite: Suite, prompts: list[list[int]]) -> list[list[str]]:
        """For each prompt, as many as the suite's samples."""
        from ratchet_trainer.generation.batch import answer_all

        asking = Asking(
            self._base.digest, _digest(self._sides[side]), prompts, suite.max_new_tokens, str(suite.temperature),
            suite.samples, f"{self._device.type} {self._dtype}",
        )  # fmt: skip

        def ask(active: Any, stops: frozenset[int]) -> list[list[str]]:
            return answer_all(
                active, self.tokenizer, stops, prompts, suite.max_new_tokens, self._batch_size,
                self._ticker.part(), float(suite.temperature), suite.samples,
            )  # fmt: skip

        return self._recalled(side, suite, asking, ask)

    def choices(
        self, side: str, suite: Suite, cases: Sequence[Case], texts: Sequence[tuple[list[int], list[list[int]]]]
    ) -> list[list[str]]:
        """For each case the choice that the side takes. `texts`: for each its context, and how each choice goes on."""
        from ratchet_trainer.evaluate.likelihood import log_likelihoods

        # No token is negative: so it is seen where one text ends.
        whole = [[*context, *(token for one in continued for token in (-1, *one))] for context, continued in texts]
        metrics = sorted({case.metric for case in cases if isinstance(case, ChoiceCase)})
        asking = Asking(
            self._base.digest, _digest(self._sides[side]), whole, 0, f"choices by {metrics}", 1,
            f"{self._device.type} {self._dtype}",
        )  # fmt: skip

        def ask(active: Any, stops: frozenset[int]) -> list[list[str]]:
            found, tick = list[list[str]](), self._ticker.part()
            for case, (context, continued) in zip(cases, texts, strict=True):
                assert isinstance(case, ChoiceCase)
                found.append([case.chosen(log_likelihoods(active, context, continued))])
                tick(len(found), len(found))
            return found

        return self._recalled(side, suite, asking, ask)

    def _recalled(
        self, side: str, suite: Suite, asking: Asking, ask: Callable[[Any, frozenset[int]], list[list[str]]]
    ) -> list[list[str]]:
        """What the side said in an earlier evaluation, or says now. What a sealed suite was told is not kept."""
        known = None if suite.sealed else self._memory.recall(asking)
        if known is not None:
            log.info("suite %s: the %s answered it in an earlier evaluation", suite.name, side)
            self._ticker.spare(len(known) * suite.samples)
            return known
        switch, stops = self._loaded
        with switch(side) as active:
            found = ask(active, stops)
        if not suite.sealed:
            self._memory.keep(asking, found)
        return found

    def exposures(self, planted: Planted) -> dict[str, list[float]]:
        """Of each canary, in bits, to candidate and champion."""
        switch, stops = self._loaded
        texts = texts_of(self.tokenizer, planted, stops)
        found: dict[str, list[float]] = {}
        for side in ("candidate", "champion"):
            if side in self._sides:
                with switch(side) as active:
                    found[side] = exposures(active, texts)
        return found if "champion" in found else found | {"champion": found["candidate"]}


def _sides(stage: EvaluateInput) -> dict[str, AdapterRef | None]:
    """Who is asked, with its adapter (None: the bare base). What stands for two of them is asked once: the same greedy
    answers, and of drawn ones the same draw."""
    sides: dict[str, AdapterRef | None] = {"candidate": stage.candidate}
    if stage.champion != stage.candidate:
        sides["champion"] = stage.champion
    if None not in sides.values():
        sides["base"] = None
    return sides


def _bench(stage: EvaluateInput, store: Store, cases: dict[str, list[Case]]) -> Bench | None:
    """The judge, if a suite asks for one. Raises UserError for one that is under test, or that could cost too much."""
    judge, who = stage.policy.judge, stage.identity
    suites = {suite.name: suite for suite in stage.policy.suites if suite.scorer == "judge"}
    if not suites:
        return None
    if judge is None:
        raise UserError(f"evaluation.judge: suite {min(suites)} has scorer: judge, so say who judges")
    itself = under_test(judge, who.cycle, stage.base_model.uri)
    if itself is not None:
        raise UserError(
            f"evaluation.judge.model: {judge.model} is the {itself}, which is under test; name another model"
        )
    check_budget(judge, {name: calls_at_most(suite, _judge_cases(cases[name])) for name, suite in suites.items()})
    return Bench(judge, store, who.storage_uri, [who.cycle, who.version, stage.champion_version])


def _judge_cases(cases: Sequence[Case]) -> list[JudgeCase]:
    return [case for case in cases if isinstance(case, JudgeCase)]


def _judged(
    bench: Bench | None, suite: Suite, cases: Sequence[Case], champion: Sequence[Sequence[str]],
    candidate: Sequence[Sequence[str]],
) -> Judged | None:  # fmt: skip
    if bench is None or suite.scorer != "judge":
        return None
    found = bench.score(suite, _judge_cases(cases), champion, candidate)
    log.info(
        "suite %s: %d verdicts (%d ties, %d invalid); asked of the judge so far: %d, %d tokens", suite.name,
        found.verdicts, found.ties, found.invalid, bench.calls, bench.tokens,
    )  # fmt: skip
    return found


def _prompts(tokenizer: Tokenizer, suite: Suite, cases: Sequence[Case]) -> list[list[int]]:
    prompts = []
    for case in cases:
        try:
            prompts.append(prompt_ids(tokenizer, case.conversation))
        except TemplateError as error:
            text = f"suite {suite.name}, case {case.id}: the model's chat template refuses it: {error}"
            raise UserError(text) from None
    return prompts


def _continuations(tokenizer: Tokenizer, case: ChoiceCase) -> tuple[list[int], list[list[int]]]:
    """Context and choices in tokens. White space at the end of the context belongs to the choices, as lm-eval has it:
    tokenizers join it with the word that follows."""
    text = render(tokenizer, case.conversation, answer_next=True)
    context = encode(tokenizer, text.rstrip())
    return context, [encode(tokenizer, text + choice)[len(context) :] for choice in case.choices]


class _Ticker:
    """Progress over all suites and both sides: answers done, tokens a second, time to go."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = self._tokens = 0
        self._began = self._said = time.monotonic()

    def spare(self, count: int) -> None:
        """So many need not be asked."""
        self._total -= count

    def part(self) -> Callable[[int, int], None]:
        """A callback for one suite and side."""
        done_before, tokens_before = self._done, self._tokens

        def tick(done: int, tokens: int) -> None:
            self._done, self._tokens = done_before + done, tokens_before + tokens
            now = time.monotonic()
            seconds = max(now - self._began, 1e-9)
            speed = self._tokens / seconds
            eta = seconds / self._done * (self._total - self._done)
            self._progress.update(self._done, self._total, speed=speed, eta=eta)
            if now - self._said >= 5:
                self._said = now
                log.info("answer %d/%d  %.0f tokens/s  eta %.0f s", self._done, self._total, speed, eta)

        return tick


def _write(folder: Path, stage: EvaluateInput, asked: Sequence[Asked]) -> None:
    folder.mkdir(parents=True)
    write_json(folder / REPORT, report_document(stage, asked))
    (folder / PAGE).write_text(page.render(stage, asked), encoding="utf-8")
    with (folder / CASES).open("w", encoding="utf-8") as sink:
        for line in case_lines(asked):
            sink.write(json.dumps(line, ensure_ascii=False) + "\n")


def _report(store: Store, stage: EvaluateInput, uri: str, manifest: Manifest) -> StageReport:
    data = store.get(Location.parse(uri).child(REPORT))
    results = read_results(data or b'{"suites": []}')
    unmeasured = {suite.name for suite in stage.policy.suites} - {result.name for result in results}
    nothing = "".join(f"; {name} was not measured, as nothing was planted" for name in sorted(unmeasured))
    text = ", ".join(f"{r.name} {float(r.difference) * 100:+.1f} points (p {float(r.p_value):.2g})" for r in results)
    return StageReport(
        stage="evaluate",
        outcome="Succeeded",
        reason=Reason.SUCCEEDED,
        message=f"against {stage.champion_version}: {text}{nothing}",
        artifact=Artifact(uri=uri, digest=manifest.digest),
        suites=results,
        provenance=Provenance(base_model_digest=manifest.inputs["base"], tools=manifest.tools or tool_versions()),
    )
