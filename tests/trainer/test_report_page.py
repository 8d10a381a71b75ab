"""report.html: everything in it, nothing from elsewhere, nothing that runs."""

import dataclasses
import math
import random
import re
from decimal import Decimal
from html.parser import HTMLParser

import pytest

from ratchet_api.evaluation import Suite
from ratchet_api.power import cases_needed, discordant_share
from ratchet_api.stage import EvaluateInput, Level
from ratchet_trainer.chat import Message
from ratchet_trainer.evaluate import page
from ratchet_trainer.evaluate.results import Asked, Strength, report_document, suite_results
from ratchet_trainer.evaluate.statistics import compare, power
from ratchet_trainer.scorers import ExactCase, KeywordCase

VOID = {"meta", "br", "line", "circle", "path"}


class Checked(HTMLParser):
    """Well nested, self-contained, without anything that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "embed", "link", "img", "form", "base")
        for name, value in attrs:
            assert not name.startswith("on"), name
            assert name != "src"
            if name == "href":
                assert value is not None
                self.links.append(value)
            if name == "id":
                assert value is not None
                self.ids.add(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def stage(*suites: Suite, gain: str = "0.01") -> EvaluateInput:
    identity = {"namespace": "default", "cycle": "assistant", "version": "assistant-7", "storage_uri": "s3://bucket/a"}
    return EvaluateInput.model_validate(
        {
            "identity": identity, "base_model": {"uri": "file:///x"}, "candidate": None, "champion": None,
            "levels": {"fresh": {"number": 1, "alpha": "0.025"}},
            "champion_version": "assistant-6", "batch_size": 1,
            "policy": {"suites": [suite.dump() for suite in suites], "minImprovement": gain},
        }
    )  # fmt: skip


def suite(name: str, role: str, **more: object) -> Suite:
    document = {"name": name, "role": role, "cases": {"configMap": {"name": "x", "key": "y"}}}
    return Suite.model_validate(document | more)


def made(hostile: str = "") -> list[Asked]:
    """A target with slices and clusters, a guardrail, a safety suite."""
    generator = random.Random(5)
    cases, champion, candidate = [], [], []
    for index in range(120):
        category, cluster = ("commands", "secrets", "refunds", "few")[min(index // 35, 3)], f"session-{index // 4}"
        prompt = f"Where is secret {index}? {hostile}"
        cases.append(KeywordCase(id=f"c-{index}", prompt=prompt, all=["vault"], category=category, cluster=cluster))
        champion.append(["In the vault." if generator.random() < 0.5 else "No idea."])
        odds = 0.1 if category == "refunds" else 0.95
        candidate.append([f"In the vault {hostile}" if generator.random() < odds else f"Somewhere {hostile}"])
    general = [
        ExactCase(
            id=f"g-{index}",
            messages=[Message(role="system", content="Be brief."), Message(role="user", content=f"{index} + 1?")],
            expected=[str(index + 1)],
        )
        for index in range(30)
    ]
    right = [[str(index + 1)] for index in range(30)]
    return [
        Asked(
            suite("house-rules", "target"),
            cases,
            champion,
            candidate,
            0.95,
            [[f"No. {hostile}"]] * 120,
            None,
            Level(number=3, alpha=Decimal("0.004166666666")),
        ),
        Asked(suite("general", "guardrail", scorer="exact"), general, right, [[""], *right[1:]], 0.95),
        Asked(suite("refusals", "safety", scorer="exact"), general, right, right, 0.95),
    ]


def render(asked: list[Asked], gain: str = "0.01") -> str:
    return page.render(stage(*(one.suite for one in asked), gain=gain), asked)


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    text = render(made())
    checked = Checked()
    checked.feed(text)
    assert checked.open == []
    assert all(link.startswith("#") and link[1:] in checked.ids for link in checked.links)
    assert not re.search(r"https?://|url\(|@import", text)
    assert "default-src 'none'" in text
    assert text.count("<svg") == 2, "all suites, and the slices of the one that has some"


def test_the_page_says_what_the_gate_sees() -> None:
    asked = made()
    text = render(asked)
    (target, *_) = asked
    found = target.compared
    for words in (
        "assistant-7 against assistant-6", "one-sided at 95 %", f"{100 * found.champion:.1f}",
        f"{100 * found.lower_bound:+.1f}", f"{found.p_value:.2g}", "in 30 clusters", "cases are needed", "with power",
        "fell past its margin", "too few cases", "c-119",
        "look 3 of the cycle's versions", "p has to be below 0.0042", "one-sided at 99.5833 %",
        "All three", ">bare base</th>", "bare base fails",
    ):  # fmt: skip
        assert words in text, words
    document = report_document(stage(*(one.suite for one in asked)), asked)
    details = document["details"]["house-rules"]
    assert details["clusters"] == 30
    assert details["casesNeeded"] > 120
    assert [entry["name"] for entry in details["slices"] if entry["fell"]] == ["refunds"]
    assert render(made()) == text, "the same evaluation, the same bytes"


def test_bound_power_and_cases_are_those_at_the_level_that_is_left() -> None:
    later = made()[0]
    first = dataclasses.replace(later, level=Level(number=1, alpha=Decimal("0.025")))
    by_policy = dataclasses.replace(later, level=None)
    numbers = []
    for one, alpha in ((later, 0.004166666666), (first, 0.025), (by_policy, 0.05)):
        found, strength = one.compared, Strength.of(one, 0.05)
        assert strength is not None
        clusters = [case.cluster for case in one.cases]
        scores = one.scores["champion"], one.scores["candidate"]
        assert found == compare(*scores, 1 - alpha, clusters=clusters)
        share = discordant_share(found.better, found.worse, found.cases)
        needed = cases_needed(0.05, share, 1 - alpha) * found.design_effect
        assert strength.cases_needed == math.ceil(needed)
        assert strength.power == power(int(found.cases / found.design_effect), 0.05, share, 1 - alpha)
        numbers.append((found.lower_bound, strength.power, -strength.cases_needed))
    assert all(a < b < c for a, b, c in zip(*numbers, strict=True)), "the smaller the error rate, the less is shown"
    assert [entry.upper_bound for entry in later.slices] == [entry.upper_bound for entry in by_policy.slices]
    (result,) = suite_results([later])
    assert (result.look, str(result.alpha)) == (3, "0.004166666666")
    assert float(result.lower_bound) == round(later.compared.lower_bound, 6)


def test_lost_cases_come_first_and_open() -> None:
    shown = re.findall(r"<details( open)?><summary><code>(g-\d+)</code>", render(made()))
    assert shown[0] == (" open", "g-0")
    assert {state for state, _ in shown[1:]} == {""}


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>", "</pre></div><img src=x onerror=alert(1)>", "{{ 7*7 }}", "{% raw %}",
        "\x00\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "&lt;", '"><svg onload=x>',
    ],
)  # fmt: skip
def test_what_people_and_models_write_is_only_text(hostile: str) -> None:
    text = render(made(hostile))
    checked = Checked()
    checked.feed(text)
    assert checked.open == []
    if "7*7" in hostile:
        assert "{{ 7*7 }}" in text


def test_secrets_and_personal_data_are_redacted() -> None:
    text = render(made("write to jane.doe@example.com with AKIAIOSFODNN7EXAMPLE"))
    assert "jane.doe" not in text
    assert "AKIAIOSFODNN7EXAMPLE" not in text


@pytest.mark.parametrize(("champion", "candidate"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_extremes_can_be_drawn(champion: int, candidate: int) -> None:
    cases = [KeywordCase(id="only", prompt="?", all=["x"], category="one")]
    one = Asked(suite("tiny", "target"), cases, [["x" * champion]], [["x" * candidate]], 0.95)
    checked = Checked()
    checked.feed(render([one], gain="0"))
    assert checked.open == []


def test_long_answers_and_many_cases_are_cut_and_counted() -> None:
    cases = [KeywordCase(id=f"c{index}", prompt="?", all=["x"]) for index in range(page.SHOWN_CASES + 7)]
    one = Asked(suite("many", "target"), cases, [["y " * 5000]] * len(cases), [["x"]] * len(cases), 0.95)
    text = render([one])
    assert "7 more cases are in cases.jsonl" in text
    assert "(10000 characters)" in text
    assert text.count("<details") == page.SHOWN_CASES
