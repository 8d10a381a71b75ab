"""What lm-evaluation-harness makes of four tasks on a tiny model: run with a Python that has lm-eval 0.4.13, it writes
harness_by_lm_eval.json beside itself, which test_harness.py holds our scores against.

    PYTHON_WITH_LM_EVAL tests/trainer/harness_by_lm_eval.py

Weights and tokenizer are given by formulas, so that both sides have the same without a file.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

EXPECTED = Path(__file__).with_suffix(".json")
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{{ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = ("red", "a vault", "Überraschung", "no", "the green one", "42 %", "yes, it is", "x")
MERGES = [("Ċ", "r"), ("Ċ", "n"), ("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("e", "d"), ("a", "u")]
"""Some join the template's last newline with the first letter of a choice."""


def choice_documents() -> list[dict[str, Any]]:
    """Of two to four choices each."""
    found = []
    for number in range(40):
        choices = [WORDS[(3 * number + 5 * place) % len(WORDS)] for place in range(2 + number % 3)]
        answer = (7 * number) % len(choices)
        found.append({"question": f"Question {number}: which?", "options": choices, "answer": answer,
                      "said": choices[answer]})  # fmt: skip
    return found


CHOICE = {"output_type": "multiple_choice", "doc_to_text": "question", "doc_to_choice": "options"}
TASKS: dict[str, dict[str, Any]] = {
    "by-number": CHOICE | {"doc_to_target": "answer", "metric_list": [{"metric": "acc"}]},
    "by-text": CHOICE
    | {"doc_to_text": "{{question | upper}}\nAnswer:", "doc_to_choice": "{{options}}", "doc_to_target": "{{said}}",
       "description": "Choose one.", "metric_list": [{"metric": "acc_norm"}]},
    "by-template": CHOICE
    | {"doc_to_target": "{{answer}}", "metric_list": [{"metric": "acc_bytes", "aggregation": "mean",
                                                       "higher_is_better": True}]},
    "generated": {
        "output_type": "generate_until",
        "doc_to_text": "{{question | regex_replace('Question ([0-9]+)', 'No. \\\\1')}}",
        "doc_to_target": "target", "generation_kwargs": {"until": ["e", "\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "ignore_case": True, "ignore_punctuation": True,
                         "regexes_to_ignore": ["[0-9]+"]}],
    },
}  # fmt: skip


def build(folder: Path) -> None:
    """Model and tokenizer of about 30,000 parameters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: index for index, token in enumerate([*letters, *(a + b for a, b in MERGES)])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for place, (name, weights) in enumerate(model.named_parameters()):
            if "norm" not in name:
                places = torch.arange(weights.numel(), dtype=torch.float64)
                weights.copy_((0.4 * torch.sin(places * places * 0.37 + 1.3 * place)).reshape(weights.shape))
    model.save_pretrained(folder)


def evaluated(folder: Path, name: str, documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The real one's samples, in the order of the documents."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    task = json.loads(json.dumps(TASKS[name])) | {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
    }  # fmt: skip
    model = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)
    found = simple_evaluate(model=model, tasks=[task], apply_chat_template=True, log_samples=True, bootstrap_iters=0)
    return sorted(found["samples"][name], key=lambda sample: sample["doc_id"])


def main() -> None:
    """Writes harness_by_lm_eval.json."""
    from importlib.metadata import version

    expected: dict[str, Any] = {"lm_eval": version("lm_eval"), "tasks": {}}
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        build(folder)
        for name, task in TASKS.items():
            documents = choice_documents()
            if name == "generated":
                said = [sample["filtered_resps"][0] for sample in evaluated(folder, name, _aimed(documents, {}))]
                documents = _aimed(documents, dict(enumerate(said)))
            (metric,) = (entry["metric"] for entry in task["metric_list"])
            samples = evaluated(folder, name, documents)
            likelihoods = None
            if name != "generated":
                likelihoods = [[float(found[0][0]) for found in sample["resps"]] for sample in samples]
            expected["tasks"][name] = {
                "documents": documents, "scores": [float(sample[metric]) for sample in samples],
                "likelihoods": likelihoods,
            }  # fmt: skip
    EXPECTED.write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")
    for name, task in expected["tasks"].items():
        print(name, sum(task["scores"]), "of", len(task["scores"]), file=sys.stderr)


def _aimed(documents: list[dict[str, Any]], said: dict[int, str]) -> list[dict[str, Any]]:
    """With targets: every third what the model said, every third that in capitals and with digits, others never."""
    targets = []
    for number in range(len(documents)):
        text = said.get(number, "")
        targets.append((text, f"7{text.upper()}!", "never said")[number % 3])
    return [document | {"target": target} for document, target in zip(documents, targets, strict=True)]


if __name__ == "__main__":
    main()
