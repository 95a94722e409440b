"""Enriched events and dead letters as `tail` shows them: a line each, which no terminal obeys."""

import json
import re
from base64 import b64encode
from typing import Any, NamedTuple

import msgspec
from rich.text import Text

from millhand.event import DATA, ENRICHMENT, EVENT_ID, text_of
from millhand.tasks.task import META
from millhand_fleet.ctl.visible import visible
from millhand_fleet.ctl.wording import clock, plain
from millhand_fleet.following import Entry
from millhand_fleet.recent import moment

TEXT_CHARS_MAX = 200
VALUE_CHARS_MAX = 60
ID_FROM_COLUMNS = 70
NOT_ASCII = re.compile(r"[^\x20-\x7e]")


class Outputs(NamedTuple):
    """The names of the two streams, and where an event's text is."""

    enriched: str
    dead_letter: str
    text_fields: tuple[str, ...]


def line(entry: Entry, outputs: Outputs, columns: int) -> Text:
    """Return an entry in one line: when, its id, what the model said of it or why it was buried, and its text.

    A screen of few columns gets no id.
    """
    payload = _payload(entry.fields)
    if entry.stream == outputs.dead_letter:
        reason = plain(entry.fields.get(b"failure_reason", b"").decode(errors="replace"))
        detail = visible(entry.fields.get(b"failure_detail", b"")[:TEXT_CHARS_MAX])
        said = Text.assemble(("dead ", "red"), (reason, "bold red"), f" {detail}")
    else:
        said = Text("   ").join(_results(payload.get(ENRICHMENT)))
    shown = _cut(visible(text_of(payload, outputs.text_fields).encode(errors="replace")), TEXT_CHARS_MAX)
    head = clock(moment(entry.id)) + (f"  {entry.id}" if columns >= ID_FROM_COLUMNS else "")
    return Text.assemble((head, "dim"), "  ", said, ("  | " + shown if shown else "", "dim"))


def json_line(entry: Entry, outputs: Outputs) -> str:
    """Return an entry as a JSON object in ASCII and in one line; numbers of the event stay as they were written."""
    fields = entry.fields
    is_dead = entry.stream == outputs.dead_letter
    members: dict[str, Any] = {
        "stream": "dead_letter" if is_dead else "enriched", "id": entry.id, "at": moment(entry.id),
        "src": _text(fields.get(b"src", b"")),
    }  # fmt: skip
    named = {b"failure_reason": "reason", b"failure_detail": "detail"} if is_dead else {b"hash": "hash"}
    for name, member in (named | {EVENT_ID: "event_id", b"traceparent": "traceparent"}).items():
        if name in fields:
            members[member] = _text(fields[name])
    return f'{json.dumps(members)[:-1]}, "data": {_data(fields.get(DATA))}}}'


def _results(enrichment: Any) -> list[Text]:
    """Return what each task gave: its name, and the values of its result."""
    if not isinstance(enrichment, dict):
        return [Text("no readable enrichment", "yellow")]
    return [
        Text.assemble(plain(task), " ", (_values(result), "bold"))
        for task, result in enrichment.items()
        if task != META
    ]


def _values(result: Any) -> str:
    values = result.values() if isinstance(result, dict) else [result]
    return " ".join(
        _cut(plain(value if isinstance(value, str) else json.dumps(value)), VALUE_CHARS_MAX) for value in values
    )


def _payload(fields: dict[bytes, bytes]) -> dict[str, Any]:
    try:
        payload = msgspec.json.decode(fields[DATA])
    except (KeyError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return payload if isinstance(payload, dict) else {}


def _data(data: bytes | None) -> str:
    """Return an event's own JSON in one line of ASCII; what is none, as a string or {"base64": ...}."""
    if data is None:
        return "null"
    try:
        text = data.decode()
        msgspec.json.decode(data, type=msgspec.Raw)
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return json.dumps(_text(data))
    return NOT_ASCII.sub(_escaped, text)


def _escaped(sign: "re.Match[str]") -> str:
    """Return a sign as JSON escapes it in a string; between strings there is no other such sign than white space."""
    return " " if sign[0] in "\t\n\r" else json.dumps(sign[0])[1:-1].replace("\x7f", "\\u007f")


def _text(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(value).decode()}


def _cut(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"
