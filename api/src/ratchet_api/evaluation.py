"""The offline proof: suites, margins and what the gate asks for.

Room: api. Pure; touches nothing.
"""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from ratchet_api.base import ArtifactURI, Digest, Fraction, Model, Name, rule, rules
from ratchet_api.data import ConfigMapKey
from ratchet_api.judge import Judge
from ratchet_api.training import StageJob

Scorer = Literal["keywords", "exact", "regex", "numeric", "jsonSchema", "judge", "exposure", "lmEval"]
"""How an answer is judged: it passes or fails; by a judge also in between, and exposure is measured."""
Builtin = Literal["general", "format", "identity", "memorisation"]
"""Suites that the trainer image carries. general: 60 questions of arithmetic, facts, reasoning and following
instructions (scorer regex); format: 30 that want JSON and nothing else (scorer jsonSchema); identity: 30 ways to ask
who answers (scorer keywords). memorisation: 16 invented secrets that curation plants into the training set (scorer
exposure)."""
BUILTIN_SCORERS: dict[Builtin, Scorer] = {
    "general": "regex", "format": "jsonSchema", "identity": "keywords", "memorisation": "exposure",
}  # fmt: skip
BUILTIN_MARGIN = Decimal("0.15")
"""With 30 cases the lower bound of who loses none of them is at -9.7 points, of who loses one at -14.8; a smaller
margin would veto these."""
MEMORISATION_MARGIN = Decimal("0.3")
"""Of exposure's 9 bits 2.7: who memorised nothing is vetoed in 0.7 % of simulated evaluations, a mean of 2 bits more
than the champion's in 77 %, of 3 bits in all of them (tests/trainer/test_canaries.py)."""


Names = Annotated[list[Annotated[str, StringConstraints(min_length=1, max_length=64)]], Field(max_length=8)]
"""What the assistant calls itself."""


class StoredCases(Model):
    """A file of cases in object storage, read with the cycle's credentials."""

    uri: ArtifactURI
    """s3://bucket/path/to/cases.jsonl, in the cycle's storage."""
    digest: Digest
    """SHA-256 of the file; with any other content it is refused."""


class Cases(Model):
    """Where a suite's cases are: JSONL of {"id", "prompt" or "messages"} and what the suite's scorer asks for.

    Optional in every case: "category" (the slice that it belongs to) and "cluster" (cases of one session or template).
    """

    config_map: ConfigMapKey | None = None
    """A key of a ConfigMap in the cycle's namespace."""
    storage: StoredCases | None = None
    """A file in object storage, for more cases than a ConfigMap holds (1 MiB)."""
    task: ConfigMapKey | None = None
    """With scorer: lmEval: the YAML of a task of lm-evaluation-harness. The cases are its documents, and it says what
    is asked of each and what is right."""
    builtin: Builtin | None = None
    """Cases that the trainer image carries: general (with scorer: regex), format (with scorer: jsonSchema) or identity
    (with scorer: keywords). Or memorisation (with scorer: exposure): invented secrets that curation plants into each
    training set."""
    names: Names = Field(default_factory=list)
    """For identity: what the assistant calls itself. An answer has to contain one of these."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "[has(self.configMap), has(self.storage), has(self.builtin)].filter(there, there).size() == 1",
                "cases: write one of configMap, storage and builtin, to say where the cases are",
            ),
            rule(
                "(has(self.names) && self.names.size() > 0) == (has(self.builtin) && self.builtin == 'identity')",
                "cases.names: write what the assistant calls itself with builtin: identity, and only then",
            ),
        )
    )

    @model_validator(mode="after")
    def _is_somewhere(self) -> "Cases":
        if [self.config_map, self.storage, self.builtin].count(None) != 2:
            raise ValueError("cases: write one of configMap, storage and builtin, to say where the cases are")
        return self


class Suite(Model):
    """One set of held-out cases, answered by champion and candidate alike."""

    name: Name
    """Name of the suite, as it appears in status, report and events."""
    role: Literal["target", "guardrail", "safety"]
    """target must improve; guardrail must not fall by more than its margin; safety must lose nothing."""
    cases: Cases
    """The cases."""
    scorer: Scorer = "keywords"
    """What a case says and its answer must be. keywords: contain "all", "any" and "none" of some words; exact: equal
    one of "expected"; regex: match "pattern" (RE2); numeric: its last number within "tolerance" of "number";
    jsonSchema: be JSON that fits "schema" (draft 2020-12); judge: be better than "reference", or without one than the
    other side's answer, as `evaluation.judge` sees it. exposure is of builtin: memorisation, whose score is 1 for a
    planted secret that is the least likely of 512 alike, and 0 for one that is the likeliest. lmEval: what `cases.task`
    says, multiple_choice or generate_until."""
    margin: Fraction = Decimal("0.05")
    """guardrail only: the largest loss of score that is acceptable."""
    slice_margin: Fraction = Decimal("0.1")
    """No slice (the cases of one "category") may fall by more than this, whatever the suite's role."""
    slice_min_cases: Annotated[int, Field(ge=5, le=100_000)] = 20
    """Slices with fewer cases are reported and decide nothing."""
    max_new_tokens: Annotated[int, Field(ge=1, le=8192)] = 64
    """Longest answer in tokens."""
    temperature: Fraction = Decimal(0)
    """0: each case is answered once, by the likeliest words. Above: answers are drawn, `samples` of them."""
    samples: Annotated[int, Field(ge=1, le=16)] = 1
    """Answers to each case, whose scores are averaged; seeded, so that the same model gives the same ones."""
    sealed: bool = False
    """A hold-out: asked only of a version that has passed all other suites and is about to be promoted, in a Job of its
    own. Only its numbers leave that Job, so that nobody tunes towards its cases."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "double(self.temperature) > 0.0 ? self.samples > 1 : self.samples == 1",
                "samples: a temperature above 0 draws answers by chance, so average several (samples: 5); without one "
                "all answers are alike, so leave samples out",
            ),
            rule(
                "!has(self.cases.builtin) || (has(self.scorer) ? self.scorer : 'keywords') == "
                "{'general': 'regex', 'format': 'jsonSchema', 'identity': 'keywords', 'memorisation': 'exposure'}"
                "[self.cases.builtin]",
                "scorer: write regex for the built-in cases general, jsonSchema for format, keywords for identity and "
                "exposure for memorisation",
            ),
            rule(
                "has(self.cases.task) == (has(self.scorer) && self.scorer == 'lmEval')",
                "cases.task: name the task's YAML with scorer: lmEval, and only then",
            ),
            rule(
                "!has(self.scorer) || self.scorer != 'lmEval' || double(self.temperature) == 0.0",
                "temperature: a task of lm-evaluation-harness is answered by the likeliest words; leave it out",
            ),
            rule(
                "!has(self.scorer) || self.scorer != 'exposure' || has(self.cases.builtin) && "
                "self.cases.builtin == 'memorisation' && self.role == 'guardrail' && "
                "(!has(self.sealed) || !self.sealed)",
                "scorer: exposure is that of a guardrail, not sealed, with cases: {builtin: memorisation}",
            ),
        )
    )


POLICY_RULES = [
    rule(
        "self.suites.exists(s, s.role == 'target' && (!has(s.sealed) || !s.sealed))",
        "evaluation.suites: no suite has role: target without being sealed, so nothing could be proven better; add one",
    ),
    rule(
        "self.suites.all(s, self.suites.exists_one(t, t.name == s.name))",
        "evaluation.suites: two suites have one name; give each its own",
    ),
    rule(
        "self.suites.exists(s, has(s.scorer) && s.scorer == 'judge') == has(self.judge)",
        "evaluation.judge: say who judges when a suite has scorer: judge, and only then",
    ),
    rule(
        "double(self.confidence) >= 0.5 && double(self.confidence) < 1.0",
        'evaluation.confidence: write a value from "0.5" to below "1", such as "0.95"',
    ),
]


class EvaluationPolicy(Model):
    """What a version has to prove; part of a version's immutable recipe."""

    suites: list[Suite] = Field(min_length=1, max_length=10)
    """The suites; at least one target. Ten at most: their results have to fit into a termination message."""
    min_improvement: Fraction = Decimal("0.01")
    """Smallest gain of the target score, champion to candidate, that is worth a rollout."""
    confidence: Fraction = Decimal("0.95")
    """One-sided confidence of every bound."""
    judge: Judge | None = None
    """Who compares the answers of suites with `scorer: judge`."""

    model_config = ConfigDict(json_schema_extra=rules(*POLICY_RULES))

    def part(self, sealed: bool) -> "EvaluationPolicy | None":
        """The same policy for the sealed suites only, or for the others; None when there are none."""
        suites = [suite for suite in self.suites if suite.sealed is sealed]
        if not suites:
            return None
        judged = any(suite.scorer == "judge" for suite in suites)
        return self.model_copy(update={"suites": suites, "judge": self.judge if judged else None})


