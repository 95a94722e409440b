"""How long events and model calls took, over the whole fleet: from what each worker counts. Pure."""

from collections.abc import Sequence
from itertools import accumulate

import msgspec

from millhand.histogram import BOUNDS_S
from millhand_fleet.history import History

LATENCY_OVER_S = 300.0
EVENT, MODEL, TOKENS = "event_s", "model_s", "tokens"  # as a worker's stats name them
LENGTHS = {EVENT: len(BOUNDS_S) + 2, MODEL: len(BOUNDS_S) + 2, TOKENS: 2}  # a histogram is its sum, then its buckets


class Percentiles(msgspec.Struct, frozen=True):
    """Of the last five minutes; None where nothing was measured."""

    count: int = 0
    p50_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None


class LatencyView(msgspec.Struct, frozen=True):
    """From an event's being added to its being settled; and of one call to the model."""

    event: Percentiles = Percentiles()
    model: Percentiles = Percentiles()


class Measured(msgspec.Struct, frozen=True):
    """What all workers together have counted since the desk began; it never falls."""

    event: tuple[float, ...] = (0.0,) * LENGTHS[EVENT]  # the sum in seconds, then the counts by bucket
    model: tuple[float, ...] = (0.0,) * LENGTHS[MODEL]
    tokens_in: float = 0
    tokens_out: float = 0


class Measurements:
    """Adds up over the workers and over those that came before them: a worker that is replaced takes nothing away."""

    def __init__(self) -> None:
        self._totals = {name: [0.0] * length for name, length in LENGTHS.items()}
        self._last: dict[str, dict[str, list[float]]] | None = None
        self._history = History(keep_s=LATENCY_OVER_S)

    def take(self, at_s: float, counts: dict[str, dict[str, list[float]]]) -> None:
        """Take in what every worker that lives has counted since it began, by its identity.

        What they had counted before the first time is left out: an earlier desk has told it, and Prometheus would take
        it for new.
        """
        known = counts if self._last is None else self._last
        for identity, now in counts.items():
            last = known.get(identity, {})
            for name, total in self._totals.items():
                before, after = _padded(last.get(name, []), len(total)), _padded(now.get(name, []), len(total))
                rises = (max(0, new - old) for new, old in zip(after, before, strict=True))
                self._totals[name] = [old + rise for old, rise in zip(total, rises, strict=True)]
        self._last = counts
        self._history.note(at_s, [*self._totals[EVENT], *self._totals[MODEL]])

    def measured(self) -> Measured:
        """Return the totals."""
        tokens_in, tokens_out = self._totals[TOKENS]
        return Measured(tuple(self._totals[EVENT]), tuple(self._totals[MODEL]), tokens_in, tokens_out)

    def view(self) -> LatencyView:
        """Return the percentiles of the last minutes."""
        rise = self._history.rise(LATENCY_OVER_S)
        if rise is None:
            return LatencyView()
        length = LENGTHS[EVENT]
        return LatencyView(percentiles(rise.counts[1:length]), percentiles(rise.counts[length + 1 :]))


def percentiles(counts: Sequence[float]) -> Percentiles:
    """Estimate percentiles from counts by bucket, as if each bucket's durations were spread evenly over it."""
    total = int(sum(counts))
    return Percentiles(total, *(_quantile(counts, share) for share in (0.5, 0.95, 0.99))) if total else Percentiles()


def _quantile(counts: Sequence[float], share: float) -> float:
    rank, below = share * sum(counts), 0.0
    for place, up_to in enumerate(accumulate(counts)):
        if up_to >= rank and counts[place] and place < len(BOUNDS_S):
            low_s = BOUNDS_S[place - 1] if place else 0.0
            return round(low_s + (BOUNDS_S[place] - low_s) * (rank - below) / counts[place], 3)
        below = up_to
    return BOUNDS_S[-1]  # or longer


def _padded(counts: list[float], length: int) -> list[float]:
    return (counts + [0] * length)[:length]
