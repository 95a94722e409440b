"""Turns between the processes of one test run, so that a test marked `alone` has the processors for itself.

A readers-writer lock in two files, with a door: whoever waits for the room to become empty keeps the door shut, so that
he is not kept waiting by those who come after him.
"""

import fcntl
import os
from pathlib import Path

import pytest

MARK = "alone"


class Turns:
    """Lets tests of other processes run at the same time, or waits until there are none and lets none begin."""

    def __init__(self, folder: Path) -> None:
        self._door = os.open(folder / "door", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        self._room = os.open(folder / "room", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        self._is_in = False

    def enter(self, *, alone: bool) -> None:
        """Wait for this process's turn, unless it has been kept."""
        if self._is_in:
            return
        fcntl.flock(self._door, fcntl.LOCK_EX)
        fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(self._door, fcntl.LOCK_UN)
        self._is_in = True

    def leave(self) -> None:
        """Let others have their turn."""
        fcntl.flock(self._room, fcntl.LOCK_UN)
        self._is_in = False

    def close(self) -> None:
        """Close the files, which leaves too."""
        os.close(self._door)
        os.close(self._room)


def is_alone(item: pytest.Item | None) -> bool:
    """Whether a test is marked; no test is not."""
    return item is not None and item.get_closest_marker(MARK) is not None
