"""The transport of our own, against servers that send bytes as told, and against httpx's."""

import asyncio
import contextlib
import inspect
import os
import socket
import ssl
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Self, cast

import httpx
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.certificates import Authority, Pair, require_openssl
from tests.rig import HOST, NOBODY
from tests.rig import eventually_async as eventually

from millhand.model import wire as wires
from millhand.model.wire import UNREAD_BYTES_MAX, Wire, first_reached

TIMEOUT_S = 10.0
GOOD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi"
BEGUN = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi"
ODD_BEGUN = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhi"

Conduct = Callable[[int, StreamWriter], Awaitable[None]]
Reply = tuple[int, list[tuple[bytes, bytes]], bytes]


ON_EACH_LOOP = pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
NewLoop = Callable[[], asyncio.AbstractEventLoop]


def on_each_loop(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """Run a test on asyncio's own loop, and on the one that workers have."""

    @wraps(test)
    def run(*, new_loop: NewLoop, **fixtures: Any) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test(**fixtures))

    asked_for = inspect.signature(test).parameters.values()
    own = inspect.Parameter("new_loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = inspect.Signature([*asked_for, own])  # type: ignore[attr-defined]
    return cast("Callable[..., None]", ON_EACH_LOOP(run))


class Server:
    """Answers each request by `conduct`, which is told its number on its connection, from 1."""

    def __init__(self, conduct: Conduct, tls: ssl.SSLContext | None = None) -> None:
        self.url = httpx.URL()
        self.requests: list[bytes] = []
        self.connections: list[StreamWriter] = []
        self.ended = asyncio.Event()  # some connection, by the other side
        self._conduct = conduct
        self._tls = tls
        self._at_work: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, 0, ssl=self._tls)
        port = self._server.sockets[0].getsockname()[1]
        self.url = httpx.URL(f"{'https' if self._tls else 'http'}://{HOST}:{port}/")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._at_work:
            task.cancel()
        await asyncio.gather(*self._at_work, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._at_work.add(task := asyncio.current_task() or pytest.fail("not in a task"))
        task.add_done_callback(self._at_work.discard)
        self.connections.append(writer)
        try:
            number = 0
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length:")[2].split()
                self.requests.append(head + await reader.readexactly(int(length[0]) if length else 0))
                number += 1
                await self._conduct(number, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            self.ended.set()
        finally:
            writer.close()


def sends(*parts: bytes, then: str = "stays") -> Conduct:
    """Send these parts one by one. Then: stay for the next request, or close."""

    async def conduct(_: int, writer: StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        if then == "closes":
            writer.close()

    return conduct


@contextlib.asynccontextmanager
async def wire_to(
    url: httpx.URL, connections_max: int = 4, connect_timeout_s: float = TIMEOUT_S
) -> AsyncIterator[Wire]:
    async with Wire(url, connections_max, connect_timeout_s) as wire:
        yield wire


async def asked(transport: httpx.AsyncBaseTransport, url: httpx.URL, content: bytes = b"x") -> Reply:
    async with asyncio.timeout(TIMEOUT_S):
        reply = await transport.handle_async_request(httpx.Request("POST", url, content=content))
        try:
            return reply.status_code, reply.headers.raw, b"".join([chunk async for chunk in reply.aiter_raw()])
        finally:
            await reply.aclose()


async def told(transport: httpx.AsyncBaseTransport, url: httpx.URL) -> Reply | tuple[type[Exception], str]:
    """Ask, and return all that a caller sees of what comes of it."""
    try:
        return await asked(transport, url)
    except httpx.TransportError as error:
        return type(error), str(error)


# -- as httpx itself ---------------------------------------------------------------------------------------------------

REPLIES = [
    GOOD,
    b"HTTP/1.1 200 OK\r\ncontent-length:0\r\n\r\n",
    b"HTTP/1.1 200 \r\nA: \r\nContent-Length: 2  \r\nB-1:   c d  \r\n\r\nhi",
    b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi",
    b'HTTP/1.1 200 OK\r\nContent-Length: 007\r\n\r\n{"a":1}',
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi!",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n3;x=y\r\n yo\r\n0\r\nT: u\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nx\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n2\r\nhi",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
    b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nA: \xff\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nA: \x00\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nA b: c\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + GOOD,
    b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    b"HTTP/1.1 204 Nothing\r\n\r\n",
    b"HTTP/1.1 304 Same\r\nContent-Length: 2\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\nRetry-After: 3\r\nContent-Length: 2\r\n\r\nhi",
    b"220 mail.test ready\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: " + b"b" * 200_000 + b"\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + b"b" * 99_999,
    b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"b" * 300_000,
]
CUTS = st.lists(st.integers(0, 400), max_size=4).map(sorted)


@ON_EACH_LOOP
@given(reply=st.sampled_from(REPLIES), cuts=CUTS, lost=st.integers(0, 40))
@settings(deadline=None, database=None, max_examples=150)
def test_whatever_is_sent_and_in_whatever_parts_it_reads_as_httpx_does(
    new_loop: NewLoop, reply: bytes, cuts: Sequence[int], lost: int
) -> None:
    """Also where the end of it never comes because the server hangs up."""
    sent = reply[: len(reply) - lost] if lost < len(reply) // 2 else reply
    parts = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True)]

    async def both() -> tuple[object, object]:
        async with (
            Server(sends(*parts, then="closes")) as server,
            wire_to(server.url) as ours,
            httpx.AsyncHTTPTransport(verify=False) as theirs,
        ):
            return await told(ours, server.url), await told(theirs, server.url)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        ours, theirs = runner.run(both())
    assert ours == theirs


# -- connections -------------------------------------------------------------------------------------------------------


@on_each_loop
async def test_a_connection_serves_one_request_after_another() -> None:
    async with Server(sends(GOOD)) as server, wire_to(server.url) as wire:
        for _ in range(3):
            assert (await asked(wire, server.url))[2] == b"hi"
    assert len(server.connections) == 1
    assert len(server.requests) == 3


@on_each_loop
async def test_a_request_arrives_as_it_was_made() -> None:
    content = b"\0" * 300_000
    async with Server(sends(GOOD)) as server, wire_to(server.url) as wire:
        await asked(wire, server.url.join("/a%20b?c=d"), content)
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /a%20b?c=d HTTP/1.1",
        b"Host: " + server.url.netloc,
        b"Content-Length: 300000",
    ]
    assert body == content


