"""The verdict of `worker-ctl verify`: nothing hopeless can hide, nothing doubled passes."""

from typing import Any

import pytest

from millhand_fleet.proof import Report, is_enriched, judge

HUNDRED = [f"{n}-0" for n in range(100)]


def report(written: list[str], buried: list[str], inputs: list[str] = HUNDRED, **given: Any) -> Report:
    def counted(ids: list[str]) -> dict[str, int]:
        return {entry_id: ids.count(entry_id) for entry_id in ids}

    defaults: dict[str, Any] = {"pending": 0, "superseded": 0, "invalid": 0, "why": {}, "min_rate": 0.95}
    return judge(inputs, counted(written), counted(buried), **(defaults | given))


def test_ninety_five_of_a_hundred_pass() -> None:
    proven = report(HUNDRED[:95], HUNDRED[95:])
    assert proven.passed
    assert proven.enrichment_rate == 0.95
    assert (proven.enriched_count, proven.dead_letter_count, proven.input_count) == (95, 5, 100)


def test_ninety_four_do_not_and_the_reason_names_both_rates() -> None:
    short = report(HUNDRED[:94], HUNDRED[94:])
    assert not short.passed
    assert short.reasons == ["the enrichment rate 0.9400 is below 0.95"]


def test_a_rate_that_only_rounds_up_to_the_limit_does_not_pass() -> None:
    """Two of three are 0.6666…, which the report shows as 0.666667."""
    assert not report(HUNDRED[:2], HUNDRED[2:3], HUNDRED[:3], min_rate=0.666667).passed


def test_a_hopeless_event_counts_whether_it_is_buried_pending_or_not_yet_read() -> None:
    waiting = report(HUNDRED[:50], HUNDRED[50:60], pending=10)
    assert waiting.enrichment_rate == 0.5
    assert waiting.undelivered_count == 30


def test_an_entry_for_which_another_stands_does_not_count() -> None:
    """A repeated event_id, or the first life of a dead letter that was requeued; but no more than have no record."""
    proven = report(HUNDRED[:90], [], superseded=10)
    assert (proven.enrichment_rate, proven.input_count, proven.superseded_count) == (1.0, 90, 10)
    assert proven.undelivered_count == 0
    assert report(HUNDRED[:90], HUNDRED[90:], superseded=10).enrichment_rate == 0.9
    assert report(HUNDRED[:80], [], pending=15, superseded=10).superseded_count == 5


def test_events_that_were_trimmed_from_the_input_still_count() -> None:
    trimmed = report(HUNDRED[:90], HUNDRED[90:], inputs=[])
    assert trimmed.input_count == 100
    assert trimmed.enrichment_rate == 0.9


@pytest.mark.parametrize(
    ("written", "buried"),
    [
        pytest.param([*HUNDRED, "7-0"], [], id="enriched twice"),
        pytest.param(HUNDRED, ["7-0"], id="enriched and buried"),
        pytest.param(HUNDRED[1:], ["0-0", "0-0"], id="buried twice"),
    ],
)
def test_a_doubled_event_does_not_pass(written: list[str], buried: list[str]) -> None:
    doubled = report(written, buried)
    assert doubled.duplicates == 1
    assert not doubled.passed


def test_an_empty_fleet_proves_nothing() -> None:
    assert report([], [], inputs=[]).reasons == ["the streams are empty, or have other names"]


def test_output_without_a_readable_enrichment_does_not_pass() -> None:
    assert not report(HUNDRED, [], invalid=1).passed


@pytest.mark.parametrize(
    ("data", "good"),
    [
        (b'{"text":"x","ai_enrichment":{"spam":{"label":"spam"},"meta":{}}}', True),
        (b'{"text":"x","ai_enrichment":{"meta":{}}}', False),
        (b'{"text":"x","ai_enrichment":{}}', False),
        (b'{"text":"x","ai_enrichment":"spam"}', False),
        (b'{"text":"x"}', False),
        (b"[1]", False),
        (b"7", False),
        (b"\xff", False),
        (b"[" * 100_000, False),
    ],
)
def test_only_a_tasks_result_is_an_enrichment(data: bytes, *, good: bool) -> None:
    assert is_enriched({b"data": data}) is good


def test_an_entry_without_data_is_no_enrichment() -> None:
    assert not is_enriched({b"other": b"{}"})
