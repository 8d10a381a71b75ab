"""The looks at many texts at once: each says the same as the look at one text, or points at no fewer."""

import json
import random
import sys
import tracemalloc
import unicodedata
from datetime import timedelta
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trainer.test_curate import NOW, example

from ratchet_api.data import DEFAULT_CATEGORIES, Category, Curation
from ratchet_trainer.curate.columns import BATCH_CHARACTERS, Columns, Seen, batches
from ratchet_trainer.curate.examples import Categoriser, Example
from ratchet_trainer.curate.pipeline import Counts, SessionFile, Settings, examples_of
from ratchet_trainer.curate.pool import Keyed, Pool
from ratchet_trainer.curate.sensitive import find, suspects
from ratchet_trainer.curate.similar import BANDS, band_keys, jaccard, shingles
from ratchet_trainer.curate.spill import ExampleStore, Spill
from ratchet_trainer.curate.text import HeldOut, normalised, words

LETTERS = st.text(st.sampled_from("ab cé日\n_-1٣.🙂"), max_size=40)
PLANTED = (
    "a@b.example", "+49 30 1234567", "DE89 3704 0044 0532 0130 00", "4111-1111-1111-1111", "٤١١١١١١١١١١١١١١١",
    "203.0.113.9", "2001:db8::1", "123-45-6789", "(555) 123-4567", "555.123.4567", "0301 1234567", "AKIA" + "0" * 16,
    "https://u:secret@host", "eyJ" + "a" * 9 + ".eyJ" + "b" * 9 + "." + "c" * 9, "ghp_" + "a" * 36, "xoxb-1234567890",
    "glpat-" + "a" * 20, "AIza" + "b" * 35, "sk-" + "c" * 24, "hf_" + "d" * 32, "-----BEGIN RSA PRIVATE KEY-----",
    "aws_secret_access_key = " + "e" * 40, "SG." + "f" * 22 + "." + "g" * 43, "rk_live_" + "h" * 20,
)  # fmt: skip


@given(st.lists(LETTERS, max_size=8))
def test_words_of_many_texts_are_those_of_each(texts: list[str]) -> None:
    normal = [normalised(text) for text in texts]
    columns = Columns(normal)
    assert columns.word_counts().tolist() == [len(words(text)) for text in texts]
    hashes, owners = columns.words
    by_hash: dict[int, str] = {}
    for index, text in enumerate(texts):
        for word, hashed in zip(words(text), hashes[owners == index].tolist(), strict=True):
            assert by_hash.setdefault(hashed, word) == word
    assert len(set(by_hash.values())) == len(by_hash), "one word has one hash, wherever it stands"


def test_long_words_are_told_apart_by_their_ends() -> None:
    texts = [("a" * length + end) for length in (6, 7, 8, 15, 16, 63, 64, 65, 1000) for end in ("b", "c", "é")]
    hashes, owners = Columns([*texts, *reversed(texts)]).words
    assert owners.tolist() == list(range(2 * len(texts)))
    assert hashes[: len(texts)].tolist() == hashes[len(texts) :].tolist()[::-1]
    assert len(set(hashes.tolist())) == len(texts)


@given(st.text(st.characters(max_codepoint=127) | st.sampled_from("  \t\n\x0b\x1cAZ"), max_size=12))
def test_plain_letters_have_the_normal_form_of_all(text: str) -> None:
    assert normalised(text) == " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@given(st.lists(LETTERS, max_size=8), st.integers(1, 5))
def test_sequences_stay_within_their_text(texts: list[str], length: int) -> None:
    hashes, owners = Columns([normalised(text) for text in texts]).sequences(length)
    expected = [
        (index, found[i : i + length])
        for index, found in enumerate(map(words, texts))
        for i in range(len(found) - length + 1)
    ]
    assert owners.tolist() == [index for index, _ in expected]
    names = dict(zip(hashes.tolist(), (words for _, words in expected), strict=True))
    assert [names[each] for each in hashes.tolist()] == [words for _, words in expected]


@settings(max_examples=200)
@given(st.lists(st.lists(st.sampled_from([*PLANTED, "a", "1", "\n", "日", "x-", ":", "12"]), max_size=4), max_size=6))
def test_no_text_with_something_sensitive_is_passed_by(parts: list[list[str]]) -> None:
    texts = [" ".join(part) for part in parts]
    assert {index for index, text in enumerate(texts) if find(text)} <= set(suspects(texts))


def test_every_planted_form_is_looked_at_alone_and_among_others() -> None:
    for text in PLANTED:
        assert find(text), text
        assert list(suspects(["nothing here", text, "nor here", f"x {text}", ""])) == [1, 3], text


def test_digits_of_every_script_are_digits() -> None:
    for code in range(sys.maxunicode):
        if unicodedata.category(chr(code)) == "Nd":
            assert list(suspects(["", chr(code) * 13])) == [1], hex(code)


@given(st.lists(st.lists(st.integers(0, 5), max_size=30), max_size=6), st.integers(0, 2**32))
def test_no_text_that_is_held_out_is_passed_by(texts: list[list[int]], seed: int) -> None:
    source = random.Random(seed)
    prompts = [" ".join(f"w{source.randrange(6)}" for _ in range(source.randint(1, 25))) for _ in range(3)]
    for overlap in (0, 2, 5, 13):
        held_out = HeldOut(prompts, overlap)
        said = [", ".join(f"W{word}" for word in text) for text in texts] + prompts
        expected = [held_out.covers(text) or held_out.overlaps(text) for text in said]
        found = held_out.suspects([normalised(text) for text in said])
        assert not any(held and not seen for held, seen in zip(expected, found, strict=True))


