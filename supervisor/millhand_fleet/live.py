"""The status document as it changes: server-sent events for the web page."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from starlette.responses import JSONResponse
from starlette.routing import Route

from millhand_fleet.snapshot import REFRESH_EVERY_S

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from millhand.stop import Stop

CLIENTS_MAX = 32
RECONNECT_MS = 2000
UNAVAILABLE = 503
HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
OPENING = f"retry: {RECONNECT_MS}\n: each message is a whole status document; one comes about every second\n\n".encode()
Waiting: TypeAlias = "asyncio.Future[Any]"


class Live:
    """An ASGI app that sends its clients the newest document about once a second, until a stop is requested.

    A client first gets an event `past`: rows of [seconds ago, in a second, out a second]. Nothing is queued: whoever is
    slow gets the newest when he has taken the last; `serving` ends the connection if that takes too long. Clients
    beyond `CLIENTS_MAX` get a 503.
    """

    def __init__(self, document: Callable[[], bytes], past: Callable[[], Any], stop: "Stop") -> None:
        self._document = document  # as compact JSON, which holds no line feed
        self._past = past
        self._stop = stop
        self.clients = 0

    def route(self) -> Route:
        """Return the route that this is to be found at."""
        return Route("/live", self, methods=["GET"])

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer one client."""
        if self.clients >= CLIENTS_MAX:
            refusal = {"error": f"{CLIENTS_MAX} clients follow already; ask /status, or close one of them"}
            await JSONResponse(refusal, UNAVAILABLE)(scope, receive, send)
            return
        self.clients += 1
        gone, ending = asyncio.ensure_future(_gone(receive)), asyncio.ensure_future(self._stop.wait())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            if scope["method"] == "HEAD" or await self._follow(send, gone, ending):
                await send({"type": "http.response.body", "body": b""})
            elif not gone.done():
                await _cut(scope, gone)
        finally:
            self.clients -= 1
            gone.cancel()
            ending.cancel()

    async def _follow(self, send: "Send", gone: Waiting, ending: Waiting) -> bool:
        """Send until the client is gone, or until a stop. False if it has not taken all then."""
        body = OPENING + b"event: past\n" + _data(msgspec.json.encode(self._past()))
        while not (gone.done() or ending.done()):
            body += _data(self._document())
            sending = asyncio.ensure_future(send({"type": "http.response.body", "body": body, "more_body": True}))
            await asyncio.wait({sending, gone, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                sending.cancel()
                return False
            body = b""
            await asyncio.wait({gone, ending}, timeout=REFRESH_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
        return True


def _data(document: bytes) -> bytes:
    return b"data: " + document + b"\n\n"


async def _gone(receive: "Receive") -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cut(scope: "Scope", gone: Waiting) -> None:
    """Cut a connection whose other side takes nothing: to close it in good order would wait for that."""
    abort = scope.get("state", {}).get("abort")
    if abort is not None:
        abort()
        await gone
