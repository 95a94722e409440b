"""HTTP/1.1 to one server at little cost: httpx's interface over connections of our own.

httpx's own transport goes over all connections and requests for each step of each request, which with 64 of them in
flight is milliseconds. This one knows which connection is free, and hardly reads: nearly every reply of a model server
is a 200 with a plain head and a short body of known length, which one pattern tells. Any other is read by h11, as httpx
itself would read it, and with the same errors.
"""

import asyncio
import re
import select
import socket
from asyncio.staggered import staggered_race
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import Any, cast

import h11
import httpx

KEPT_S = 5.0  # an unused connection, as in httpx: what is between us and the server forgets older ones
HEAD_START_S = 0.25  # of one of the server's addresses before the next (RFC 8305, 5)
HEAD_BYTES_MAX = 100 << 10
UNREAD_BYTES_MAX = 64 << 10  # then reading pauses
HTTPS = "https"

_FIELD = rb"(?:(?!content-length:|transfer-encoding:|connection:)[a-z0-9-]+:[ -~]*+\r\n)*+"
_PLAIN = re.compile(
    rb"HTTP/1\.1 200 [ -~]*+\r\n(?P<fields>%scontent-length: ?(?P<length>[0-9]{1,5})\r\n%s)\r\n" % (_FIELD, _FIELD),
    re.IGNORECASE,
)

Place = tuple[int, int, int, str, Any]


class Connection(asyncio.Protocol):
    """One connection: bytes out, bytes in, and what ended it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._unread = b""
        self._ended = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._readable = select.poll()
        self.kept_until_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it into use."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are of no such class
        self._readable.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        """Keep what comes until it is read."""
        self._unread = self._unread + data if self._unread else data
        if len(self._unread) > UNREAD_BYTES_MAX and self._transport:
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        """Tell the reader that this was all; the transport closes itself."""
        self._ended = True
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the reader that this was all, or what broke it."""
        self._ended = True
        self._error = error
        self._wake()

    @property
    def is_quiet(self) -> bool:
        """Whether it may carry the next request: open, and nothing has come unasked, not even its end."""
        return not (self._ended or self._unread or self._transport is None or self._readable.poll(0))

    def write(self, data: bytes) -> None:
        """Send. Where that fails, reading tells why: the server may have answered before it hung up."""
        if self._transport and not self._transport.is_closing():
            self._transport.write(data)

    async def read(self) -> bytes:
        """Wait until something has come, and return it; b"" at the end. Raises httpx.ReadError where it was broken."""
        if not self._unread and not self._ended:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data, self._unread = self._unread, b""
        if len(data) > UNREAD_BYTES_MAX and self._transport and not self._transport.is_closing():
            self._transport.resume_reading()
        if not data and self._error:
            raise httpx.ReadError(str(self._error)) from self._error
        return data

    def abort(self) -> None:
        """Close at once."""
        if self._transport:
            self._transport.abort()

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


