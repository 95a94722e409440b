"""The line between a child process and its supervisor: heartbeats up, orders down, end-of-file when one is gone.

A line is one end of a SOCK_SEQPACKET pair: every message arrives whole or not at all, and sending never blocks.
"""

import asyncio
import faulthandler
import json
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from millhand.stop import ORPHAN_DRAIN_S, Stop

if TYPE_CHECKING:
    from collections.abc import Callable

BEAT_EVERY_S = 1.0
HANG_LIMIT_S = 15.0  # an event loop silent for so long is stuck: dump its stacks and die
PAUSED = "paused by worker-ctl pause"  # what a worker waits for then, in its stats
STDERR = 2
MESSAGE_BYTES_MAX = 131_072  # below the kernel's default socket buffer


class Birth(NamedTuple):
    """What every child process is given by its supervisor."""

    name: str
    end: socket.socket
    supervisor_pid: int
    stacks: str = ""  # the file for the stacks of a hang or a crash, which the supervisor puts in the log


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
        """Send a message. False if it was dropped: too long, or the other side is gone or does not read."""
        packet = json.dumps(message, ensure_ascii=False).encode(errors="replace")
        if len(packet) > MESSAGE_BYTES_MAX:
            return False
        try:
            self.end.send(packet, socket.MSG_NOSIGNAL)
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
            except ConnectionResetError:
                continue  # reported once, before what has arrived is handed out
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

    def __init__(self, end: socket.socket, stop: Stop, stacks: int = STDERR) -> None:
        self._line = Line(end)
        self._stop = stop
        self._stacks = stacks  # the descriptor that a watchdog writes to
        self.stats: Callable[[], dict[str, Any]] = dict  # goes up with every beat
        self.common: Callable[[], dict[str, Any]] = dict  # and so does this, of every kind of child
        self.hear: Callable[[dict[str, Any]], None] = lambda _: None  # gets every order that is not a stop

    async def run(self) -> None:
        """Beat until cancelled. A loop that hangs is ended by a watchdog in C, which needs neither loop nor GIL."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._line.end, self._listen)
        try:
            self._listen()  # what was said before the loop ran, such as a pause, is heard before anything is read
            while True:
                self.send({"beat": {**self.common(), **self.stats()}})
                faulthandler.dump_traceback_later(HANG_LIMIT_S, exit=True, file=self._stacks)
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
                self.hear(message)
        if self._line.closed:
            asyncio.get_running_loop().remove_reader(self._line.end)
            self._stop.request(ORPHAN_DRAIN_S)
