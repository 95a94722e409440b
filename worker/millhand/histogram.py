"""How long things took: counts by buckets, which only rise, so that whoever adds them up may miss some."""

from bisect import bisect_left

BOUNDS_S = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 900.0, 3600.0)


class Histogram:
    """Counts durations. A bucket holds those up to its bound and above the one before; the last holds the rest."""

    def __init__(self) -> None:
        self._sum_s = 0.0
        self._counts = [0] * (len(BOUNDS_S) + 1)

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        self._sum_s += seconds
        self._counts[bisect_left(BOUNDS_S, seconds)] += 1

    def packed(self) -> list[float]:
        """Return the sum in seconds, then the counts without the noughts at their end: short, for the heartbeat."""
        last = max((place for place, count in enumerate(self._counts) if count), default=-1)
        return [round(self._sum_s, 3), *self._counts[: last + 1]]
