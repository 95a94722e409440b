"""How fast counters rise: from samples of the last quarter of an hour. Pure."""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

RATE_OVER_S = 10.0
DRAIN_OVER_S = 60.0  # longer, since an estimate is of no use if it jumps
DRAIN_KNOWN_AFTER_S = 10.0
PAST_OVER_S, PAST_STEP_S = 300.0, 5.0  # what the web page's curve begins with
SUCCESS_OVER_S = {"1m": 60.0, "5m": 300.0, "15m": 900.0}


class Rise(NamedTuple):
    """By how much each counter rose, and in how many seconds."""

    over_s: float
    counts: tuple[float, ...]


class History:
    """Samples of counters that only rise. Where one falls, somebody emptied the server, and history begins anew."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._samples: deque[tuple[float, tuple[float, ...]]] = deque()

    def note(self, at_s: float, counts: Sequence[float]) -> None:
        """Add a sample; `at_s` never goes back."""
        now = tuple(counts)
        if self._samples and any(new < old for new, old in zip(now, self._samples[-1][1], strict=True)):
            self._samples.clear()
        while self._samples and self._samples[0][0] < at_s - self._keep_s:
            self._samples.popleft()
        self._samples.append((at_s, now))

    def rise(self, over_s: float) -> Rise | None:
        """Return what came about in the last `over_s`, or in as much of them as is known; None before two samples.

        The last seconds are those before the last sample: a server that is away makes no rate fall.
        """
        if not self._samples:
            return None
        last_s, last = self._samples[-1]
        first_s, first = self._samples[bisect_left(self._samples, last_s - over_s, key=lambda sample: sample[0])]
        if last_s <= first_s:
            return None
        return Rise(last_s - first_s, tuple(new - old for new, old in zip(last, first, strict=True)))

    def course(self, over_s: float, step_s: float) -> list[tuple[float, Rise]]:
        """Return the rises in steps of about `step_s`, the oldest first, each with how long ago it ended."""
        course: list[tuple[float, Rise]] = []
        if not self._samples:
            return course
        last_s = self._samples[-1][0]
        first_s, first = self._samples[bisect_left(self._samples, last_s - over_s, key=lambda sample: sample[0])]
        for at_s, counts in self._samples:
            if at_s - first_s >= step_s:
                rise = Rise(at_s - first_s, tuple(new - old for new, old in zip(counts, first, strict=True)))
                course.append((last_s - at_s, rise))
                first_s, first = at_s, counts
        return course


class Counts(NamedTuple):
    """What is sampled of the streams; all counts are events since the fleet began."""

    added: int
    enriched: int
    dead: int
    skipped: int


class Flow(msgspec.Struct, frozen=True):
    """What goes in and out. The rates are 0 until two samples are there."""

    in_per_s: float = 0.0
    enriched_per_s: float = 0.0
    dead_per_s: float = 0.0
    drained_in_s: float | None = None  # None: unknown, or never at this rate
    success_rate_over: dict[str, float | None] = msgspec.field(default_factory=lambda: dict.fromkeys(SUCCESS_OVER_S))


def flow_of(history: History, unsettled: int) -> Flow:
    """Return the flow that a history of `Counts` shows, with so many events not yet settled."""
    rise = history.rise(RATE_OVER_S)
    over_s, (added, enriched, dead, _) = rise or Rise(1.0, (0, 0, 0, 0))
    return Flow(
        in_per_s=round(added / over_s, 2),
        enriched_per_s=round(enriched / over_s, 2),
        dead_per_s=round(dead / over_s, 2),
        drained_in_s=_drained_in_s(history.rise(DRAIN_OVER_S), unsettled),
        success_rate_over={name: _success_rate(history.rise(over_s)) for name, over_s in SUCCESS_OVER_S.items()},
    )


def past_of(history: History) -> list[tuple[float, float, float]]:
    """Return how much went in and out a second, each with how many seconds ago that was, the oldest first."""
    return [
        (round(ago_s, 1), round(rise.counts[0] / rise.over_s, 2), round(rise.counts[1] / rise.over_s, 2))
        for ago_s, rise in history.course(PAST_OVER_S, PAST_STEP_S)
    ]


def _drained_in_s(rise: Rise | None, unsettled: int) -> float | None:
    if not unsettled:
        return 0.0
    if rise is None or rise.over_s < DRAIN_KNOWN_AFTER_S:
        return None
    added, enriched, dead, skipped = rise.counts
    fewer = enriched + dead + skipped - added
    return round(unsettled * rise.over_s / fewer, 1) if fewer > 0 else None


def _success_rate(rise: Rise | None) -> float | None:
    """Return the enriched events as a share of those settled; None where nothing was."""
    if rise is None:
        return None
    _, enriched, dead, _ = rise.counts
    return round(enriched / (enriched + dead), 6) if enriched + dead else None
