"""What the benchmarks make of what they saw."""

import json
import math
from collections.abc import Iterator
from xml.etree import ElementTree as ET

import msgspec
import pytest

from scripts.bench.backlog import complaint_about
from scripts.bench.cases import CELLS, Cell
from scripts.bench.entrants import AUTO, MILLHAND, PEERS
from scripts.bench.events import event, events
from scripts.bench.figures import Spread, percentile
from scripts.bench.plot import picture
from scripts.bench.run import COUNT_MIN, SHORT_CELLS, Lane, chosen, count_for
from scripts.bench.summary import Key, Summary, goals, summarise
from scripts.bench.trial import Result

FIRST, COUNT = 1000, 12
BY_NAME = {cell.name: cell for cell in CELLS}
RESULT = Result(
    entrant="millhand",
    cell="",
    durability="none",
    events=100,
    events_per_s=0.0,
    cpu_ms=0.4,
    server_cpu_ms=0.02,
    calls=100,
    in_flight_max=20,
    own_ms={"p50": 50.0, "p99": 51.0},
)


def enriched() -> Iterator[bytes]:
    for data in events(FIRST, COUNT):
        yield data[:-1] + b', "ai_enrichment": {}}'


def test_an_output_that_has_every_event_once_is_no_complaint() -> None:
    assert complaint_about(enriched(), FIRST, COUNT) == ""


def test_an_event_that_is_missing_is_told() -> None:
    assert complaint_about(list(enriched())[1:], FIRST, COUNT) == "lost: 1 (1000)"


def test_an_event_that_came_twice_is_told() -> None:
    records = list(enriched())
    assert complaint_about([*records, records[3]], FIRST, COUNT) == "more than once: 1 (1003)"


def test_an_event_that_nobody_sent_is_told() -> None:
    assert complaint_about(enriched(), FIRST, COUNT - 1) == "unknown: 1 (1011)"


def test_only_a_few_numbers_of_many_are_shown() -> None:
    assert complaint_about([], FIRST, COUNT) == "lost: 12 (1000, 1001, 1002, 1003, 1004, …)"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (event(FIRST), "altered or without ai_enrichment: 1 (1000)"),
        (event(FIRST).replace(b"kettle", b"bottle")[:-1] + b', "ai_enrichment": {}}', "altered"),
        (b"{}", "a record is none of ours"),
    ],
)
def test_a_record_that_is_not_an_enriched_event_is_told(data: bytes, said: str) -> None:
    assert said in complaint_about([data], FIRST, 1)


def test_events_have_some_300_bytes_and_the_same_for_the_same_number() -> None:
    first, again = (json.loads(event(7)) for _ in range(2))
    assert 280 <= len(event(7)) <= 320
    assert {**first, "sent_us": 0} == {**again, "sent_us": 0}


def test_a_spread_has_the_median_between_its_ends() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(median=2.0, low=1.0, high=3.0, runs=3)


def test_a_percentile_is_a_value_that_was_seen() -> None:
    values = [float(value) for value in range(1, 201)]
    assert [percentile(values, p) for p in (0, 50, 99, 100)] == [1.0, 100.0, 198.0, 200.0]
    assert math.isnan(percentile([], 50))


def found(*rates: tuple[str, str, float]) -> dict[Key, Summary]:
    """Summarise one run of each row at a cell, all on the same kind of server."""
    summaries = {}
    for row, cell, per_s in rates:
        latency_ms = {"p50": 51.0, "p99": 53.0} if BY_NAME[cell].load else {}
        result = msgspec.structs.replace(RESULT, events_per_s=per_s, latency_ms=latency_ms)
        summaries[row, "none", cell] = summarise(row, BY_NAME[cell], [result])
    return summaries


def stands(summaries: dict[Key, Summary]) -> dict[str, bool]:
    return {goal.name: goal.met for goal in goals(summaries) if goal.met is not None}


