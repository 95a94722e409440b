"""What can be wrong with a model can be ordered of the fake, at will and for a time."""

import asyncio
import gzip
import json
import re
import time
import zlib
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration.fake_client import ask, say

from scripts.fake.journal import read_journal
from scripts.fake_ollama import FakeOllama


@pytest.fixture
async def http(fake: FakeOllama) -> AsyncIterator[httpx.AsyncClient]:
    """Give a plain client that patiently waits for replies, and not for connections."""
    timeout = httpx.Timeout(20, connect=0.5)
    async with httpx.AsyncClient(base_url=fake.url, trust_env=False, timeout=timeout) as client:
        yield client


async def refusal(http: httpx.AsyncClient) -> str | None:
    """Tell how a new connection fares: None if it is answered."""
    try:
        async with httpx.AsyncClient(base_url=http.base_url, trust_env=False, timeout=0.3) as newcomer:
            await newcomer.get("/api/version")
    except httpx.TransportError as error:
        return type(error).__name__
    return None


# Throttling and refusals


FORMS = {
    "imf": r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT",
    "rfc850": r"\w{3,6}day, \d\d-\w{3}-\d\d [\d:]{8} GMT",
    "asctime": r"\w{3} \w{3} [ \d]\d [\d:]{8} \d{4}",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wait_s", [7, -3600, 10_000_000])
async def test_retry_after_is_a_date_in_any_form_by_the_clock_of_the_server(
    http: httpx.AsyncClient, form: str, wait_s: int
) -> None:
    """F42: the server's clock may be wrong by a day, and the date past or months away."""
    reply = await say(http, f"[[fake status=429 retry_date={wait_s} date_form={form} clock=-86400]]")
    assert re.fullmatch(FORMS[form], reply.headers["retry-after"])
    until, now = (parsedate_to_datetime(reply.headers[name]) for name in ("retry-after", "date"))
    assert (until.replace(tzinfo=now.tzinfo) - now).total_seconds() == wait_s
    assert -86_405 < now.timestamp() - time.time() <= -86_400


@pytest.mark.parametrize("value", ["5", "0", "99999999999999999999", "soon", "-5", "1.5", ""])
async def test_retry_after_is_any_word_as_ordered(http: httpx.AsyncClient, value: str) -> None:
    """F42: seconds, huge, garbage, nothing."""
    reply = await say(http, f"[[fake status=429 retry_after={json.dumps(value)}]]")
    assert reply.headers["retry-after"] == value


async def test_headers_can_be_left_out(http: httpx.AsyncClient) -> None:
    """F42: without `Date` the client has its own clock alone."""
    assert "date" not in (await say(http, '[[fake status=429 headers={"Date":null}]]')).headers


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 502, 503, 520])
async def test_every_status_says_something_of_its_own(http: httpx.AsyncClient, status: int) -> None:
    """F43: also those that have no name."""
    reply = await say(http, f"[[fake status={status}]]")
    assert (reply.status_code, list(reply.json())) == (status, ["error"])


async def test_a_proxy_answers_with_a_page_of_its_own(http: httpx.AsyncClient) -> None:
    """F43: no JSON, whatever the status."""
    reply = await say(http, '[[fake status=502 raw="<html>Bad Gateway</html>" headers={"Content-Type":"text/html"}]]')
    assert (reply.status_code, reply.text) == (502, "<html>Bad Gateway</html>")


