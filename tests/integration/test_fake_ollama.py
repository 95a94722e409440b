"""The fake Ollama is judged by the official client and by httpx, as our own client will be."""

import asyncio
import enum
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Literal

import httpx
import msgspec
import ollama
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.integration.fake_client import MODEL, ask, say

from scripts.fake.journal import read_journal
from scripts.fake_ollama import FakeOllama, instance, parse_script

ROOT = Path(__file__).parents[2]
START_S_MAX = 20


class Language(enum.Enum):
    GERMAN = "de"
    POLISH = "pl"


class Entity(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=3, max_length=9)]
    inside: "Entity | None" = None
    others: "list[Entity]" = []


class Finding(msgspec.Struct, forbid_unknown_fields=True):
    label: Literal["positive", "neutral", "negative"]
    confidence: Annotated[float, msgspec.Meta(ge=0, le=1)]
    above: Annotated[float, msgspec.Meta(gt=0, lt=0.001)]
    stars: Annotated[int, msgspec.Meta(ge=1, le=5)]
    below: Annotated[int, msgspec.Meta(lt=-7)]
    language: Language
    spam: bool
    note: Annotated[str, msgspec.Meta(max_length=1)] | int | None
    entities: Annotated[list[Entity], msgspec.Meta(min_length=2, max_length=4)]


SCHEMA = msgspec.json.schema(Finding)


@pytest.fixture
async def fake() -> AsyncIterator[FakeOllama]:
    """Two slots and no latency."""
    async with FakeOllama(slots=2) as server:
        yield server


@pytest.fixture
async def http(fake: FakeOllama) -> AsyncIterator[httpx.AsyncClient]:
    """Give a plain client, to see what really travels."""
    async with httpx.AsyncClient(base_url=fake.url, trust_env=False, timeout=5) as client:
        yield client


@pytest.fixture
async def client(fake: FakeOllama) -> AsyncIterator[ollama.AsyncClient]:
    """Give the official client, to see that it is Ollama that we imitate."""
    async with ollama.AsyncClient(fake.url, trust_env=False, timeout=5) as official:
        yield official


# It speaks as Ollama does


async def test_the_official_client_gets_an_answer_that_fits_its_schema(client: ollama.AsyncClient) -> None:
    """The schema is one that msgspec writes for a result type, as our tasks do."""
    reply = await client.chat(MODEL, messages=[{"role": "user", "content": "hello"}], format=SCHEMA)
    msgspec.json.decode(reply.message.content or "", type=Finding)
    assert (reply.done, reply.done_reason) == (True, "stop")


async def test_the_official_client_can_stream_the_same_answer(client: ollama.AsyncClient) -> None:
    """Ollama streams unless told otherwise."""
    messages = [{"role": "user", "content": "hello"}]
    whole = await client.chat(MODEL, messages=messages)
    parts = [part async for part in await client.chat(MODEL, messages=messages, stream=True)]
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len(parts) > 2


async def test_the_official_client_can_generate_from_a_prompt(client: ollama.AsyncClient) -> None:
    """The answer is the one that `instance` predicts."""
    reply = await client.generate(MODEL, prompt="hello", format=SCHEMA)
    assert json.loads(reply.response or "") == instance(SCHEMA, "hello")


async def test_the_official_client_finds_the_model_listed_loaded_and_described(client: ollama.AsyncClient) -> None:
    """Doctor and desk read these."""
    assert [model.model for model in (await client.list()).models] == [MODEL]
    assert [model.context_length for model in (await client.ps()).models] == [4096]
    assert (await client.show(MODEL)).capabilities == ["completion"]


async def test_an_unknown_model_is_not_found(client: ollama.AsyncClient, http: httpx.AsyncClient) -> None:
    """F43: a missing model is an outage, so its reply must be the true one."""
    with pytest.raises(ollama.ResponseError) as refused:
        await client.chat("other:7b", messages=[{"role": "user", "content": "hello"}])
    assert (refused.value.status_code, refused.value.error) == (404, "model 'other:7b' not found")
    assert (await http.post("/api/show", json={"model": "other:7b"})).status_code == 404


