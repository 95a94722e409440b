"""Where log lines leave the process, so that a reader who has stopped reading never stops a writer."""

import os
import select
import stat
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

QUEUE_BYTES_MAX = 262_144  # about a thousand records
TELL_EVERY_S = 1.0  # of lines that were dropped


class Outlet:
    """A descriptor to which lines are written whole, in order, by whichever thread.

    A file takes a line at once. A pipe, a socket or a terminal may be full for as long as its reader likes, so that a
    thread of its own waits for it while the lines queue up; what finds no room is dropped and counted. The descriptor
    is not made non-blocking: it is shared with processes that would not expect that. Nor is a poll before each write
    enough, since another writer may take the room that it has found.

    `tell_dropped` is called with the number of lines that were dropped since the last time, once there is room again.
    """

    def __init__(self, descriptor: int, *, bytes_max: int = QUEUE_BYTES_MAX) -> None:
        self._descriptor = descriptor
        self._bytes_max = bytes_max
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._change = threading.Condition()
        self._writer: threading.Thread | None = None
        self._waits = _may_be_full(descriptor)
        self._untold, self._told_at = 0, -TELL_EVERY_S
        self._is_broken = False  # the last line could not be written at all
        self.tell_dropped: Callable[[int], None] = lambda _: None
        self.dropped = 0

    def write(self, text: str) -> None:
        """Take a line. Never waits for a reader, and never raises."""
        line = text.encode(errors="replace")
        if self._waits:
            self._enqueue(line)
        else:
            self._put(line)
            self._tell()

    def flush(self) -> None:
        """Do nothing: a line is on its way as soon as it is written."""

    def drain(self, within_s: float) -> None:
        """Wait until what is queued has been written, but no longer than so many seconds."""
        with self._change:
            self._change.wait_for(lambda: not self._bytes, within_s)

    def _enqueue(self, line: bytes) -> None:
        is_telling = threading.current_thread() is self._writer  # of what was dropped, which must not be dropped too
        with self._change:
            has_room = is_telling or self._bytes + len(line) <= self._bytes_max
            if not has_room or not self._has_writer():
                self._drop()
                return
            self._lines.append(line)
            self._bytes += len(line)
            self._change.notify_all()

    def _has_writer(self) -> bool:
        """Start the thread if there is none. False where that cannot be: no more threads, or the process is ending."""
        if self._writer is None:
            writer = threading.Thread(target=self._write_all, name="log", daemon=True)
            try:
                writer.start()
            except RuntimeError:
                return False
            self._writer = writer
        return True

    def _write_all(self) -> None:
        """Write line by line, for as long as the process lives. A line counts as queued until it is written."""
        while True:
            with self._change:
                if not self._change.wait_for(lambda: self._lines, TELL_EVERY_S if self._is_to_tell else None):
                    line = b""
                else:
                    line = self._lines.popleft()
            if line:
                self._put(line)
            with self._change:
                self._bytes -= len(line)
                self._change.notify_all()
            self._tell()

    def _put(self, line: bytes) -> None:
        """Write one line; drop it where nobody can ever read it, or the disk is full."""
        try:
            while line:
                try:
                    line = line[os.write(self._descriptor, line) :]
                except BlockingIOError:  # somebody else has made it non-blocking
                    select.select((), (self._descriptor,), ())
        except (OSError, ValueError):
            self._is_broken = True
            with self._change:
                self._drop()
        else:
            self._is_broken = False

    def _drop(self) -> None:
        self.dropped += 1
        self._untold += 1

    @property
    def _is_to_tell(self) -> bool:
        return self._untold > 0 and not self._is_broken

    def _tell(self) -> None:
        """Tell of what was dropped: at once, and while lines are dropped still, now and then."""
        with self._change:
            untold, now = self._untold, time.monotonic()
            if not self._is_to_tell or now - self._told_at < TELL_EVERY_S:
                return
            self._untold, self._told_at = 0, now
        self.tell_dropped(untold)
        if self._is_broken:  # that was not written either
            with self._change:
                self._untold += untold


def _may_be_full(descriptor: int) -> bool:
    """Whether writing there may have to wait for a reader."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)
