"""When a child is started again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millhand_fleet.restarts import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    HEALTHY_AFTER_S,
    WEAR_AFTER_S,
    Wear,
    after_exit,
    worn_by,
)

QUIET = settings(deadline=None, database=None, max_examples=50)
JITTERS = st.floats(0, 1, exclude_max=True)


def test_the_first_death_is_followed_by_a_start_at_once() -> None:
    assert after_exit(0, 1.0, 0.9) == (1, 0.0)


def test_further_deaths_wait_twice_as_long_each_up_to_a_limit() -> None:
    delays = [after_exit(failures, 1.0, 1.0).delay_s for failures in range(1, 10)]
    assert delays == [0.5, 1, 2, 4, 8, 16, BACKOFF_MAX_S, BACKOFF_MAX_S, BACKOFF_MAX_S]


@pytest.mark.parametrize("failures", [0, 1, 7])
def test_a_healthy_life_starts_the_count_anew(failures: int) -> None:
    assert after_exit(failures, HEALTHY_AFTER_S, 0.5) == (1, 0.0)


def test_a_life_just_short_of_healthy_does_not() -> None:
    assert after_exit(4, HEALTHY_AFTER_S - 0.001, 0.5).failures == 5


@QUIET
@given(st.integers(0, 1000), st.floats(0, HEALTHY_AFTER_S, exclude_max=True), JITTERS)
def test_a_wait_is_within_its_bounds(failures: int, lived_s: float, jitter: float) -> None:
    restart = after_exit(failures, lived_s, jitter)
    assert restart.failures == failures + 1
    assert 0 <= restart.delay_s <= BACKOFF_MAX_S


@pytest.mark.parametrize("failures", [1024, 1025, 1026, 100_000])
def test_a_child_that_dies_for_days_on_end_is_still_started_again(failures: int) -> None:
    """At half a minute a death, the thousandth comes after seven hours."""
    assert after_exit(failures, 1.0, 0.5).delay_s == BACKOFF_MAX_S / 2


@QUIET
@given(st.integers(1, 60), JITTERS, JITTERS)
def test_jitter_spreads_the_restarts_of_those_that_died_together(failures: int, one: float, other: float) -> None:
    earlier, later = sorted((one, other))
    assert after_exit(failures, 1.0, earlier).delay_s <= after_exit(failures, 1.0, later).delay_s
    assert after_exit(failures, 1.0, 0.0).delay_s < after_exit(failures, 1.0, 0.9).delay_s


def test_jitter_uses_the_whole_wait() -> None:
    """Full jitter: those that died together come back spread over all of it, not over its upper half."""
    assert after_exit(3, 1.0, 0.0).delay_s == 0
    assert after_exit(3, 1.0, 0.25).delay_s == BACKOFF_FIRST_S * 4 / 4
    assert after_exit(3, 1.0, 1.0).delay_s == BACKOFF_FIRST_S * 4


# -- wear --------------------------------------------------------------------------------------------------------------


def worn(limits: Wear, events: int = 0, rss_mib: float = 0.0, lived_s: float = 1e6, jitter: float = 0.0) -> str | None:
    return worn_by(limits, events=events, rss_mib=rss_mib, lived_s=lived_s, jitter=jitter)


def test_without_limits_nobody_is_worn_out() -> None:
    assert worn(Wear(), events=10**9, rss_mib=10**6) is None


@pytest.mark.parametrize(("events", "expected"), [(999, None), (1000, "1000 events, of 1000 at most")])
def test_a_worker_is_worn_out_by_events(events: int, expected: str | None) -> None:
    assert worn(Wear(events=1000), events=events) == expected


@pytest.mark.parametrize(("rss_mib", "expected"), [(511.9, None), (512.4, "512 MiB, of 512 at most")])
def test_a_worker_is_worn_out_by_memory(rss_mib: float, expected: str | None) -> None:
    """F18."""
    assert worn(Wear(mib=512), rss_mib=rss_mib) == expected


def test_a_limit_that_is_reached_at_once_is_not_kept_to_at_once() -> None:
    """Set below what a worker needs anyway, it would have the fleet do nothing but replace its workers."""
    assert worn(Wear(mib=10), rss_mib=60, lived_s=WEAR_AFTER_S - 0.1) is None
    assert worn(Wear(mib=10), rss_mib=60, lived_s=WEAR_AFTER_S)


@QUIET
@given(st.integers(1, 10**6), JITTERS)
def test_jitter_takes_at_most_a_fifth_off_a_limit(limit: int, jitter: float) -> None:
    assert worn(Wear(events=limit), events=limit, jitter=jitter)
    assert worn(Wear(events=limit), events=int(limit * 0.8) - 1, jitter=jitter) is None
