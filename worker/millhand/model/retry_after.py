"""The Retry-After header: seconds or an HTTP date, clamped to what a fleet can sensibly wait."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

RETRY_AFTER_MIN_S = 0.5
RETRY_AFTER_MAX_S = 600.0


def retry_after_s(value: str | None, date: str | None) -> float | None:
    """Return the wait a reply asks for in seconds, or None if it says nothing usable.

    `value` is the header as it came (RFC 9110, 10.2.3); a date in it is compared with the reply's own `Date`, so that
    the two machines' clocks need not agree.
    """
    value = (value or "").strip()
    if value.isascii() and value.isdigit():
        wait_s = float(value[:12])
    else:
        until, now = _moment(value), _moment(date or "") or datetime.now(UTC)
        if until is None:
            return None
        wait_s = (until - now).total_seconds()
        if wait_s < 0:
            return None
    return min(max(wait_s, RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S)


def _moment(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
