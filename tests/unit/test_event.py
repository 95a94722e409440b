"""What an event is, what is none, and how an enrichment is added to it."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from millhand.config import Enrich
from millhand.errors import Malformed
from millhand.event import ENRICHMENT, Event, decode, decode_payload, is_merged_from, merge, passed_on
from millhand.event import text_of as text_in

QUIET = settings(deadline=None, database=None, max_examples=25)
ENRICH = Enrich(event_bytes_max=8 << 20)

BLANKS = st.text(" \t\r\n", max_size=4)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(), inside, max_size=4),
    max_leaves=12,
)
NAMES = st.text() | st.sampled_from([ENRICHMENT, "text", "ai_enrichment ", "AI_ENRICHMENT"])
OBJECTS = st.dictionaries(NAMES, JSON, max_size=6)


def text_of(data: str, **enrich: Any) -> str:
    return decode({b"data": data.encode()}, Enrich(**enrich)).text


def reason_of(fields: dict[bytes, bytes], enrich: Enrich = ENRICH) -> str:
    with pytest.raises(Malformed) as caught:
        decode(fields, enrich)
    return caught.value.reason


def event_of(data: bytes) -> Event:
    return Event(data, decode_payload(data, ENRICH), "")


# -- good events -------------------------------------------------------------------------------------------------------


def test_an_event_keeps_its_bytes_as_they_came() -> None:
    data = b' {"text": "Hello",\n"n": 1.10 } \n'
    event = decode({b"data": data, b"event_id": b"7"}, ENRICH)
    assert (event.data, event.payload, event.text) == (data, {"text": "Hello", "n": 1.1}, "Hello")


def test_texts_are_joined_in_the_order_of_the_configuration() -> None:
    assert text_of('{"b": "second", "a": "first", "c": "third"}', text_fields=("a", "b", "c")) == "first\nsecond\nthird"


def test_blank_texts_leave_no_empty_line_and_edges_are_stripped() -> None:
    assert text_of('{"a": " one\\n", "b": " \\t", "c": "", "d": "two"}', text_fields=("a", "b", "c", "d")) == "one\ntwo"


def test_a_dotted_name_looks_into_an_object() -> None:
    assert text_of('{"ticket": {"body": {"plain": "deep"}}}', text_fields=("ticket.body.plain",)) == "deep"


@pytest.mark.parametrize("data", ['{"ticket": "flat"}', '{"ticket": ["body"]}', '{"ticket": null}', "{}"])
def test_a_dotted_name_that_leads_nowhere_finds_no_text(data: str) -> None:
    assert reason_of({b"data": data.encode()}, Enrich(text_fields=("ticket.body",))) == "no_text"


def test_what_stands_in_no_text_field_never_reaches_the_text() -> None:
    """A labelled event would give the model the answer to its own question."""
    data = '{"text": "Hello", "label": "spam", "expected": {"sentiment": "mixed"}, "ai_enrichment": {"text": "old"}}'
    assert text_of(data) == "Hello"


@QUIET
@given(others=st.dictionaries(st.text().map("label_".__add__), JSON, max_size=5))
def test_no_other_member_changes_the_text(others: dict[str, Any]) -> None:
    assert text_of(json.dumps({**others, "text": "Hello"})) == "Hello"


PATHS = st.lists(st.sampled_from(["a", "b", "a.b", "a.b.a", "b.a", "", "a.", ".a"]), max_size=6).map(tuple)
NESTED: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | st.text(" \na", max_size=3),
    lambda inside: st.lists(inside, max_size=2) | st.dictionaries(st.sampled_from(["a", "b", ""]), inside, max_size=3),
)


@QUIET
@given(st.dictionaries(st.sampled_from(["a", "b", ""]), NESTED), PATHS)
def test_the_text_is_what_each_name_leads_to_step_by_step(payload: dict[str, Any], paths: tuple[str, ...]) -> None:
    texts = []
    for path in paths:
        found: Any = payload
        for name in path.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        texts.append(found.strip() if isinstance(found, str) else "")
    assert text_in(payload, paths) == "\n".join(text for text in texts if text)


def test_a_hundred_digit_number_is_kept() -> None:
    data = b'{"text": "a", "n": ' + b"9" * 100 + b"}"
    assert decode({b"data": data}, ENRICH).payload["n"] == 10**100 - 1


def test_an_escaped_nul_is_text_like_any_other() -> None:
    assert text_of('{"text": "a\\u0000b"}') == "a\x00b"


def test_a_surrogate_pair_is_one_character() -> None:
    assert text_of('{"text": "\\ud83d\\ude00"}') == "\N{GRINNING FACE}"


def test_an_event_may_be_exactly_as_large_as_allowed() -> None:
    data = b'{"text": "' + b"a" * 100 + b'"}'
    assert decode({b"data": data}, Enrich(event_bytes_max=len(data))).text == "a" * 100


# -- what is no event --------------------------------------------------------------------------------------------------


def test_an_entry_without_fields_was_deleted() -> None:
    assert reason_of({}) == "deleted"


def test_an_entry_without_data_is_malformed_and_says_what_it_has() -> None:
    with pytest.raises(Malformed, match=r"no field `data`.*b'payload'") as caught:
        decode({b"payload": b"{}"}, ENRICH)
    assert caught.value.reason == "malformed"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b" ", id="blank"),
        pytest.param(b"hello", id="no JSON"),
        pytest.param(b'{"text": "a"', id="cut off"),
        pytest.param(b'{"text": "a"} x', id="trailing garbage"),
        pytest.param(b'{"text": "a"}{"text": "b"}', id="two objects"),
        pytest.param(b"{'text': 'a'}", id="single quotes"),
        pytest.param(b'{"text": "\xe9t\xe9"}', id="Latin-1"),
        pytest.param(b'{"text": "\xed\xa0\x80"}', id="surrogate in UTF-8"),
        pytest.param(b'\xef\xbb\xbf{"text": "a"}', id="byte order mark"),
        pytest.param('{"text": "a"}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'{"text": "a\x00b"}', id="NUL"),
        pytest.param(b'\x00{"text": "a"}', id="NUL before"),
        pytest.param(b'{"text": "a"}\x00', id="NUL after"),
        pytest.param(b'{"text": "a", "n": NaN}', id="NaN"),
        pytest.param(b'{"text": "a", "n": 1e400}', id="1e400"),
        pytest.param(b'{"text": "a", "n": ' + b"9" * 5000 + b"}", id="5000 digits"),
        pytest.param(b'{"text": "\\ud800"}', id="lone high surrogate at the end"),
        pytest.param(b'{"text": "\\ud800 and more text"}', id="lone high surrogate"),
        pytest.param(b'{"text": "\\udc00 and more text"}', id="lone low surrogate"),
        pytest.param(b'{"text": "\\ud800\\ud800 and more text"}', id="two high surrogates"),
        pytest.param(b"[" * 100_000, id="100,000 deep, open"),
        pytest.param(b'{"text": "a", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="100,000 deep"),
        pytest.param(b'{"text": "a", "n": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", id="a million deep"),
        pytest.param(b'{"n":' * 1_000_000, id="a million objects deep"),
    ],
)
def test_what_is_not_json_is_malformed(data: bytes) -> None:
    assert reason_of({b"data": data}) == "malformed"


@pytest.mark.parametrize(
    ("data", "kind"), [(b"[]", "list"), (b'"text"', "str"), (b"7", "int"), (b"null", "NoneType"), (b"true", "bool")]
)
def test_what_is_not_an_object_is_malformed_and_says_what_it_is(data: bytes, kind: str) -> None:
    with pytest.raises(Malformed, match=f"is not a JSON object but {kind}$") as caught:
        decode({b"data": data}, ENRICH)
    assert caught.value.reason == "malformed"


def test_an_event_one_byte_too_large_is_refused_unread() -> None:
    assert reason_of({b"data": b"{" * 101}, Enrich(event_bytes_max=100)) == "too_large"


@pytest.mark.parametrize(
    "data",
    [b"{}", b'{"text": ""}', b'{"text": " \\n"}', b'{"text": 7}', b'{"text": null}', b'{"text": ["a"]}', b'{"x": "a"}'],
)
def test_an_event_without_text_is_refused(data: bytes) -> None:
    assert reason_of({b"data": data}) == "no_text"


def test_a_missing_text_says_where_it_was_looked_for() -> None:
    with pytest.raises(Malformed, match=r"headline, body\.plain"):
        decode({b"data": b"{}"}, Enrich(text_fields=("headline", "body.plain")))


@QUIET
@given(st.dictionaries(st.sampled_from([b"data", b"event_id", b"x"]), st.binary(max_size=40)))
def test_whatever_bytes_come_they_are_an_event_or_malformed(fields: dict[bytes, bytes]) -> None:
    try:
        event = decode(fields, ENRICH)
    except Malformed as error:
        assert error.reason in {"deleted", "malformed", "no_text"}  # noqa: PT017 - either way is an answer
    else:
        assert event.text


# -- merge -------------------------------------------------------------------------------------------------------------


SPELLINGS = st.builds(
    lambda indent, ascii_only: partial(json.dumps, indent=indent, ensure_ascii=ascii_only),
    st.none() | st.integers(0, 2),
    st.booleans(),
)


@QUIET
@given(OBJECTS, st.dictionaries(st.text(), JSON, max_size=3), SPELLINGS, BLANKS, BLANKS)
@example({}, {}, json.dumps, "", "")
@example({"n": 10**400}, {}, json.dumps, "", "")
@example({ENRICHMENT: 1, "n": 10**400}, {}, json.dumps, "", "")
def test_the_output_is_the_event_with_the_enrichment_and_nothing_else(
    payload: dict[str, Any], enrichment: dict[str, Any], spell: Callable[[Any], str], before: str, after: str
) -> None:
    data = (before + spell(payload) + after).encode()
    assert json.loads(merge(event_of(data), enrichment)) == {**payload, ENRICHMENT: enrichment}


@QUIET
@given(OBJECTS, st.dictionaries(st.text(), JSON, max_size=3), SPELLINGS, BLANKS, BLANKS)
@example({}, {}, json.dumps, "", "")
@example({ENRICHMENT: 1, "n": 10**400}, {"a": 1}, partial(json.dumps, indent=2), " ", "\n")
def test_an_enrichment_that_is_json_already_makes_the_same_output(
    payload: dict[str, Any], enrichment: dict[str, Any], spell: Callable[[Any], str], before: str, after: str
) -> None:
    """Else the events that share an answer would not be the same as those that were asked about one by one."""
    event = event_of((before + spell(payload) + after).encode())
    assert merge(event, msgspec.Raw(msgspec.json.encode(enrichment))) == merge(event, enrichment)


@QUIET
@given(payload=st.dictionaries(st.text().filter(ENRICHMENT.__ne__), JSON, min_size=1), before=BLANKS, after=BLANKS)
def test_the_output_begins_with_the_events_own_bytes(payload: dict[str, Any], before: str, after: str) -> None:
    data = (before + json.dumps(payload) + after).encode()
    merged = merge(event_of(data), {"a": 1})
    assert merged == data.rstrip()[:-1] + b',"ai_enrichment":{"a":1}}'


@pytest.mark.parametrize("number", [b"1.10", b"1e5", b"1E+05", b"-0", b"-0.0", b"9" * 100, b"0.1000000000000000055"])
def test_a_number_keeps_its_spelling(number: bytes) -> None:
    data = b'{"text": "a", "n": ' + number + b"}"
    assert merge(event_of(data), {}) == data[:-1] + b',"ai_enrichment":{}}'


def test_duplicate_members_stay_both() -> None:
    assert merge(event_of(b'{"a":1,"a":2}'), {}) == b'{"a":1,"a":2,"ai_enrichment":{}}'


@pytest.mark.parametrize("data", [b"{}", b" { } ", b"{\n}\n"])
def test_an_empty_object_gets_no_comma(data: bytes) -> None:
    assert json.loads(merge(event_of(data), {"a": 1})) == {ENRICHMENT: {"a": 1}}


@pytest.mark.parametrize(
    "data",
    [
        b'{"ai_enrichment": {"old": 1}, "text": "a"}',
        b'{"text": "a", "ai_enrichment": null}',
        b'{"text": "a", "ai\\u005fenrichment": {"old": 1}}',
        b'{"ai_enrichment": 1, "text": "a", "ai_enrichment": {"old": 1}}',
    ],
)
def test_an_enrichment_that_is_there_already_is_replaced(data: bytes) -> None:
    merged = merge(event_of(data), {"new": 2})
    assert json.loads(merged) == {"text": "a", ENRICHMENT: {"new": 2}}
    assert merged.count(b"enrichment") == 1


def test_a_member_with_a_similar_name_is_no_enrichment() -> None:
    data = b'{"AI_ENRICHMENT":1,"meta":{"ai_enrichment":2}}'
    assert merge(event_of(data), {}) == data[:-1] + b',"ai_enrichment":{}}'


# -- what is passed on -------------------------------------------------------------------------------------------------


def test_nothing_is_passed_on_but_what_identifies_the_event_and_its_trace() -> None:
    """F49: its other fields stay in the input."""
    fields = {b"data": b"{}", b"event_id": b"7", b"other": b"x", b"traceparent": b"00"}
    assert passed_on(fields) == {b"event_id": b"7", b"traceparent": b"00"}
    assert passed_on({b"data": b"{}"}) == passed_on({b"data": b"{}", b"other": b"x"}) == {}


# -- whose output it is ------------------------------------------------------------------------------------------------


@QUIET
@given(OBJECTS, st.dictionaries(st.text(), JSON, max_size=3), SPELLINGS, BLANKS, BLANKS)
@example({"n": 10**400}, {}, json.dumps, "", "")
@example({ENRICHMENT: 1, "n": 10**400}, {}, json.dumps, "", "")
@example({ENRICHMENT: 1, "a": {"b": [1]}}, {}, partial(json.dumps, indent=2), "", "")
def test_the_output_of_an_event_is_known_as_its_own(
    payload: dict[str, Any], enrichment: dict[str, Any], spell: Callable[[Any], str], before: str, after: str
) -> None:
    """F32: else the event would be enriched twice when its group is put back."""
    data = (before + spell(payload) + after).encode()
    assert is_merged_from(merge(event_of(data), enrichment), data)


@pytest.mark.parametrize(
    "data",
    [
        b'{"text":"a","ai_enrichment":{"old":1},"n":1.10}',
        b'{"text": "\\u00e9", "ai_enrichment": null}',
        b'{"ai_enrichment":0,"a":1,"a":2}',
        b'{"a":1E5,"ai_enrichment":0}',
    ],
)
def test_the_output_of_an_event_that_was_written_anew_is_known_as_its_own(data: bytes) -> None:
    """F32: what had an enrichment already has lost its own spelling of numbers, texts and blanks."""
    assert is_merged_from(merge(event_of(data), {"new": 2}), data)


@QUIET
@given(OBJECTS, OBJECTS)
def test_the_output_of_another_event_is_never_taken_for_ones_own(one: dict[str, Any], other: dict[str, Any]) -> None:
    """F32: else an event would be lost when its group is put back."""
    merged = merge(event_of(json.dumps(other).encode()), {})
    known = is_merged_from(merged, json.dumps(one).encode())
    assert known == (merged == merge(event_of(json.dumps(one).encode()), {}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(b'{"text":"a"}', b'{"text":"a","n":1}', id="one member more"),
        pytest.param(b'{"n":1}', b'{"n":12}', id="a number that goes on"),
        pytest.param(b"{}", b'{"text":"a"}', id="empty"),
        pytest.param(b'{"n":1,"ai_enrichment":0}', b'{"n":true,"ai_enrichment":0}', id="equal to Python"),
        pytest.param(b'{"text":"a"}', b'{"text":"b"}', id="another text"),
        pytest.param(b'{"text":"a","n":1}', b'{"text":"a"}', id="one member less"),
        pytest.param(b'{"a":1,"b":2}', b'{"b":2,"a":1}', id="another order"),
    ],
)
def test_an_event_that_only_begins_or_looks_the_same_is_another(one: bytes, other: bytes) -> None:
    """F32: two fleets may write to one output, and a new stream may have the ids of an old one."""
    assert not is_merged_from(merge(event_of(other), {"sentiment": {}}), one)


@pytest.mark.parametrize(
    "original",
    [
        b"",
        b"x",
        b"{",
        b"[]",
        b'"ai_enrichment"',
        b'{"text":"\xff"}',
        b'{"a":' * 100_000,
        b'{"n":' + b"[" * 900 + b"]" * 900 + b"}",
    ],
)
@pytest.mark.parametrize("merged", [b"", b"x", b"[]", b"{}", b'{"ai_enrichment":1}', b'{"a":' * 100_000, b"\xff"])
def test_what_is_no_event_has_no_output_and_does_no_harm(original: bytes, merged: bytes) -> None:
    """F48: whatever somebody wrote into the streams."""
    assert not is_merged_from(merged, original)
