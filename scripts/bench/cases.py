"""The work that everybody is measured by."""

from typing import NamedTuple


class Case(NamedTuple):
    """A kind of work: whether a model is asked, and how that one is."""

    name: str
    what: str
    asks: bool = True
    latency_ms: float = 0.0
    slots: int = 64

    @property
    def ideal_per_s(self) -> float | None:
        """What the model can answer in a second; None where it answers at once, or nobody asks."""
        return self.slots / self.latency_ms * 1000 if self.latency_ms else None


W0 = Case("W0", "every answer is known", asks=False)
W1 = Case("W1", "the model answers at once")
W2 = Case("W2", "50 ms, 16 slots", latency_ms=50.0, slots=16)
W3 = Case("W3", "50 ms, 64 slots", latency_ms=50.0, slots=64)
CASES = (W0, W1, W2, W3)


class Cell(NamedTuple):
    """A case, and how many processes work at it.

    `load` is the share of the ideal that comes in, evenly; None is a backlog.
    """

    case: Case
    processes: int
    load: float | None = None

    @property
    def name(self) -> str:
        """Name it in tables and results."""
        paced = "" if self.load is None else f" at {self.load:.0%}"
        return f"{self.case.name} {self.processes}p{paced}"


CELLS = (
    Cell(W0, 1),
    Cell(W0, 2),
    Cell(W1, 1),
    Cell(W1, 2),
    Cell(W2, 2),
    Cell(W2, 2, load=0.8),
    Cell(W3, 1),
    Cell(W3, 2),
)
