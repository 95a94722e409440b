"""What `worker-ctl tail` makes of entries: a line a person can read, and one that a script can."""

import json
from typing import Any

import pytest

from millhand_fleet.ctl.records import Outputs, json_line, line
from millhand_fleet.following import SEQUENCE_MAX, Entry, before

OUTPUTS = Outputs("out", "dead", ("title", "ticket.body"))
META = b'"meta":{"model":"m","attempts":1}'
DATA = (
    b'{"n":1.50, "big":12345678901234567890,\n "title":"K\xc3\xa4se \\u001b[2J", "ticket":{"body":"two\\nlines"},'
    b'"ai_enrichment":{"sentiment":{"label":"mixed","confidence":85},"gist":{"words":"cheese"},' + META + b"}}"
)


def entry(data: bytes | None = DATA, stream: str = "out", **fields: bytes) -> Entry:
    held = {b"src": b"1763892380007-3", b"hash": b"ab", **{name.encode(): value for name, value in fields.items()}}
    return Entry(stream, "1763892381190-0", held if data is None else held | {b"data": data})


def test_a_line_says_when_what_each_task_said_and_the_text_and_nothing_that_a_terminal_obeys() -> None:
    shown = line(entry(), OUTPUTS, 120).plain
    assert shown == (
        "10:06:21Z  1763892381190-0  sentiment mixed 85   gist cheese  | Käse \\x1b[2J\\ntwo\\nlines"
    )  # fmt: skip
    assert "1763892381190-0" not in line(entry(), OUTPUTS, 60).plain


def test_a_dead_letter_says_why() -> None:
    shown = line(
        entry(b"no json \x1b[2J", "dead", failure_reason=b"malformed", failure_detail=b"not \x9b JSON"), OUTPUTS, 120
    )
    assert shown.plain == "10:06:21Z  1763892381190-0  dead malformed not \\x9b JSON"


def test_a_long_result_and_a_long_text_are_cut() -> None:
    long = b"x" * 5000
    shown = line(entry(b'{"title":"%b","ai_enrichment":{"gist":{"words":"%b"}}}' % (long, long)), OUTPUTS, 1000).plain
    assert len(shown) < 320


def test_json_keeps_the_events_own_numbers_in_one_line_of_ascii() -> None:
    written = json_line(entry(event_id=b"k1", traceparent=b"00-a"), OUTPUTS)
    assert written.isascii()
    assert written.isprintable()
    assert '"n":1.50, "big":12345678901234567890,  "title":"K\\u00e4se \\u001b[2J"' in written
    shown = json.loads(written)
    assert shown["data"] == json.loads(DATA)
    assert {name: shown[name] for name in ("stream", "id", "src", "hash", "event_id", "traceparent")} == {
        "stream": "enriched", "id": "1763892381190-0", "src": "1763892380007-3", "hash": "ab", "event_id": "k1",
        "traceparent": "00-a",
    }  # fmt: skip
    assert shown["at"] == "2025-11-23T10:06:21.190Z"


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (None, None),
        (b"no json", "no json"),
        (b"\xff", {"base64": "/w=="}),
        (b'{"a":"\x7f\xf0\x9f\x98\x80"}', {"a": "\x7f\U0001f600"}),
        (b'{"a":"\xff"}', {"base64": "eyJhIjoi/yJ9"}),
        (b"[" * 5000, "[" * 5000),
    ],
)
def test_whatever_stands_in_an_entry_is_told_in_json_and_in_a_line(data: bytes | None, shown: Any) -> None:
    """Whoever may write to the stream may write anything."""
    written = json_line(entry(data, "dead", failure_reason=b"malformed"), OUTPUTS)
    assert written.isascii()
    assert written.isprintable()
    assert json.loads(written)["data"] == shown
    assert line(entry(data), OUTPUTS, 120).plain.isprintable()


def test_following_begins_behind_the_place_before_an_entry() -> None:
    assert before("5-3") == "5-2"
    assert before("5-0") == f"4-{SEQUENCE_MAX}"
    assert before("0-0") == "0-0"
