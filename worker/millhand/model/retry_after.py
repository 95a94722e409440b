"""The Retry-After header: seconds or an HTTP date, clamped to what a fleet can sensibly wait."""

import re
from datetime import UTC, datetime, timedelta

RETRY_AFTER_MIN_S = 0.5
RETRY_AFTER_MAX_S = 600.0
YEARS_AHEAD_MAX = 50  # of a year in two digits, beyond which it lies in the past
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_CLOCK = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DATES = tuple(
    re.compile(pattern.replace("CLOCK", _CLOCK))
    for pattern in (
        r"[A-Z][a-z]{2}, (?P<day>[0-9]{2}) (?P<month>[A-Z][a-z]{2}) (?P<year>[0-9]{4}) CLOCK GMT",  # IMF-fixdate
        r"[A-Z][a-z]{5,8}, (?P<day>[0-9]{2})-(?P<month>[A-Z][a-z]{2})-(?P<year>[0-9]{2}) CLOCK GMT",  # RFC 850
        r"[A-Z][a-z]{2} (?P<month>[A-Z][a-z]{2}) (?P<day>[ 0-9][0-9]) CLOCK (?P<year>[0-9]{4})",  # asctime
    )
)


def retry_after_s(value: str | None, date: str | None) -> float | None:
    """Return the wait a reply asks for in seconds, or None if it says nothing usable.

    `value` is the header as it came (RFC 9110, 10.2.3); a date in it is compared with the reply's own `Date`, so that
    the two machines' clocks need not agree.
    """
    value = (value or "").strip()
    if value.isascii() and value.isdigit():
        wait_s = float(value[:12])
    else:
        now = datetime.now(UTC)
        now = _moment(date or "", now) or now
        until = _moment(value, now)
        if until is None:
            return None
        wait_s = (until - now).total_seconds()
        if wait_s < 0:
            return None
    return min(max(wait_s, RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S)


def _moment(text: str, now: datetime) -> datetime | None:
    """Return the moment that one of the three HTTP dates means (RFC 9110, 5.6.7)."""
    found = next((match for pattern in _DATES if (match := pattern.fullmatch(text.strip()))), None)
    if found is None or found["month"] not in MONTHS:
        return None
    year = int(found["year"])
    if len(found["year"]) == 2:  # noqa: PLR2004 - digits
        latest = now.year + YEARS_AHEAD_MAX
        year = latest - (latest - year) % 100
    day, clock = int(found["day"]), (int(found["hour"]), int(found["minute"]), int(found["second"]))
    leap_s = 1 if clock[2] == 60 else 0  # noqa: PLR2004 - the second that a minute has now and then
    try:
        moment = datetime(
            year, MONTHS.index(found["month"]) + 1, day, clock[0], clock[1], clock[2] - leap_s, tzinfo=UTC
        )
        return moment + timedelta(seconds=leap_s)
    except (ValueError, OverflowError):
        return None
