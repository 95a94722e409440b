"""How long things took, over workers that come and go."""

import random

import pytest

from millhand.histogram import BOUNDS_S, Histogram
from millhand_fleet.latency import LatencyView, Measured, Measurements, Percentiles, percentiles

NOUGHTS = [0] * (len(BOUNDS_S) + 1)


def counted(*durations_s: float, tokens: tuple[int, int] = (0, 0)) -> dict[str, list[float]]:
    """Return what a worker sends whose events and calls took so long."""
    histogram = Histogram()
    for seconds in durations_s:
        histogram.observe(seconds)
    return {"event_s": histogram.packed(), "model_s": histogram.packed(), "tokens": list(tokens)}


def begun() -> Measurements:
    """Return those of a desk that began with the fleet."""
    measurements = Measurements()
    measurements.take(0, {})
    return measurements


def test_a_bucket_holds_what_is_up_to_its_bound() -> None:
    """As Prometheus means `le`."""
    histogram = Histogram()
    for seconds in (0.0, BOUNDS_S[0], 0.03, BOUNDS_S[1]):
        histogram.observe(seconds)
    assert histogram.packed() == [pytest.approx(0.105), 2, 2]


def test_what_was_longer_than_all_bounds_is_counted_too() -> None:
    histogram = Histogram()
    histogram.observe(1e6)
    assert histogram.packed() == [1e6, *[0] * len(BOUNDS_S), 1]


def test_a_worker_that_has_done_nothing_sends_next_to_nothing() -> None:
    assert counted() == {"event_s": [0.0], "model_s": [0.0], "tokens": [0, 0]}


def test_a_worker_that_is_replaced_takes_nothing_away() -> None:
    """What it counted stays, and its successor, which begins at nought, adds to it."""
    measurements = begun()
    measurements.take(0, {"w1:a": counted(1.0, 1.0, tokens=(10, 2)), "w2:a": counted(2.0)})
    measurements.take(1, {"w2:a": counted(2.0, 2.0)})
    measurements.take(2, {"w2:a": counted(2.0, 2.0), "w1:b": counted(1.0, tokens=(5, 1))})
    measured = measurements.measured()
    assert sum(measured.event[1:]) == 5
    assert measured.event[0] == pytest.approx(7.0)
    assert (measured.tokens_in, measured.tokens_out) == (15, 3)


def test_a_worker_that_says_the_same_again_adds_nothing() -> None:
    measurements = begun()
    for second in range(5):
        measurements.take(second, {"w1:a": counted(1.0)})
    assert sum(measurements.measured().model[1:]) == 1


def test_counters_never_fall_whatever_the_workers_do() -> None:
    """A counter that falls is read by Prometheus as a restart, and counted twice."""
    chance, measurements, before = random.Random(7), begun(), Measured()  # noqa: S311 - no secret
    for second in range(200):
        counts = {f"w{n}": counted(*(chance.random() for _ in range(chance.randrange(9)))) for n in range(4)}
        measurements.take(second, {name: each for name, each in counts.items() if chance.random() < 0.7})
        after = measurements.measured()
        assert all(new >= old for new, old in zip(after.event, before.event, strict=True))
        before = after


def test_percentiles_are_of_the_last_five_minutes() -> None:
    """An hour ago events took half a minute; now they take half a second."""
    measurements = Measurements()
    slow, both = [30.0] * 100, [*[30.0] * 100, *[0.4] * 10]
    measurements.take(0, {"w1:a": counted()})
    measurements.take(3000, {"w1:a": counted(*slow)})
    measurements.take(3600, {"w1:a": counted(*both)})
    assert measurements.view() == LatencyView()  # the last sample before is older than five minutes
    measurements.take(3601, {"w1:a": counted(*both, 0.4)})
    assert measurements.view().event == measurements.view().model
    assert measurements.view().event.count == 1
    assert 0.25 < (measurements.view().event.p99_s or 0) <= 0.5


def test_a_desk_that_was_restarted_begins_at_nought() -> None:
    """Prometheus sees that, and adds what comes; a past told twice would be a burst that never was."""
    measurements = Measurements()
    measurements.take(0, {"w1:a": counted(*[30.0] * 1000)})
    assert measurements.view() == LatencyView()
    assert measurements.measured() == Measured()
    measurements.take(1, {"w1:a": counted(*[30.0] * 1000, 0.4), "w2:a": counted(0.4)})
    assert measurements.view().event.count == sum(measurements.measured().event[1:]) == 2


def test_of_nothing_there_are_no_percentiles() -> None:
    assert percentiles(NOUGHTS) == Percentiles(0, None, None, None)


@pytest.mark.parametrize("seed", range(5))
def test_an_estimated_percentile_lies_in_the_bucket_of_the_true_one(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    durations = sorted(chance.lognormvariate(1, 1.5) for _ in range(1000))
    counts = list(NOUGHTS)
    for seconds in durations:
        counts[sum(seconds > bound for bound in BOUNDS_S)] += 1
    found = percentiles(counts)
    for share, estimate_s in ((0.5, found.p50_s), (0.95, found.p95_s), (0.99, found.p99_s)):
        true_s = durations[round(share * 1000) - 1]
        assert estimate_s is not None
        place = sum(true_s > bound for bound in BOUNDS_S)
        assert (BOUNDS_S[place - 1] if place else 0) <= estimate_s <= BOUNDS_S[place]


def test_what_is_longer_than_the_last_bound_is_said_to_be_that_long() -> None:
    counts = [*NOUGHTS[:-1], 3]
    assert percentiles(counts).p50_s == BOUNDS_S[-1]
