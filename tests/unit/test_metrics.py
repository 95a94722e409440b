"""The metrics, read back by Prometheus's own parser."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from millhand_fleet.gate_view import GateView
from millhand_fleet.metrics import render
from millhand_fleet.snapshot import RedisView, Snapshot, StreamsView

STREAMS = StreamsView(
    input_length=100,
    backlog=11,
    pending=5,
    parked=2,
    enriched=60,
    dead=20,
    dead_by_reason={"timeout": 15, "malformed": 5},
    retried=9,
    handed_back=3,
    released=4,
    skipped=6,
    requeued=8,
    dropped=17,
    trimmed=30,
    retired=2,
    lost=13,
    cache_hits=21,
    cache_joined=14,
    cache_misses=35,
    groups_recreated=1,
)
CHILDREN = (
    {
        "name": "janitor",
        "state": "ready",
        "restarts": 1,
        "stats": {"sweeps": 12, "sweep": {"examined": 7, "handed_back": 2}},
    },
    {"name": "desk", "state": "ready", "restarts": 0},
    {"name": "worker-1", "state": "ready", "restarts": 4},
    {"name": "worker-2", "state": "restarting", "restarts": 2},
)
GATE = GateView(
    state="throttled",
    since_s=72.5,
    permits=3,
    permits_max=17,
    tokens=-2.0,
    strikes=4,
    calls={"ok": 90, "strike": 6, "late": 1, "busy": 5, "refused": 0},
)
SNAPSHOT = Snapshot(
    "events", 0.0, "tiny:1b", desired=3, children=CHILDREN, redis=RedisView(reachable=True), streams=STREAMS, gate=GATE
)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(snapshot: Snapshot) -> Samples:
    return {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(render(snapshot).decode())
        for sample in family.samples
    }


def test_the_metrics_say_what_the_snapshot_says() -> None:
    assert samples(SNAPSHOT) == {
        ("millhand_redis_up", ()): 1,
        ("millhand_backlog_events", ()): 11,
        ("millhand_pending_events", ()): 5,
        ("millhand_parked_events", ()): 2,
        ("millhand_workers_desired", ()): 3,
        ("millhand_workers_ready", ()): 1,
        ("millhand_enriched_events_total", ()): 60,
        ("millhand_retries_total", ()): 9,
        ("millhand_handed_back_events_total", ()): 3,
        ("millhand_released_events_total", ()): 4,
        ("millhand_skipped_events_total", ()): 6,
        ("millhand_requeued_dead_letters_total", ()): 8,
        ("millhand_dropped_dead_letters_total", ()): 17,
        ("millhand_trimmed_events_total", ()): 30,
        ("millhand_retired_consumers_total", ()): 2,
        ("millhand_lost_events_total", ()): 13,
        ("millhand_recreated_groups_total", ()): 1,
        ("millhand_janitor_sweeps_total", ()): 12,
        ("millhand_janitor_last_sweep", (("what", "examined"),)): 7,
        ("millhand_janitor_last_sweep", (("what", "handed_back"),)): 2,
        ("millhand_restarts_total", ()): 7,
        ("millhand_gate_state", (("state", "closed"),)): 0,
        ("millhand_gate_state", (("state", "paused"),)): 0,
        ("millhand_gate_state", (("state", "throttled"),)): 1,
        ("millhand_gate_state", (("state", "away"),)): 0,
        ("millhand_gate_state", (("state", "misconfigured"),)): 0,
        ("millhand_gate_shut_seconds", ()): 72.5,
        ("millhand_permits", ()): 3,
        ("millhand_permits_max", ()): 17,
        ("millhand_tokens", ()): -2,
        ("millhand_breaker_strikes", ()): 4,
        ("millhand_model_calls_total", (("end", "ok"),)): 90,
        ("millhand_model_calls_total", (("end", "strike"),)): 6,
        ("millhand_model_calls_total", (("end", "late"),)): 1,
        ("millhand_model_calls_total", (("end", "busy"),)): 5,
        ("millhand_model_calls_total", (("end", "refused"),)): 0,
        ("millhand_cache_lookups_total", (("result", "hit"),)): 21,
        ("millhand_cache_lookups_total", (("result", "joined"),)): 14,
        ("millhand_cache_lookups_total", (("result", "miss"),)): 35,
        ("millhand_success_ratio", ()): 0.75,
        ("millhand_dead_letters_total", (("reason", "timeout"),)): 15,
        ("millhand_dead_letters_total", (("reason", "malformed"),)): 5,
    }


def test_counts_are_counters_and_states_are_gauges() -> None:
    kinds = {family.name: family.type for family in text_string_to_metric_families(render(SNAPSHOT).decode())}
    counters = {name for name, kind in kinds.items() if kind == "counter"}
    assert "millhand_enriched_events" in counters
    assert counters == {name.removesuffix("_total") for name, _ in samples(SNAPSHOT) if name.endswith("_total")}
    assert set(kinds.values()) == {"counter", "gauge"}


def test_every_metric_says_what_it_is() -> None:
    assert all(family.documentation for family in text_string_to_metric_families(render(SNAPSHOT).decode()))


def test_there_is_no_success_ratio_before_the_first_event_is_settled() -> None:
    """A ratio of 0 would set off the alarm of every new fleet."""
    assert ("millhand_success_ratio", ()) not in samples(Snapshot("events", 0.0, "tiny:1b"))


def test_a_fleet_that_has_just_begun_has_its_counters_at_nought() -> None:
    found = samples(Snapshot("events", 0.0, "tiny:1b"))
    assert found["millhand_enriched_events_total", ()] == 0
    assert found["millhand_redis_up", ()] == 0


def test_a_reason_with_any_characters_is_one_label() -> None:
    odd = 'a"b\\c\nd{e="f"}'
    snapshot = Snapshot("events", 0.0, "tiny:1b", streams=StreamsView(dead=1, dead_by_reason={odd: 1}))
    assert samples(snapshot)["millhand_dead_letters_total", (("reason", odd),)] == 1


@pytest.mark.parametrize(("enriched", "dead", "rate"), [(0, 0, None), (0, 3, 0.0), (3, 0, 1.0), (3, 1, 0.75)])
def test_the_success_rate_is_a_share_of_what_was_settled(enriched: int, dead: int, rate: float | None) -> None:
    assert StreamsView(enriched=enriched, dead=dead).success_rate == rate
