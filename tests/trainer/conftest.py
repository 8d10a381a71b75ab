"""Fixtures of the trainer's tests: a tiny random model, generated sessions, stages run as the operator runs them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from ratchet_api.stage import StageReport
from ratchet_local import S3Access
from ratchet_trainer.cli import main
from ratchet_trainer.metrics import Progress
from ratchet_trainer.storage import Store

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are Tiny.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "where is the secret of the payments service kept", "deploy the orders service to staging with ratchet",
    "system user assistant You are Tiny. The capital of France is Paris.", "write a changelog line for the crash",
]  # fmt: skip


HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """peft 0.21 asks transformers 5.23 for an attribute under its old name; that is theirs to mend."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 50,000 parameters with a byte-level tokenizer and SmolLM2's kind of template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=raw.get_vocab_size(), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2,
        pad_token_id=2, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(tiny: Path) -> Any:
    from ratchet_trainer.loading import load_tokenizer

    return load_tokenizer(tiny, "tiny")


@pytest.fixture
def model(tiny: Path) -> Any:
    import torch

    from ratchet_trainer.loading import load_model

    return load_model(tiny, "tiny", torch.device("cpu"), torch.float32)


@pytest.fixture
def bucket(s3: S3Access, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A bucket of one's own, with credentials and endpoint in the environment as a stage has them."""
    for key, value in s3.env().items():
        monkeypatch.setenv(key, value)
    name = f"test-{os.urandom(6).hex()}"
    s3.create_bucket(name)
    return name


@pytest.fixture
def store(bucket: str) -> Store:
    return Store(None, "us-east-1")


@dataclass
class Ran:
    """A stage that has ended."""

    code: int
    report: StageReport
    log: str
    raw: bytes


@dataclass
class Stages:
    """Runs `python -m ratchet_trainer`: in this process (torch is imported once), or as another one, as a Job does."""

    folder: Path
    log: Callable[[], str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def arguments(self, command: str, stage: dict[str, Any], *more: str) -> list[str]:
        source = self.folder / "stage.json"
        source.write_text(json.dumps(stage))
        scratch = [] if command == "fetch" else ["--scratch", str(self.folder / "scratch")]
        return [command, "--input", str(source), "--report", str(self.report_file), *scratch, *more]

    def start(self, command: str, stage: dict[str, Any], *more: str) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, "-m", "ratchet_trainer", *self.arguments(command, stage, *more)]
        self.started.append(subprocess.Popen(arguments))
        return self.started[-1]

    @property
    def report_file(self) -> Path:
        return self.folder / "report.json"

    def finish(self, code: int) -> Ran:
        raw = self.report_file.read_bytes() if self.report_file.exists() else b""
        assert raw, f"no report; exit code {code}, log: {self.log()}"
        self.report_file.unlink()
        return Ran(code, StageReport.model_validate_json(raw), self.log(), raw)

    def run(self, command: str, stage: dict[str, Any], *more: str) -> Ran:
        before = signal.getsignal(signal.SIGTERM)
        try:
            return self.finish(main(self.arguments(command, stage, *more)))
        finally:
            signal.signal(signal.SIGTERM, before)


@pytest.fixture
def stages(tmp_path: Path, bucket: str, caplog: pytest.LogCaptureFixture) -> Iterator[Stages]:
    caplog.set_level("INFO", "ratchet")
    folder = tmp_path / "stages with a space"
    folder.mkdir()
    made = Stages(folder, lambda: caplog.text)
    yield made
    for process in made.started:
        process.kill()
        process.wait()


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Does something, once, when a step was written down."""
    told = Progress.update

    def hook(step: int, act: Callable[[], None]) -> None:
        def update(self: Progress, done: int, *rest: Any) -> None:
            told(self, done, *rest)
            if done == step:
                act()

        monkeypatch.setattr(Progress, "update", update)

    return hook


@pytest.fixture
def identity(bucket: str) -> Callable[..., dict[str, Any]]:
    def make(**changes: Any) -> dict[str, Any]:
        return {
            "namespace": "default", "cycle": "assistant", "version": "assistant-1",
            "storage_uri": f"s3://{bucket}/assistant",
        } | changes  # fmt: skip

    return make


@pytest.fixture
def published(store: Store, bucket: str, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Questions and answers as a dataset in storage, some kept aside, by address and digest."""

    def publish(said: Sequence[tuple[str, str]], aside: Sequence[tuple[str, str]] = ()) -> dict[str, str]:
        folder = tmp_path / f"dataset-{len(aside)}"
        folder.mkdir()
        for name, pairs in (("train", said), ("validation", aside)):
            rows = [
                {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
                for question, answer in pairs
            ]
            if rows:
                (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        uri = f"s3://{bucket}/d-{len(aside)}"
        return {"uri": uri, "digest": store.publish(folder, uri, "dataset", {}, {}).digest}

    return publish
