"""The fake's port: open, shut as a dead server's is, or deaf as a hung one's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

HOST = "127.0.0.1"
PLAIN = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
QUEUE_MAX = 1_000  # connections that the kernel makes before they are accepted
FILLERS = 2  # a queue of length 0 takes one, or one more


class Door:
    """A port that stays ours from here to `close`, so that nobody else can have it while it is shut.

    Belongs to the running loop and is used in its thread; `welcome` makes the protocol of each new connection.
    """

    def __init__(self, port: int, welcome: Callable[[], asyncio.Protocol]) -> None:
        self._loop = asyncio.get_running_loop()
        self._welcome = welcome
        self._keeper = _bound(port)  # never listens
        self.port: int = self._keeper.getsockname()[1]
        self._ear: socket.socket | None = None
        self._fillers: list[socket.socket] = []
        self._guests: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Accept connections, first those that were made while it was deaf."""
        ear = self._ear = self._ear or _bound(self.port)
        ear.listen(QUEUE_MAX)
        self._loop.add_reader(ear, self._accept)
        self._drop_fillers()

    def deafen(self, *, connects: bool) -> None:
        """Accept no more: the kernel still makes connections, where nobody hears a word; or it makes none either."""
        ear = self._ear = self._ear or _bound(self.port)
        ear.listen(QUEUE_MAX if connects else 0)
        self._loop.remove_reader(ear)
        self._drop_fillers()
        for _ in range(0 if connects else FILLERS):
            filler = socket.socket(type=PLAIN)
            filler.connect_ex((HOST, self.port))
            self._fillers.append(filler)

    def shut(self) -> None:
        """Refuse connections from now on; those that were made but not accepted are reset."""
        self._drop_fillers()
        if self._ear is not None:
            self._loop.remove_reader(self._ear)
            self._ear.close()
            self._ear = None

    def close(self) -> None:
        """Shut it and give the port away."""
        self.shut()
        self._keeper.close()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            while self._ear is not None:
                guest = self._loop.create_task(self._receive(self._ear, self._ear.accept()[0]))
                self._guests.add(guest)
                guest.add_done_callback(self._guests.discard)

    async def _receive(self, ear: socket.socket, connection: socket.socket) -> None:
        transport, _ = await self._loop.connect_accepted_socket(self._welcome, connection)
        if ear is not self._ear:  # shut meanwhile
            transport.abort()

    def _drop_fillers(self) -> None:
        while self._fillers:
            self._fillers.pop().close()


def _bound(port: int) -> socket.socket:
    bound = socket.socket(type=PLAIN)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((HOST, port))
    return bound
