"""Which pending entries nobody renews any more: judged on our own monotonic clock, whatever the server's clock does."""

import math
from collections.abc import Iterable

import msgspec


class Pending(msgspec.Struct, frozen=True):
    """A row of the pending list. `delivered_ms` is when it was delivered or renewed last, by the server's clock.

    It is an absolute time and does not move when the clock jumps; None where the server cannot tell, because that time
    lies in its future (the clock was put back).
    """

    id: str
    owner: str
    count: int
    delivered_ms: int | None
    idle_s: float


class _Seen(msgspec.Struct, frozen=True):
    row: Pending
    since_s: float  # our clock: nobody has touched the entry from then on


class Watch:
    """Remembers (owner, count, time of the last renewal) of each pending entry from one sweep to the next.

    Idle times alone would not do: after a jump of the server's clock by +1 h every entry is idle for an hour, and after
    one by -1 h none is idle at all for that long.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._same_within_ms = lease_s * 1000 / 10  # a renewal moves the time by a third of a lease
        self._idle_max_s = lease_s / 2  # believed at once: where the last sweep was longer ago, it may be a jump
        self._seen: dict[str, _Seen] = {}
        self._swept_at_s: float | None = None

    def forget(self) -> None:
        """Begin anew: the server was away, and while it was nobody could renew anything."""
        self._seen, self._swept_at_s = {}, None

    def abandoned(self, rows: Iterable[Pending], *, asked_s: float, now_s: float) -> set[str]:
        """Take in the whole pending list; return the ids that nobody has renewed for one lease.

        `asked_s` and `now_s`, in seconds of a monotonic clock, are from before and after the list was read: while a
        slow reply was on its way, everything may have been renewed.
        """
        seen = {}
        for row in rows:
            before = self._seen.get(row.id)
            if before is None or self._touched(before.row, row):
                seen[row.id] = _Seen(row, self._touched_at(row, now_s))
            else:
                seen[row.id] = before
        self._seen, self._swept_at_s = seen, now_s
        return {entry_id for entry_id, one in seen.items() if asked_s - one.since_s >= self._lease_s}

    def next_s(self, now_s: float) -> float:
        """Return when the next lease runs out if nobody renews it; infinite where none can."""
        ends = (one.since_s + self._lease_s for one in self._seen.values())
        return min((end_s for end_s in ends if end_s > now_s), default=math.inf)

    def _touched(self, before: Pending, row: Pending) -> bool:
        if (before.owner, before.count) != (row.owner, row.count):
            return True
        if row.delivered_ms is None:
            return False  # no evidence: a living owner's next renewal will be seen
        return before.delivered_ms is None or abs(row.delivered_ms - before.delivered_ms) > self._same_within_ms

    def _touched_at(self, row: Pending, now_s: float) -> float:
        """Return the earliest time that is proven: not before the last sweep, which saw it otherwise or not at all."""
        if self._swept_at_s is None:
            return now_s
        return max(self._swept_at_s, now_s - min(row.idle_s, self._idle_max_s))