class Wire(httpx.AsyncBaseTransport):
    """Carries requests to the server of `url`, by TLS if its certificate is one that httpx accepts.

    For GET and POST; a request with a body states its Content-Length. Raises httpx's errors. A call that is cancelled,
    or whose reply is closed before its end, closes its connection.
    """

    def __init__(self, url: httpx.URL, connections_max: int, connect_timeout_s: float) -> None:
        self._host = url.raw_host.decode()
        self._port = url.port or (443 if url.scheme == HTTPS else 80)
        self._tls = None
        if url.scheme == HTTPS:
            self._tls = httpx.create_ssl_context(trust_env=False)
            self._tls.set_alpn_protocols(["http/1.1"])
        self._connections_max = connections_max
        self._connect_timeout_s = connect_timeout_s
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []  # of those, in the order in which they were last used

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return the reply as soon as its head is there."""
        message = _message(request)
        connection = self._take() or await self._connect()
        try:
            connection.write(message)
            return await self._reply(connection)
        except BaseException:
            self.drop(connection)
            raise

    async def aclose(self) -> None:
        """Close all connections; whoever waits for a reply gets an error."""
        for connection in list(self._open):
            self.drop(connection)
        await asyncio.sleep(0)

    def keep(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        connection.kept_until_s = asyncio.get_running_loop().time() + KEPT_S
        self._idle.append(connection)

    def drop(self, connection: Connection) -> None:
        """Close a connection that no request will use any more."""
        self._open.discard(connection)
        connection.abort()

    def _take(self) -> Connection | None:
        now_s = asyncio.get_running_loop().time()
        while self._idle and self._idle[0].kept_until_s < now_s:
            self.drop(self._idle.pop(0))
        while self._idle:
            connection = self._idle.pop()
            if connection.is_quiet:
                return connection
            self.drop(connection)
        return None

    async def _connect(self) -> Connection:
        if len(self._open) >= self._connections_max:
            raise httpx.PoolTimeout(f"all {self._connections_max} connections are in use")
        connection = Connection()
        self._open.add(connection)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                loop = asyncio.get_running_loop()
                places = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                await loop.create_connection(
                    lambda: connection,
                    sock=await first_reached(places),
                    ssl=self._tls,
                    server_hostname=self._host if self._tls else None,
                )
        except BaseException as error:
            self.drop(connection)
            if isinstance(error, TimeoutError):
                raise httpx.ConnectTimeout(str(error)) from error
            if isinstance(error, OSError | UnicodeError):  # of a name that can be no host's
                raise httpx.ConnectError(str(error)) from error
            raise
        return connection

    async def _reply(self, connection: Connection) -> httpx.Response:
        data = await connection.read()
        if plain := _PLAIN.match(data):
            end = plain.end() + int(plain["length"])
            while len(data) < end and (more := await connection.read()):
                data += more
            if len(data) == end:
                self.keep(connection)
                fields = [line.split(b":", 1) for line in plain["fields"].split(b"\r\n")[:-1]]
                headers = [(name, value.strip()) for name, value in fields]
                return httpx.Response(httpx.codes.OK, headers=headers, stream=httpx.ByteStream(data[plain.end() :]))
        return await _Reading(self, connection, data).begin()


class _Reading(httpx.AsyncByteStream):
    """A reply as h11 reads it, of which `data` has come already; its body, once it has begun."""

    def __init__(self, wire: Wire, connection: Connection, data: bytes) -> None:
        self._wire = wire
        self._connection: Connection | None = connection
        self._unread: bytes | None = data
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._h11.send(h11.Request(method="GET", target="/", headers=[("Host", "-")]))  # any: replies to POST are alike
        self._h11.send(h11.EndOfMessage())

    async def begin(self) -> httpx.Response:
        """Return the reply once its head is read."""
        while not isinstance(event := await self._event(), h11.Response):
            pass
        return httpx.Response(event.status_code, headers=event.headers.raw_items(), stream=self)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while isinstance(event := await self._event(), h11.Data):
            yield bytes(event.data)

    async def aclose(self) -> None:
        """Leave the connection to the next request if the reply has come to its end, and close it if not."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._h11.our_state is self._h11.their_state is h11.DONE and not self._h11.trailing_data[0]:
            self._wire.keep(connection)
        else:
            self._wire.drop(connection)

    async def _event(self) -> Any:
        while (event := self._next_event()) is h11.NEED_DATA:
            data = await self._more()
            if not data and self._h11.their_state is h11.SEND_RESPONSE:
                raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
            self._h11.receive_data(data)
        return event

    def _next_event(self) -> Any:
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise httpx.RemoteProtocolError(str(error)) from error

    async def _more(self) -> bytes:
        data, self._unread = self._unread, None
        if data is None:
            if self._connection is None:
                raise httpx.StreamClosed
            data = await self._connection.read()
        return data


def _message(request: httpx.Request) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%s: %s" % field for field in request.headers.raw]
    return b"\r\n".join([*lines, b"", request.read()])


async def first_reached(places: Iterable[Place]) -> socket.socket:
    """Return a socket to whichever of a host's addresses answers first (RFC 8305). Raises OSError."""
    all_reached: list[socket.socket] = []
    try:
        race = [partial(_reached, place, all_reached) for place in places]
        reached, _, errors = await staggered_race(race, HEAD_START_S)
    except BaseException:
        for one in all_reached:  # cancelled when there was a winner already
            one.close()
        raise
    if reached is None:
        raise next((error for error in errors if error), None) or OSError("no address")
    return cast("socket.socket", reached)


async def _reached(place: Place, all_reached: list[socket.socket]) -> socket.socket:
    family, kind, protocol, _, address = place
    connecting = socket.socket(family, kind, protocol)
    try:
        connecting.setblocking(False)  # noqa: FBT003 - the standard library's
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(connecting, address)
    except BaseException:
        connecting.close()
        raise
    all_reached.append(connecting)
    return connecting
