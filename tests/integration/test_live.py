"""The live stream and the page's files, over a real socket: what a browser is given, and what nobody is."""

import asyncio
import contextlib
import json
import re
import socket
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from tests.rig import HOST, eventually_async

from millhand.stop import Stop
from millhand_fleet import live as live_module
from millhand_fleet import serving as serving_module
from millhand_fleet.live import CLIENTS_MAX, Live
from millhand_fleet.page import MEDIA_TYPES, Doorkeeper, page_routes
from millhand_fleet.serving import serve

LARGE = "x" * 200_000  # more than a socket takes from a server that nobody reads from
PAST = [(5.0, 1.0, 2.0)]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refresh often, and give a slow client up soon."""
    monkeypatch.setattr(live_module, "REFRESH_EVERY_S", 0.02)
    monkeypatch.setattr(serving_module, "UNREAD_S", 0.5)


class Serving:
    """A desk's page on a port of its own, with documents that count up."""

    def __init__(self) -> None:
        self.documents = 0
        self.filling = ""
        self.stop = Stop(20)
        self.live = Live(self._document, lambda: PAST, self.stop)
        self.writers: list[asyncio.StreamWriter] = []
        self.listener = socket.create_server((HOST, 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://{HOST}:{self.port}"

    def _document(self) -> bytes:
        self.documents += 1
        return msgspec.json.encode({"number": self.documents, "filling": self.filling})

    async def run(self) -> None:
        """Serve until stopped."""
        app = Doorkeeper(Starlette(routes=[*page_routes(), self.live.route()]))
        await serve(app, [self.listener], self.stop)

    async def ask(self, request: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request of raw lines."""
        reader, writer = await asyncio.open_connection(HOST, self.port)
        self.writers.append(writer)
        writer.write(request.replace("\n", "\r\n").encode())
        return reader, writer

    async def follow(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Ask for the stream."""
        return await self.ask("GET /live HTTP/1.1\nHost: localhost\n\n")

    async def hang_up(self) -> None:
        """Close all connections of the test's."""
        for writer in self.writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@pytest.fixture
async def serving() -> AsyncIterator[Serving]:
    """Serve for one test."""
    serving = Serving()
    running = asyncio.create_task(serving.run())
    yield serving
    serving.stop.request()
    await serving.hang_up()
    await running


@pytest.fixture
async def client(serving: Serving) -> AsyncIterator[httpx.AsyncClient]:
    """Speak to it."""
    async with httpx.AsyncClient(base_url=serving.url, timeout=10) as client:
        yield client


async def messages(answer: httpx.Response, count: int) -> list[Any]:
    """Return the first messages of a stream."""
    found: list[Any] = []
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            found.append(json.loads(line.removeprefix("data: ")))
            if len(found) == count:
                break
    return found


# -- the stream -------------------------------------------------------------------------------------------------------


async def test_a_stream_begins_with_the_past_and_goes_on_with_the_newest_document(client: httpx.AsyncClient) -> None:
    async with client.stream("GET", "/live") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        past, *documents = await messages(answer, 4)
    assert past == [list(row) for row in PAST]
    numbers = [document["number"] for document in documents]
    assert numbers == sorted(set(numbers))


async def test_it_says_how_soon_to_come_back_and_names_its_events(serving: Serving) -> None:
    reader, _ = await serving.follow()
    seen = await asyncio.wait_for(reader.readuntil(b'"number":2'), 5)
    assert re.search(rb"\r\nretry: \d+\n: [^\n]+\n\nevent: past\ndata: \[\[5", seen)
    assert seen.count(b"data: {") == 2


async def test_one_client_too_many_is_told_so(serving: Serving, client: httpx.AsyncClient) -> None:
    """F50."""
    for _ in range(CLIENTS_MAX):
        await serving.follow()
    await eventually_async(lambda: serving.live.clients == CLIENTS_MAX)
    refused = await client.get("/live")
    assert refused.status_code == 503
    assert "ask /status" in refused.json()["error"]
    await serving.hang_up()
    await eventually_async(lambda: serving.live.clients == 0)
    async with client.stream("GET", "/live") as answer:
        assert answer.status_code == 200


async def test_a_client_that_takes_nothing_is_dropped(serving: Serving) -> None:
    """F50: the connection is cut, not closed in good order, which would wait for it for ever."""
    serving.filling = LARGE
    reader, _ = await serving.follow()  # which stops reading when its own buffer is full
    await eventually_async(lambda: serving.live.clients == 1)
    await eventually_async(lambda: serving.live.clients == 0, 20)
    with contextlib.suppress(ConnectionResetError):
        assert not (await asyncio.wait_for(reader.read(), 10)).endswith(b"0\r\n\r\n")


async def test_streams_end_as_soon_as_the_desk_stops(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for the next refresh, and one whose client takes nothing."""
    monkeypatch.setattr(serving_module, "UNREAD_S", 60.0)
    serving.filling = LARGE
    await serving.follow()  # and never read
    made: deque[int] = deque(maxlen=30)  # by when each look came; the same at all of them when the socket is full

    def stuck() -> bool:
        made.append(serving.documents)
        return len(made) == made.maxlen and 1 < made[0] == made[-1]

    await eventually_async(stuck)
    monkeypatch.setattr(live_module, "REFRESH_EVERY_S", 60.0)
    serving.filling = ""
    waiting, _ = await serving.follow()
    await eventually_async(lambda: serving.live.clients == 2)
    serving.stop.request()
    assert (await asyncio.wait_for(waiting.read(), 10)).endswith(b"0\r\n\r\n")
    await eventually_async(lambda: serving.live.clients == 0)


async def test_only_the_headers_are_given_to_whoever_asks_for_them_alone(client: httpx.AsyncClient) -> None:
    answer = await client.head("/live")
    assert answer.status_code == 200
    assert (await client.post("/live")).status_code == 405


# -- the files, and who may have them ---------------------------------------------------------------------------------


async def test_the_page_is_served_with_strict_headers_and_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    for path in ("/", *(f"/{name}" for name in MEDIA_TYPES)):
        answer = await client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(MEDIA_TYPES[path.removeprefix("/") or "page.html"])
        policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in answer.text
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|style=|onclick=", answer.text)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8642", "127.0.0.1:9", "[::1]:8642", "[::1]"])
async def test_the_names_of_this_host_are_answered(client: httpx.AsyncClient, host: str) -> None:
    assert (await client.get("/", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8642", "192.168.0.7", "", "[::1"]
)
async def test_a_name_that_was_pointed_here_is_refused(client: httpx.AsyncClient, host: str) -> None:
    """DNS rebinding: a stranger's page, whose name now means 127.0.0.1, must read nothing."""
    answer = await client.get("/live", headers={"Host": host})
    assert answer.status_code == 421
    assert "localhost, 127.0.0.1 and [::1] only" in answer.text


async def test_a_second_host_is_no_way_in(serving: Serving) -> None:
    reader, _ = await serving.ask("GET / HTTP/1.1\nHost: localhost\nHost: evil.example\nConnection: close\n\n")
    assert (await reader.read()).split()[1] in {b"400", b"421"}


async def test_a_check_of_http_1_0_that_gives_no_host_is_answered(serving: Serving) -> None:
    reader, _ = await serving.ask("GET / HTTP/1.0\n\n")
    assert (await reader.read()).split()[1] == b"200"


async def test_another_sites_page_may_link_here_but_not_read(client: httpx.AsyncClient) -> None:
    linked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert (await client.get("/", headers=linked)).status_code == 200
    for site in ("cross-site", "same-site"):
        asked = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors"}
        assert (await client.get("/live", headers=asked)).status_code == 403
    own = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    assert (await client.get("/page.js", headers=own)).status_code == 200
