"""Serving HTTP on sockets that the supervisor opened, to clients that may be slow, many, or up to no good."""

import asyncio
import contextlib
import os
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from millhand.log import logger
from millhand.stop import Stop

SHUTDOWN_S = 1
IDLE_S = 30  # between two requests; longer than the usual 15 s between two scrapes
REQUEST_S = 5.0  # until a request has arrived whole, from its first byte or the connection's beginning
UNREAD_S = 10.0  # for which a reply may wait to be read
HEADER_BYTES_MAX = 16_384
CONNECTIONS_MAX = 640  # of one face: a crowd of 500 has room, and none of it comes back before its time is over
FACES = 2
DESCRIPTORS_SPARE = 192  # for Redis, the line, files, and what one burst of connections brings before any is closed
PEER_TOLD_EVERY_S = 60.0
PEER = struct.Struct("3i")  # pid, uid, gid of SO_PEERCRED

REFUSAL = b'{"error": "only the user that runs the fleet, and root, may speak to it here"}'
FORBIDDEN = (
    b"HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(REFUSAL), REFUSAL)
)


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: only `stop` has those."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Deadline:
    """Does something after a while, unless it is cancelled before; setting it again leaves it as it is."""

    def __init__(self, loop: asyncio.AbstractEventLoop, after_s: float, act: Callable[[], None]) -> None:
        self._loop = loop
        self._after_s = after_s
        self._act = act
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        """Whether it runs."""
        return self._timer is not None

    def set(self) -> None:
        """Let it run."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._after_s, self._act)

    def cancel(self) -> None:
        """Let it be."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Client(H11Protocol):
    """One connection, with the limits that uvicorn has not: a deadline for a whole request, and one for reading.

    Where there are too many, the one that keeps others waiting longest goes: a new client is always let in.
    """

    connections_max = CONNECTIONS_MAX
    _peer_told_s = -PEER_TOLD_EVERY_S

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let a client in, at the cost of another if there are too many."""
        self.app_state = {**self.app_state, "abort": transport.abort}  # for an app that must cut a connection
        super().connection_made(transport)
        self._since_s = self.loop.time()
        self._request_due = _Deadline(self.loop, REQUEST_S, transport.abort)
        self._reading_due = _Deadline(self.loop, UNREAD_S, transport.abort)
        transport.set_write_buffer_limits(0)  # so that we hear of every byte that is not taken
        self._welcome = self._is_welcome()
        self._await_request()
        if len(self.connections) > self.connections_max:
            self._let_one_go()

    def _let_one_go(self) -> None:
        """End the connection of whoever is not being served for longest; of those that are, the oldest."""
        clients = [one for one in self.connections if isinstance(one, Client) and not one.transport.is_closing()]
        if len(clients) > self.connections_max:
            others = (one for one in clients if one is not self)
            min(others, key=lambda one: (one.is_served, one._since_s)).transport.abort()  # noqa: SLF001 - our own kind

    @property
    def is_served(self) -> bool:
        """Whether its request is here and is being answered, and it reads the answer."""
        return self._has_request and not self._reading_due.is_set

    @property
    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    def _is_welcome(self) -> bool:
        """Whether the client runs as we do, or is root; on loopback everybody is welcome."""
        uid = peer_uid(self.transport)
        if uid in {None, 0, os.getuid()}:
            return True
        if self.loop.time() - Client._peer_told_s > PEER_TOLD_EVERY_S:  # a flood of them is one line
            Client._peer_told_s = self.loop.time()
            logger().warning("desk.peer_refused", uid=uid)
        return False

    def data_received(self, data: bytes) -> None:
        """Take in what came, from whoever may speak to us; only a whole request stops the clock.

        In pieces, since h11 holds only against its limit what has not come to its end in one.
        """
        if not self._welcome:
            self.transport.write(FORBIDDEN)
            self.transport.close()
        for first in range(0, len(data), HEADER_BYTES_MAX):
            if not self.transport.is_closing():
                super().data_received(data[first : first + HEADER_BYTES_MAX])
        self._await_request()

    def on_response_complete(self) -> None:
        """Wait for the next request. Whoever has sent it already means no good, and goes: no usual client does that."""
        if self.conn.trailing_data[0]:
            self.transport.close()
        super().on_response_complete()
        self._since_s = self.loop.time()
        self._request_due.cancel()

    def pause_writing(self) -> None:
        """Wait until the client reads."""
        super().pause_writing()
        self._reading_due.set()

    def resume_writing(self) -> None:
        """Go on: it has read."""
        super().resume_writing()
        self._reading_due.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._request_due.cancel()
        self._reading_due.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def _await_request(self) -> None:
        if self._has_request:
            self._request_due.cancel()
        else:
            self._request_due.set()


async def serve(app: Any, sockets: list[socket.socket], stop: Stop) -> None:
    """Serve an ASGI app until a stop is requested."""
    Client.connections_max = connections_max(_descriptors())
    config = uvicorn.Config(
        app,
        http=Client,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # not a line for each senseless request
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
        timeout_keep_alive=IDLE_S,
        h11_max_incomplete_event_size=HEADER_BYTES_MAX,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=sockets))
    await asyncio.wait({serving, asyncio.ensure_future(stop.wait())}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await serving


def connections_max(descriptors: int) -> int:
    """Return how many connections each face may have, with so many descriptors for the process."""
    return max(1, min(CONNECTIONS_MAX, (descriptors - DESCRIPTORS_SPARE) // FACES))


def _descriptors() -> int:
    """Raise the limit of this process's descriptors to what it needs, as far as that may be; return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FACES * CONNECTIONS_MAX + DESCRIPTORS_SPARE
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def peer_uid(transport: asyncio.BaseTransport) -> int | None:
    """Return as which user the other end of a unix socket was opened; None where it is no unix socket."""
    ours: socket.socket = transport.get_extra_info("socket")
    if ours.family != socket.AF_UNIX:
        return None
    with socket.fromfd(ours.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as same:  # uvloop's own has no getsockopt
        _, uid, _ = PEER.unpack(same.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
    return int(uid)
