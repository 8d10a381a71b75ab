"""The transformers runtime as a process, spoken to by the stock OpenAI client."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ratchet_api.stage import ExitCode
from ratchet_trainer.serve import protocol
from ratchet_trainer.serve.protocol import ApiError

NAME = "assistant-1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    url: str

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def post(self, body: bytes) -> tuple[int, dict[str, Any], dict[str, str]]:
        request = urllib.request.Request(self.url + "/v1/chat/completions", body, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.loads(answer.read()), dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read()), dict(error.headers)

    def metric(self, name: str, **labels: str) -> float:
        families = text_string_to_metric_families(self.get("/metrics")[1])
        found = [
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(found)


def start(model_dir: Path, *more: str) -> Server:
    port = free_port()
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--model-dir", str(model_dir),
                 "--served-model-name", NAME, "--threads", "1", "--lame-duck-seconds", "0", *more]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "ratchet_trainer", "serve", *arguments])
    return Server(process, f"http://127.0.0.1:{port}")


def wait_ready(server: Server) -> Server:
    statuses = set()
    while (status := server.get("/health")[0]) != 200:
        statuses.add(status)
        assert server.process.poll() is None, "the server ended while it loaded"
    assert statuses <= {0, 503}
    return server


def end(server: Server) -> None:
    server.process.kill()
    server.process.wait()


@pytest.fixture(scope="module")
def model_dir(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ and a real adapter/, as fetch leaves them."""
    import torch

    from ratchet_api.training import Hyperparameters
    from ratchet_trainer.loading import load_model
    from ratchet_trainer.train.loop import add_lora
    from ratchet_trainer.train.stage import _save

    folder = tmp_path_factory.mktemp("served")
    (folder / "base").symlink_to(tiny)
    model = add_lora(load_model(tiny, "tiny", torch.device("cpu"), torch.float32), Hyperparameters())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    _save(model, folder / "adapter", "tiny")
    return folder


@pytest.fixture(scope="module")
def server(model_dir: Path) -> Iterator[Server]:
    started = start(model_dir, "--max-batch", "4", "--max-waiting", "8", "--max-model-len", "512")
    yield wait_ready(started)
    end(started)


@pytest.fixture
async def client(server: Server) -> Any:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


HI = [{"role": "user", "content": "Where is the secret?"}]


async def ask(client: openai.AsyncOpenAI, **changes: Any) -> Any:
    fields: dict[str, Any] = {"model": NAME, "messages": HI, "max_tokens": 12, "temperature": 0}
    return await client.chat.completions.create(**(fields | changes))


async def test_models_health_and_metrics(server: Server, client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [NAME]
    assert server.get("/health") == (200, "ok\n")
    before = server.metric("ratchet_runtime_requests_total", code="200")
    await ask(client)
    assert server.metric("ratchet_runtime_requests_total", code="200") == before + 1
    assert server.metric("ratchet_runtime_tokens_total", type="completion") > 0


async def test_the_adapter_is_what_answers(client: openai.AsyncOpenAI, model_dir: Path, tokenizer: Any) -> None:
    """The merged weights give the very tokens that base and adapter give side by side, and not the base's."""
    import torch

    from ratchet_trainer.chat import Message, prompt_ids
    from ratchet_trainer.generation.batch import answer_all
    from ratchet_trainer.loading import load_adapters, load_model

    model = load_model(model_dir / "base", "tiny", torch.device("cpu"), torch.float32)
    switch = load_adapters(model, {"candidate": model_dir / "adapter"})
    prompt = prompt_ids(tokenizer, [Message(role="user", content="Where is the secret?")])
    texts = {}
    for side in ("candidate", "base"):
        with switch(side) as active:
            ((texts[side],),) = answer_all(
                active, tokenizer, frozenset({2}), [prompt], 12, 1, lambda done, tokens: None
            )
    answer = await ask(client)
    assert answer.choices[0].message.content.strip() == texts["candidate"] != texts["base"]
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_streams_carry_the_same_text(client: openai.AsyncOpenAI) -> None:
    whole = await ask(client)
    stream = await ask(client, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
    assert finishes == [whole.choices[0].finish_reason]
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


async def test_more_requests_than_places_are_all_answered_right(client: openai.AsyncOpenAI) -> None:
    questions = [f"Where is secret {index}?" for index in range(8)]
    asked = [[{"role": "user", "content": question}] for question in questions]
    serial = [(await ask(client, messages=messages)).choices[0].message.content for messages in asked]
    together = await asyncio.gather(*(ask(client, messages=messages) for messages in asked))
    assert [answer.choices[0].message.content for answer in together] == serial


async def test_limits_stops_and_seeds(client: openai.AsyncOpenAI) -> None:
    short = await ask(client, max_completion_tokens=3, max_tokens=None)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 3)
    text = (await ask(client)).choices[0].message.content
    stop = text[3:5]
    stopped = await ask(client, stop=[stop])
    assert stopped.choices[0].message.content == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    streamed = await ask(client, stop=stop, stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in streamed]
    assert "".join(pieces) == text[: text.index(stop)]
    one, same, other = [
        (await ask(client, temperature=1.5, seed=seed)).choices[0].message.content for seed in (1, 1, 2)
    ]  # fmt: skip
    assert one == same != other
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "Where is "}, {"type": "text", "text": "the secret?"}]}
    ]
    assert (await ask(client, messages=parts)).choices[0].message.content == text


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": "other"}, openai.NotFoundError, "assistant-1"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, openai.BadRequestError, "messages.0"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         openai.BadRequestError, "other than text"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"n": 2}, openai.BadRequestError, "n is not supported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools is not"),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format"),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, openai.BadRequestError, "512"),
    ],
)  # fmt: skip
async def test_bad_requests_are_named(
    client: openai.AsyncOpenAI, changes: dict[str, Any], error: type[openai.APIStatusError], words: str
) -> None:
    with pytest.raises(error, match=words):
        await ask(client, **changes)