async def test_a_request_it_does_not_understand_is_refused_with_400(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """A misspelt order must not pass as an honest answer."""
    assert (await http.post("/api/chat", content=b"{")).status_code == 400
    assert (await http.post("/api/chat", json={"model": MODEL, "messages": "hello"})).status_code == 400
    assert (await say(http, "[[fake nonsense]]")).status_code == 400
    assert [call.status for call in fake.calls] == [400, 400, 400]


async def test_the_durations_are_the_true_ones_in_nanoseconds() -> None:
    """The gate reads them."""
    async with FakeOllama(latency_s=0.05) as fake, httpx.AsyncClient(base_url=fake.url) as http:
        began_s = time.monotonic()
        reply = (await say(http, "hello")).json()
        took_ns = (time.monotonic() - began_s) * 1e9
    assert 0.045e9 <= reply["prompt_eval_duration"] + reply["eval_duration"] <= reply["total_duration"] <= took_ns


async def test_a_prompt_longer_than_the_context_is_cut_silently_or_refused(http: httpx.AsyncClient) -> None:
    """`prompt_eval_count` is the only tell."""
    long, options = "word " * 400, {"num_ctx": 100}
    assert (await say(http, long, options=options)).json()["prompt_eval_count"] == 100
    assert (await say(http, long, options=options, truncate=False)).status_code == 400


async def test_num_predict_cuts_the_answer(http: httpx.AsyncClient) -> None:
    """A cut answer says so in `done_reason` alone."""
    reply = (await say(http, "hello", format=SCHEMA, options={"num_predict": 5})).json()
    assert (reply["done_reason"], reply["eval_count"], len(reply["message"]["content"])) == ("length", 5, 20)


async def test_requests_on_one_connection_are_answered_in_order(fake: FakeOllama) -> None:
    """Keep-alive and pipelining: nothing read ahead is lost."""
    reader, writer = await asyncio.open_connection("127.0.0.1", fake.port)
    writer.write(b"GET /api/version HTTP/1.1\r\n\r\nGET /api/tags HTTP/1.1\r\n\r\n")
    assert b'"version"' in await reader.readuntil(b"}")
    assert b'"models"' in await reader.readuntil(b"]}")
    writer.close()
    await writer.wait_closed()


# Its answers can be predicted


@given(st.text())
def test_every_text_gets_an_instance_of_the_schema(text: str) -> None:
    """For every kind of schema our result types can give."""
    msgspec.convert(instance(SCHEMA, text), Finding)


def test_different_texts_get_different_answers_and_equal_texts_equal_ones() -> None:
    """So that a mixed-up answer is noticed."""
    answers = [json.dumps(instance(SCHEMA, f"text {n % 50}")) for n in range(100)]
    assert answers[:50] == answers[50:]
    assert len(set(answers)) == 50


def test_a_schema_with_a_pattern_is_refused_not_answered_wrongly() -> None:
    """Better loud than invalid."""
    with pytest.raises(ValueError, match="pattern"):
        instance({"type": "string", "pattern": "^[a-z]{2}$"}, "hello")


# It does as the text orders


def test_orders_are_understood_inside_json_too() -> None:
    """Events reach the prompt as JSON, with their quotes escaped."""
    text = json.dumps({"body": 'hm [[fake reply={"a": "]]"} retry_after="Wed, 21 Oct 2015 07:28:00 GMT" drip=0.5]] hm'})
    script = parse_script(text)
    assert script is not None
    assert (script.reply, script.retry_after, script.drip) == ({"a": "]]"}, "Wed, 21 Oct 2015 07:28:00 GMT", 0.5)


async def test_a_limited_order_holds_for_the_first_calls_with_that_text(http: httpx.AsyncClient) -> None:
    """F42, F43: fails so often, then recovers; each text counts for itself."""
    text = "late [[fake status=503 retry_after=5 times=2]]"
    replies = [await say(http, text) for _ in range(4)]
    assert [reply.status_code for reply in replies] == [503, 503, 200, 200]
    assert [reply.headers.get("retry-after") for reply in replies] == ["5", "5", None, None]
    assert (await say(http, "another " + text)).status_code == 503


@pytest.mark.parametrize(
    ("order", "content"),
    [
        ("garbage", "Sure! Here is your JSON: {"),
        ("empty", ""),
        ("wrong_schema", '{"unexpected": [1, 2, 3]}'),
        ('reply={"label":"ok"}', '{"label":"ok"}'),
        ('reply="as it is"', "as it is"),
    ],
)
async def test_an_order_decides_what_the_model_says(http: httpx.AsyncClient, order: str, content: str) -> None:
    """F45: nonsense in a reply that is otherwise sound."""
    reply = (await say(http, f"[[fake {order}]]", format=SCHEMA)).json()
    assert (reply["done"], reply["message"]["content"]) == (True, content)


async def test_an_answer_may_be_cut_unfinished_or_an_error_inside_a_200(http: httpx.AsyncClient) -> None:
    """F45: a 200 is not yet an answer."""
    cut = (await say(http, "[[fake length]]", format=SCHEMA)).json()
    assert cut["done_reason"] == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(cut["message"]["content"])
    assert (await say(http, "[[fake not_done]]")).json()["done"] is False
    assert list((await say(http, "[[fake error_in_200]]")).json()) == ["error"]
    streamed = await say(http, "[[fake error_in_200]]", stream=True)
    assert list(json.loads(streamed.text.splitlines()[-1])) == ["error"]


async def test_a_half_body_passes_httpx_as_a_200_that_does_not_parse(http: httpx.AsyncClient) -> None:
    """F45: `Connection: close` hides the missing half."""
    reply = await say(http, "[[fake half_body]]")
    assert reply.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        reply.json()


async def test_a_dropped_connection_brings_no_byte(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """F44: the server has read the request and says nothing."""
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        await say(http, "[[fake drop]]")
    assert fake.calls[0].status == "dropped"


async def test_a_redirect_that_is_followed_is_noticed(fake: FakeOllama) -> None:
    """F45: nobody may follow it, so the fake counts who does."""
    async with httpx.AsyncClient(base_url=fake.url, follow_redirects=False) as careful:
        assert (await say(careful, "[[fake redirect]]")).status_code == 307
    assert fake.probes["unknown"] == 0
    async with httpx.AsyncClient(base_url=fake.url, follow_redirects=True) as careless:
        assert (await say(careless, "[[fake redirect]]")).status_code == 404
    assert fake.probes["unknown"] == 1


async def test_headers_may_lie_about_length_and_encoding(http: httpx.AsyncClient) -> None:
    """F45: wrong Content-Length, bad gzip."""
    with pytest.raises(httpx.RemoteProtocolError):
        await say(http, '[[fake headers={"Content-Length":"99999"}]]')
    assert len((await say(http, '[[fake headers={"Content-Length":"9"}]]')).content) == 9
    with pytest.raises(httpx.DecodingError):
        await say(http, '[[fake headers={"Content-Encoding":"gzip"}]]')


async def test_a_drip_sends_one_byte_after_the_other(http: httpx.AsyncClient) -> None:
    """F44: each read succeeds in time, the whole never does."""
    request = http.build_request("POST", "/api/chat", json=ask("[[fake drip=0.0001]]"))
    reply = await http.send(request, stream=True)
    pieces = [piece async for piece in reply.aiter_raw()]
    assert len(pieces) > 20
    assert json.loads(b"".join(pieces))["done"] is True


async def test_a_huge_body_is_whitespace_before_the_answer(http: httpx.AsyncClient) -> None:
    """F45: valid JSON, too long to be read."""
    reply = await say(http, "[[fake huge=10000000]]")
    assert len(reply.content) > 10_000_000
    assert reply.json()["done"] is True


async def test_a_gzip_bomb_is_small_until_it_is_opened(http: httpx.AsyncClient) -> None:
    """F45: read raw here; the 256 MB are for clients that decode."""
    request = http.build_request("POST", "/api/chat", json=ask("[[fake gzip_bomb]]"))
    reply = await http.send(request, stream=True)
    assert reply.headers["content-encoding"] == "gzip"
    assert sum([len(piece) async for piece in reply.aiter_raw()]) < 1_000_000


# It does as Python and HTTP order


async def test_a_default_script_holds_for_texts_that_order_nothing(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """The text beats it, and `times` ends it."""
    fake.script({"garbage": True, "times": 1})
    assert (await say(http, '[[fake reply="mine"]]')).json()["message"]["content"] == "mine"
    assert (await say(http, "hello")).json()["message"]["content"].startswith("Sure!")
    assert not (await say(http, "hello")).json()["message"]["content"].startswith("Sure!")


async def test_an_outage_refuses_every_api_path_until_it_is_cleared(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """F46: health probes must see it too, whatever texts order."""
    fake.outage(status=503, retry_after=7)
    assert (await http.get("/api/tags")).status_code == 503
    assert (await say(http, "[[fake empty]]")).headers["retry-after"] == "7"
    fake.script()
    assert (await http.get("/api/tags")).status_code == 200
    assert (await say(http, "hello")).status_code == 200


async def test_a_held_call_is_answered_when_released(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """Tests wait for facts, so the fake lets them choose the moment."""
    held = asyncio.create_task(say(http, "[[fake hold]]"))
    await fake.seen(1)
    await fake.until(lambda: fake.held == 1)
    assert not held.done()
    fake.release()
    assert (await held).status_code == 200


async def test_other_processes_script_release_and_read_it_over_http(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """Fleet tests run the fake as a process."""
    assert (await http.post("/fake/script", json={"hold": True})).status_code == 200
    held = asyncio.create_task(say(http, "hello"))
    await fake.until(lambda: fake.held == 1)
    assert (await http.post("/fake/release")).status_code == 200
    await held
    assert (await http.post("/fake/script", json={})).status_code == 200
    await say(http, "bye")
    journal = (await http.get("/fake/calls?last=1")).json()
    assert (journal["arrived"], journal["in_flight"], journal["concurrency_max"]) == (2, 0, 1)
    assert [(call["path"], call["status"], call["text"]) for call in journal["calls"]] == [("/api/chat", 200, "bye")]
    assert (await http.post("/fake/script", json={"nonsense": True})).status_code == 400


# It keeps the books


async def test_calls_beyond_the_slots_wait_and_the_journal_shows_it(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """As with OLLAMA_NUM_PARALLEL: the queue has no bound."""
    calls = []
    for n in range(3):
        calls.append(asyncio.create_task(say(http, f"[[fake hold]] {n}")))
        await fake.seen(n + 1)
    assert (fake.running, fake.held, fake.concurrency_max) == (2, 2, 3)
    fake.release()
    await fake.until(lambda: fake.in_flight == 1 and fake.held == 1)
    fake.release()
    await asyncio.gather(*calls)
    last = fake.calls[2]
    assert last.end_s is not None
    assert last.started_s is not None
    assert last.arrival_s < min(call.end_s or 0 for call in list(fake.calls)[:2]) <= last.started_s <= last.end_s


async def test_the_journal_has_what_was_asked(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """Options must never vary between requests; here a test can look."""
    await say(http, "hello", options={"num_ctx": 2048})
    assert (fake.calls[0].text, fake.calls[0].path, fake.calls[0].status) == ("hello", "/api/chat", 200)
    assert fake.calls[0].request["options"] == {"num_ctx": 2048}


@pytest.mark.parametrize("order", ["hold", "delay=60", "drip=60", "status=503 delay=60"])
async def test_a_client_that_leaves_frees_its_slot_and_is_recorded(fake: FakeOllama, order: str) -> None:
    """Closing the connection is how a generation is cancelled."""
    async with httpx.AsyncClient(base_url=fake.url) as leaver:
        call = asyncio.create_task(say(leaver, f"[[fake {order}]]"))
        await fake.until(lambda: bool(fake.calls) and fake.calls[0].started_s is not None)
        call.cancel()
    await fake.until(lambda: fake.in_flight == 0)
    assert (fake.calls[0].status, fake.running, fake.held) == ("disconnected", 0, 0)


async def test_waiting_for_what_does_not_happen_ends_and_says_what_was_true(fake: FakeOllama) -> None:
    """No wait is unbounded, and a failure explains itself."""
    with pytest.raises(TimeoutError, match="'arrived': 0"):
        await fake.seen(1, timeout_s=0.01)


async def test_it_comes_back_on_its_port_after_it_was_gone() -> None:
    """F46: the model dies and returns."""
    fake = FakeOllama()
    async with httpx.AsyncClient() as http:
        async with fake:
            held = asyncio.create_task(http.post(f"{fake.url}/api/chat", json=ask("[[fake hold]]")))
            await fake.until(lambda: fake.held == 1)
        with pytest.raises(httpx.TransportError):
            await held
        with pytest.raises(httpx.ConnectError):
            await http.get(f"{fake.url}/api/version")
        async with fake:
            assert (await http.get(f"{fake.url}/api/version")).status_code == 200
    assert [call.status for call in fake.calls] == ["disconnected"]


def test_synchronous_code_can_run_it_in_a_thread() -> None:
    """For tests that start processes and wait for them."""
    with FakeOllama().in_thread() as fake, httpx.Client(base_url=fake.url) as http:
        assert http.post("/api/chat", json=ask("hello")).json()["done"] is True
        fake.block_until(lambda: fake.arrived == 1)
        assert fake.calls[0].status == 200


def test_as_a_command_it_prints_where_it_listens(tmp_path: Path) -> None:
    """For benchmarks, the demo and fleet tests; from whatever folder it is started."""
    journal = tmp_path / "calls.jsonl"
    command = [sys.executable, str(ROOT / "scripts" / "fake_ollama.py"), "--port", "0", "--model", MODEL]
    command += ["--latency-ms", "1", "--latency-per-event-ms", "1", "--load-ms", "1", "--journal", str(journal)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            assert url.startswith("http://127.0.0.1:")
            assert httpx.post(f"{url}/api/chat", json=ask("hello"), trust_env=False).json()["model"] == MODEL
            assert [call.text for call in read_journal(journal)] == ["hello"]
        finally:
            process.terminate()
            process.wait(START_S_MAX)
