"""`serve`: loads base and adapter, warms up, answers until SIGTERM, then lets answers under way end.

Room: trainer. Touches the model folder, the device, one listening socket and the process's signals.
"""

import argparse
import asyncio
import logging
import signal
import time
from pathlib import Path
from typing import Any

from aiohttp import web

from ratchet_api.reasons import Reason
from ratchet_api.stage import ExitCode
from ratchet_trainer.chat import Message, Tokenizer, prompt_ids, stop_ids
from ratchet_trainer.errors import Missing, StageError, UserError
from ratchet_trainer.models import check_adapter
from ratchet_trainer.serve.app import Loaded, Runtime
from ratchet_trainer.serve.worker import Worker

log = logging.getLogger("ratchet")

LARGEST_DEFAULT = 8192
"""Tokens of prompt and answer when neither --max-model-len nor the model says less."""


def run(options: argparse.Namespace) -> int:
    """Serves until SIGTERM; gives back the exit code. Raises StageError's children when the model cannot be loaded."""
    return asyncio.run(_serve(options))


async def _serve(options: argparse.Namespace) -> int:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[BaseException | None] = loop.create_future()
    loaded: list[Loaded] = []

    def on_end(error: BaseException | None) -> None:
        loop.call_soon_threadsafe(lambda: None if ended.done() else ended.set_result(error))

    worker = Worker(lambda: _load(options, loaded), options.max_waiting, on_end)
    runtime = Runtime(options.served_model_name, worker, lambda: loaded[0])
    runner = web.AppRunner(
        runtime.app(), handler_cancellation=True, access_log=None, shutdown_timeout=options.grace_seconds
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, options.host, options.port).start()
    except OSError as error:
        text = f"--host {options.host} --port {options.port} cannot be listened at: {error.strerror}"
        raise UserError(text) from None
    term = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, term.set)
    worker.start()
    ended.add_done_callback(lambda _: term.set())
    await term.wait()
    if ended.done():
        await runner.cleanup()
        return _raise(ended.result())
    log.info("leaving: %d answers under way", worker.running + worker.waiting)
    runtime.leaving = True
    # Whoever still thinks that we are ready is served; the ready state needs a moment to get around.
    await asyncio.wait([ended], timeout=options.lame_duck_seconds)
    await runner.cleanup()
    await asyncio.to_thread(worker.stop)
    return ExitCode.DONE


def _raise(error: BaseException | None) -> int:
    if isinstance(error, StageError):
        raise error
    log.error("the model's thread ended", exc_info=error)
    return ExitCode.BUG


def _load(options: argparse.Namespace, loaded: list[Loaded]) -> Any:
    """In the model's thread: everything until the engine is warm."""
    began = time.monotonic()
    from ratchet_trainer.frozen import freeze_linears
    from ratchet_trainer.generation.engine import Engine, supported
    from ratchet_trainer.loading import (
        inference_dtype,
        load_model,
        load_tokenizer,
        merged,
        pick_device,
        quiet_libraries,
        use_threads,
    )

    use_threads(options.threads)
    quiet_libraries()
    base, adapter = options.model_dir / "base", options.model_dir / "adapter"
    if not base.is_dir():
        raise Missing(Reason.MISSING_BASE_MODEL, f"--model-dir: {options.model_dir} has no base/; run `fetch` first")
    name, device = options.served_model_name[0], pick_device()
    tokenizer = load_tokenizer(base, name)
    model = load_model(base, name, device, inference_dtype(device))
    if not supported(model.config):
        raise UserError(
            f"the transformers runtime serves models whose layers look at the whole past; {model.config.model_type} "
            "does not: write serving.runtime: vllm"
        )
    if adapter.is_dir():
        check_adapter(adapter, str(Path("adapter")))
        model = merged(model, adapter)
    freeze_linears(model)
    capacity = _capacity(options.max_model_len, model.config)
    stops = stop_ids(tokenizer, model.generation_config)
    engine = Engine(model, stops, options.max_batch, capacity)
    _warm_up(engine, tokenizer, model, capacity)
    loaded.append(Loaded(tokenizer, capacity))
    log.info(
        "serving %s%s on %s, %d tokens at most, after %.1f s", name, " with its adapter" if adapter.is_dir() else "",
        device, capacity, time.monotonic() - began,
    )  # fmt: skip
    return engine


def _capacity(wanted: int | None, config: Any) -> int:
    longest = int(getattr(config, "max_position_embeddings", None) or LARGEST_DEFAULT)
    if wanted is not None and wanted > longest:
        raise UserError(f"serving.maxModelLen: the model takes {longest} tokens at most; write that or less")
    return wanted or min(longest, LARGEST_DEFAULT)


def _warm_up(engine: Any, tokenizer: Tokenizer, model: Any, capacity: int) -> None:
    """First answers are slow (memory, threads), so nobody gets them. They are also held against what transformers
    itself says the next token is: a model that our cache gets wrong is not served.

    Raises UserError.
    """
    import torch

    from ratchet_trainer.generation.conversation import Conversation

    messages = [Message(role="user", content="Hello")]
    prompt = prompt_ids(tokenizer, messages)[: capacity - 4]
    pair = [Conversation(prompt, 3), Conversation([*prompt, *prompt][: capacity - 4], 3)]
    for conversation in pair:
        engine.add(conversation)
    while engine.busy:
        engine.step()
    for conversation in pair:
        tokens = [*conversation.prompt, *conversation.tokens]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False).logits[0].float()
        for place, token in enumerate(conversation.tokens, start=len(conversation.prompt) - 1):
            if logits[place, token] < logits[place].max() - 0.05 * logits[place].std():
                raise UserError(
                    f"{model.config.model_type} models are not served right by the transformers runtime (its tokens "
                    "differ from the model's own): write serving.runtime: vllm"
                )
