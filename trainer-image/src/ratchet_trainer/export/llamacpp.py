"""llama.cpp: quantises GGUF files, and loads them as its users do.

Room: trainer/export. The only module that talks to llama.cpp's library and its llama-quantize, both from the wheel
ik-llama-cpp-python: the llama.cpp of the author of the K-quants, because PyPI has no wheel of the main line with
llama-quantize in it that runs on glibc before 2.38. That the main line loads the files is tested with xllamacpp.
"""

import ctypes
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ratchet_trainer.errors import TryAgain, UserError
from ratchet_trainer.export.compare import Logits

QUANTISATIONS = {"gguf-q8_0": "Q8_0", "gguf-q4_k_m": "Q4_K_M"}
_ERROR_LEVELS = (2, 4)
"""GGML_LOG_LEVEL_ERROR, whose number has changed once."""


def quantise(source: Path, target: Path, quantisation: str, threads: int) -> None:
    """A GGUF file in f16 as one of fewer bits. Raises UserError or TryAgain."""
    program = _package().find_quantize_bin()
    if program is None:
        raise UserError("gguf: the wheel ik-llama-cpp-python came without llama-quantize: install it again")
    part = target.with_suffix(".part")
    command = [str(program), str(source), str(part), quantisation, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        if "No space left" in done.stderr:
            raise TryAgain("the scratch disk is full: give the export's pod more ephemeral storage")
        raise UserError(f"gguf: llama-quantize cannot make {quantisation} of this model ({said}): take another format")
    part.rename(target)


def _package() -> Any:
    try:
        import ik_llama_cpp
    except (ImportError, OSError) as error:
        raise UserError(
            f"gguf: llama.cpp does not run on this machine ({error}): its wheel is for Linux on x86-64 with AVX2; give "
            "the export such a node, or take gguf out of export.formats"
        ) from None
    return ik_llama_cpp


class Library:
    """The C API, with what it complains of kept for our own errors."""

    def __init__(self) -> None:
        _package()
        from ik_llama_cpp import _ctypes_api

        self.api: Any = _ctypes_api
        self.complaints: list[str] = []
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)

        def listen(level: int, text: bytes, _: Any) -> None:
            if level in _ERROR_LEVELS:
                self.complaints.append(text.decode(errors="replace").strip())

        self._listen = kind(listen)
        self.api._lib.llama_log_set(self._listen, None)
        self.api.llama_backend_init()

    def said(self) -> str:
        """Its last complaint."""
        return self.complaints[-1] if self.complaints else "it gives no reason"


@cache
def library() -> Library:
    """The one of this process: it keeps its log's listener for as long as it lives."""
    return Library()


class Model:
    """A GGUF file, loaded; a context manager."""

    def __init__(self, path: Path, longest: int, threads: int) -> None:
        own = library()
        self._api, self._said = own.api, own.said
        params = self._api.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = self._api.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise UserError(f"gguf: llama.cpp cannot load {path.name}, which it made itself: {own.said()}")
        self._vocab = self._api.llama_model_get_vocab(self._model)
        self._size = int(self._api.llama_vocab_n_tokens(self._vocab))
        settings = self._api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = max(256, longest)
        settings.n_threads = settings.n_threads_batch = threads
        self._context = self._api.llama_init_from_model(self._model, settings)
        if not self._context:
            self._api.llama_free_model(self._model)
            raise UserError(f"gguf: llama.cpp cannot run {path.name}: {own.said()}")

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        self._api.llama_free(self._context)
        self._api.llama_free_model(self._model)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of text with special tokens in it."""
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 8))()
        count = self._api.llama_tokenize(self._model, data, len(data), room, len(room), False, True)
        return list(room[:count])

    def logits(self, ids: list[int]) -> Logits:
        """(tokens, vocabulary) of one sequence."""
        self._api.llama_kv_cache_clear(self._context)
        batch = self._api.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for position, token in enumerate(ids):
                batch.token[position], batch.pos[position] = token, position
                batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
                batch.logits[position] = 1
            if self._api.llama_decode(self._context, batch) != 0:
                raise UserError(f"gguf: llama.cpp cannot run the model: {self._said()}")
            rows = [self._row(position) for position in range(len(ids))]
        finally:
            self._api.llama_batch_free(batch)
        return np.stack(rows)

    def _row(self, position: int) -> Logits:
        pointer = self._api.llama_get_logits_ith(self._context, position)
        return np.ctypeslib.as_array(pointer, shape=(self._size,)).astype(np.float32, copy=True)
