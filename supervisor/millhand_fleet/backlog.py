"""How many events wait, and how long: counted, never by XINFO's `lag`, which deletes and trims make null or wrong."""

from typing import TYPE_CHECKING, Any

import msgspec

from millhand.stream import Script

if TYPE_CHECKING:
    from redis.asyncio import Redis

PAGE = 1000  # entries a call, so that the server is never held up for long
EARLIEST_MS = 1_000_000_000_000  # September 2001: an id below it is a number that a producer chose, and no time


class Age(msgspec.Struct, frozen=True):
    """How long the oldest event of each kind has waited since it was added; None where there is none."""

    unsettled_s: float | None = None  # delivered or not
    undelivered_s: float | None = None


class Backlog:
    """Keeps the exact number of entries after the group's last delivered one.

    Counting starts over when something was deleted or trimmed. Otherwise it counts what came and what was delivered
    since the last time, so an event is counted twice in its life, however long the backlog is.
    """

    def __init__(self, redis: "Redis", stream: str) -> None:
        self._stream = stream
        self._count_after = Script(redis, "count_after")
        self._added = self._removed = -1
        self._delivered = self._newest = "0-0"
        self._waiting = 0

    async def count(self, delivered: str, info: dict[str, Any]) -> int:
        """Return the number of entries after `delivered`, the group's last-delivered-id; `info` is XINFO STREAM's."""
        added, removed, newest = info["entries-added"], info["entries-added"] - info["length"], _id(info)
        steady = removed == self._removed and _order(delivered) >= _order(self._delivered)
        fresh = await self._between(self._newest, newest) if steady else 0
        if steady and added - self._added == fresh:
            self._waiting += fresh - await self._between(self._delivered, delivered)
        else:
            self._waiting = await self._between(delivered, newest)
        self._added, self._removed, self._delivered, self._newest = added, removed, delivered, newest
        return self._waiting

    async def age(self, delivered: str, oldest_pending: str | None, now_ms: float) -> Age:
        """Return how old the oldest entries are: of those after `delivered`, and of all that are not yet settled.

        `now_ms` by the server's clock. An id that is no time has no age.
        """
        _, first = await self._count_after(keys=[self._stream], args=[delivered, "+", 1])
        undelivered_s = _age_s(first.decode(), now_ms) if first else None
        pending_s = _age_s(oldest_pending, now_ms) if oldest_pending else None
        known = [age_s for age_s in (undelivered_s, pending_s) if age_s is not None]
        return Age(max(known, default=None), undelivered_s)

    async def _between(self, after: str, until: str) -> int:
        """Count the entries in (after, until]."""
        total = 0
        while True:
            count, last = await self._count_after(keys=[self._stream], args=[after, until, PAGE])
            if not count:
                return total
            total, after = total + count, last.decode()


def _id(info: dict[str, Any]) -> str:
    newest = info["last-generated-id"]
    return newest.decode() if isinstance(newest, bytes) else str(newest)


def _age_s(entry_id: str, now_ms: float) -> float | None:
    added_ms, _ = _order(entry_id)
    return round(max(0.0, now_ms - added_ms) / 1000, 3) if added_ms >= EARLIEST_MS else None


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)
