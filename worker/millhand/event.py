"""From the fields of a stream entry to an event, and from an event and its enrichment to the output's bytes."""

from collections.abc import Mapping
from typing import Any

import msgspec

from millhand.config import Enrich
from millhand.errors import Malformed
from millhand.trace import TRACEPARENT

DATA = b"data"
ENRICHMENT = "ai_enrichment"
EVENT_ID = b"event_id"
PASSED_ON = (EVENT_ID, TRACEPARENT)  # optional fields of the input that the output carries as they are


class Event(msgspec.Struct, frozen=True):
    """A decoded event: the bytes as they came, the same as an object, and the text the model is shown."""

    data: bytes
    payload: dict[str, Any]
    text: str


def decode(fields: Mapping[bytes, bytes], enrich: Enrich) -> Event:
    """Decode an entry's fields. Raises Malformed with the reason for the dead letter."""
    if not fields:
        raise Malformed("deleted", "the entry was deleted or trimmed from the input while it was pending")
    data = fields.get(DATA)
    if data is None:
        raise Malformed("malformed", f"no field `data`; the fields are {sorted(fields)[:8]!r}")
    payload = decode_payload(data, enrich)
    text = text_of(payload, enrich.text_fields)
    if not text:
        raise Malformed("no_text", f"none of these fields holds text: {', '.join(enrich.text_fields)}")
    return Event(data, payload, text)


def decode_payload(data: bytes, enrich: Enrich) -> dict[str, Any]:
    """Return the JSON object that `data` holds. Raises Malformed if it is something else, or too large."""
    if len(data) > enrich.event_bytes_max:
        raise Malformed("too_large", f"{len(data)} bytes, enrich.event_bytes_max is {enrich.event_bytes_max}")
    try:
        payload = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed("malformed", f"`data` is not JSON: {error}") from error
    if not isinstance(payload, dict):
        raise Malformed("malformed", f"`data` is not a JSON object but {type(payload).__name__}")
    return payload


def merge(event: Event, enrichment: Mapping[str, Any]) -> bytes:
    """Return the original object with `ai_enrichment` as its last member.

    The original's own bytes are kept (numbers as they were written, the order of members, duplicates); only an object
    that already has an `ai_enrichment` is written anew, so that the old one goes.
    """
    if ENRICHMENT in event.payload:
        return msgspec.json.encode({**event.payload, ENRICHMENT: enrichment})
    comma = b"" if not event.payload else b","
    return b'%b%b"%b":%b}' % (_head(event.data), comma, ENRICHMENT.encode(), msgspec.json.encode(enrichment))


def is_merged_from(merged: bytes, original: bytes) -> bool:
    """Whether these bytes are what `merge` makes of the original's, with whatever enrichment."""
    try:
        enrichment: Any = msgspec.json.decode(merged, type=dict[str, msgspec.Raw])[ENRICHMENT]
        payload = msgspec.json.decode(original, type=dict[str, Any])
        return merge(Event(original, payload, ""), enrichment) == merged
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        return False


def _head(data: bytes) -> bytes:
    """Return an object's bytes without its closing brace."""
    return data.rstrip()[:-1].rstrip()


def text_of(payload: dict[str, Any], paths: tuple[str, ...]) -> str:
    """Join what stands in the text fields; "ticket.body" looks into an object. "" where there is none."""
    found = (_at(payload, path) for path in paths)
    return "\n".join(text.strip() for text in found if isinstance(text, str) and text.strip())


def _at(payload: Any, path: str) -> Any:
    for name in path.split("."):
        payload = payload.get(name) if isinstance(payload, dict) else None
    return payload