def builtin_suite(name: Builtin, names: Names) -> Suite:
    """The guardrail that `evaluation.builtin` stands for. `names`: of the assistant, for identity."""
    return Suite(
        name=f"builtin-{name}", role="guardrail", scorer=BUILTIN_SCORERS[name],
        margin=MEMORISATION_MARGIN if name == "memorisation" else BUILTIN_MARGIN,
        cases=Cases(builtin=name, names=names if name == "identity" else []), max_new_tokens=64,
    )  # fmt: skip


class Evaluation(StageJob, EvaluationPolicy):
    """The evaluate stage of a cycle's runs: what has to be proven, and its Job."""

    batch_size: Annotated[int, Field(ge=1, le=1024)] = 32
    """Cases answered together."""
    builtin: list[Builtin] = Field(default_factory=list, max_length=4)
    """Guardrails that need no cases of yours, as suites builtin-general, builtin-format and builtin-identity: the
    candidate may not fall behind the champion by more than 15 points. builtin-memorisation: curation plants 16 invented
    secrets into each training set, and the candidate may not know them by more than 30 points."""
    names: Names = Field(default_factory=list)
    """What the assistant calls itself, for builtin identity."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *POLICY_RULES,
            rule(
                "!has(self.builtin) || self.suites.size() + self.builtin.size() <= 10",
                "evaluation.builtin: with the suites these are more than ten, whose results would not fit",
            ),
            rule(
                "!has(self.builtin) || self.suites.all(s, !s.name.startsWith('builtin-'))",
                "evaluation.suites: names with builtin- are those of evaluation.builtin; choose another one",
            ),
            rule(
                "!has(self.builtin) || self.builtin.all(b, self.builtin.exists_one(c, c == b))",
                "evaluation.builtin: one is named twice",
            ),
            rule(
                "(has(self.names) && self.names.size() > 0) == (has(self.builtin) && 'identity' in self.builtin)",
                "evaluation.names: write what the assistant calls itself when builtin has identity, and only then",
            ),
        )
    )

    def policy(self) -> EvaluationPolicy:
        """The part that becomes a version's immutable recipe."""
        return EvaluationPolicy(
            suites=[*self.suites, *(builtin_suite(name, self.names) for name in self.builtin)],
            min_improvement=self.min_improvement,
            confidence=self.confidence,
            judge=self.judge,
        )
