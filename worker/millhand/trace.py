"""The trace that an event belongs to, as its producer says (W3C Trace Context, `traceparent`)."""

import re
from collections.abc import Mapping

TRACEPARENT = b"traceparent"
_SHAPE = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def traceparent_of(fields: Mapping[bytes, bytes]) -> str | None:
    """Return an entry's traceparent; None where there is none, or one that is not of that shape: it is foreign text."""
    value = fields.get(TRACEPARENT)
    return value.decode() if value and _SHAPE.fullmatch(value) else None
