"""When a child that ended is started again, and when one that lives is worn out: pure decisions."""

from typing import NamedTuple

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
DOUBLINGS_MAX = 16  # far past the limit, and far from what a float can hold
HEALTHY_AFTER_S = 60.0
WEAR_AFTER_S = 60.0  # a limit that a worker reaches sooner is too low: replacing it again and again would be all we did
WEAR_JITTER = 0.2  # of a limit, so that workers that were started together are not worn out together


class Restart(NamedTuple):
    """How often a slot's children have failed in a row, and how long to wait before the next."""

    failures: int
    delay_s: float


class Wear(NamedTuple):
    """What a worker may have done, and how large it may be, before it is replaced. 0 = no limit."""

    events: int = 0
    mib: int = 0


def after_exit(failures: int, lived_s: float, jitter: float) -> Restart:
    """Decide after a child has ended: at once the first time, then within a time that doubles.

    `jitter` in [0, 1) says where in that time: all of it is used ("full jitter"), so that those which died together do
    not come back together. A child that lived a healthy minute starts the count anew.
    """
    failures = 1 if lived_s >= HEALTHY_AFTER_S else failures + 1
    if failures == 1:
        return Restart(failures, 0.0)
    ceiling_s = min(BACKOFF_FIRST_S * 2.0 ** min(failures - 2, DOUBLINGS_MAX), BACKOFF_MAX_S)
    return Restart(failures, ceiling_s * jitter)


def worn_by(limits: Wear, *, events: int, rss_mib: float, lived_s: float, jitter: float) -> str | None:
    """Return what a worker is worn out by, None if it may go on.

    `jitter` in [0, 1) is one incarnation's own and takes up to a fifth off each limit.
    """
    if lived_s < WEAR_AFTER_S:
        return None
    share = 1 - WEAR_JITTER * jitter
    if limits.mib and rss_mib >= limits.mib * share:
        return f"{rss_mib:.0f} MiB, of {limits.mib} at most"
    if limits.events and events >= limits.events * share:
        return f"{events} events, of {limits.events} at most"
    return None
