"""How a reply of the model server is sorted; the server is a function here."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

import httpx
import pytest

from millhand.config import Model
from millhand.errors import BadAnswer, Malformed, ModelAway, Reasoned
from millhand.model.ollama import OllamaModel
from millhand.tasks.task import Prompt

REPLY_BYTES_MAX = 65_536
MODEL = Model(url="http://model.test", name="tiny:1b", reply_bytes_max=REPLY_BYTES_MAX)
PROMPT = Prompt(system="describe", user="hello", schema={"type": "object"})
GOOD = {
    "message": {"role": "assistant", "content": "{}"},
    "done": True,
    "done_reason": "stop",
    "total_duration": 1_500_000_000,
    "prompt_eval_count": 11,
    "eval_count": 7,
}

Server = Callable[[httpx.Request], httpx.Response]
SlowServer = Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]
Ask = Callable[..., OllamaModel]


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ask]:
    """Return a model whose server is the given function."""
    models: list[OllamaModel] = []

    def model(server: Server | SlowServer, settings: Model = MODEL) -> OllamaModel:
        client = partial(httpx.AsyncClient, transport=httpx.MockTransport(server))
        with monkeypatch.context() as patched:
            patched.setattr(httpx, "AsyncClient", client)
            models.append(OllamaModel(settings))
        return models[-1]

    yield model
    for one in models:
        await one.close()


def response(status: int = 200, document: Any = None, *, headers: dict[str, str] | None = None) -> httpx.Response:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return httpx.Response(status, headers=headers, stream=httpx.ByteStream(content))


def replies(status: int = 200, document: Any = None, *, headers: dict[str, str] | None = None) -> Server:
    return lambda _: response(status, document, headers=headers)


def raises(error: Exception) -> Server:
    def server(_: httpx.Request) -> httpx.Response:
        raise error

    return server


async def failure(model: OllamaModel) -> Reasoned:
    with pytest.raises(Reasoned) as caught:
        await model.generate(PROMPT)
    return caught.value


async def test_a_complete_answer_comes_with_its_tokens_and_time(served: Ask) -> None:
    answer = await served(replies(document=GOOD)).generate(PROMPT)
    assert (answer.content, answer.tokens_in, answer.tokens_out, answer.model_s) == ("{}", 11, 7, 1.5)


async def test_a_question_keeps_text_and_instructions_apart_and_its_limits_pinned(served: Ask) -> None:
    asked: list[dict[str, Any]] = []

    def server(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        return response(document=GOOD)

    model = served(server)
    await model.generate(PROMPT, attempt=1)
    await model.generate(PROMPT, attempt=3)
    first, third = asked
    assert first["messages"] == [
        {"role": "system", "content": "describe"},
        {"role": "user", "content": "hello"},
    ]
    assert (first["model"], first["format"], first["stream"]) == ("tiny:1b", {"type": "object"}, False)
    assert (first["truncate"], first["shift"]) == (False, False)
    assert first["options"] == {"num_ctx": 2048, "num_predict": 512, "temperature": 0.0, "seed": 7}
    assert "keep_alive" not in first, "the operator's own would be overridden"
    assert third["options"] == {"num_ctx": 2048, "num_predict": 512, "temperature": 0.4, "seed": 9}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"", "invalid_answer"),
        (b"<html>", "invalid_answer"),
        (b'{"message": {"content": "{}"}, "done": true', "invalid_answer"),
        (b'{"message": {"content": "\xff"}}', "invalid_answer"),
        (b'{"error": ' + b"[" * 60_000, "invalid_answer"),
        (b'{"unknown": ' + b"[" * 60_000, "invalid_answer"),
        ({}, "invalid_answer"),
        ({**GOOD, "message": {"content": 7}}, "invalid_answer"),
        ({**GOOD, "done": False}, "invalid_answer"),
        ({**GOOD, "done_reason": "load"}, "invalid_answer"),
        ({**GOOD, "done_reason": "length"}, "answer_too_long"),
        ({"error": "the runner has crashed"}, "model_error"),
        ({**GOOD, "error": {"code": 1}}, "model_error"),
        (b"x" * (REPLY_BYTES_MAX + 1), "answer_too_long"),
    ],
)
async def test_a_useless_answer_spends_an_attempt(served: Ask, reply: Any, reason: str) -> None:
    error = await failure(served(replies(document=reply)))
    assert (type(error), error.reason) == (BadAnswer, reason)


async def test_an_encoding_that_was_not_asked_for_is_not_decoded(served: Ask) -> None:
    error = await failure(served(replies(document=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})))
    assert (type(error), error.reason) == (BadAnswer, "invalid_answer")


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (400, Malformed, "rejected"),
        (413, Malformed, "rejected"),
        (422, Malformed, "rejected"),
        (401, ModelAway, "model_refuses"),
        (403, ModelAway, "model_refuses"),
        (404, ModelAway, "model_missing"),
        (429, ModelAway, "model_busy"),
        (500, BadAnswer, "model_error"),
        (502, ModelAway, "model_busy"),
        (503, ModelAway, "model_busy"),
        (504, ModelAway, "model_busy"),
        (307, ModelAway, "model_refuses"),
    ],
)
async def test_a_refusal_is_sorted_by_its_status(served: Ask, status: int, kind: type[Reasoned], reason: str) -> None:
    error = await failure(served(replies(status, {"error": "because"})))
    assert (type(error), error.reason) == (kind, reason)


@pytest.mark.parametrize(("status", "lost"), [(502, True), (504, True), (405, True), (503, False), (401, False)])
async def test_only_what_one_event_may_have_caused_counts_as_a_lost_call(
    served: Ask, status: int, *, lost: bool
) -> None:
    """A proxy says 502 for a server that is away, and for one that dies of this very request."""
    error = await failure(served(replies(status)))
    assert isinstance(error, ModelAway)
    assert error.lost is lost


async def test_a_missing_model_says_how_to_get_it(served: Ask) -> None:
    assert "ollama pull tiny:1b" in (await failure(served(replies(404)))).detail


async def test_a_busy_model_may_say_how_long(served: Ask) -> None:
    error = await failure(served(replies(429, headers={"Retry-After": "17"})))
    assert isinstance(error, ModelAway)
    assert error.wait_s == 17


@pytest.mark.parametrize(
    "body", [b"plain words", b"\xff\xfe", b"[" * 60_000, b'"' + b"x" * 60_000 + b'"', b"{}", b"null"]
)
async def test_whatever_a_refusal_says_its_detail_is_one_short_line(served: Ask, body: bytes) -> None:
    error = await failure(served(replies(503, body)))
    assert len(error.detail) <= 500
    assert "\n" not in error.detail


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (httpx.ConnectError("refused"), ModelAway, "model_unreachable"),
        (httpx.ConnectTimeout("slow"), ModelAway, "model_unreachable"),
        (httpx.PoolTimeout("full"), ModelAway, "model_unreachable"),
        (httpx.RemoteProtocolError("hung up"), ModelAway, "model_unreachable"),
        (httpx.ReadTimeout("silent"), BadAnswer, "timeout"),
        (TimeoutError(), BadAnswer, "timeout"),
    ],
)
async def test_a_failing_connection_is_sorted_by_whether_the_event_can_be_its_cause(
    served: Ask, error: Exception, kind: type[Reasoned], reason: str
) -> None:
    failed = await failure(served(raises(error)))
    assert (type(failed), failed.reason) == (kind, reason)


@pytest.mark.parametrize("listed", ["tiny:1b", "tiny:1b:latest"])
async def test_the_digest_is_that_of_the_configured_model(served: Ask, listed: str) -> None:
    tags = {"models": [{"name": "other:1b", "digest": "o"}, {"name": listed, "digest": "d"}]}
    assert await served(replies(document=tags)).digest() == "d"


@pytest.mark.parametrize(
    "server",
    [
        pytest.param(replies(document={"models": [{"name": "other:1b", "digest": "o"}]}), id="not in the list"),
        pytest.param(replies(document={}), id="an empty list"),
        pytest.param(replies(document=b"<html>"), id="not Ollama's"),
        pytest.param(replies(document=b'{"models": [{"name": "\xff"}]}'), id="not UTF-8"),
        pytest.param(replies(document=b'{"unknown": ' + b"[" * 60_000), id="too deep"),
        pytest.param(replies(document=b"x" * (REPLY_BYTES_MAX + 1)), id="too long"),
        pytest.param(replies(document=b"\x1f\x8b", headers={"Content-Encoding": "gzip"}), id="encoded"),
        pytest.param(replies(400), id="400"),
        pytest.param(replies(401), id="401"),
        pytest.param(replies(404), id="404"),
        pytest.param(replies(500), id="500"),
        pytest.param(replies(503), id="503"),
        pytest.param(raises(httpx.ConnectError("refused")), id="refused"),
        pytest.param(raises(httpx.ReadTimeout("silent")), id="silent"),
        pytest.param(raises(TimeoutError()), id="too late"),
    ],
)
async def test_a_listing_that_fails_is_nobodys_event_but_a_model_that_is_away(served: Ask, server: Server) -> None:
    """It is asked before any event is, and after an outage; neither may spend an attempt or bury anything."""
    with pytest.raises(ModelAway):
        await served(server).digest()


async def test_an_answer_that_never_comes_ends_at_the_total_deadline(served: Ask) -> None:
    async def server(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    error = await failure(served(server, Model(url="http://model.test", timeout_s=0.1)))
    assert (type(error), error.reason) == (BadAnswer, "timeout")


async def test_no_proxy_of_the_environment_sees_an_event(served: Ask) -> None:
    assert served(replies())._client.trust_env is False


async def test_an_answer_is_asked_for_without_compression(served: Ask) -> None:
    """So that the byte limit counts what must be held in memory."""
    asked: list[str] = []

    def server(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["Accept-Encoding"])
        return response(document=GOOD)

    await served(server).generate(PROMPT)
    assert asked == ["identity"]
