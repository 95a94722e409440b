"""The line between a child process and its supervisor: heartbeats up, orders down, end-of-file when one is gone.

A line is one end of a SOCK_SEQPACKET pair: every message arrives whole or not at all, and sending never blocks.
"""

import asyncio
import ctypes
import faulthandler
import json
import os
import socket
from collections.abc import Callable
from typing import Any

from millhand.stop import DEATH_SIGNAL, ORPHAN_DRAIN_S, Stop

BEAT_EVERY_S = 1.0
HANG_LIMIT_S = 15.0  # an event loop silent for so long is stuck: dump its stacks and die
MESSAGE_BYTES_MAX = 65_536

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PROCESS_NAME_BYTES_MAX = 15


class Line:
    """One end of the line."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        self.end = end
        self.closed = False

    @classmethod
    def pair(cls) -> tuple["Line", socket.socket]:
        """Return the supervisor's end, and the socket to hand to the child."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), theirs

    def send(self, message: dict[str, Any]) -> bool:
        """Send a message. False if it was dropped: the other side is gone, or does not read."""
        try:
            self.end.send(json.dumps(message).encode()[:MESSAGE_BYTES_MAX], socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that have arrived; `closed` is set at end-of-file."""
        messages = []
        while not self.closed:
            try:
                packet = self.end.recv(MESSAGE_BYTES_MAX)
            except BlockingIOError:
                break
            except OSError:
                packet = b""
            if packet:
                messages.append(json.loads(packet))
            else:
                self.closed = True
        return messages

    def close(self) -> None:
        """Hang up: the other side reads end-of-file."""
        self.end.close()
        self.closed = True


class Pulse:
    """A child's end of the line inside its event loop."""

    def __init__(
        self,
        end: socket.socket,
        stop: Stop,
        *,
        stats: Callable[[], dict[str, Any]] = dict,
        hear: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        """`stats` goes up with every beat; `hear` gets every order that is not a stop."""
        self._line = Line(end)
        self._stop = stop
        self._stats = stats
        self._hear = hear

    async def run(self) -> None:
        """Beat until cancelled. A loop that hangs is ended by a watchdog in C, which needs neither loop nor GIL."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._line.end, self._listen)
        try:
            while True:
                self.send({"beat": self._stats()})
                faulthandler.dump_traceback_later(HANG_LIMIT_S, exit=True)
                await asyncio.sleep(BEAT_EVERY_S)
        finally:
            loop.remove_reader(self._line.end)
            faulthandler.cancel_dump_traceback_later()

    def send(self, message: dict[str, Any]) -> None:
        """Tell the supervisor something now."""
        self._line.send(message)

    def _listen(self) -> None:
        for message in self._line.receive():
            if "stop" in message:
                self._stop.request(message["stop"])
            else:
                self._hear(message)
        if self._line.closed:
            asyncio.get_running_loop().remove_reader(self._line.end)
            self._stop.request(ORPHAN_DRAIN_S)


def become_child(name: str, supervisor_pid: int) -> None:
    """Make this process a proper child: named for `ps`, and told by the kernel when its supervisor dies.

    End-of-file on the line says the same and is the rule; the death signal is for a child that does not read.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NAME, name.encode()[:PROCESS_NAME_BYTES_MAX], 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, DEATH_SIGNAL, 0, 0, 0)
    if os.getppid() != supervisor_pid:
        raise SystemExit(f"{name}: the supervisor {supervisor_pid} died before its child was ready")
