"""From the fields of a stream entry to an event, and from an event and its enrichment to the output's bytes."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from millhand.config import Enrich
from millhand.errors import Malformed
from millhand.trace import TRACEPARENT

DATA = b"data"
ENRICHMENT = "ai_enrichment"
EVENT_ID = b"event_id"
PASSED_ON = (EVENT_ID, TRACEPARENT)  # optional fields of the input that the output carries as they are
DECODER = msgspec.json.Decoder()


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
        payload = DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed("malformed", f"`data` is not JSON: {error}") from error
    if not isinstance(payload, dict):
        raise Malformed("malformed", f"`data` is not a JSON object but {type(payload).__name__}")
    return payload


def merge(event: Event, enrichment: Mapping[str, Any] | msgspec.Raw) -> bytes:
    """Return the original object with `ai_enrichment`, as it is or as JSON already, as its last member.

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
    texts = []
    for name, names_within in _ways(paths):
        if (found := payload.get(name)) is None:
            continue
        for inner in names_within:
            found = found.get(inner) if isinstance(found, dict) else None
        if isinstance(found, str) and (text := found.strip()):
            texts.append(text)
    return "\n".join(texts)


@cache
def _ways(paths: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Cut the paths once: they stand in the configuration."""
    parts = (path.split(".") for path in paths)
    return tuple((name, tuple(names_within)) for name, *names_within in parts)


def passed_on(fields: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return those of an entry's fields that the output carries as they are."""
    return {name: fields[name] for name in PASSED_ON if name in fields} if len(fields) > 1 else {}
