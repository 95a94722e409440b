"""How many events wait: counted, never taken from XINFO's `lag`, which is null or wrong after deletes and trims."""

from typing import TYPE_CHECKING, Any

from millhand.stream import script

if TYPE_CHECKING:
    from redis.asyncio import Redis

PAGE = 1000  # entries a call, so that the server is never held up for long


class Backlog:
    """Keeps the exact number of entries after the group's last delivered one.

    Counting starts over when something was deleted or trimmed. Otherwise it counts what came and what was delivered
    since the last time, so an event is counted twice in its life, however long the backlog is.
    """

    def __init__(self, redis: "Redis", stream: str) -> None:
        self._stream = stream
        self._count_after = script(redis, "count_after")
        self._removed = -1
        self._delivered = "0-0"
        self._newest = "0-0"
        self._waiting = 0

    async def count(self, delivered: str, info: dict[str, Any]) -> int:
        """Return the number of entries after `delivered`, the group's last-delivered-id; `info` is XINFO STREAM's."""
        removed = info["entries-added"] - info["length"]
        if removed != self._removed or _order(delivered) < _order(self._delivered):
            self._removed, self._waiting, self._newest = removed, 0, delivered
        elif _order(delivered) <= _order(self._newest):
            self._waiting -= (await self._stretch(self._delivered, delivered))[0]
        else:
            self._waiting, self._newest = 0, delivered
        self._delivered = delivered
        fresh, self._newest = await self._stretch(self._newest, "+")
        self._waiting += fresh
        return self._waiting

    async def _stretch(self, after: str, until: str) -> tuple[int, str]:
        """Count the entries in (after, until]; return that and the last one's id."""
        total = 0
        while True:
            count, last = await self._count_after(keys=[self._stream], args=[after, until, PAGE])
            if not count:
                return total, after
            total, after = total + count, last.decode()


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)
