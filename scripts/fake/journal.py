"""What the fake writes down of every model call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

WRITTEN = ("arrival_s", "started_s", "end_s", "status", "text")


class Call(msgspec.Struct):
    """A model call as the server saw it, in `time.monotonic()` seconds, which all processes of a Linux host share.

    `status` is the HTTP status sent, or one of open, dropped (by order) and disconnected (the client left first).
    """

    arrival_s: float
    path: str = ""
    status: int | str = "open"
    text: str = ""  # the user's first message: what is asked about, also where an answer to it is to be corrected
    request: dict[str, Any] = {}
    started_s: float | None = None  # when it got a slot
    end_s: float | None = None


class Journal:
    """A file of JSON Lines, one for each finished call in the order of their ends; each is there when its call is."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)  # so that a line is one write

    def write(self, call: Call) -> None:
        """Append a finished call."""
        self._file.write(msgspec.json.encode({name: getattr(call, name) for name in WRITTEN}) + b"\n")

    def close(self) -> None:
        """Write no more."""
        self._file.close()


def read_journal(path: Path) -> list[Call]:
    """Return the calls that have been written so far; a line that is being written is left out."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [msgspec.json.decode(line, type=Call) for line in whole.splitlines()]
