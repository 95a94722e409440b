"""The desk's sockets: slow clients, many clients, other users; whoever behaves gets an answer."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from tests.rig import HOST, eventually_async

from millhand.stop import Stop
from millhand_fleet import serving
from millhand_fleet.serving import CONNECTIONS_MAX, DESCRIPTORS_SPARE, Client, connections_max, serve

LONG_REPLY = "x" * (32 << 20)  # more than the kernel keeps for a client that does not read
ANSWER_S_MAX = 10.0
SLOW_S = 0.4
NOBODY_UID = 65_534
GET = b"GET /short HTTP/1.1\r\nhost: desk\r\n\r\n"


class Sockets(NamedTuple):
    """Where an app is served."""

    port: int
    path: Path


def app() -> Starlette:
    async def short(_: Request) -> Response:
        return PlainTextResponse("here")

    async def long(_: Request) -> Response:
        return PlainTextResponse(LONG_REPLY)

    async def body(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    return Starlette(routes=[Route("/short", short), Route("/long", long), Route("/body", body, methods=["POST"])])


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have as little patience with clients as a test has."""
    monkeypatch.setattr(serving, "REQUEST_S", SLOW_S)
    monkeypatch.setattr(serving, "UNREAD_S", SLOW_S)


@pytest.fixture(autouse=True)
def clients(monkeypatch: pytest.MonkeyPatch) -> list[Client]:
    """Remember every connection."""
    made: list[Client] = []
    connection_made = Client.connection_made

    def remember(client: Client, transport: asyncio.Transport) -> None:
        connection_made(client, transport)
        made.append(client)

    monkeypatch.setattr(Client, "connection_made", remember)
    return made


@contextmanager
def listening(folder: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Open sockets as the supervisor does."""
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind((HOST, 0))
        tcp.listen(128)
        unix.bind(str(folder / "control.sock"))
        unix.listen(128)
        yield tcp, unix


@asynccontextmanager
async def serving_both(folder: Path) -> AsyncIterator[Sockets]:
    """Serve an app on a loopback port and a unix socket."""
    stop = Stop(1)
    with listening(folder) as (tcp, unix):
        faces = [asyncio.create_task(serve(app(), [one], stop)) for one in (tcp, unix)]
        port, path = tcp.getsockname()[1], folder / "control.sock"
        try:
            await eventually_async(lambda: _answers(port), what="the app is served")
            yield Sockets(port, path)
        finally:
            stop.request()
            await asyncio.gather(*faces)


async def _answers(port: int) -> bool:
    try:
        return await answer(port) == "here"
    except httpx.TransportError:
        return False


@pytest.fixture
async def sockets(short_path: Path) -> AsyncIterator[Sockets]:
    async with serving_both(short_path) as sockets:
        yield sockets


async def answer(port: int) -> str:
    """Ask as somebody who behaves, over a connection of one's own."""
    async with httpx.AsyncClient(timeout=ANSWER_S_MAX) as client:
        return (await client.get(f"http://{HOST}:{port}/short")).text


async def until_hung_up(reader: asyncio.StreamReader) -> bytes:
    """Read until the desk hangs up, and return what it said."""
    said = b""
    try:
        async with asyncio.timeout(ANSWER_S_MAX):
            while more := await reader.read(65_536):
                said += more
    except ConnectionError:
        pass
    return said


# -- slow -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "beginning",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"GET /sh", id="half a line"),
        pytest.param(b"GET /short HTTP/1.1\r\nhost: desk\r\nx-slow: ", id="half a header"),
        pytest.param(b"POST /body HTTP/1.1\r\nhost: desk\r\ncontent-length: 100\r\n\r\nhalf", id="half a body"),
        pytest.param(b"POST /short HTTP/1.1\r\nhost: desk\r\ncontent-length: 100\r\n\r\nhalf", id="half a refusal"),
        pytest.param(GET + b"GET /sh", id="one request and half a second"),
    ],
)
async def test_client_that_dribbles_is_hung_up_on_however_busy_it_looks(sockets: Sockets, beginning: bytes) -> None:
    """F50: slowloris: a byte now and then keeps no connection open."""
    reader, writer = await asyncio.open_connection(HOST, sockets.port)
    writer.write(beginning)

    async def dribble() -> None:
        while True:
            await asyncio.sleep(SLOW_S / 10)
            writer.write(b"x")

    dribbling = asyncio.create_task(dribble())
    await until_hung_up(reader)
    dribbling.cancel()
    writer.close()


async def test_client_that_sends_its_next_request_before_the_answer_gets_one_answer(sockets: Sockets) -> None:
    """F50: a thousand requests in one packet are not a thousand answers."""
    reader, writer = await asyncio.open_connection(HOST, sockets.port)
    writer.write(GET * 1000)
    assert (await until_hung_up(reader)).count(b"HTTP/1.1 200") <= 1
    writer.close()


async def test_client_may_take_its_time_between_two_requests(sockets: Sockets, clients: list[Client]) -> None:
    """Prometheus asks every 15 s over one connection: only what keeps a connection open while idle runs then."""
    reader, writer = await asyncio.open_connection(HOST, sockets.port)
    for _ in range(3):
        writer.write(GET)
        reply = await asyncio.wait_for(reader.readuntil(b"here"), ANSWER_S_MAX)
        assert reply.startswith(b"HTTP/1.1 200")
        await eventually_async(lambda: not clients[-1]._request_due.is_set)
        assert not clients[-1]._reading_due.is_set
    assert serving.IDLE_S > 15
    writer.close()