@on_each_loop
async def test_calls_at_once_have_a_connection_each_and_the_last_used_is_used_first() -> None:
    async with Server(sends(GOOD)) as server, wire_to(server.url, connections_max=3) as wire:
        await asyncio.gather(*(asked(wire, server.url) for _ in range(3)))
        assert len(server.connections) == 3
        last = wire._idle[-1]
        await asked(wire, server.url)
        assert (len(server.connections), wire._idle[-1]) == (3, last)


@on_each_loop
async def test_more_calls_than_connections_are_turned_away_unsent() -> None:
    async with Server(sends()) as server, wire_to(server.url, connections_max=1) as wire:
        waiting = asyncio.create_task(asked(wire, server.url))
        await eventually(lambda: server.requests)
        with pytest.raises(httpx.PoolTimeout):
            await asked(wire, server.url)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert len(server.requests) == 1


@on_each_loop
@pytest.mark.parametrize("sent", [b"", BEGUN, BEGUN[:20], ODD_BEGUN])
async def test_a_cancelled_call_closes_its_connection(sent: bytes) -> None:
    """So that the server stops generating what nobody waits for."""
    async with Server(sends(sent)) as server, wire_to(server.url) as wire:
        waiting = asyncio.create_task(asked(wire, server.url))
        await eventually(lambda: server.requests)
        waiting.cancel()
        await eventually(server.ended.is_set)
        assert not wire._open


@on_each_loop
async def test_a_reply_that_is_closed_before_its_end_closes_its_connection() -> None:
    async with Server(sends(ODD_BEGUN)) as server, wire_to(server.url) as wire:
        reply = await wire.handle_async_request(httpx.Request("GET", server.url))
        await reply.aclose()
        await eventually(server.ended.is_set)
        assert not wire._open


