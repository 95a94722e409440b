"""The judge of promise 5 is itself judged, by brute force."""

from collections.abc import Iterable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.fake.arrivals import Limit, Peak, arrivals_per_bucket, open_peak

TICK_S = 0.125  # sums of it are exact


class Visit(NamedTuple):
    arrival_s: float
    end_s: float | None = None


def arrived(*times_s: float) -> list[Visit]:
    return [Visit(time_s) for time_s in times_s]


ticks = st.integers(0, 80).map(lambda tick: tick * TICK_S)
visits = st.builds(
    lambda arrival_s, open_s: Visit(arrival_s, None if open_s is None else arrival_s + open_s),
    ticks,
    st.none() | st.integers(1, 16).map(lambda tick: tick * TICK_S),
)


def windows(calls: Iterable[Visit]) -> Iterable[tuple[float, float, int]]:
    """Return all windows from an arrival to an arrival, with what arrived in them."""
    times_s = [call.arrival_s for call in calls]
    pairs = ((begin_s, end_s) for begin_s in times_s for end_s in times_s if begin_s <= end_s)
    return ((begin_s, end_s, sum(begin_s <= at_s <= end_s for at_s in times_s)) for begin_s, end_s in pairs)


@given(st.lists(visits, min_size=1, max_size=30), st.sampled_from([0.5, 1.0, 2.0, 8.0]), st.integers(1, 6))
def test_worst_excess_is_that_of_the_worst_of_all_windows(calls: list[Visit], rate_per_s: float, burst: int) -> None:
    worst = Limit(rate_per_s, burst).worst_excess(calls)
    brute = {(begin_s, end_s): n - rate_per_s * (end_s - begin_s) - burst for begin_s, end_s, n in windows(calls)}
    assert worst.calls == max(brute.values()) == brute[worst.begin_s, worst.end_s]


@given(st.lists(visits, max_size=30))
def test_peak_is_the_most_that_are_open_at_any_arrival(calls: list[Visit]) -> None:
    def open_at(at_s: float) -> int:
        return sum(call.arrival_s <= at_s and (call.end_s is None or call.end_s > at_s) for call in calls)

    assert open_peak(calls).calls == max((open_at(call.arrival_s) for call in calls), default=0)


def test_burst_at_once_and_the_rate_from_then_on_are_allowed_to_the_last_call() -> None:
    within = arrived(0, 0, 0, 0.5, 1.0, 1.5)
    assert Limit(2.0, 3).worst_excess(within).calls == 0
    assert Limit(2.0, 3).worst_excess([*within, Visit(1.75)]).calls == 0.5


def test_worst_window_is_told_by_its_first_and_last_arrival() -> None:
    calls = arrived(100.0, 110.0, 110.25, 110.5, 120.0)
    assert Limit(1.0, 1).worst_excess(calls) == (1.5, 110.0, 110.5)


def test_where_nothing_arrived_the_whole_burst_is_left() -> None:
    assert Limit(1.0, 4).worst_excess([]).calls == -4


def test_share_used_counts_what_arrived_in_the_stretch_against_what_might_have() -> None:
    calls = arrived(0.0, 1.0, 1.5, 2.0, 9.0)
    assert Limit(2.0, 0).share_used(calls, 1.0, 2.0) == 1.0
    assert Limit(2.0, 2).share_used(calls, 0.0, 4.0) == pytest.approx(0.4)


def test_call_that_ends_when_another_arrives_makes_room_for_it() -> None:
    assert open_peak([Visit(0.0, 1.0), Visit(1.0, 2.0)]) == Peak(1, 0.0)
    assert open_peak([Visit(0.0, 1.25), Visit(1.0, None), Visit(5.0, 6.0), Visit(5.0, 5.0)]) == Peak(3, 5.0)


def test_arrivals_are_counted_in_quarters_of_a_second_with_the_empty_ones() -> None:
    calls = arrived(9.9, 10.0, 10.24, 10.25, 11.0, 11.1, 12.0)
    assert arrivals_per_bucket(calls, 10.0, 11.1) == [2, 1, 0, 0, 1]
    assert arrivals_per_bucket(calls, 10.0, 10.0) == []