async def test_client_that_does_not_read_its_answer_is_hung_up_on(sockets: Sockets, clients: list[Client]) -> None:
    """F50: nor does its answer stay in memory."""
    reader, writer = await asyncio.open_connection(HOST, sockets.port, limit=1024)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(GET.replace(b"short", b"long"))
    await eventually_async(lambda: clients[-1] not in clients[-1].connections, what="the desk hangs up")
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    assert len(await until_hung_up(reader)) < len(LONG_REPLY)
    writer.close()


async def test_client_that_reads_slowly_but_steadily_gets_its_answer(sockets: Sockets) -> None:
    async with httpx.AsyncClient(timeout=ANSWER_S_MAX) as client:
        assert len((await client.get(f"http://{HOST}:{sockets.port}/long")).content) == len(LONG_REPLY)


# -- senseless --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param(os.urandom(4096) + b"\r\n\r\n", id="noise"),
        pytest.param(b"GET /short HTTP/1.1\r\n" + b"x-long: " + b"y" * 100_000 + b"\r\n\r\n", id="a huge header"),
        pytest.param(b"GET /" + b"z" * 100_000 + b" HTTP/1.1\r\nhost: desk\r\n\r\n", id="a huge path"),
        pytest.param(b"GET /short HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n", id="countless headers"),
    ],
)
async def test_garbage_is_refused_and_harms_nobody(sockets: Sockets, garbage: bytes) -> None:
    """F50, F51: it costs one connection, and no line in the log."""
    reader, writer = await asyncio.open_connection(HOST, sockets.port)
    writer.write(garbage)
    said = await until_hung_up(reader)
    assert said == b"" or said.startswith(b"HTTP/1.1 400")
    writer.close()
    assert await answer(sockets.port) == "here"


# -- many -------------------------------------------------------------------------------------------------------------


async def test_newcomer_is_answered_at_the_cost_of_who_has_idled_longest(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F50: three times as many idle clients as there are places keep nobody out; the other face does not notice."""
    monkeypatch.setattr(serving, "REQUEST_S", 60.0)
    monkeypatch.setattr(serving, "CONNECTIONS_MAX", 10)
    async with serving_both(short_path) as sockets:
        over_unix, unix_writer = await asyncio.open_unix_connection(sockets.path)
        idle = [await asyncio.open_connection(HOST, sockets.port) for _ in range(30)]

        assert await answer(sockets.port) == "here"
        open_still = [reader for reader, _ in idle if not await _hung_up(reader)]
        assert 0 < len(open_still) < 10
        assert open_still[-1] is idle[-1][0], "the oldest go first"
        unix_writer.write(GET)
        assert (await asyncio.wait_for(over_unix.readuntil(b"here"), ANSWER_S_MAX)).startswith(b"HTTP/1.1 200")
        for writer in (unix_writer, *(writer for _, writer in idle)):
            writer.close()


async def _hung_up(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(0.05):
            return await reader.read(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize(
    ("descriptors", "connections"),
    [
        (1 << 20, CONNECTIONS_MAX),
        (1024, 416),
        (DESCRIPTORS_SPARE + 100, 50),
        (DESCRIPTORS_SPARE, 1),
        (64, 1),
    ],
)
def test_connections_leave_descriptors_for_all_else(descriptors: int, connections: int) -> None:
    """F50: a desk that has none left could not even speak to Redis."""
    assert connections_max(descriptors) == connections


# -- others -----------------------------------------------------------------------------------------------------------


async def over(path: Path) -> httpx.Response:
    """Ask over a unix socket."""
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport, base_url="http://desk", timeout=ANSWER_S_MAX) as client:
        return await client.get("/short")


@pytest.mark.parametrize(
    ("stranger", "status"), [(0, 200), (os.getuid(), 200), (NOBODY_UID, 403)], ids=["root", "owner", "stranger"]
)
async def test_unix_socket_serves_its_owner_and_root_alone(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch, stranger: int, status: int
) -> None:
    """F51: directory and mode keep others out, and even whoever was handed a descriptor is asked who they are."""
    monkeypatch.setattr(serving, "peer_uid", lambda _: stranger)
    reply = await over(sockets.path)
    assert reply.status_code == status
    assert status == 200 or "root" in reply.json()["error"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
async def test_kernel_says_who_is_at_the_other_end_of_the_unix_socket(sockets: Sockets, short_path: Path) -> None:
    """F51: a process of another user is refused, though this socket lets everybody connect."""
    for path in (short_path, sockets.path):
        os.chmod(path, 0o777)  # noqa: S103, PTH101 - that is what is to be withstood
    ask = (
        "import os, socket, sys\n"
        f"os.setgid({NOBODY_UID}); os.setuid({NOBODY_UID})\n"
        "desk = socket.socket(socket.AF_UNIX); desk.settimeout(10); desk.connect(sys.argv[1])\n"
        f"desk.sendall({GET!r}); sys.stdout.write(desk.recv(4096).decode())"
    )
    asking = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-c", ask, str(sockets.path), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await asyncio.wait_for(asking.communicate(), ANSWER_S_MAX)
    assert said.startswith(b"HTTP/1.1 403")
    assert (await over(sockets.path)).status_code == 200
