"""A bound on how fast the log grows: a flood of bad events must not become a flood of records."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

BURST = 100  # records of one event name that may come at once
RATE_PER_S = 10.0  # and how many a second from there on
TELL_EVERY_S = 10.0
UNBOUNDED = frozenset({"debug", "critical"})  # what was asked for in full, and what must never be missed


@dataclass
class _Name:
    tokens: float = BURST
    at: float = 0.0
    suppressed: int = 0
    told_at: float = 0.0


class Flood:
    """A structlog processor that lets so many records of one event name through, and counts the rest.

    `tell` is called with a name and the number of its records that were left out since the last time.
    """

    def __init__(self, tell: Callable[[str, int], None], now: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._now = now
        self._names: dict[str, _Name] = {}

    def __call__(self, _: Any, method: str, record: Any) -> Any:
        """Let a record through, or raise DropEvent."""
        if method in UNBOUNDED:
            return record
        now, event = self._now(), str(record["event"])
        name = self._names.setdefault(event, _Name(at=now))
        name.tokens = min(BURST, name.tokens + (now - name.at) * RATE_PER_S)
        name.at = now
        if name.tokens < 1:
            if not name.suppressed:
                name.told_at = now
            name.suppressed += 1
            raise structlog.DropEvent
        name.tokens -= 1
        return record

    def tell_what_was_left_out(self, *, at_once: bool = False) -> None:
        """Tell of each name whose records have been left out, every so often. Call it often, and at the end."""
        now = self._now()
        for event, name in list(self._names.items()):  # telling may bring a new name up
            if name.suppressed and (at_once or now - name.told_at >= TELL_EVERY_S):
                count, name.suppressed, name.told_at = name.suppressed, 0, now
                self._tell(event, count)
