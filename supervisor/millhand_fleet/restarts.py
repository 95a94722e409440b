"""When a child that ended is started again: pure decisions."""

from typing import NamedTuple

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
DOUBLINGS_MAX = 16  # far past the limit, and far from what a float can hold
HEALTHY_AFTER_S = 60.0


class Restart(NamedTuple):
    """How often a slot's children have failed in a row, and how long to wait before the next."""

    failures: int
    delay_s: float


def after_exit(failures: int, lived_s: float, jitter: float) -> Restart:
    """Decide after a child has ended: at once the first time, then exponentially.

    `jitter` in [0, 1) spreads the upper half of the wait. A child that lived a healthy minute starts the count anew.
    """
    failures = 1 if lived_s >= HEALTHY_AFTER_S else failures + 1
    if failures == 1:
        return Restart(failures, 0.0)
    ceiling_s = min(BACKOFF_FIRST_S * 2.0 ** min(failures - 2, DOUBLINGS_MAX), BACKOFF_MAX_S)
    return Restart(failures, ceiling_s * (0.5 + jitter / 2))
