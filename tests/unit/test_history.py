"""Rates and shares from counters, whatever the counters do."""

import pytest

from millhand_fleet.history import DRAIN_KNOWN_AFTER_S, SUCCESS_OVER_S, Counts, Flow, History, Rise, flow_of, past_of


def history(*samples: tuple[float, int, int, int], keep_s: float = 900.0) -> History:
    """Make one of samples: seconds, added, enriched, dead."""
    made = History(keep_s)
    for at_s, added, enriched, dead in samples:
        made.note(at_s, Counts(added, enriched, dead, 0))
    return made


def test_nothing_is_known_before_the_second_sample() -> None:
    """A desk that was just restarted makes nothing up from counters of days."""
    unknown = dict.fromkeys(SUCCESS_OVER_S)
    assert History(60).rise(10) is None
    assert history((5.0, 900, 800, 7)).rise(10) is None
    assert flow_of(history((5.0, 900, 800, 7)), unsettled=93) == Flow(0.0, 0.0, 0.0, None, unknown)


def test_a_rise_counts_back_from_the_last_sample() -> None:
    """A Redis that does not answer makes no rate fall: there are no samples."""
    made = history((0.0, 0, 0, 0), (100.0, 50, 40, 1), (105.0, 60, 48, 1), (110.0, 80, 58, 2))
    assert made.rise(10) == Rise(10.0, (30, 18, 1, 0))
    assert made.rise(5) == Rise(5.0, (20, 10, 1, 0))
    assert made.rise(900) == Rise(110.0, (80, 58, 2, 0))
    assert made.rise(4) is None


def test_a_counter_that_goes_back_begins_history_anew() -> None:
    """F32: after FLUSHALL there is no rate for a moment, and never one below 0."""
    made = history((0.0, 1000, 900, 50), (1.0, 1010, 910, 50), (2.0, 3, 0, 0))
    assert made.rise(10) is None
    made.note(3.0, Counts(8, 4, 0, 0))
    assert made.rise(10) == Rise(1.0, (5, 4, 0, 0))


def test_what_is_too_old_is_forgotten() -> None:
    made = history(*((float(at_s), at_s, 0, 0) for at_s in range(5000)))
    assert len(made._samples) <= 901
    assert made.rise(900) == Rise(900.0, (900, 0, 0, 0))
    assert made.rise(99_999) == Rise(900.0, (900, 0, 0, 0))


def test_each_window_has_its_own_success_rate() -> None:
    """Ten minutes ago everything failed; now everything succeeds."""
    made = history((0.0, 0, 0, 0), (600.0, 100, 0, 100), (850.0, 200, 50, 100), (890.0, 300, 150, 100))
    flow = flow_of(made, unsettled=50)
    assert flow.success_rate_over == {"1m": 1.0, "5m": 1.0, "15m": 0.6}


def test_a_window_in_which_nothing_was_settled_has_no_success_rate() -> None:
    made = history((0.0, 0, 0, 0), (600.0, 100, 99, 1), (660.0, 150, 99, 1))
    assert flow_of(made, unsettled=50).success_rate_over == {"1m": None, "5m": None, "15m": 0.99}


@pytest.mark.parametrize(
    ("unsettled", "added", "enriched", "dead", "drained_in_s"),
    [
        pytest.param(0, 500, 500, 0, 0.0, id="nothing waits"),
        pytest.param(100, 0, 50, 10, 100.0, id="one a second is settled"),
        pytest.param(100, 30, 60, 0, 200.0, id="half of that is made up for by what comes in"),
        pytest.param(100, 60, 60, 0, None, id="it stays as it is"),
        pytest.param(100, 90, 60, 0, None, id="it grows"),
        pytest.param(100, 0, 0, 0, None, id="nothing moves"),
    ],
)
def test_the_backlog_is_drained_at_the_rate_at_which_it_shrinks(
    unsettled: int, added: int, enriched: int, dead: int, drained_in_s: float | None
) -> None:
    made = history((0.0, 0, 0, 0), (60.0, added, enriched, dead))
    assert flow_of(made, unsettled).drained_in_s == drained_in_s


def test_no_estimate_is_made_from_a_few_seconds() -> None:
    made = history((0.0, 0, 0, 0), (DRAIN_KNOWN_AFTER_S - 1, 0, 50, 0))
    assert flow_of(made, unsettled=10).drained_in_s is None


def test_the_past_is_told_in_steps_and_ends_now() -> None:
    """What the web page's curve begins with: seconds ago, in a second, out a second."""
    made = history((0.0, 0, 0, 0), (2.0, 10, 0, 0), (6.0, 60, 30, 0), (11.0, 60, 55, 1), (13.0, 90, 60, 1))
    assert past_of(made) == [(7.0, 10.0, 5.0), (2.0, 0.0, 5.0)]
    assert past_of(history()) == []
    assert past_of(history((5.0, 1, 1, 1))) == []


def test_the_past_goes_back_five_minutes() -> None:
    made = history(*((float(second), second, second, 0) for second in range(900)))
    ages = [ago_s for ago_s, *_ in past_of(made)]
    assert ages == sorted(ages, reverse=True)
    assert 290 <= ages[0] <= 300
    assert len(ages) == 60
