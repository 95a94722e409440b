"""What the benchmarks make of what they saw."""

import json
import math
from collections.abc import Iterator

import pytest

from scripts.bench.backlog import complaint_about
from scripts.bench.events import event, events
from scripts.bench.figures import Spread, percentile

FIRST, COUNT = 1000, 12


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
