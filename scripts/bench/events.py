"""The events that every contestant is given: the same bytes for the same number. Only the standard library is needed.

Each is a JSON object of some 300 bytes. Texts repeat after `TEXTS`, numbers never do.
"""

import json
import time
from collections.abc import Iterator

TEXTS = 100
DATA = "data"  # the field of a stream's entry that holds the object
ENRICHMENT = "ai_enrichment"  # the member that is added to it
PADDING = " The kettle boils quickly but its lid opens at every second pour, and the handle gets too hot."
PADDINGS = 2


def text_of(number: int) -> str:
    """Return an event's text."""
    return f"Review {number % TEXTS}.{PADDING * PADDINGS}"


def event(number: int) -> bytes:
    """Return an event's bytes. It tells when it was made: now, in microseconds, of as many digits for long."""
    sent_us = time.time_ns() // 1000
    payload = {"id": number, "sent_us": sent_us, "source": "shop", "customer": number % 997, "text": text_of(number)}
    return json.dumps(payload).encode()


def events(first: int, count: int) -> Iterator[bytes]:
    """Yield so many events, numbered from `first` on."""
    return map(event, range(first, first + count))


def paced(first: int, count: int, per_s: float) -> Iterator[bytes]:
    """Yield events evenly, so many a second; whoever takes them late gets the next ones at once."""
    began_s = time.monotonic()
    for position in range(count):
        wait_s = began_s + position / per_s - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        yield event(first + position)