@on_each_loop
async def test_a_connection_that_the_server_has_ended_carries_no_request() -> None:
    """Not even if only this host knows of it, and the event loop does not yet."""
    async with Server(sends(GOOD)) as server, wire_to(server.url) as wire:
        await asked(wire, server.url)
        with socket.socket(fileno=os.dup(server.connections[0].get_extra_info("socket").fileno())) as its_end:
            its_end.shutdown(socket.SHUT_WR)
        assert (await asked(wire, server.url))[2] == b"hi"
    assert [len(server.connections), len(server.requests)] == [2, 2]


@on_each_loop
async def test_what_comes_unasked_is_nobodys_reply() -> None:
    other = GOOD.replace(b"hi", b"no")

    async def says_more(number: int, writer: StreamWriter) -> None:
        writer.write(GOOD + other if number == 1 else GOOD)

    async with Server(says_more) as server, wire_to(server.url) as wire:
        assert (await asked(wire, server.url))[2] == b"hi"
        assert (await asked(wire, server.url))[2] == b"hi"
        assert len(server.connections) == 2, "more than what was asked for"

    async with Server(sends(GOOD)) as server, wire_to(server.url) as wire:
        await asked(wire, server.url)
        server.connections[0].write(other)
        await eventually(lambda: wire._idle[0]._unread)
        assert (await asked(wire, server.url))[2] == b"hi"
        assert len(server.connections) == 2, "later, out of the blue"


@on_each_loop
async def test_connections_that_were_long_unused_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wires, "KEPT_S", -1.0)
    async with Server(sends(GOOD)) as server, wire_to(server.url) as wire:
        await asked(wire, server.url)
        await asked(wire, server.url)
        assert len(server.connections) == 2
        assert len(wire._open) == 1


@on_each_loop
async def test_of_a_long_body_little_is_held_before_it_is_read() -> None:
    """Or a server that talks without end would fill the memory."""
    size = 20_000_000
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
    async with Server(sends(head, bytes(size))) as server, wire_to(server.url) as wire:
        reply = await wire.handle_async_request(httpx.Request("GET", server.url))
        (connection,) = wire._open
        await eventually(lambda: len(connection._unread) > UNREAD_BYTES_MAX)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(connection._unread) < 10 * UNREAD_BYTES_MAX
        assert sum([len(chunk) async for chunk in reply.aiter_raw()]) == size
        await reply.aclose()
        assert wire._idle == [connection]


@on_each_loop
async def test_closing_ends_the_calls_under_way() -> None:
    async with Server(sends(BEGUN)) as server, wire_to(server.url) as wire:
        waiting = asyncio.create_task(told(wire, server.url))
        await eventually(lambda: server.requests)
        await wire.aclose()
        assert (await waiting)[0] is httpx.RemoteProtocolError


# -- reaching the server -----------------------------------------------------------------------------------------------


@on_each_loop
async def test_no_proxy_of_the_environment_sees_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, NOBODY)
    async with Server(sends(GOOD)) as server, wire_to(server.url) as wire:
        assert (await asked(wire, server.url))[2] == b"hi"


@on_each_loop
async def test_where_nobody_listens_there_is_no_connection() -> None:
    url = httpx.URL(NOBODY)
    async with wire_to(url) as wire:
        with pytest.raises(httpx.ConnectError) as caught:
            await asked(wire, url)
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)
        assert not wire._open


@on_each_loop
async def test_a_name_without_an_address_is_told_as_such() -> None:
    url = httpx.URL("http://nowhere.invalid")
    async with wire_to(url) as wire:
        with pytest.raises(httpx.ConnectError) as caught:
            await asked(wire, url)
        assert isinstance(caught.value.__cause__, socket.gaierror)


