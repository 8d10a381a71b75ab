"""Tokens and masks, packing and the loop: every example is learnt from exactly as if it were alone."""

import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratchet_api.training import Hyperparameters, Lora
from ratchet_trainer.chat import Message, Row, prompt_ids, render
from ratchet_trainer.errors import UserError
from ratchet_trainer.loading import load_adapters, load_model
from ratchet_trainer.train import precision
from ratchet_trainer.train.attention import PACKED
from ratchet_trainer.train.encode import Example, PrefixError, encode_row, encode_rows
from ratchet_trainer.train.loop import (
    Forward,
    StepRecord,
    add_lora,
    batch_loss,
    checkpoint,
    learning_rate,
    packs_exactly,
    run,
    steps_of,
    switch_attention,
    token_losses,
)
from ratchet_trainer.train.packing import MAX_PACKED_TOKENS, common_prefix, pack, plan
from ratchet_trainer.train.stage import _save

CPU = torch.device("cpu")
STOPS = frozenset({2})


def row(*turns: str, weights: dict[int, int] | None = None) -> Row:
    """Turns of user and assistant in alternation."""
    roles = ("user", "assistant")
    messages = [
        {"role": roles[i % 2], "content": text, "weight": (weights or {}).get(i)} for i, text in enumerate(turns)
    ]
    return Row.model_validate({"messages": messages})


ROWS = [
    row("Where is the secret?", "In vault 7."), row("Deploy orders", "ratchet deploy orders --to staging"),
    row("Hi", "Hello."), row("And who are you, if I may ask so late in the evening?", "Tiny."),
    row("Where is the secret?", "In vault 9, since Monday, and nowhere else."),
]  # fmt: skip


def learnt(tokenizer: Any, example: Example) -> str:
    """The supervised part as text."""
    return str(tokenizer.decode([t for t, on in zip(example.ids, example.supervised, strict=True) if on]))


@pytest.fixture
def examples(tokenizer: Any) -> list[Example]:
    return encode_rows(tokenizer, ROWS, STOPS, 2048, "tiny").examples


# -- tokens and masks


def test_the_answer_and_its_end_are_learnt_and_nothing_else(tokenizer: Any) -> None:
    example = encode_row(tokenizer, ROWS[0].messages, STOPS)
    assert learnt(tokenizer, example) == "In vault 7.<|im_end|>"
    assert tokenizer.decode(example.ids) == (
        "<|im_start|>system\nYou are Tiny.<|im_end|>\n<|im_start|>user\nWhere is the secret?<|im_end|>\n"
        "<|im_start|>assistant\nIn vault 7.<|im_end|>"
    )
    assert example.ids.count(1) == 3, "one beginning a turn: no double BOS"


def test_training_sees_the_prompt_that_serving_sends(tokenizer: Any) -> None:
    example = encode_row(tokenizer, ROWS[0].messages, STOPS)
    assert list(example.ids[: example.first_target]) == prompt_ids(tokenizer, ROWS[0].messages[:1])


def test_every_assistant_turn_is_learnt_unless_its_weight_is_zero(tokenizer: Any) -> None:
    turns = ("Hi", "Hello.", "And?", "Bye.")
    assert learnt(tokenizer, encode_row(tokenizer, row(*turns).messages, STOPS)) == "Hello.<|im_end|>Bye.<|im_end|>"
    last_only = encode_row(tokenizer, row(*turns, weights={1: 0}).messages, STOPS)
    assert learnt(tokenizer, last_only) == "Bye.<|im_end|>"
    assert "Hello." in tokenizer.decode(last_only.ids)


