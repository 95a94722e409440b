"""How long events and model calls took, over the whole fleet: from what each worker counts. Pure."""

import msgspec


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
