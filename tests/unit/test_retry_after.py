"""How long a reply asks to be left alone."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millhand.model.retry_after import RETRY_AFTER_MAX_S, RETRY_AFTER_MIN_S, retry_after_s

QUIET = settings(deadline=None, database=None, max_examples=50)
DATE = "Sun, 06 Nov 1994 08:49:07 GMT"


@pytest.mark.parametrize(("value", "wait_s"), [("1", 1.0), ("30", 30.0), (" 30 ", 30.0), ("007", 7.0), ("600", 600.0)])
def test_seconds_are_waited(value: str, wait_s: float) -> None:
    assert retry_after_s(value, None) == wait_s


@pytest.mark.parametrize("value", ["601", "86400", "9" * 12, "9" * 5000])
def test_a_huge_wait_is_cut_to_the_longest_one(value: str) -> None:
    assert retry_after_s(value, None) == RETRY_AFTER_MAX_S


def test_no_wait_at_all_becomes_the_shortest_one() -> None:
    assert retry_after_s("0", None) == RETRY_AFTER_MIN_S


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(None, id="no header"),
        pytest.param("", id="empty"),
        pytest.param("  ", id="blank"),
        pytest.param("-5", id="negative"),
        pytest.param("+5", id="signed"),
        pytest.param("1.5", id="a fraction"),
        pytest.param("1e3", id="an exponent"),
        pytest.param("0x10", id="hexadecimal"),
        pytest.param("1_000", id="underscored"),
        pytest.param("5, 6", id="two values"),
        pytest.param("5 s", id="a unit"),
        pytest.param("soon", id="garbage"),
        pytest.param("\uff11\uff10", id="fullwidth digits"),
        pytest.param("\u0663\u0660", id="Arabic digits"),
        pytest.param("\u00b2", id="a superscript"),
        pytest.param("Sun, 99 Nov 1994 08:49:37 GMT", id="no such day"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 +9999", id="no such zone"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 PST", id="another zone"),
        pytest.param("Sun, 06 Nov 1994 08:49:37", id="no zone"),
        pytest.param("Sun, 06 Nov 94 08:49:37 GMT", id="two digits where four belong"),
        pytest.param("Sun, 06 Nov 1994 24:49:37 GMT", id="no such hour"),
        pytest.param("Sun, 06 Nov 1994 08:49:61 GMT", id="no such second"),
        pytest.param("Sun, 06 Now 1994 08:49:37 GMT", id="no such month"),
        pytest.param("Fri, 31 Dec 0000 23:59:59 GMT", id="no such year"),
        pytest.param("Sun, \uff10\uff16 Nov 1994 08:49:37 GMT", id="a date in fullwidth digits"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMT, 30", id="a date and a number"),
        pytest.param("\x00", id="NUL"),
    ],
)
def test_what_is_neither_seconds_nor_a_date_says_nothing(value: str | None) -> None:
    assert retry_after_s(value, DATE) is None


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMT", id="IMF-fixdate"),
        pytest.param("Sunday, 06-Nov-94 08:49:37 GMT", id="RFC 850"),
        pytest.param("Sun Nov  6 08:49:37 1994", id="asctime"),
    ],
)
def test_a_date_is_compared_with_the_replys_own(value: str) -> None:
    assert retry_after_s(value, DATE) == 30.0


@pytest.mark.parametrize(
    ("value", "date", "wait_s"),
    [
        pytest.param("Thursday, 01-Jan-26 00:00:30 GMT", "Thu, 01 Jan 2026 00:00:00 GMT", 30.0, id="this year"),
        pytest.param(
            "Friday, 01-Jan-00 00:00:10 GMT", "Thu, 31 Dec 2099 23:59:50 GMT", 20.0, id="a turn of the century"
        ),
        pytest.param("Friday, 01-Jan-76 00:00:00 GMT", "Thu, 01 Jan 2026 00:00:00 GMT", 600.0, id="fifty years ahead"),
        pytest.param("Saturday, 01-Jan-77 00:00:00 GMT", "Thu, 01 Jan 2026 00:00:00 GMT", None, id="49 years ago"),
        pytest.param("Friday, 31-Dec-99 23:59:59 GMT", "Thu, 01 Jan 2026 00:00:00 GMT", None, id="27 years ago"),
    ],
)
def test_a_year_in_two_digits_lies_at_most_fifty_years_ahead(value: str, date: str, wait_s: float | None) -> None:
    """RFC 9110, 5.6.7."""
    assert retry_after_s(value, date) == wait_s


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [("Sat, 31 Dec 2016 23:59:60 GMT", 60.0), ("Fri, 31 Dec 9999 23:59:60 GMT", None)],
)
def test_a_leap_second_is_a_moment_too(value: str, wait_s: float | None) -> None:
    assert retry_after_s(value, "Sat, 31 Dec 2016 23:59:00 GMT") == wait_s


def test_a_day_of_one_digit_is_padded_as_the_old_format_wants_it() -> None:
    assert retry_after_s("Sun Nov 06 08:49:37 1994", DATE) == retry_after_s("Sun Nov  6 08:49:37 1994", DATE) == 30.0


def test_a_reply_may_spell_its_own_date_in_another_way() -> None:
    assert retry_after_s("Sun, 06 Nov 1994 08:49:37 GMT", "Sun Nov  6 08:49:07 1994") == 30.0


def test_the_present_moment_is_the_shortest_wait() -> None:
    assert retry_after_s(DATE, DATE) == RETRY_AFTER_MIN_S


def test_a_date_far_ahead_is_cut_to_the_longest_wait() -> None:
    assert retry_after_s("Fri, 31 Dec 9999 23:59:59 GMT", DATE) == RETRY_AFTER_MAX_S


def test_a_past_date_says_nothing() -> None:
    assert retry_after_s("Sun, 06 Nov 1994 08:49:06 GMT", DATE) is None


@pytest.mark.parametrize("date", [None, "", "garbage"])
def test_without_a_date_of_the_replys_own_this_machines_clock_must_do(date: str | None) -> None:
    wait_s = retry_after_s(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True), date)
    assert wait_s is not None
    assert 50 < wait_s <= 60


HEADERS = (
    st.text()
    | st.text('0123456789:,-+ /.GMTSunNov()"\\\n', max_size=40)
    | st.datetimes().map(lambda at: format_datetime(at.replace(tzinfo=UTC), usegmt=True))
)


@QUIET
@given(HEADERS, HEADERS | st.none())
def test_whatever_a_reply_says_the_wait_is_within_its_bounds(value: str, date: str | None) -> None:
    wait_s = retry_after_s(value, date)
    assert wait_s is None or RETRY_AFTER_MIN_S <= wait_s <= RETRY_AFTER_MAX_S