def test_bodies_that_are_no_request(server: Server) -> None:
    for body in (b"", b"{", b"[]", b"\xff", b'{"model": "assistant-1"}'):
        status, answer, _ = server.post(body)
        assert status == 400
        assert answer["error"]["type"] == "invalid_request_error"
    assert server.get("/nothing")[0] == 404
    assert server.get("/v1/chat/completions")[0] == 405
    assert server.post(b" " * (9 << 20))[0] == 413


async def test_a_full_queue_says_when_to_come_back(server: Server, client: openai.AsyncOpenAI) -> None:
    tasks = [asyncio.create_task(ask(client, max_tokens=300, stop=None)) for _ in range(40)]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [o for o in outcomes if isinstance(o, openai.APIStatusError)]
    assert refused
    assert len(refused) < 40
    assert {(o.status_code, o.response.headers["retry-after"]) for o in refused} == {(503, "1")}


async def test_a_client_that_goes_away_frees_its_place(server: Server, client: openai.AsyncOpenAI) -> None:
    task = asyncio.create_task(ask(client, max_tokens=480, temperature=1.0, seed=5))
    while await asyncio.to_thread(server.metric, "ratchet_runtime_running") == 0:
        assert not task.done(), "it was answered before it could be called off"
    stream = await ask(client, max_tokens=480, stream=True, temperature=1.0, seed=5)
    await stream.close()
    task.cancel()
    for name in ("ratchet_runtime_waiting", "ratchet_runtime_running"):
        while await asyncio.to_thread(server.metric, name):
            assert server.process.poll() is None
    assert (await ask(client)).choices


async def test_sigterm_lets_answers_end(model_dir: Path) -> None:
    server = wait_ready(start(model_dir))
    try:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120
        ) as client:
            stream = await ask(client, stream=True, max_tokens=200, temperature=1.0, seed=4)
            chunks = [await anext(aiter(stream))]
            server.process.send_signal(signal.SIGTERM)
            chunks += [chunk async for chunk in stream]
            assert chunks[-1].choices[0].finish_reason in ("stop", "length")
        assert await asyncio.to_thread(server.process.wait, 120) == 0
        assert server.get("/health")[0] == 0
    finally:
        end(server)


@pytest.mark.parametrize(("missing", "code"), [("base", ExitCode.USER_ERROR), ("weights", ExitCode.DATA_ERROR)])
def test_a_model_that_cannot_be_served_ends_the_process(
    model_dir: Path, tmp_path: Path, missing: str, code: ExitCode
) -> None:
    folder = tmp_path / "model"
    (folder / "adapter").mkdir(parents=True)
    if missing == "weights":
        (folder / "base").symlink_to(model_dir / "base")
        (folder / "adapter" / "adapter_config.json").write_text("{}")
    server = start(folder)
    try:
        assert server.process.wait(timeout=300) == code
    finally:
        end(server)


def test_fields_that_change_nothing_are_taken() -> None:
    body = {
        "model": "m", "messages": [{"role": "user", "content": "x"}], "n": 1, "presence_penalty": 0, "tools": [],
        "frequency_penalty": 0.0, "logprobs": False, "logit_bias": {}, "response_format": {"type": "text"},
        "user": "u", "metadata": {"a": "b"}, "store": True, "stop": None, "max_tokens": None,
    }  # fmt: skip
    assert protocol.parse_request(json.dumps(body).encode()).stops == []
    with pytest.raises(ApiError):
        protocol.parse_request(json.dumps(body | {"presence_penalty": 0.5}).encode())
