"""Repeated enrichments side by side: the same event, the same answer, and what is shown of the rest."""

import json
import tracemalloc
from collections import Counter
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from millhand.event import Event, merge
from millhand.tasks.task import enrichment_hash
from millhand_fleet.comparison import (
    DEPTH_MAX,
    Difference,
    Ledger,
    Record,
    SameEvent,
    Side,
    compare,
    differences,
    digest_of,
    parse,
)
from millhand_fleet.ctl.cli import cli

QUIET = settings(deadline=None, database=None, max_examples=200)
META: dict[str, Any] = {"model": "m", "model_digest": "d", "prompt_hash": "p", "attempts": 1, "worker": "w", "at": "t"}
HAPPY, SAD = {"sentiment": {"label": "positive", "confidence": 90}}, {"sentiment": {"label": "negative"}}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
answers = st.lists(st.tuples(st.integers(0, 3), st.sampled_from("xyz")), max_size=30)


def entry(data: bytes, results: dict[str, Any], meta: dict[str, Any] = META) -> dict[bytes, bytes]:
    """Make the fields that a worker writes."""
    merged = merge(Event(data, msgspec.json.decode(data), ""), {**results, "meta": meta})
    return {b"data": merged, b"src": b"1-0", b"hash": enrichment_hash(results).encode()}


def record(
    data: bytes = b'{"text":"a"}', results: dict[str, Any] = HAPPY, entry_id: str = "2-0", **others: Any
) -> Record:
    event_id = others.pop("event_id", None)
    fields = entry(data, results, META | others) | ({b"event_id": event_id} if event_id else {})
    found = parse(entry_id, fields)
    assert found is not None
    return found


def entered(a: list[tuple[int, str]], b: list[tuple[int, str]]) -> Ledger:
    """Enter runs, each a list of (event, answer), one after the other."""
    ledger = Ledger()
    for side, run in ((Side.A, a), (Side.B, b)):
        for n, (event, answer) in enumerate(run, 1):
            one = record(b'{"text":"%d"}' % event, {"task": answer}, f"{n}-0")
            ledger.add(side, digest_of(one, by_payload=True), one)
    return ledger


# -- the same event ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b'{"text":"\xc3\xa9","n":1.5}',
        b'{ "n" : 1.50, "text" : "\\u00e9" }\n',
        b'{"text":"\xc3\xa9","ai_enrichment":{"old":1},"n":1.5}',
    ],
)
def test_the_same_payload_in_another_spelling_is_the_same_event(data: bytes) -> None:
    """So a run over the output of an earlier one can be compared with it."""
    plain, other = record(b'{"text":"\xc3\xa9","n":1.5}'), record(data)
    assert digest_of(plain, by_payload=False) == digest_of(other, by_payload=False)
    assert compare(plain, other).same_event is SameEvent.PAYLOAD


def test_one_event_id_is_one_event_although_its_payload_has_changed() -> None:
    earlier, later = record(b'{"text":"a"}', event_id=b"k"), record(b'{"text":"b"}', event_id=b"k")
    assert digest_of(earlier, by_payload=False) == digest_of(later, by_payload=False)
    assert digest_of(earlier, by_payload=True) != digest_of(later, by_payload=True)
    assert compare(earlier, later).same_event is SameEvent.EVENT_ID
    assert compare(earlier, later).is_equal


def test_an_event_id_is_no_payload() -> None:
    assert digest_of(record(event_id=b'{"text":"a"}'), by_payload=False) != digest_of(record(), by_payload=False)


def test_two_different_events_are_not_equal_although_their_answers_are() -> None:
    found = compare(record(b'{"text":"a"}'), record(b'{"text":"b"}'))
    assert (found.same_event, found.same_hash, found.is_equal) == (SameEvent.NO, True, False)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"data": b"\xff", b"hash": b"0"},
        {b"data": b"[1]", b"hash": b"0"},
        {b"data": b'{"text":"a"}', b"hash": b"0"},
        {b"data": b'{"ai_enrichment":7}', b"hash": b"0"},
        {b"data": b'{"ai_enrichment":[[1,2]]}', b"hash": b"0"},
        {b"data": b'{"ai_enrichment":{"meta":7}}', b"hash": b"0"},
        {b"data": b'{"ai_enrichment":{"meta":{}}}'},
        {b"data": b'{"ai_enrichment":{"meta":{}}}', b"hash": b"\xff"},
        {b"data": b'{"ai_enrichment":' + b"[" * 5000 + b"]" * 5000 + b"}", b"hash": b"0"},
    ],
)
def test_what_no_fleet_has_written_is_no_record(fields: dict[bytes, bytes]) -> None:
    assert parse("1-0", fields) is None


# -- the same answer --------------------------------------------------------------------------------------------------


def test_equal_answers_are_equal_whoever_gave_them_and_when() -> None:
    found = compare(record(), record(worker="other", at="later", model_s=9.0, total_s=9.5, tokens_out=3))
    assert found.is_equal
    assert (found.results, found.meta) == ([], [])


def test_a_difference_has_its_place_and_what_may_explain_it() -> None:
    found = compare(record(), record(results=SAD, attempts=2, model_digest="e", cached=True, at="later"))
    assert not found.is_equal
    assert found.results == [
        Difference("sentiment.label", "positive", "negative"),
        Difference("sentiment.confidence", 90),
    ]
    assert found.meta == [
        Difference("model_digest", "d", "e"),
        Difference("attempts", 1, 2),
        Difference("cached", b=True),
    ]


