"""Models and tokenizers from a folder, the same way in every stage.

Room: trainer. Touches the folder that it is given and the device. Imports torch and transformers when it is called,
not before: a stage that only moves files should start at once.
"""

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from ratchet_trainer.chat import Tokenizer, check_template
from ratchet_trainer.errors import DataError, OutOfMemory, UserError

log = logging.getLogger("ratchet")


def load_tokenizer(folder: Path, name: str) -> Tokenizer:
    """The tokenizer with its chat template; padding goes to the left, as generation needs it.

    `name` is what a message calls the model. Raises UserError when it cannot be read or has no template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the tokenizer of {name} cannot be read: {_first_line(error)}") from None
    check_template(tokenizer, name)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    checked: Tokenizer = tokenizer
    return checked


def load_model(folder: Path, name: str, device: Any, dtype: Any, quantization: str = "none") -> Any:
    """The base model for causal language modelling, in evaluation mode. Never runs code from the folder.

    With `quantization` nf4 the weights of its linear layers are packed into 4 bits and unpacked to `dtype` for each
    product. Raises UserError when transformers cannot load it, OutOfMemory when it does not fit.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    packed = {} if quantization == "none" else {"quantization_config": _nf4(dtype), "device_map": {"": device}}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", use_safetensors=True, trust_remote_code=False,
            local_files_only=True, **packed,
        )  # fmt: skip
        if packed:
            _keep_trainable(model)
        else:
            model.to(device)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"{name} does not fit into the memory of {device}: {_first_line(error)}") from None
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"{name} cannot be loaded as a causal language model: {_first_line(error)}") from None
    # Sampling settings that a model brings along would make greedy answers differ from model to model; only what
    # ends an answer is kept.
    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
    model.eval()
    return model


def _nf4(dtype: Any) -> Any:
    """Settings of QLoRA (Dettmers et al. 2023, arXiv:2305.14314): normal floats, their scales quantized as well."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _keep_trainable(model: Any) -> None:
    """bitsandbytes lays packed weights out anew for inference, at the first pass in evaluation mode on a CPU that has
    bf16 arithmetic, and has no gradient through that layout."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def load_adapters(model: Any, folders: Mapping[str, Path]) -> Callable[[str], AbstractContextManager[Any]]:
    """Loads adapters beside each other onto a base model; gives back a switch.

    `with switch(name) as model:` runs the model with that adapter, or bare when there is no folder of that name. Raises
    DataError for an adapter that does not fit the base.
    """
    from peft import PeftModel

    wrapped: Any = None
    for name, folder in folders.items():
        with _fitting(f"the {name}'s adapter"):
            if wrapped is None:
                wrapped = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
            else:
                wrapped.load_adapter(str(folder), adapter_name=name)
            _check_all_loaded(wrapped, folder, name)
    model.eval()

    @contextmanager
    def switch(name: str) -> Iterator[Any]:
        if wrapped is None:
            yield model
        elif name in folders:
            wrapped.set_adapter(name)
            yield model
        else:
            with wrapped.disable_adapter():
                yield model

    return switch


def merged(model: Any, folder: Path) -> Any:
    """The base model with an adapter's weights added into its own: as fast as the bare base. Raises DataError."""
    from peft import PeftModel

    with _fitting("the adapter"):
        wrapped = PeftModel.from_pretrained(model, str(folder))
        _check_all_loaded(wrapped, folder, "default")
        return wrapped.merge_and_unload(safe_merge=True)


@contextmanager
def _fitting(what: str) -> Iterator[None]:
    """Errors of loading an adapter as a DataError."""
    with warnings.catch_warnings():
        # peft only warns of keys that find no place; `_check_all_loaded` refuses them.
        warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
        try:
            yield
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            text = f"{what} does not fit the base model ({_first_line(error)}): it was trained on another one"
            raise DataError(text) from None


def _check_all_loaded(wrapped: Any, folder: Path, name: str) -> None:
    """Raises ValueError unless the file's LoRA matrices are those of the model, one by one."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        there = {key for key in file.keys() if ".lora_" in key}  # noqa: SIM118  # safe_open is no mapping
    state = get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False)
    wanted = {key for key in state if ".lora_" in key}
    if there != wanted:
        odd = sorted(there ^ wanted)[0]
        raise ValueError(f"{len(there ^ wanted)} matrices have no counterpart, for example {odd}")


def pick_device(all_used: bool = False) -> Any:
    """The first GPU if there is one, else the CPU. `all_used`: whether the caller has work for the other GPUs."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    if torch.cuda.device_count() > 1 and not all_used:
        log.warning("%d GPUs are visible and one is used: ask for one", torch.cuda.device_count())
    return torch.device("cuda", 0)


def use_threads(wanted: int | None = None) -> int:
    """Sets torch's threads: as told, else OMP_NUM_THREADS, else the cores that this container really has."""
    import torch

    count = wanted or int(os.environ.get("OMP_NUM_THREADS") or 0) or available_cores(Path("/sys/fs/cgroup/cpu.max"))
    torch.set_num_threads(count)
    return count


def available_cores(quota_file: Path) -> int:
    """Cores that this process may use, at least 1: its affinity and its cgroup's quota (cgroup v2, `cpu.max`).

    Without the quota a container with two of 64 cores starts 64 threads that keep each other waiting.
    """
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text().split()
        limit = math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return cores
    return max(1, min(cores, limit))


def inference_dtype(device: Any) -> Any:
    """What a model is evaluated and served in: bf16 where a GPU has it, fp32 elsewhere. One rule for both, so that
    what was measured is what serves."""
    import torch

    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def quiet_libraries() -> None:
    """Progress bars and advice of the libraries do not belong into a Job's log."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    # It would rather have its CPU kernel from another package.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # peft asks by the name that transformers has deprecated.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