def test_a_goal_of_times_is_judged_against_the_best_of_those_it_names() -> None:
    rates = ("taskiq-redis", "W0 2p", 500.0), ("Celery", "W0 2p", 100.0), ("hand-written loop", "W0 2p", 5000.0)
    met = stands(found(("millhand", "W0 2p", 4000.0), *rates))
    assert met == {"W0 2p: the best framework, times": True, "W0 2p: the hand-written loop, times": False}


def test_the_goal_where_the_model_answers_at_once_counts_the_loop_among_the_peers() -> None:
    summaries = found(("millhand", "W1 2p", 290.0), ("hand-written loop", "W1 2p", 100.0), ("arq", "W1 2p", 50.0))
    assert stands(summaries) == {"W1 2p: the best peer, times": False}


def test_goals_about_a_paced_model_are_judged_by_its_ideal_and_its_own_time() -> None:
    """Not by what it took with calls that wait inside it: who sends too many at once would be let off by that."""
    summaries = found(("millhand", "W2 2p", 318.0), ("millhand", "W2 2p at 80%", 256.0), ("millhand", "W3 1p", 1200.0))
    assert stands(summaries) == {
        "W2 2p: share of the ideal": True,
        "W2 2p: CPU ms an event": True,
        "W2 2p at 80%: p99, times the model's 50 ms": False,
        "W3 1p: share of the ideal": False,
    }


def test_nothing_measured_is_no_goal_met() -> None:
    assert stands({}) == {}


def test_a_run_is_as_long_as_the_last_one_makes_expect_but_the_model_bounds_it() -> None:
    lane = Lane(MILLHAND, "none", BY_NAME["W2 2p"])
    assert count_for(lane, 3.0, last_per_s=100.0) == 304
    assert count_for(lane, 3.0, last_per_s=10_000.0) == 960
    assert COUNT_MIN <= count_for(lane, 0.0, last_per_s=None) < COUNT_MIN + 16
    assert count_for(Lane(MILLHAND, "none", Cell(lane.cell.case, 2, load=0.5)), 3.0, last_per_s=10_000.0) == 960


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.case.ideal_per_s and not cell.load])
def test_a_backlog_fills_all_slots_of_the_model_to_the_end(cell: Cell) -> None:
    """Or even an ideal product would fall short of the ideal, by up to one round of some sixty."""
    for last_per_s in (101.0, 307.0, 1249.0):
        assert count_for(Lane(MILLHAND, "none", cell), 3.0, last_per_s) % cell.case.slots == 0


def test_a_loop_with_one_http_client_has_no_more_in_flight_than_that_client_bears() -> None:
    """In one process of 72 calls it would reach a fifth of what it does with 32."""
    loop = PEERS[0]
    assert [loop.each(BY_NAME[name]) for name in ("W0 1p", "W2 2p", "W3 1p", "W3 2p")] == [100, 10, 32, 32]


def test_the_full_form_has_everybody_and_the_short_one_the_strongest() -> None:
    full = list(chosen(full=True, only=(), names=(), durability=()))
    short = list(chosen(full=False, only=(), names=(), durability=()))
    assert {lane.entrant for lane in full} == {MILLHAND, AUTO, *PEERS}
    assert {lane.cell.name for lane in full} == set(BY_NAME)
    assert {lane.cell.name for lane in short} == set(SHORT_CELLS)
    assert {lane.durability for lane in full if lane.entrant in PEERS} == {"none"}


def test_the_picture_is_xml_with_a_panel_for_each_cell_that_was_measured() -> None:
    summaries = found(("millhand", "W1 2p", 290.0), ("a <b>", "W1 2p", 100.0), ("millhand", "W0 2p", 1.0))
    drawn = ET.fromstring(picture(summaries, "Speed & more"))  # noqa: S314 - it is our own
    texts = [node.text for node in drawn.iter() if node.text]
    assert {"Speed & more", "a <b>", "290", "100"} <= set(texts)
    assert [text[:5] for text in texts if text.startswith("W")] == ["W0 2p", "W1 2p"]