@pytest.mark.parametrize(
    ("a", "b", "paths"),
    [
        ({"l": [1, 2]}, {"l": [1, 3, 4]}, ["l[1]", "l[2]"]),
        ({"l": [{"x": 1}]}, {"l": [{"x": None}]}, ["l[0].x"]),
        ({"x": 1}, {"x": 1.0}, ["x"]),
        ({"x": 1}, {"x": True}, ["x"]),
        ({"x": None}, {}, ["x"]),
        ({"x": {"y": 1}}, {"x": [1]}, ["x"]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, []),
    ],
)
def test_each_place_that_differs_is_named(a: Any, b: Any, paths: list[str]) -> None:
    assert [difference.path for difference in differences(a, b)] == paths


@QUIET
@given(st.dictionaries(st.text(max_size=3), values), st.dictionaries(st.text(max_size=3), values))
def test_there_are_differences_exactly_where_the_hashes_differ(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert list(differences(a, a)) == []
    assert (list(differences(a, b)) == []) == (enrichment_hash(a) == enrichment_hash(b))


def test_what_differs_far_down_is_shown_as_a_whole() -> None:
    def nested(value: int) -> Any:
        return json.loads('{"x":' * 500 + str(value) + "}" * 500)

    (difference,) = differences(nested(1), nested(2))
    assert difference.path.count("x") == DEPTH_MAX


# -- runs -------------------------------------------------------------------------------------------------------------


def test_two_runs_are_counted_record_by_record() -> None:
    a = [(1, "x"), (2, "x"), (3, "x"), (3, "x"), (4, "x"), (6, "x")]
    b = [(4, "y"), (3, "x"), (2, "y"), (1, "x"), (5, "x"), (6, "x")]
    runs = entered(a, b).runs(limit=1)
    assert (runs.same, runs.different, runs.only_in_a, runs.only_in_b) == (3, 2, 1, 1)
    assert runs.pairs == [("2-0", "3-0")]
    assert not runs.is_equal


def test_events_that_came_several_times_are_paired_by_their_answers() -> None:
    """Neither run's order counts: outputs are not in the order of their inputs."""
    assert entered([(1, "x"), (1, "y"), (1, "y")], [(1, "y"), (1, "x"), (1, "y")]).runs(limit=9).is_equal
    runs = entered([(1, "x"), (1, "y")], [(1, "y"), (1, "z")]).runs(limit=9)
    assert (runs.same, runs.different, runs.pairs) == (1, 1, [("1-0", "2-0")])


@QUIET
@given(answers, answers, st.randoms())
def test_two_runs_come_to_the_same_in_whatever_order_they_are_read(
    a: list[tuple[int, str]], b: list[tuple[int, str]], random: Any
) -> None:
    """Against counting it all at once: what both have is the same, and the rest is paired event by event."""
    runs = entered(a, b).runs(limit=9)
    same = sum((Counter(a) & Counter(b)).values())
    paired = sum((Counter(event for event, _ in a) & Counter(event for event, _ in b)).values())
    assert (runs.same, runs.different) == (same, paired - same)
    assert (runs.only_in_a, runs.only_in_b) == (len(a) - paired, len(b) - paired)
    shuffled = entered(random.sample(a, len(a)), random.sample(b, len(b))).runs(limit=9)
    assert msgspec.structs.replace(shuffled, pairs=[]) == msgspec.structs.replace(runs, pairs=[])


def test_runs_that_agree_leave_nothing_in_memory_and_others_no_payloads() -> None:
    one = record(b'{"text":"%s"}' % (b"x" * 100_000))
    differing = [msgspec.structs.replace(one, id=f"{n}-0", hash=str(n)) for n in range(1000)]
    ledger = Ledger()
    for each in differing:
        ledger.add(Side.A, b"%016d" % int(each.hash), each)
        ledger.add(Side.B, b"%016d" % int(each.hash), each)
    assert not ledger._counts
    tracemalloc.start()
    for each in differing:
        ledger.add(Side.A, b"%016d" % int(each.hash), each)
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held_bytes < 400 * len(differing)


def test_an_event_that_was_enriched_twice_is_repeated_and_differs_where_its_answers_do() -> None:
    run = [(1, "x"), (2, "x"), (2, "x"), (3, "x"), (3, "y"), (3, "x"), (4, "y"), (4, "z")]
    repeats = entered(run, []).repeats(limit=9)
    assert (repeats.events, repeats.repeated, repeats.different) == (4, 3, 2)
    assert repeats.pairs == [("4-0", "5-0"), ("7-0", "8-0")]
    assert not repeats.is_equal
    assert entered(run[:3], []).repeats(limit=9).is_equal


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Give two ids"),
        (["1-0"], "Give two ids"),
        (["1-0", "2-0", "3-0"], "Give two ids"),
        (["1-0", "src:yesterday"], "is no id"),
        (["--runs", "a"], "Give two ids"),
        (["--repeats", "1-0", "2-0"], "Give two ids"),
        (["--runs", "--repeats"], "Give two ids"),
        (["--by-payload", "1-0", "2-0"], "--by-payload goes with --runs"),
        (["--repeats", "--limit", "1001"], "--limit"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_not_begun(arguments: list[str], said: str) -> None:
    answer = CliRunner().invoke(cli, ["compare", *arguments], env={"MILLHAND_REDIS_URL": "redis://127.0.0.1:9/0"})
    assert answer.exit_code == 2
    assert said in answer.stderr


def test_a_redis_that_does_not_answer_is_named_and_ends_it_with_69() -> None:
    answer = CliRunner().invoke(cli, ["compare", "1-0", "2-0"], env={"MILLHAND_REDIS_URL": "redis://127.0.0.1:9/0"})
    assert answer.exit_code == 69
    assert "Redis does not answer" in answer.stderr
