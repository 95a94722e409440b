"""The judge of a limit: what arrived at the model, and when, whatever the callers say of themselves."""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

BUCKET_S = 0.25


class Visit(Protocol):
    """A call as its times; one without an end is open for ever. Calls may come in any order."""

    @property
    def arrival_s(self) -> float:
        """When it came."""

    @property
    def end_s(self) -> float | None:
        """When it was answered, or given up."""


class Excess(NamedTuple):
    """The worst window: so many calls more than allowed arrived in it, or fewer, if negative."""

    calls: float
    begin_s: float  # the window's first arrival
    end_s: float  # its last


class Peak(NamedTuple):
    """The most calls that were open at once, and when they first were."""

    calls: int
    at_s: float


class Limit(NamedTuple):
    """At most rate·t + burst calls may arrive in any time t."""

    rate_per_s: float
    burst: float

    def worst_excess(self, calls: Iterable[Visit]) -> Excess:
        """Judge every window, the closed ones from arrival to arrival being the worst; none arrived: minus the burst.

        In one pass, as a bucket does that runs out at the rate: its level after an arrival is the largest of `calls -
        rate·t` over all windows that end there.
        """
        worst, level, before_s, begin_s = Excess(-self.burst, 0.0, 0.0), 0.0, 0.0, 0.0
        for arrival_s in sorted(call.arrival_s for call in calls):
            level -= self.rate_per_s * (arrival_s - before_s)
            if level <= 0:
                level, begin_s = 0.0, arrival_s
            level, before_s = level + 1, arrival_s
            if level - self.burst > worst.calls:
                worst = Excess(level - self.burst, begin_s, arrival_s)
        return worst

    def share_used(self, calls: Iterable[Visit], begin_s: float, end_s: float) -> float:
        """Return how much of what may arrive from begin until before end did; a burst of 0 judges a steady stretch."""
        arrived = sum(begin_s <= call.arrival_s < end_s for call in calls)
        return arrived / (self.rate_per_s * (end_s - begin_s) + self.burst)


def open_peak(calls: Iterable[Visit]) -> Peak:
    """Return the most calls open at once; one that ends when another arrives makes room for it."""
    peak, ends_s = Peak(0, 0.0), list[float]()
    for call in sorted(calls, key=lambda call: call.arrival_s):
        while ends_s and ends_s[0] <= call.arrival_s:
            heapq.heappop(ends_s)
        heapq.heappush(ends_s, math.inf if call.end_s is None else call.end_s)
        if len(ends_s) > peak.calls:
            peak = Peak(len(ends_s), call.arrival_s)
    return peak


def arrivals_per_bucket(calls: Iterable[Visit], begin_s: float, end_s: float) -> list[int]:
    """Count the arrivals from begin until before end in stretches of BUCKET_S; the last may be shorter."""
    counts = [0] * math.ceil((end_s - begin_s) / BUCKET_S)
    for call in calls:
        if begin_s <= call.arrival_s < end_s:
            counts[min(int((call.arrival_s - begin_s) / BUCKET_S), len(counts) - 1)] += 1
    return counts