def test_few_texts_are_suspected() -> None:
    source = random.Random(7)
    said = [" ".join(f"w{source.randrange(3000)}" for _ in range(60)) for _ in range(500)]
    held_out = HeldOut([" ".join(f"w{source.randrange(3000)}" for _ in range(40)) for _ in range(200)], 13)
    assert held_out.suspects(said).sum() <= 1
    assert not HeldOut([], 13).suspects(["", *said]).any()


@given(st.lists(st.text(st.sampled_from("fixF yaml.é\nſſK"), max_size=30), max_size=6))
def test_categories_of_many_prompts_are_those_of_each(prompts: list[str]) -> None:
    own = [*DEFAULT_CATEGORIES, Category(name="x", keywords=["a.f", "fix"]), Category(name="l", keywords=["yaml"])]
    for categories in (own, [Category(name="w", keywords=["é", "fix"]), *own]):
        categorise = Categoriser(categories)
        assert categorise.many(prompts) == [categorise(prompt) for prompt in prompts]


@given(st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=12))
def test_what_was_seen_is_known(chunks: list[list[int]]) -> None:
    seen, known = Seen(), set[int]()
    for chunk in chunks:
        expected = []
        for digest in chunk:
            expected.append(digest not in known)
            known.add(digest)
        assert seen.add(chunk) == expected


@given(st.lists(st.integers(0, 3 * BATCH_CHARACTERS), max_size=12))
def test_batches_are_all_texts_and_no_larger_than_need_be(lengths: list[int]) -> None:
    texts = ["x" * length for length in lengths]
    pieces = list(batches(texts))
    assert [index for piece in pieces for index in range(piece.start, piece.stop)] == list(range(len(texts)))
    for piece in pieces:
        assert sum(map(len, texts[piece])) <= max(BATCH_CHARACTERS, *map(len, texts[piece]))


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_what_is_spilled_comes_back(pieces: list[bytes]) -> None:
    spill = Spill(in_memory=40)
    places = [spill.append(piece) for piece in pieces]
    assert [spill.read(place, place + len(piece)) for place, piece in zip(places, pieces, strict=True)] == pieces


def test_a_stored_example_is_the_same() -> None:
    store = ExampleStore()
    given_ = [example("q" * n, "a\ud800", session=f"s{n}", principal="p", own=True) for n in range(3)]
    for each in given_:
        store.append(each)
    assert [store[index] for index in range(len(store))] == given_


def test_the_pool_sorts_by_time_then_by_id() -> None:
    source = random.Random(2)
    given_ = [
        example("q", "a", id=id, time=NOW.replace(second=source.randrange(3)))
        for _ in range(30)
        for id in (f"chatcmpl-{source.randrange(9)}", chr(source.randrange(99, 999)))
    ]
    pool = Pool(bands=False)
    pool.add([Keyed.of(each) for each in given_])
    assert list(pool.sorted()) == sorted(given_, key=lambda each: (each.time, each.id))


def test_equal_sets_share_every_band_and_similar_ones_share_one() -> None:
    source = random.Random(3)
    found = tried = 0
    for _ in range(1500):
        said = [f"{source.getrandbits(40):x}" for _ in range(source.randint(10, 60))]
        other = list(said)
        other[source.randrange(len(other))] = "zzz"
        one, two = " ".join(said), " ".join(other)
        keys = band_keys([one, two, one])
        assert keys.shape == (BANDS, 3)
        assert np.array_equal(keys[:, 0], keys[:, 2])
        if 0.8 <= jaccard(shingles(one), shingles(two)) < 0.9:
            tried += 1
            found += bool((keys[:, 0] == keys[:, 1]).any())
    assert tried > 100
    assert found >= 0.95 * tried


def test_examples_are_a_sequence() -> None:
    pool = Pool(bands=False)
    given_: list[Example] = [example(str(n), "a", id=f"r{n}", time=NOW.replace(second=n)) for n in range(5)]
    pool.add([Keyed.of(each) for each in given_])
    kept = pool.sorted()
    assert [kept[1], kept[-1], *kept[1:3], *kept.where([True, False, False, False, True])] == [
        given_[1], given_[4], given_[1], given_[2], given_[0], given_[4],
    ]  # fmt: skip


def test_long_lines_are_not_held_together(tmp_path: Path) -> None:
    """64 conversations of nearly 1 MiB each: no more of them at once than a few."""
    with (tmp_path / "a.jsonl").open("w") as sink:
        for number in range(64):
            turns = [{"role": "user", "content": "x" * 900_000}, {"role": "user", "content": "q"}]
            record = {
                "kind": "interaction", "id": f"r{number}", "session": "s", "namespace": "n", "cycle": "c",
                "version": "v", "arm": "stable", "time": "2026-11-20T10:00:00Z", "messages": turns,
                "answer": {"role": "assistant", "content": "a"}, "status": 200, "duration": 1,
            }  # fmt: skip
            sink.write(json.dumps(record) + "\n")
    run = Settings(Curation(), "n", "c", NOW - timedelta(days=30), NOW + timedelta(days=30), timedelta(days=7))
    counts = Counts()
    tracemalloc.start()
    try:
        for _ in examples_of(run, [SessionFile("a", tmp_path / "a.jsonl")], lambda *_: None, counts):
            pass
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert counts.interactions == 64