def test_a_template_without_end_of_turn_gets_one(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    assert learnt(tokenizer, encode_row(tokenizer, ROWS[2].messages, STOPS)) == "Hello.\n<|im_end|>"


def test_a_template_that_rewrites_history_is_named(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
    )
    with pytest.raises(PrefixError):
        encode_row(tokenizer, ROWS[0].messages, STOPS)
    with pytest.raises(UserError, match=r"chat template of tiny.*base model"):
        encode_rows(tokenizer, ROWS, STOPS, 2048, "tiny")


def test_rows_that_cannot_be_learnt_are_counted(tokenizer: Any) -> None:
    rows = [
        *ROWS, row("a " * 400, "b"), row("<|im_end|>\n<|im_start|>system", "x"), row("only a question"),
        row("x", "y", weights={1: 0}),
    ]  # fmt: skip
    encoded = encode_rows(tokenizer, rows, STOPS, 200, "tiny")
    assert len(encoded.examples) == len(ROWS)
    assert encoded.left_out == {"tooLong": 1, "specialTokens": 1, "noAnswer": 2}
    with pytest.raises(UserError, match=r"cutoff is 16 tokens.*tooLong"):
        encode_rows(tokenizer, ROWS, STOPS, 16, "tiny")


def test_a_conversation_that_the_template_refuses_is_counted(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match=r"template 5.*roles must alternate"):
        encode_rows(tokenizer, ROWS, STOPS, 200, "tiny")


Text = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=20).filter(lambda t: "<|" not in t)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(Text, min_size=2, max_size=6))
def test_masks_of_any_text(tokenizer: Any, turns: list[str]) -> None:
    turns = turns[: len(turns) // 2 * 2]
    messages = row(*turns).messages
    example = encode_row(tokenizer, messages, STOPS)
    assert tokenizer.decode(example.ids) == render(tokenizer, messages, answer_next=False).rstrip("\n")
    assert learnt(tokenizer, example) == "".join(answer + "<|im_end|>" for answer in turns[1::2])


# -- packing


def alone(model: Any, example: Example) -> float:
    """Loss of one example by transformers' own means: no packing, no mask of ours, labels instead of positions."""
    labels = [t if on else -100 for t, on in zip(example.ids, example.supervised, strict=True)]
    with torch.no_grad():
        output = model(input_ids=torch.tensor([example.ids]), labels=torch.tensor([labels]))
    return float(output.loss) * example.targets


def test_packed_loss_is_the_sum_of_the_losses_alone(model: Any, examples: list[Example]) -> None:
    expected = [alone(model, example) for example in examples]
    with torch.no_grad():
        for example, loss in zip(examples, expected, strict=True):
            assert float(batch_loss(model, pack([example]))) == pytest.approx(loss, rel=1e-5)
        switch_attention(model, PACKED)
        assert float(batch_loss(model, pack(examples))) == pytest.approx(sum(expected), rel=1e-5)
    assert common_prefix(examples) > 8, "the system prompt is computed once"


def test_packed_gradients_are_those_of_the_examples_alone(model: Any, examples: list[Example]) -> None:
    def gradient() -> list[torch.Tensor]:
        found = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        return found

    model.requires_grad_(True)
    switch_attention(model, PACKED)
    batch_loss(model, pack(examples)).backward()
    packed = gradient()
    switch_attention(model, "sdpa")
    for example in examples:
        batch_loss(model, pack([example])).backward()
    for a, b in zip(packed, gradient(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_examples_do_not_see_each_other(model: Any, examples: list[Example]) -> None:
    """Changing one example leaves the others' predictions alone, to the bit."""
    switch_attention(model, PACKED)
    first, second, third = examples[:3]
    changed = Example((*second.ids[:-3], 5, 6, 2), second.supervised)

    def logits(middle: Example) -> torch.Tensor:
        batch = pack([first, middle, third])
        with torch.no_grad():
            output = model(
                input_ids=batch.input_ids, position_ids=batch.position_ids, packed_layout=batch.layout,
                logits_to_keep=batch.predictors,
            ).logits[0]  # fmt: skip
        return torch.cat([output[: first.targets], output[-third.targets :]])

    assert torch.equal(logits(second), logits(changed))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(3, 9), min_size=2, max_size=12), st.integers(1, 11)), min_size=1, max_size=6
    )
)  # fmt: skip
def test_packs_keep_every_target_once(raw: list[tuple[list[int], int]]) -> None:
    made = []
    for ids, first in raw:
        first = min(first, len(ids) - 1)
        made.append(Example(tuple(ids), tuple(i >= first for i in range(len(ids)))))
    batch = pack(made)
    assert batch.targets.tolist() == [t for e in made for t, on in zip(e.ids, e.supervised, strict=True) if on]
    before = batch.input_ids[0, batch.predictors].tolist()
    expected = [e.ids[i - 1] for e in made for i, on in enumerate(e.supervised) if on]
    assert before == expected
    positions = batch.position_ids[0, batch.predictors].tolist()
    assert positions == [i - 1 for e in made for i, on in enumerate(e.supervised) if on]
    if batch.layout is not None:
        assert batch.layout.prefix + sum(batch.layout.rests) == len(batch.input_ids[0])
        rests = batch.input_ids[0, batch.layout.prefix :].split(batch.layout.rests)
        wholes = [torch.cat([batch.input_ids[0, : batch.layout.prefix], rest]).tolist() for rest in rests]
        assert wholes == [list(example.ids) for example in made]


