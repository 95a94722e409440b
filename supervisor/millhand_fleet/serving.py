"""Serving HTTP on sockets that the supervisor opened."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from millhand.stop import Stop

SHUTDOWN_S = 1
KEEP_ALIVE_S = 30


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: only `stop` has those."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(H11Protocol):
    """Lets an app cut its connection at once, as `scope["state"]["abort"]`: closing waits until all was taken."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.app_state = {**self.app_state, "abort": transport.abort}
        super().connection_made(transport)


async def serve(app: Any, sockets: list[socket.socket], stop: Stop) -> None:
    """Serve an ASGI app until a stop is requested."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=sockets))
    await asyncio.wait({serving, asyncio.ensure_future(stop.wait())}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await serving
