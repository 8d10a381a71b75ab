"""Continuous batching, against transformers' own generation: who shares a batch with whom changes nothing."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ratchet_trainer.generation import engine as engine_module
from ratchet_trainer.generation.batch import _by_engine, _by_generate, answer_all
from ratchet_trainer.generation.conversation import Conversation, Sampling
from ratchet_trainer.generation.engine import Engine, supported
from ratchet_trainer.generation.text import TextStream

NEVER = frozenset({399_999})


def prompts(count: int, seed: int = 1, shared: int = 0) -> list[list[int]]:
    generator = random.Random(seed)
    head = [generator.randrange(3, 300) for _ in range(shared)]
    return [
        head + [generator.randrange(3, 300) for _ in range(generator.randrange(1, 30))] for _ in range(count)
    ]  # fmt: skip


def by_transformers(model: Any, prompt: list[int], count: int) -> list[int]:
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False, max_new_tokens=count, eos_token_id=399_999, pad_token_id=0,
        )  # fmt: skip
    return [int(token) for token in output[0, len(prompt) :]]


def drain(engine: Engine) -> None:
    while engine.busy:
        engine.step()


@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize("slots", [1, 3, 16])
def test_answers_are_those_of_transformers(model: Any, slots: int, shared: int) -> None:
    asked = prompts(10, shared=shared)
    engine = Engine(model, NEVER, slots, 128)
    conversations = [Conversation(prompt, 3 + index) for index, prompt in enumerate(asked)]
    for conversation in conversations:
        engine.add(conversation)
    drain(engine)
    for conversation in conversations:
        assert conversation.tokens == by_transformers(model, list(conversation.prompt), conversation.max_new)
        assert conversation.finish == "length"


def test_joining_leaving_and_cancelling_change_nobody_elses_answer(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random life: conversations come and go between steps, prompts are read in pieces, beginnings are shared."""
    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", 16)
    generator = random.Random(5)
    engine = Engine(model, NEVER, 4, 128)
    asked = [*prompts(12, seed=2), *prompts(12, seed=3, shared=15)]
    generator.shuffle(asked)
    alive: list[Conversation] = []
    while asked or engine.busy:
        for _ in range(generator.randrange(3)):
            if asked:
                alive.append(Conversation(asked.pop(), generator.randrange(1, 20)))
                engine.add(alive[-1])
        if alive and generator.random() < 0.1:
            generator.choice(alive).cancelled = True
        engine.step()
    assert any(c.cancelled and c.finish is None for c in alive)
    for conversation in alive:
        expected = by_transformers(model, list(conversation.prompt), conversation.max_new)
        if conversation.cancelled:
            assert conversation.tokens == expected[: len(conversation.tokens)]
        else:
            assert conversation.tokens == expected


