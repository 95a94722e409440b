"""One socket of the fault proxy."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Final, cast

END: Final = b""  # the peer has sent all
GONE: Final = None  # the connection is broken
LINGER_NONE = struct.pack("ii", 1, 0)  # closing sends RST


class End(asyncio.Protocol):
    """One socket of a connection. What comes is told to `hear`: bytes, then END or GONE, or GONE after END.

    It stands in `open_ends` while it is open. Writing to one that is closed does nothing.
    """

    def __init__(
        self,
        open_ends: "set[End]",
        hear: Callable[[bytes | None], None],
        opened: Callable[[], None] = lambda: None,
    ) -> None:
        self.gone = asyncio.Event()
        self._open_ends, self._hear, self._opened = open_ends, hear, opened
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._has_ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._writable.set()
        self._open_ends.add(self)
        self._opened()

    def data_received(self, data: bytes) -> None:
        self._hear(data)

    def eof_received(self) -> bool:
        self._hear(END)
        return True  # the other direction goes on

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._writable.set()
        self._open_ends.discard(self)
        self._hear(GONE)
        self.gone.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def send(self, data: bytes) -> None:
        """Write, and wait while too much is unsent."""
        if (transport := self._open()) and not self._has_ended:
            transport.write(data)
            await self._writable.wait()

    def end(self) -> None:
        """Tell the peer that no more will come."""
        if (transport := self._open()) and not self._has_ended:
            self._has_ended = True
            with contextlib.suppress(OSError):  # it left this moment
                transport.write_eof()

    def listen(self, *, on: bool) -> None:
        """Read on, or leave what comes to the kernel."""
        if transport := self._open():
            (transport.resume_reading if on else transport.pause_reading)()

    def close(self) -> None:
        """Close when all is sent."""
        if transport := self._open():
            transport.close()

    def abort(self) -> None:
        """Close by RST."""
        if transport := self._open():
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
        if self._transport is not None:
            self._transport.abort()

    def _open(self) -> asyncio.Transport | None:
        return None if self._transport is None or self._transport.is_closing() else self._transport
