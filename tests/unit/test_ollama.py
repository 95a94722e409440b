"""How a reply of the model server is sorted; the server is a function here."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from millhand.address import model_authorization
from millhand.config import Model
from millhand.errors import BadAnswer, Misconfigured, ModelAway, ModelBusy, Reasoned, Unusable
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
async def served() -> AsyncIterator[Ask]:
    """Return a model whose server is the given function."""
    models: list[OllamaModel] = []

    def model(server: Server | SlowServer, settings: Model = MODEL) -> OllamaModel:
        models.append(OllamaModel(settings, httpx.MockTransport(server)))
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
    "body",
    [
        b'{"message": {"content": "{}"}, "done": true',
        b'{"message": {"content": "\xff"}}',
        b'{"error": ' + b"[" * 60_000,
        b'{"unknown": ' + b"[" * 60_000,
        json.dumps({**GOOD, "message": {"content": 7}}).encode(),
    ],
)
async def test_a_reply_that_cannot_be_read_spends_an_attempt(served: Ask, body: bytes) -> None:
    error = await failure(served(replies(document=body)))
    assert (type(error), error.reason) == (BadAnswer, "invalid_answer")


async def test_a_missing_model_says_how_to_get_it(served: Ask) -> None:
    error = await failure(served(replies(404, {"error": "model 'tiny:1b' not found"})))
    assert "ollama pull tiny:1b" in error.detail


@pytest.mark.parametrize(
    "body", [b"plain words", b"\xff\xfe", b"[" * 60_000, b'"' + b"x" * 60_000 + b'"', b"{}", b"null"]
)
async def test_whatever_a_refusal_says_its_detail_is_one_short_line(served: Ask, body: bytes) -> None:
    error = await failure(served(replies(503, body)))
    assert len(error.detail) <= 500
    assert "\n" not in error.detail


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
    with pytest.raises(ModelAway) as caught:
        await served(server).digest()
    assert not caught.value.lost


# -- is it back? -------------------------------------------------------------------------------------------------------


TAGS = {"models": [{"name": "tiny:1b", "digest": "d"}]}


def lists_and(answer: Server) -> Server:
    """Serve a list that has the model, and answer questions so."""
    return lambda request: response(document=TAGS) if request.url.path == "/api/tags" else answer(request)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(replies(document=GOOD), id="an answer"),
        pytest.param(replies(document=GOOD | {"message": {"content": "no JSON"}}), id="nonsense"),
        pytest.param(replies(document=GOOD | {"done_reason": "length"}), id="cut off"),
        pytest.param(replies(400, {"error": "no"}), id="refuses this prompt"),
        pytest.param(replies(400, {"error": "the input length exceeds the context length"}), id="too long"),
    ],
)
async def test_a_model_that_says_anything_at_all_is_back(served: Ask, answer: Server) -> None:
    assert await served(lists_and(answer)).probe(PROMPT) == "d"


@pytest.mark.parametrize(
    ("server", "kind"),
    [
        pytest.param(lists_and(replies(500, {"error": "no"})), BadAnswer, id="fails"),
        pytest.param(lists_and(replies(document=b"<html>")), BadAnswer, id="no Ollama answers"),
        pytest.param(lists_and(raises(httpx.ReadTimeout("silent"))), BadAnswer, id="silent"),
        pytest.param(lists_and(replies(503, {"error": "busy"})), ModelBusy, id="busy"),
        pytest.param(lists_and(raises(httpx.ReadError("reset"))), ModelAway, id="dies"),
        pytest.param(raises(httpx.ConnectError("refused")), ModelAway, id="gone"),
        pytest.param(replies(document={"models": []}), Misconfigured, id="missing"),
    ],
)
async def test_a_model_that_is_listed_only_is_not_back(served: Ask, server: Server, kind: type[Reasoned]) -> None:
    with pytest.raises(Reasoned) as caught:
        await served(server).probe(PROMPT)
    assert type(caught.value) is kind
    assert getattr(caught.value, "strikes", True)


# -- the client --------------------------------------------------------------------------------------------------------


async def test_an_answer_that_never_comes_ends_at_the_total_deadline(served: Ask) -> None:
    async def server(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    error = await failure(served(server, Model(url="http://model.test", timeout_s=0.1)))
    assert (type(error), error.reason) == (BadAnswer, "timeout")


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://model.test", "http://model.test/api/"),
        ("http://model.test:8080/", "http://model.test:8080/api/"),
        ("https://model.test/behind/a%20proxy/", "https://model.test/behind/a%20proxy/api/"),
        ("http://[::1]:11434", "http://[::1]:11434/api/"),
    ],
)
async def test_a_server_is_asked_below_its_address(served: Ask, url: str, asked: str) -> None:
    seen: list[tuple[str, str]] = []

    def server(request: httpx.Request) -> httpx.Response:
        seen.append((str(request.url), request.headers["Host"]))
        return response(document=GOOD | TAGS)

    model = served(server, msgspec.structs.replace(MODEL, url=url))
    await model.probe(PROMPT)
    host = httpx.URL(url).netloc.decode()
    assert seen == [(f"{asked}tags", host), (f"{asked}chat", host)]


async def test_an_answer_is_asked_for_without_compression(served: Ask) -> None:
    """So that the byte limit counts what must be held in memory."""
    asked: list[str] = []

    def server(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["Accept-Encoding"])
        return response(document=GOOD)

    await served(server).generate(PROMPT)
    assert asked == ["identity"]


async def test_a_token_of_a_file_goes_into_every_request_and_nowhere_else(served: Ask, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text("tok-1\n", encoding="utf-8")
    seen: list[str | None] = []

    def server(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        return response(401, {"error": "no"})

    model = served(server, msgspec.structs.replace(MODEL, token_file=str(file)))
    for asking in (model.generate(PROMPT), model.digest()):
        with pytest.raises(Reasoned) as caught:
            await asking
        assert "tok-1" not in str(caught.value)
    assert seen == ["Bearer tok-1"] * 2


def test_a_token_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.touch()
    file.chmod(0o644)
    with pytest.raises(Unusable, match=r"model\.token_file: .*token can be read by everybody.*chmod o-r"):
        model_authorization(Model(url="http://h", token_file=str(file)))
    assert model_authorization(Model(token_file=str(file))) == {}, "the embedded model asks for none"
