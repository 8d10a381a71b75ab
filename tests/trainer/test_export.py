"""Export: formats made and loaded again for real, held against base and adapter; a registry, and a hub's protocol."""

import base64
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ratchet_api.export import Exported
from ratchet_api.reasons import Reason
from ratchet_api.stage import ExitCode, ExportInput
from ratchet_local.build import ensure
from ratchet_trainer.errors import ExportDiffers
from ratchet_trainer.export import card, compare, convert, oci
from ratchet_trainer.storage import Location, Store

_spec = importlib.util.spec_from_file_location("trainer_hubs", Path(__file__).with_name("hubs.py"))
assert _spec is not None
assert _spec.loader is not None
hubs = importlib.util.module_from_spec(_spec)
sys.modules["trainer_hubs"] = hubs
_spec.loader.exec_module(hubs)

if TYPE_CHECKING:
    from hubs import Hub

Identity = Callable[..., dict[str, Any]]


class TestComparison:
    def said(self) -> compare.Said:
        draw = np.random.default_rng(5)
        base = draw.normal(size=(40, 300)).astype(np.float32)
        return compare.Said(base + 0.2 * draw.normal(size=base.shape).astype(np.float32), base)

    def test_the_same_logits_are_whole_whatever_their_mean(self) -> None:
        said = self.said()
        found = compare.compare(said.adapter + 3.0, said)
        assert (round(found.error, 5), round(found.effect, 5), found.agreement) == (0.0, 1.0, 1.0)

    def test_the_bare_base_shows_nothing_of_the_adapter(self) -> None:
        said = self.said()
        found = compare.compare(said.base, said)
        assert found.effect == pytest.approx(0.0)
        with pytest.raises(ExportDiffers, match="0% of what the adapter does"):
            compare.judge("gguf-q4_k_m", found)

    def test_rounding_is_no_lack_of_the_adapter(self) -> None:
        said, draw = self.said(), np.random.default_rng(6)
        coarse = said.adapter + 0.3 * draw.normal(size=said.base.shape).astype(np.float32)
        found = compare.compare(coarse, said)
        assert found.error == pytest.approx(0.3, abs=0.03)
        assert found.effect == pytest.approx(1.0, abs=0.1)
        compare.judge("gguf-q4_k_m", found)
        with pytest.raises(ExportDiffers, match=r"(29|30)% off"):
            compare.judge("gguf-q8_0", found)

    def test_another_vocabulary_and_broken_logits_are_refused(self) -> None:
        said = self.said()
        with pytest.raises(ExportDiffers, match="299 tokens instead of 300"):
            compare.compare(said.adapter[:, :-1], said)
        with pytest.raises(ExportDiffers, match="not finite"):
            compare.compare(said.adapter * np.float32("nan"), said)


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}], "gpt-2"),
        ([{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}], "smollm"),
        ([{"type": "ByteLevel", "add_prefix_space": True}], None),
        ([{"type": "Whitespace"}], None),
        (
            [{"type": "Split", "pattern": {"Regex": r"\d"}}, {"type": "ByteLevel", "use_regex": False}],
            None,
        ),
    ],
)
def test_a_tokenizer_is_told_by_its_definition(steps: list[dict[str, Any]], name: str | None) -> None:
    assert convert.pre_tokenizer({"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}) == name
    if len(steps) == 1:
        assert convert.pre_tokenizer({"pre_tokenizer": steps[0]}) == name


def export_input(identity: Identity, base: dict[str, str], adapter: dict[str, str], **changes: Any) -> dict[str, Any]:
    return {
        "stage": "export", "identity": identity(), "base_model": base, "adapter": adapter,
        "formats": ["safetensors"], "license": "Apache-2.0",
    } | changes  # fmt: skip


SUITE = {
    "name": "house", "role": "target", "cases": 104, "champion": "0.5", "candidate": "0.625", "difference": "0.125",
    "lowerBound": "0.05", "pValue": "0.0004", "better": 15, "worse": 2,
}  # fmt: skip
DIGEST = "sha256:" + "d" * 64


def test_the_card_says_base_data_evaluation_and_licence() -> None:
    identity = {"namespace": "n", "cycle": "assistant", "version": "assistant-7", "storage_uri": "s3://bucket/x"}
    stage = ExportInput.model_validate(
        export_input(
            lambda: identity, {"uri": "hf://acme/base@v2"}, {"uri": "s3://bucket/a", "digest": DIGEST},
            dataset_digest=DIGEST, champion="assistant-6", suites=[SUITE],
        )
    )  # fmt: skip
    one = Exported.model_validate(
        {"format": "gguf-q4_k_m", "uri": "s3://b/x", "digest": DIGEST, "bytes": 5_000_000, "error": "0.12",
         "effect": "0.98", "agreement": "0.95"}
    )  # fmt: skip
    text = card.render(stage, DIGEST, [one])
    matter, _, body = text.removeprefix("---\n").partition("---\n")
    assert 'license: "apache-2.0"\n' in matter
    assert 'base_model: "acme/base"\nbase_model_relation: quantized\n' in matter
    assert "| training data | `sha256:dddd" in body
    assert "| house | target | 104 | 50.0 | 62.5 | 12.5 | 5.0 | 0.0004 |" in body
    assert "| gguf-q4_k_m | 5.0 | 0.1200 | 0.980 | 0.950 |" in body


# Formats


def shaped(folder: Path, tiny: Path, shape: str) -> Path:
    """A random model wide enough for K-quants, with the tiny one's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    known = json.loads((tiny / "config.json").read_text())
    settings = {
        "vocab_size": known["vocab_size"], "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": True, "initializer_range": 0.06,
    }  # fmt: skip
    torch.manual_seed(11)
    kinds: dict[str, Callable[[], Any]] = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**settings)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**settings)),
    }
    kinds[shape]().to(torch.bfloat16).save_pretrained(folder)
    return folder


def random_adapter(folder: Path, base: Path) -> Path:
    """A LoRA adapter that does a lot, and nothing sensible."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(12)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return folder


Pair = tuple[dict[str, str], dict[str, str]]
"""References of a base and of an adapter for it, in storage."""


def published(store: Store, bucket: str, tmp_path: Path, tiny: Path, shape: str) -> Pair:
    base, adapter = shaped(tmp_path / shape, tiny, shape), f"s3://{bucket}/hand/{shape}"
    uri = f"s3://{bucket}/models/{shape}"
    digest = store.publish(base, uri, "model", {}, {}).digest
    made = store.publish(random_adapter(tmp_path / f"{shape}-adapter", base), adapter, "adapter", {}, {})
    return {"uri": uri, "digest": digest}, {"uri": adapter, "digest": made.digest}


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """A real registry process; its address."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = ensure(["registry"], print)["registry"]
    folder.mkdir()
    settings = folder / "config.yml"
    settings.write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {json.dumps(str(folder / 'data'))}\n"
        f"http:\n  addr: 127.0.0.1:{port}\n"
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, "serve", settings], stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/v2/", process)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    import time

    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, "the registry has ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.URLError:
            assert time.monotonic() < deadline, "the registry does not answer"
            time.sleep(0.05)


def pull(registry: str, path: str) -> bytes:
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    with urllib.request.urlopen(urllib.request.Request(f"http://{registry}/v2/{path}", headers=accept)) as answer:
        found: bytes = answer.read()
        return found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator["Hub"]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", hubs.TOKEN)
    with hubs.running() as found:
        yield found


FORMATS = ["safetensors", "gguf-f16", "gguf-q8_0", "gguf-q4_k_m", "mlx"]


# huggingface_hub 2.4 sends large files by an argument that httpx2 has renamed; that is theirs to mend.
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_format_is_made_loaded_compared_and_uploaded(
    stages: Any, identity: Identity, store: Store, bucket: str, tiny: Path, tmp_path: Path, hub: "Hub"
) -> None:
    base, adapter = published(store, bucket, tmp_path, tiny, "llama")
    with registry(tmp_path / "registry") as address:
        stage = export_input(
            identity, base, adapter, formats=FORMATS, dataset_digest=DIGEST, champion="assistant-0", suites=[SUITE],
            hub={"repository": "acme/assistant", "endpoint": hub.url, "token_secret": {"name": "hub"}},
            oci={"repository": f"{address}/models/assistant", "plain_http": True},
        )  # fmt: skip
        ran = stages.run("export", stage)
        assert ran.code == ExitCode.DONE, ran.log
        result = ran.report.export
        assert result is not None
        assert [one.format for one in result.formats] == FORMATS
        errors = {one.format: float(one.error) for one in result.formats}
        assert errors["safetensors"] < 0.02
        assert errors["gguf-f16"] < 0.02
        assert errors["gguf-f16"] < errors["gguf-q8_0"] < errors["gguf-q4_k_m"]
        assert all(0.9 < float(one.effect) < 1.1 for one in result.formats), errors
        sizes = {one.format: one.bytes for one in result.formats}
        assert sizes["gguf-q4_k_m"] < sizes["gguf-q8_0"] < sizes["gguf-f16"]

        check_merged(store, result.formats[0], base, adapter, tmp_path)
        quantised = tmp_path / "q4"
        store.fetch(result.formats[3].uri, "model", result.formats[3].digest, quantised)
        check_k_quants(quantised / "assistant-1-Q4_K_M.gguf")

        # The hub.
        repository = hub.repositories["acme/assistant"]
        assert repository.private
        assert result.hub is not None
        assert repository.tags == {"assistant-1": result.hub.revision}
        assert repository.commits[-1] == result.hub.revision
        assert {"README.md", "config.json", "model.safetensors", "assistant-1-Q8_0.gguf", "mlx/config.json"} <= set(
            repository.files
        )
        assert b'license: "apache-2.0"' in repository.files["README.md"]
        q4 = (quantised / "assistant-1-Q4_K_M.gguf").read_bytes()
        assert repository.files["assistant-1-Q4_K_M.gguf"] == q4

        # The registry.
        tags = json.loads(pull(address, "models/assistant/tags/list"))["tags"]
        assert sorted(tags) == sorted(["assistant-1", *(f"assistant-1-{form}" for form in FORMATS)])
        raw = pull(address, f"models/assistant/manifests/{result.oci[3].digest}")
        assert raw == pull(address, "models/assistant/manifests/assistant-1-gguf-q4_k_m")
        check_modelpack(json.loads(raw), address, q4)

        # Once is enough: nothing is made, uploaded or committed again, and the report is the same.
        uploads, commits = hub.uploads, list(repository.commits)
        again = stages.run("export", stage)
        assert again.raw == ran.raw
        assert (hub.uploads, repository.commits) == (uploads, commits)

        # What another version's weights leave behind goes; what people wrote stays.
        repository.files |= {"old-Q8_0.gguf": b"old", "NOTES.md": b"ours"}
        less = stages.run("export", stage | {"formats": ["gguf-q4_k_m"]})
        assert less.code == ExitCode.DONE, less.log
        assert sorted(repository.files)[:3] == ["NOTES.md", "README.md", "assistant-1-Q4_K_M.gguf"]
        assert not any(name.endswith(".safetensors") or name.startswith("mlx/") for name in repository.files)
        assert repository.tags["assistant-1"] == repository.commits[-1]


def check_merged(store: Store, one: Exported, base: dict[str, str], adapter: dict[str, str], tmp_path: Path) -> None:
    """Plain transformers says the same with the merged folder as peft with base and adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    for name, kind, ref in (("b", "model", base), ("a", "adapter", adapter)):
        store.fetch(ref["uri"], kind, ref["digest"], tmp_path / name)
    store.fetch(one.uri, "model", one.digest, tmp_path / "merged")
    ids = torch.tensor([[1, 40, 41, 42, 43, 44]])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype=torch.float32)
    both = PeftModel.from_pretrained(plain, tmp_path / "a").eval()
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    with torch.inference_mode():
        wanted, found = both(input_ids=ids).logits, alone(input_ids=ids).logits
    assert float((wanted - found).norm() / wanted.norm()) < 0.02


def check_k_quants(path: Path) -> None:
    """The file has K-quants in it, and llama.cpp's main line loads it and answers by its chat template."""
    from gguf import GGUFReader

    kinds = {tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    assert {"Q4_K", "Q6_K"} <= kinds, kinds
    program = (
        "import json, sys, xllamacpp as x\n"
        "params = x.CommonParams(); params.model.path = sys.argv[1]; params.n_ctx = 256; params.warmup = False\n"
        "params.cpuparams.n_threads = 1\n"
        "ask = {'messages': [{'role': 'user', 'content': 'Where is the secret?'}], 'max_tokens': 4}\n"
        "print('SAID ' + json.dumps(x.Server(params).handle_chat_completions(ask)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    said = next((line for line in done.stdout.splitlines() if line.startswith("SAID ")), None)
    assert said is not None, done.stderr[-2000:]
    answer = json.loads(said.removeprefix("SAID "))
    assert answer["usage"]["completion_tokens"] >= 1, answer


def check_modelpack(manifest: dict[str, Any], address: str, weights: bytes) -> None:
    assert manifest["artifactType"] == oci.ARTIFACT_TYPE
    assert manifest["annotations"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert manifest["annotations"]["dev.ratchet.dataset"] == DIGEST
    layers = {layer["annotations"][oci.FILE_PATH]: layer for layer in manifest["layers"]}
    assert layers["README.md"]["mediaType"] == oci.DOC_TYPE
    layer = layers["assistant-1-Q4_K_M.gguf"]
    assert layer["mediaType"] == oci.WEIGHT_TYPE
    assert layer["digest"] == "sha256:" + hashlib.sha256(weights).hexdigest()
    assert pull(address, f"models/assistant/blobs/{layer['digest']}") == weights
    settings = json.loads(pull(address, f"models/assistant/blobs/{manifest['config']['digest']}"))
    assert settings["config"]["format"] == "gguf"
    assert settings["config"]["quantization"] == "q4_k_m"
    assert settings["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]
    assert settings["descriptor"]["licenses"] == ["Apache-2.0"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_qwen_shaped_model_and_an_export_that_lost_its_adapter(
    stages: Any, identity: Identity, store: Store, bucket: str, tiny: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    base, adapter = published(store, bucket, tmp_path, tiny, "qwen2")
    stage = export_input(identity, base, adapter, formats=["gguf-q8_0"])
    from ratchet_trainer.export import stage as under_test

    with monkeypatch.context() as patch:
        patch.setattr(under_test, "merged", lambda model, folder: model)
        lost = stages.run("export", stage)
    assert (lost.code, lost.report.reason) == (ExitCode.DATA_ERROR, Reason.EXPORT_DIFFERS), lost.log
    assert "gguf-q8_0" in lost.report.message
    assert not list(store.objects(Location.parse(f"s3://{bucket}/assistant/versions")))
    ran = stages.run("export", stage)
    assert ran.code == ExitCode.DONE, ran.log


# Refusals, with a format that is in storage already


@pytest.fixture
def finished(store: Store, bucket: str, tmp_path: Path, identity: Identity) -> dict[str, Any]:
    """An export whose format is there: only its uploads are left to do."""
    from ratchet_trainer.export.stage import _recipe

    base, adapter = {"uri": f"s3://{bucket}/models/x"}, {"uri": f"s3://{bucket}/hand/x", "digest": DIGEST}
    stage = export_input(identity, base, adapter, formats=["gguf-q8_0"])
    folder = tmp_path / "format"
    folder.mkdir()
    (folder / "assistant-1-Q8_0.gguf").write_bytes(b"GGUF and so on")
    recipe = _recipe(ExportInput.model_validate(stage), "gguf-q8_0")
    uri = f"s3://{bucket}/assistant/versions/assistant-1/exports/{'d' * 12}/gguf-q8_0"
    numbers: dict[str, int | float | str] = {"error": 0.01, "effect": 1.0, "agreement": 1.0, "precision": "float32"}
    store.publish(folder, uri, "model", {"recipe": recipe, "base": DIGEST}, numbers)
    return stage


def to_hub(hub: "Hub", repository: str = "acme/assistant", **changes: Any) -> dict[str, Any]:
    return {"hub": {"repository": repository, "endpoint": hub.url, "token_secret": {"name": "hub"}} | changes}


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
def test_a_hub_that_refuses_or_is_down(
    stages: Any, finished: dict[str, Any], hub: "Hub", monkeypatch: pytest.MonkeyPatch
) -> None:
    no_rights = stages.run("export", finished | to_hub(hub, "strangers/assistant"))
    assert (no_rights.code, no_rights.report.reason) == (ExitCode.USER_ERROR, Reason.UPLOAD_REFUSED)
    assert "strangers/assistant (403" in no_rights.report.message
    hub.repositories["acme/open"] = hubs.Repository(private=False)
    hub.repositories["acme/open"].commit("by hand")
    public = stages.run("export", finished | to_hub(hub, "acme/open"))
    assert (public.code, public.report.reason) == (ExitCode.USER_ERROR, Reason.UPLOAD_REFUSED)
    assert "is public" in public.report.message
    assert hub.repositories["acme/open"].files == {}
    allowed = stages.run("export", finished | to_hub(hub, "acme/open", private=False))
    assert allowed.code == ExitCode.DONE, allowed.log
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    wrong = stages.run("export", finished | to_hub(hub))
    assert (wrong.code, wrong.report.reason) == (ExitCode.USER_ERROR, Reason.UPLOAD_REFUSED)
    gone = stages.run("export", finished | to_hub(hub, endpoint="http://127.0.0.1:1"))
    assert (gone.code, gone.report.reason) == (ExitCode.TRY_AGAIN, Reason.INFRASTRUCTURE_ERROR)


def test_a_registry_that_is_down_is_tried_again(stages: Any, finished: dict[str, Any]) -> None:
    ran = stages.run("export", finished | {"oci": {"repository": "127.0.0.1:1/models/x", "plain_http": True}})
    assert (ran.code, ran.report.reason) == (ExitCode.TRY_AGAIN, Reason.INFRASTRUCTURE_ERROR), ran.log
    assert "export.oci.plainHttp" in ran.report.message


def test_a_login_is_that_of_the_registry_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auth = base64.b64encode(b"robot:secret").decode()
    logins = {
        "auths": {"registry.example.com": {"auth": auth}, "plain.example.com": {"username": "u", "password": "p"}}
    }
    (tmp_path / "config.json").write_text(json.dumps(logins))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert oci._login("registry.example.com") == auth
    assert oci._login("plain.example.com") == base64.b64encode(b"u:p").decode()
    assert oci._login("elsewhere.example.com") is None
