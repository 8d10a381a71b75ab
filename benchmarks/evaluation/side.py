"""One evaluation in a process of its own: `python side.py NAME SETTINGS.json`; prints its numbers as one JSON line.

Both sides let two adapters of one base answer the same cases greedily in fp32. ours: the stage's own code, without
storage. loop: for each adapter the base is loaded, the adapter put on it, and each case asked by `generate`, one after
the other, as a script written by hand does it. The clock runs from before the first load to the last answer.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false")

import torch

Answers = dict[str, list[str]]


def ours(settings: dict, prompts: list[str]) -> Answers:
    from ratchet_trainer.chat import Message, prompt_ids, stop_ids
    from ratchet_trainer.frozen import freeze_linears
    from ratchet_trainer.generation.batch import answer_all
    from ratchet_trainer.loading import load_adapters, load_model, load_tokenizer

    base = Path(settings["model"])
    tokenizer = load_tokenizer(base, "smollm2")
    model = load_model(base, "smollm2", torch.device("cpu"), torch.float32)
    stops = stop_ids(tokenizer, model.generation_config)
    folders = {name: Path(folder) for name, folder in settings["adapters"].items()}
    switch = load_adapters(model, folders)
    freeze_linears(model)
    asked = [prompt_ids(tokenizer, [Message(role="user", content=prompt)]) for prompt in prompts]
    said = {}
    for name in folders:
        with switch(name) as active:
            answers = answer_all(
                active, tokenizer, stops, asked, settings["tokens"], settings["batch"], lambda done, tokens: None
            )
        said[name] = [one for (one,) in answers]
    return said


def loop(settings: dict, prompts: list[str]) -> Answers:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    said = {}
    for name, folder in settings["adapters"].items():
        tokenizer = AutoTokenizer.from_pretrained(settings["model"])
        model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
        model = PeftModel.from_pretrained(model, folder).eval()
        said[name] = []
        for prompt in prompts:
            inputs = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            with torch.no_grad():
                output = model.generate(**inputs, max_new_tokens=settings["tokens"], do_sample=False)
            new = output[0, inputs["input_ids"].shape[1] :]
            said[name].append(tokenizer.decode(new, skip_special_tokens=True).strip())
    return said


SIDES = {"ours": ours, "loop": loop}


def main() -> None:
    name, settings = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(settings["threads"])
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    began = time.perf_counter()
    said = SIDES[name](settings, settings["prompts"])
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print("\n" + json.dumps({"seconds": seconds, "peakMiB": peak, "answers": said}))


if __name__ == "__main__":
    main()
