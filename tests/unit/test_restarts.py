"""When a child is started again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millhand_fleet.restarts import BACKOFF_FIRST_S, BACKOFF_MAX_S, HEALTHY_AFTER_S, after_exit

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
    assert restart.delay_s == 0 or BACKOFF_FIRST_S / 2 <= restart.delay_s <= BACKOFF_MAX_S


@pytest.mark.parametrize("failures", [1024, 1025, 1026, 100_000])
def test_a_child_that_dies_for_days_on_end_is_still_started_again(failures: int) -> None:
    """At half a minute a death, the thousandth comes after seven hours."""
    assert after_exit(failures, 1.0, 0.5).delay_s == BACKOFF_MAX_S * 0.75


@QUIET
@given(st.integers(1, 60), JITTERS, JITTERS)
def test_jitter_spreads_the_restarts_of_those_that_died_together(failures: int, one: float, other: float) -> None:
    earlier, later = sorted((one, other))
    assert after_exit(failures, 1.0, earlier).delay_s <= after_exit(failures, 1.0, later).delay_s
    assert after_exit(failures, 1.0, 0.0).delay_s < after_exit(failures, 1.0, 0.9).delay_s