def test_an_answer_may_end_while_others_still_wait_to_be_read(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All slots are taken, but only the first few prompts are read: the last one moves before its slot has memory."""
    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", 16)
    engine = Engine(model, NEVER, 32, 128)
    conversations = [Conversation(prompt, 1) for prompt in prompts(32, seed=4)]
    for conversation in conversations:
        engine.add(conversation)
    drain(engine)
    for conversation in conversations:
        assert conversation.tokens == by_transformers(model, list(conversation.prompt), 1)


def test_common_beginnings_are_computed_once(model: Any) -> None:
    seen = []
    original = model.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["input_ids"].numel())
        return original(*args, **kwargs)

    model.forward = counting
    engine = Engine(model, NEVER, 2, 200)
    first, second = [7] * 100 + [8], [7] * 100 + [9]
    engine.add(Conversation(first, 1))
    drain(engine)
    engine.add(Conversation(second, 1))
    drain(engine)
    engine.add(Conversation([*second, 11, 12], 1))
    drain(engine)
    assert seen == [101, 1, 2]


def test_a_burst_with_one_beginning_computes_it_once(model: Any) -> None:
    seen = []
    original = model.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["input_ids"].shape)
        return original(*args, **kwargs)

    model.forward = counting
    engine = Engine(model, NEVER, 8, 200)
    for last in range(10, 18):
        engine.add(Conversation([7] * 100 + [last], 1))
    drain(engine)
    assert seen == [(1, 101), (1, 7)]


def test_a_stop_token_ends_an_answer_and_is_not_in_it(model: Any) -> None:
    prompt = prompts(1)[0]
    expected = by_transformers(model, prompt, 10)
    stop = expected[4]
    engine = Engine(model, {stop}, 2, 64)
    conversation = Conversation(prompt, 10)
    engine.add(conversation)
    drain(engine)
    assert (conversation.tokens, conversation.finish) == (expected[: expected.index(stop)], "stop")


def test_what_does_not_fit_is_refused_or_shortened(model: Any) -> None:
    engine = Engine(model, NEVER, 1, 20)
    with pytest.raises(ValueError, match="19 is the most"):
        engine.add(Conversation([5] * 20, 1))
    with pytest.raises(ValueError, match="empty"):
        engine.add(Conversation([], 1))
    conversation = Conversation([5] * 15, 100)
    engine.add(conversation)
    drain(engine)
    assert len(conversation.tokens) == 5


def test_sampling_follows_its_seed_and_top_p(model: Any) -> None:
    def sample(seed: int | None, **changes: Any) -> list[int]:
        engine = Engine(model, NEVER, 1, 200)
        conversation = Conversation(prompts(1)[0], 60, Sampling(**({"temperature": 3.0, "seed": seed} | changes)))
        engine.add(conversation)
        drain(engine)
        return conversation.tokens

    assert sample(1) == sample(1) != sample(2)
    assert sample(None) != sample(None)
    assert sample(1, top_p=1e-9) == sample(None, temperature=0.0)


def test_models_that_do_not_look_at_the_whole_past_are_known(model: Any) -> None:
    from transformers import GemmaConfig, MistralConfig, Qwen3Config

    assert supported(model.config)
    assert supported(Qwen3Config())
    assert supported(GemmaConfig())
    assert not supported(MistralConfig(sliding_window=64))
    assert not supported(Qwen3Config(use_sliding_window=True, sliding_window=64, max_window_layers=2))


def test_both_ways_of_asking_agree(model: Any, tokenizer: Any) -> None:
    asked = prompts(9)
    ticks: list[tuple[int, int]] = []
    stops = frozenset({2, 40})
    talks = [Conversation(prompt, 8) for prompt in asked]
    engine = _by_engine(model, tokenizer, stops, talks, 4, lambda done, tokens: ticks.append((done, tokens)))
    again = [Conversation(prompt, 8) for prompt in asked]
    assert engine == _by_generate(model, tokenizer, stops, again, 4, lambda done, tokens: None)
    assert ticks[-1][0] == 9
    texts = answer_all(model, tokenizer, stops, asked, 8, 4, lambda done, tokens: None)
    assert texts == [[tokenizer.decode(tokens, skip_special_tokens=True).strip()] for tokens in engine]


# -- text


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40), data=st.data())
def test_streamed_text_is_the_text(tiny: Path, text: str, data: st.DataObject) -> None:
    """Whatever the tokens' borders (half characters included), the pieces add up; no piece shows a broken character."""
    tokenizer = _tokenizer(tiny)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(tokens))))) if tokens else []
    stream = TextStream(tokenizer)
    pieces = [stream.push(tokens[:cut], final=False) for cut in cuts]
    pieces.append(stream.push(tokens, final=True))
    assert "".join(pieces) == whole == stream.text
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces[:-1])


@settings(max_examples=150, deadline=None)
@given(
    text=st.text("abc ", max_size=30), stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)
)  # fmt: skip
def test_stop_strings_end_the_text(tiny: Path, text: str, stops: list[str]) -> None:
    tokenizer = _tokenizer(tiny)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer, stops)
    given = ""
    for end in range(len(tokens) + 1):
        given += stream.push(tokens[:end], final=end == len(tokens))
    # The stop string that is complete first counts, as for somebody who reads along.
    known = [tokenizer.decode(tokens[:end]) for end in range(len(tokens) + 1)]
    places = next((found for part in known if (found := [part.find(s) for s in stops if s in part])), [])
    assert stream.stopped is bool(places)
    assert given == (text[: min(places)] if places else text)


_tokenizers: dict[Path, Any] = {}


def _tokenizer(folder: Path) -> Any:
    from ratchet_trainer.loading import load_tokenizer

    if folder not in _tokenizers:
        _tokenizers[folder] = load_tokenizer(folder, "tiny")
    return _tokenizers[folder]