async def test_a_missing_model_is_neither_found_nor_listed(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """F43: the server is well, so it is the configuration that is wrong."""
    fake.script({"missing": True})
    assert (await say(http, "hello")).json() == {"error": "model 'fake:1b' not found"}
    assert (await http.get("/api/tags")).json() == {"models": []}
    assert (await http.post("/api/show", json={"model": "fake:1b"})).status_code == 404
    assert (await http.get("/api/version")).status_code == 200


# Outages that end


async def test_an_outage_ends_after_its_time(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """F46: with nobody to clear it."""
    began_s = time.monotonic()
    fake.outage(503, retry_after=1, for_s=0.3)
    while (await say(http, "hello")).status_code == 503:
        assert (await http.get("/api/tags")).status_code in {200, 503}
    assert time.monotonic() - began_s >= 0.3
    assert (await http.get("/api/tags")).status_code == 200


async def test_an_outage_of_so_many_calls_ends_for_everyone(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """F43: whatever their texts; look-ups do not count, and recover with the calls."""
    fake.script({"status": 500, "times": 2})
    assert [(await http.get("/api/tags")).status_code for _ in range(3)] == [500] * 3
    assert [(await say(http, f"[[fake empty]] {n}")).status_code for n in range(3)] == [500, 500, 200]
    assert (await http.get("/api/tags")).status_code == 200


async def test_an_outage_may_be_of_one_path_alone(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """F43: a list that cannot be read while calls are answered, and the other way round while a model is loaded."""
    fake.outage(500, path="/api/tags")
    assert ((await http.get("/api/tags")).status_code, (await say(http, "hello")).status_code) == (500, 200)
    fake.outage(503, path="/api/chat")
    assert ((await http.get("/api/tags")).status_code, (await say(http, "hello")).status_code) == (200, 503)


async def test_a_look_up_does_as_is_ordered_for_its_path(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """F44, F45: the list of models can hang, break and lie as an answer can."""
    fake.script({"path": "/api/tags", "hold": True})
    listed = asyncio.create_task(http.get("/api/tags"))
    await fake.until(lambda: fake.held == 1)
    assert (await say(http, "hello")).status_code == 200
    fake.script({"path": "/api/tags", "raw": "[]", "times": 1})
    fake.release()
    assert (await listed).json()["models"]
    assert (await http.get("/api/tags")).json() == []
    assert (await http.get("/api/tags")).json()["models"]


async def test_orders_of_a_text_end_after_their_time(http: httpx.AsyncClient) -> None:
    """F43: counted from the first call with that text."""
    statuses: list[int] = []
    while not statuses or statuses[-1] == 500:
        statuses.append((await say(http, "[[fake status=500 for_s=0.2]]")).status_code)
    assert len(statuses) > 1
    assert statuses[-1] == 200
    assert (await say(http, "another [[fake status=500 for_s=0.2]]")).status_code == 500


# Hanging


async def test_a_stall_sends_so_many_bytes_and_no_more(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """F44: headers and a part of the body have come, and the rest does when it is released."""
    request = http.build_request("POST", "/api/chat", json=ask("[[fake stall=10]]"))
    reply = await http.send(request, stream=True)
    pieces = reply.aiter_raw()
    first = await anext(pieces)
    assert (len(first), fake.held, fake.calls[0].status) == (10, 1, "open")
    fake.release()
    assert json.loads(first + b"".join([piece async for piece in pieces]))["done"] is True


async def test_a_client_that_leaves_a_stalled_reply_is_recorded(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """F44: it is the client that has to end it."""
    with pytest.raises(httpx.ReadTimeout):
        await http.post("/api/chat", json=ask("[[fake stall=0]]"), timeout=0.2)
    await fake.until(lambda: fake.in_flight == 0)
    assert (fake.calls[0].status, fake.held) == ("disconnected", 0)


async def test_a_deaf_server_takes_connections_and_says_nothing(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """F44: no accept; the connections that are open go on, and those that wait are served in the end."""
    assert (await http.get("/api/version")).status_code == 200
    fake.deafen()
    assert await refusal(http) == "ReadTimeout"
    assert (await say(http, "hello")).status_code == 200
    async with httpx.AsyncClient(base_url=fake.url, trust_env=False) as patient:
        waiting = asyncio.create_task(say(patient, "hello?"))
        assert await refusal(http) == "ReadTimeout"
        assert (waiting.done(), fake.arrived) == (False, 1)
        fake.revive()
        assert (await waiting).status_code == 200


async def test_a_server_that_is_full_does_not_even_connect(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """F44: as if its packets were dropped."""
    fake.deafen(connects=False)
    assert [await refusal(http) for _ in range(2)] == ["ConnectTimeout"] * 2
    fake.revive()
    assert await refusal(http) is None


# Garbage on the wire


async def test_a_body_may_be_packed_well_cut_or_broken(http: httpx.AsyncClient) -> None:
    """F45: what is cut passes many a client as an empty or half text."""
    assert (await say(http, "[[fake gzip=whole]]")).json()["done"] is True
    with pytest.raises(httpx.DecodingError):
        await say(http, "[[fake gzip=broken]]")
    request = http.build_request("POST", "/api/chat", json=ask("[[fake gzip=cut]]"))
    packed = b"".join([piece async for piece in (await http.send(request, stream=True)).aiter_raw()])
    with pytest.raises(EOFError):
        gzip.decompress(packed)
    assert zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(packed) is not None


async def test_a_header_may_be_too_long_for_a_client(http: httpx.AsyncClient) -> None:
    """F45: 200 KB of it."""
    with pytest.raises(httpx.RemoteProtocolError):
        await say(http, "[[fake header_bytes=204800]]")
    assert len((await say(http, "[[fake header_bytes=1000]]")).headers["x-padding"]) == 1000


# Dying and coming back


def test_it_dies_and_comes_back_at_the_word_of_another_thread() -> None:
    """F46: calls are cut, the port refuses and stays ours, and what follows is an honest server."""
    with FakeOllama().in_thread() as fake, httpx.Client(base_url=fake.url, trust_env=False) as http:
        assert http.get("/api/version").status_code == 200
        for _ in range(3):
            fake.die()
            with pytest.raises(httpx.TransportError):
                http.get("/api/version")
            with pytest.raises(httpx.ConnectError):
                http.get("/api/version")
            fake.revive()
            assert http.post("/api/chat", json=ask("hello")).status_code == 200


async def test_death_cuts_what_is_in_flight(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """F46: the journal knows that these were not answered."""
    call = asyncio.create_task(say(http, "[[fake hold]]"))
    await fake.until(lambda: fake.held == 1)
    fake.die()
    with pytest.raises(httpx.TransportError):
        await call
    await fake.until(lambda: fake.in_flight == 0)
    assert [call.status for call in fake.calls] == ["disconnected"]


@pytest.mark.parametrize(("order", "seen"), [("die", "ConnectError"), ("deafen", "ReadTimeout")])
async def test_another_process_sends_it_away_for_a_time(http: httpx.AsyncClient, order: str, seen: str) -> None:
    """F44, F46: who cannot be reached must come back by itself."""
    assert (await http.post(f"/fake/{order}", json={})).status_code == 400
    assert (await http.post(f"/fake/{order}", json={"for_s": 1.0})).status_code == 200
    fares: list[str | None] = []
    async with asyncio.timeout(10):
        while seen not in fares or fares[-1] is not None:
            fares.append(await refusal(http))


async def test_who_is_called_back_early_is_not_called_back_again(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """F46: the end of the first absence does not end the second."""
    fake.die(for_s=60)
    timer = fake._return
    fake.revive()
    assert timer is not None
    assert timer.cancelled()
    assert await refusal(http) is None


async def test_a_model_is_loaded_again_after_a_start() -> None:
    """F46: the first calls all wait for it, and their durations say so."""
    async with FakeOllama(load_s=0.2) as fake, httpx.AsyncClient(base_url=fake.url) as http:
        for _ in range(2):
            assert (await http.get("/api/ps")).json() == {"models": []}
            first = [reply.json() for reply in await asyncio.gather(say(http, "one"), say(http, "two"))]
            later = (await say(http, "three")).json()
            assert all(0.15e9 < reply["load_duration"] <= reply["total_duration"] for reply in first)
            assert (later["load_duration"], later["total_duration"] < 0.15e9) == (0, True)
            assert (await http.get("/api/ps")).json()["models"]
            fake.die()
            fake.revive()
            await fake.until(lambda: not fake.peers)


# Its books


async def test_the_journal_on_disk_has_every_finished_call(tmp_path: Path) -> None:
    """A judge in another process reads it, also while it is written."""
    path = tmp_path / "calls.jsonl"
    async with FakeOllama(journal=path) as fake, httpx.AsyncClient(base_url=fake.url) as http:
        assert read_journal(path) == []
        for text in ("one", "[[fake status=503]]", "[[fake drop]]"):
            try:
                await say(http, text)
            except httpx.RemoteProtocolError:
                assert "drop" in text
        held = asyncio.create_task(say(http, "[[fake hold]]"))
        await fake.seen(4)
        written = read_journal(path)
        held.cancel()
    assert [(call.text, call.status) for call in written] == [
        ("one", 200),
        ("[[fake status=503]]", 503),
        ("[[fake drop]]", "dropped"),
    ]
    assert all(call.arrival_s <= (call.started_s or 0) <= (call.end_s or 0) for call in written)
    assert [call.status for call in read_journal(path)][3:] == ["disconnected"]
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [sorted(line) for line in lines] == [["arrival_s", "end_s", "started_s", "status", "text"]] * 4
    with path.open("ab") as file:
        file.write(b'{"arrival_s": 1')
    assert len(read_journal(path)) == 4


async def test_the_wait_for_a_slot_is_in_the_total_and_in_nothing_else() -> None:
    """As Ollama measures: from the handler's start, with the queue; the evaluation begins with the slot."""

    def missing_s(reply: dict[str, Any]) -> float:
        told: list[int] = [reply[f"{part}_duration"] for part in ("load", "prompt_eval", "eval")]
        return (int(reply["total_duration"]) - sum(told)) / 1e9

    async with FakeOllama(slots=1, latency_s=0.2) as fake, httpx.AsyncClient(base_url=fake.url) as http:
        first = asyncio.create_task(say(http, "one"))
        await fake.until(lambda: fake.running == 1)
        second = (await say(http, "two")).json()
        waited_s = (fake.calls[1].started_s or 0) - fake.calls[1].arrival_s
    assert waited_s > 0.1
    assert missing_s((await first).json()) < 0.01
    assert missing_s(second) == pytest.approx(waited_s, abs=0.01)
    assert second["prompt_eval_duration"] + second["eval_duration"] == pytest.approx(0.2e9, rel=0.3)