@on_each_loop
@pytest.mark.parametrize("host", ["model..test", "m" * 64 + ".test"])
async def test_a_name_that_can_have_no_address_is_told_as_such(host: str) -> None:
    """A slip of whoever configured it must not end the worker."""
    url = httpx.URL(f"http://{host}")
    async with wire_to(url) as wire:
        with pytest.raises(httpx.ConnectError) as caught:
            await asked(wire, url)
        assert isinstance(caught.value.__cause__, socket.gaierror | UnicodeError)
        assert not wire._open


@on_each_loop
async def test_a_host_is_reached_at_whichever_of_its_addresses_answers() -> None:
    """The first refuses, the second is silent, the third serves."""
    async with Server(sends(GOOD)) as server:
        with contextlib.ExitStack() as stack:
            silent = stack.enter_context(socket.socket())
            silent.bind((HOST, 0))
            silent.listen(0)
            for _ in range(3):  # fill its queue: the next gets no answer
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)  # noqa: FBT003 - the standard library's
                waiting.connect_ex(silent.getsockname())
            ports = (httpx.URL(NOBODY).port, silent.getsockname()[1], server.url.port)
            kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
            with await first_reached([(*kind, (HOST, port)) for port in ports]) as reached:
                assert reached.getpeername()[1] == server.url.port
                assert reached.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_who_is_cancelled_when_an_address_has_just_answered_leaves_no_socket_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A socket that nobody closes is a warning, and warnings are errors here."""
    reached: list[socket.socket] = []

    async def cancelled_late(race: list[Any], _: float) -> Any:
        reached.append(await race[0]())
        raise asyncio.CancelledError

    monkeypatch.setattr("millhand.model.wire.staggered_race", cancelled_late)
    with socket.create_server((HOST, 0)) as server, pytest.raises(asyncio.CancelledError):
        await first_reached([(socket.AF_INET, socket.SOCK_STREAM, 0, "", server.getsockname())])
    assert reached[0].fileno() == -1


@on_each_loop
async def test_a_connection_that_does_not_come_about_in_time_is_given_up() -> None:
    async with Server(sends()) as server:
        url = server.url.copy_with(scheme="https")  # whose handshake is no request
        async with wire_to(url, connect_timeout_s=0.1) as wire:
            with pytest.raises(httpx.ConnectTimeout):
                await asked(wire, url)
            assert not wire._open


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """Return an authority whose certificates httpx accepts."""
    require_openssl()
    made = Authority(tmp_path)
    monkeypatch.setattr(httpx, "create_ssl_context", lambda **_: ssl.create_default_context(cafile=made.certificate))
    return made


def tls_of(pair: Pair) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


@on_each_loop
async def test_a_server_whose_certificate_is_good_is_asked_over_tls(authority: Authority) -> None:
    long = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + bytes(300_000)
    for reply in (GOOD, long):
        async with Server(sends(reply), tls_of(authority.sign("server"))) as server, wire_to(server.url) as wire:
            for _ in range(3):
                assert len((await asked(wire, server.url))[2]) == len(reply.partition(b"\r\n\r\n")[2])
        assert len(server.connections) == 1


@on_each_loop
async def test_over_tls_too_a_cancelled_call_closes_its_connection(authority: Authority) -> None:
    async with Server(sends(BEGUN), tls_of(authority.sign("server"))) as server, wire_to(server.url) as wire:
        waiting = asyncio.create_task(asked(wire, server.url))
        await eventually(lambda: server.requests)
        waiting.cancel()
        await eventually(server.ended.is_set)


@on_each_loop
async def test_a_server_with_the_certificate_of_another_is_not_asked(authority: Authority) -> None:
    pair = authority.sign("server", "DNS:elsewhere.test")
    async with Server(sends(GOOD), tls_of(pair)) as server, wire_to(server.url) as wire:
        with pytest.raises(httpx.ConnectError) as caught:
            await asked(wire, server.url)
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
        assert not server.requests


def test_for_a_plain_address_no_certificates_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost each worker 50 ms at its start, and memory for ever."""
    monkeypatch.setattr(httpx, "create_ssl_context", lambda **_: pytest.fail("were read"))
    Wire(httpx.URL("http://model.test"), 4, TIMEOUT_S)