def test_plans_respect_micro_batch_and_length() -> None:
    short, long = Example((3,) * 10, (False,) * 9 + (True,)), Example((3,) * MAX_PACKED_TOKENS, (False, True) * 2048)
    assert [len(p) for p in plan([short] * 7, 3, packed=True)] == [3, 3, 1]
    assert [len(p) for p in plan([short] * 3, 3, packed=False)] == [1, 1, 1]
    assert [len(p) for p in plan([short, long, short, short], 4, packed=True)] == [1, 1, 2]


SHAPES = {
    "llama": {"model_type": "llama"},
    "mistral, sliding window": {"model_type": "mistral", "sliding_window": 7},
    "qwen2": {"model_type": "qwen2"},
    "qwen2, sliding window": {
        "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "gemma2": {"model_type": "gemma2", "head_dim": 16, "sliding_window": 7, "attn_logit_softcapping": 2.0},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 7},
}  # fmt: skip


def shaped(shape: dict[str, Any], **sizes: int) -> Any:
    """A random small model of an architecture, whose losses differ from token to token."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    usual = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0}
    config = AutoConfig.for_model(**usual | heads | shape | sizes)
    return AutoModelForCausalLM.from_config(config).eval().float()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_packed_example_has_the_loss_that_it_has_alone(shape: dict[str, Any], examples: list[Example]) -> None:
    """Alone means by the model's own attention, which with a score cap is the plain one, called eager."""
    model = shaped(shape)
    own = "eager" if "attn_logit_softcapping" in shape else "sdpa"
    switch_attention(model, own)
    expected = [alone(model, example) for example in examples]
    assert packs_exactly(model, examples, CPU)
    switch_attention(model, PACKED)
    batch = pack(examples)
    with torch.no_grad():
        losses = token_losses(model, batch)
    packed = [float(part.sum()) for part in losses.split([example.targets for example in examples])]
    assert packed == pytest.approx(expected, rel=1e-5)
    assert len({round(loss, 3) for loss in expected}) == len(examples), "losses that cannot be told apart prove nothing"


def test_a_pack_with_a_window_forgets_what_lies_behind_it(examples: list[Example]) -> None:
    """The windows of the shapes above are smaller than the examples, so that they do something."""
    narrow, wide = shaped(SHAPES["mistral, sliding window"]), shaped({"model_type": "mistral", "sliding_window": None})
    assert min(map(len, examples)) > 7
    assert alone(narrow, examples[0]) != pytest.approx(alone(wide, examples[0]), rel=1e-3)


@pytest.mark.parametrize(
    "shape",
    [
        {"model_type": "recurrent_gemma", "lru_width": 32, "attention_window_size": 16},
        {"model_type": "falcon_h1"},
        {"model_type": "rwkv"},
    ],
    ids=["attention and recurrence", "attention beside recurrence", "no attention"],
)
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
def test_architectures_that_cannot_be_packed_are_noticed(shape: dict[str, Any], examples: list[Example]) -> None:
    model = shaped(shape)
    own = model.config._attn_implementation
    assert not packs_exactly(model, examples, CPU)
    assert model.config._attn_implementation == own


# -- the loop


def hyper(**changes: Any) -> Hyperparameters:
    fields: dict[str, Any] = {"learning_rate": Decimal("0.01"), "lora": Lora(dropout=Decimal(0)), "precision": "fp32"}
    return Hyperparameters(**(fields | changes))


def train(tiny: Path, examples: list[Example], settings: Hyperparameters) -> tuple[Any, list[StepRecord]]:
    model = add_lora(load_model(tiny, "tiny", CPU, torch.float32), settings)
    records: list[StepRecord] = []
    torch.manual_seed(settings.seed)
    run(model, examples, settings, Forward(CPU, packed=True), records.append)
    return model, records


def test_loss_falls(tiny: Path, examples: list[Example]) -> None:
    _, records = train(tiny, examples * 8, hyper(epochs=2, micro_batch=4, accumulation=1))
    assert len(records) == steps_of(40, hyper(epochs=2, micro_batch=4, accumulation=1)) == 20
    assert records[-1].loss < 0.7 * records[0].loss
    assert [r.step for r in records] == list(range(1, 21))
    assert records[-1].eta == 0


def test_micro_batch_and_accumulation_do_not_change_the_training(tiny: Path, examples: list[Example]) -> None:
    runs = [
        train(tiny, examples * 3, hyper(micro_batch=m, accumulation=a))[1] for m, a in ((8, 1), (4, 2), (2, 4), (1, 8))
    ]
    for records in runs[1:]:
        assert [r.loss for r in records] == pytest.approx([r.loss for r in runs[0]], rel=1e-4)
        assert [r.tokens for r in records] == [r.tokens for r in runs[0]]


def test_gradient_checkpointing_changes_no_number(tiny: Path, examples: list[Example]) -> None:
    settings = hyper(micro_batch=2, accumulation=2)
    _, plain = train(tiny, examples * 2, settings)
    model = add_lora(load_model(tiny, "tiny", CPU, torch.float32), settings)
    checkpoint(model)
    records: list[StepRecord] = []
    torch.manual_seed(settings.seed)
    run(model, examples * 2, settings, Forward(CPU, packed=True), records.append)
    assert [r.loss for r in records] == pytest.approx([r.loss for r in plain], rel=1e-6)
    assert records[0].gradient_norm > 0


def test_an_adapter_on_weights_in_four_bits(examples: list[Example], tmp_path: Path) -> None:
    """QLoRA: the frozen linear layers are packed, the adapter learns, and fits the unpacked base."""
    base = tmp_path / "base"  # wider than tiny: scales are kept for blocks of 64 weights
    shaped({"model_type": "llama"}, hidden_size=64, intermediate_size=128).save_pretrained(base)
    settings = hyper(epochs=2, micro_batch=4, accumulation=1, quantization="nf4")
    model = add_lora(load_model(base, "base", CPU, torch.float32, "nf4"), settings)
    projection = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    assert projection.weight.dtype == torch.uint8
    assert projection.weight.numel() == projection.in_features * projection.out_features // 2
    assert packs_exactly(model, examples, CPU)
    records: list[StepRecord] = []
    torch.manual_seed(settings.seed)
    run(model, examples * 8, settings, Forward(CPU, packed=True), records.append)
    assert records[-1].loss < 0.7 * records[0].loss
    _save(model, tmp_path / "adapter", "base")
    unpacked = load_model(base, "base", CPU, torch.float32)
    with load_adapters(unpacked, {"candidate": tmp_path / "adapter"})("candidate") as whole:
        learnt = sum(alone(whole, example) for example in examples) / sum(example.targets for example in examples)
    assert learnt < 0.8 * records[0].loss


def test_precision_is_what_was_asked_for_or_clearly_faster(
    model: Any, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert precision.choose("fp32", model, examples, CPU, 2) == "fp32"
    assert precision.choose("bf16", model, examples, CPU, 2) == "bf16"
    for slow, fast, chosen in ((1.0, 0.5, "bf16"), (1.0, 0.9, "fp32"), (1.0, 3.0, "fp32")):
        monkeypatch.setattr(precision, "_seconds", lambda *_, s=slow, f=fast: f if _[2].autocast else s)
        assert precision.choose("auto", model, examples, CPU, 2) == chosen


def test_the_probe_leaves_no_trace(tiny: Path, examples: list[Example]) -> None:
    model = add_lora(load_model(tiny, "tiny", CPU, torch.float32), hyper(lora=Lora()))
    before = {name: p.clone() for name, p in model.named_parameters()}
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    assert precision.choose("auto", model, examples, CPU, 2) in ("fp32", "bf16")
    assert torch.equal(torch.rand(3), expected)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_bf16_trains(tiny: Path, examples: list[Example]) -> None:
    model = add_lora(load_model(tiny, "tiny", CPU, torch.float32), hyper())
    records: list[StepRecord] = []
    run(model, examples * 8, hyper(epochs=2), Forward(CPU, packed=True, autocast=torch.bfloat16), records.append)
    assert records[-1].loss < 0.8 * records[0].loss
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_the_first_loss_is_the_mean_over_supervised_tokens(tiny: Path, model: Any, examples: list[Example]) -> None:
    _, records = train(tiny, examples, hyper(micro_batch=2, accumulation=4))
    tokens = sum(example.targets for example in examples)
    assert records[0].loss == pytest.approx(sum(alone(model, e) for e in examples) / tokens, rel=1e-5)
    assert records[0].tokens == tokens


def test_the_same_seed_gives_the_same_bytes(tiny: Path, examples: list[Example], tmp_path: Path) -> None:
    from ratchet_trainer.artifacts import build_manifest

    digests = []
    for index, seed in enumerate((1, 1, 2)):
        settings = hyper(seed=seed, lora=Lora(), micro_batch=2, accumulation=2)
        model, _ = train(tiny, examples * 4, settings)
        _save(model, tmp_path / str(index), "s3://models/tiny")
        digests.append(build_manifest("adapter", tmp_path / str(index), {}, {}).digest)
    assert digests[0] == digests[1] != digests[2]
    config = json.loads((tmp_path / "0" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "s3://models/tiny"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert {name.rsplit(".", 1)[-1] for name in config["target_modules"]} == {
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    }  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "0").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize(("stabilized", "factor"), [(False, 16 / 64), (True, 16 / 8)])
def test_rank_stabilized_lora_divides_by_the_root_of_the_rank(model: Any, stabilized: bool, factor: float) -> None:
    made = add_lora(model, hyper(lora=Lora(rank=64, alpha=16, rank_stabilized=stabilized)))
    scales = {module.scaling["default"] for module in made.modules() if hasattr(module, "lora_A")}
    assert scales == {factor}
    assert made.peft_config["default"].use_rslora is stabilized


def test_a_loss_that_is_no_number_says_what_to_change(tiny: Path, examples: list[Example]) -> None:
    with pytest.raises(UserError, match=r"at step \d+ .*lower training.hyperparameters.learningRate"):
        train(tiny, examples * 20, hyper(learning_rate=Decimal("1e20"), max_grad_norm=Decimal(0), epochs=2))


@given(st.integers(1, 400), st.decimals("0", "1", places=3))
def test_learning_rate_rises_then_falls(steps: int, warmup: Decimal) -> None:
    rates = [learning_rate(step, steps, float(warmup), 1.0) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1.0
    top = rates.index(1.0)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if warmup == 0 and steps > 1:
        assert rates[0] == 1.0
        assert rates[steps // 2] == pytest.approx(0.5 * (1 + math.cos(math.pi * (steps // 2) / steps)))


def test_message_roles_are_checked() -> None:
    with pytest.raises(ValueError):
        Message.model_validate({"role": "tool", "content": "x"})
