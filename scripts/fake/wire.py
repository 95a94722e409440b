"""How the fake reads requests off a connection, and mangles its replies as ordered."""

from __future__ import annotations

import asyncio
import functools
import gzip
import re
import time
import zlib
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import msgspec

from scripts.fake.orders import PADDING_BYTES_MAX

if TYPE_CHECKING:
    from scripts.fake.orders import Script

GZIP_HEAD_BYTES = 10
NO_BLOCK = b"\x07"  # of the kind that RFC 1951 reserves: every reader refuses it
CONNECTIONS_MAX = 1_000
REQUEST_BYTES_MAX = 1 << 20
NDJSON = "application/x-ndjson"
BUSY = "server busy, please try again"
SAYS: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "bad request",
    HTTPStatus.UNAUTHORIZED: "unauthorized",
    HTTPStatus.FORBIDDEN: "forbidden",
    HTTPStatus.NOT_FOUND: "model not found",
    HTTPStatus.TOO_MANY_REQUESTS: "too many requests",
    HTTPStatus.INTERNAL_SERVER_ERROR: "something went wrong",
}


class Request(NamedTuple):
    """An HTTP request, read in full."""

    path: str
    query: str
    body: bytes


class Reply(NamedTuple):
    """An HTTP reply, before it is mangled."""

    status: int
    body: bytes
    kind: str = "application/json"


class Host(Protocol):
    """Who serves the requests of a connection."""

    def join(self, peer: Connection) -> int:
        """Note a new connection; return how many there are."""

    def leave(self, peer: Connection) -> None:
        """Forget a connection that is lost."""

    async def serve(self, request: Request, transport: asyncio.Transport) -> bool:
        """Answer one request; tells whether the connection must close then."""


class Connection(asyncio.Protocol):
    """One client, its requests one after the other; when the client leaves, the work for it is cancelled."""

    transport: asyncio.Transport

    def __init__(self, host: Host) -> None:
        self._host = host
        self._inbox = bytearray()
        self._work: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuse to be one too many."""
        self.transport = cast("asyncio.Transport", transport)
        if self._host.join(self) > CONNECTIONS_MAX:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Begin the next request once it is whole."""
        self._inbox += data
        self._advance()

    def connection_lost(self, _: Exception | None) -> None:
        """Stop working for who is not there."""
        self._host.leave(self)
        if self._work is not None:
            self._work.cancel()

    def _advance(self) -> None:
        try:
            request = None if self._work else _take_request(self._inbox)
        except ValueError:
            self.transport.abort()
            return
        if request is not None:
            self._work = asyncio.get_running_loop().create_task(self._answer(request))
        elif len(self._inbox) > REQUEST_BYTES_MAX:
            self.transport.abort()

    async def _answer(self, request: Request) -> None:
        must_close = await self._host.serve(request, self.transport)
        self._work = None
        if must_close:
            self.transport.close()
        else:
            self._advance()


def _take_request(inbox: bytearray) -> Request | None:
    end = inbox.find(b"\r\n\r\n")
    head = bytes(inbox[: max(end, 0)])
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    total = end + 4 + (int(length[1]) if length else 0)
    if end < 0 or len(inbox) < total:
        return None
    _, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
    path, _, query = target.partition("?")
    request = Request(path, query, bytes(inbox[end + 4 : total]))
    del inbox[:total]
    return request


def json_reply(value: object, status: int = 200) -> Reply:
    """Reply with a value."""
    return Reply(status, msgspec.json.encode(value))


def error_reply(status: int, message: str) -> Reply:
    """Reply as Ollama does to what it cannot do."""
    return json_reply({"error": message}, status)


def refusal(script: Script) -> Reply:
    """Refuse as ordered."""
    status = HTTPStatus.TEMPORARY_REDIRECT if script.redirect else script.status
    return error_reply(status, SAYS.get(status, BUSY))


def mangled(reply: Reply, script: Script) -> tuple[list[bytes], bool]:
    """Cut the reply into the pieces to send, mangled as ordered; tells too whether the connection closes after them."""
    if script.drop:
        return [b""], True
    body = b" " * script.huge + (reply.body if script.raw is None else script.raw.encode())
    body = _packed(body, script)
    headers = _headers(reply, script)
    if script.half_body:
        headers["Connection"], body = "close", body[: len(body) // 2]
    elif reply.kind == NDJSON:
        headers["Transfer-Encoding"] = "chunked"
        body = b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in [*body.splitlines(keepends=True), b""])
    else:
        headers["Content-Length"] = str(len(body))
    lines = [f"{name}: {value}" for name, value in (headers | script.headers).items() if value is not None]
    head = "\r\n".join([f"HTTP/1.1 {reply.status} Fake", *lines, "\r\n"]).encode()
    pieces = [head + body]
    if script.stall is not None:
        pieces = [head + body[: script.stall], body[script.stall :]]
    elif script.drip:
        pieces = [head, *(bytes([byte]) for byte in body)]
    return pieces, script.half_body or "Content-Length" in script.headers


def _headers(reply: Reply, script: Script) -> dict[str, str | None]:
    now_s = time.time() + script.clock
    headers: dict[str, str | None] = {"Content-Type": reply.kind, "Date": http_date(now_s, "imf")}
    if script.gzip or script.gzip_bomb:
        headers["Content-Encoding"] = "gzip"
    if script.redirect:
        headers["Location"] = "/elsewhere"
    if script.retry_date is not None:
        headers["Retry-After"] = http_date(now_s + script.retry_date, script.date_form)
    elif script.retry_after is not None:
        headers["Retry-After"] = str(script.retry_after)
    if script.header_bytes:
        headers["X-Padding"] = "x" * script.header_bytes
    return headers


def http_date(at_s: float, form: str) -> str:
    """Write a date in one of the three forms of RFC 9110, 5.6.7: imf, rfc850 or asctime."""
    if form == "rfc850":
        return time.strftime("%A, %d-%b-%y %H:%M:%S GMT", time.gmtime(at_s))
    return time.asctime(time.gmtime(at_s)) if form == "asctime" else formatdate(at_s, usegmt=True)


def _packed(body: bytes, script: Script) -> bytes:
    if script.gzip_bomb:
        return _gzip_bomb()
    if script.gzip is None:
        return body
    packed = gzip.compress(body, mtime=0)
    if script.gzip == "broken":
        return packed[:GZIP_HEAD_BYTES] + NO_BLOCK + packed[GZIP_HEAD_BYTES + 1 :]
    return packed[: len(packed) // 2] if script.gzip == "cut" else packed


@functools.cache
def _gzip_bomb() -> bytes:
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    spaces = b" " * (1 << 20)
    return b"".join(packer.compress(spaces) for _ in range(PADDING_BYTES_MAX >> 20)) + packer.flush()
