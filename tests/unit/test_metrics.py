"""The metrics, read back by Prometheus's own parser."""

import platform

import pytest
from prometheus_client.parser import text_string_to_metric_families

from millhand import __version__
from millhand.histogram import BOUNDS_S
from millhand.keys import Keys
from millhand.layers import load
from millhand.verdict import Reason
from millhand_fleet.gate_view import GateView
from millhand_fleet.latency import Measured
from millhand_fleet.metrics import render
from millhand_fleet.snapshot import RedisView, Snapshot, StreamsView

STREAMS = StreamsView(
    input_length=100,
    added=130,
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
    backlog_age_s=95.5,
    undelivered_age_s=90.0,
    drained_in_s=47.0,
    success_rate_over={"1m": 1.0, "5m": 0.5, "15m": None},
    consumers=3,
)
CHILDREN = (
    {
        "name": "janitor",
        "state": "ready",
        "restarts": 1,
        "stats": {"sweeps": 12, "sweep": {"examined": 7, "handed_back": 2}},
    },
    {"name": "desk", "state": "ready", "restarts": 0},
    {"name": "worker-1", "state": "ready", "restarts": 4, "stats": {"in_hand": 5, "oldest_s": 2.5, "log_dropped": 7}},
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
FEW = (0,) * (len(BOUNDS_S) - 2)
SNAPSHOT = Snapshot(
    "events",
    999.0,
    "tiny:1b",
    heard_at=997.0,
    supervisor_pid=7,
    desired=3,
    paused=True,
    crash_loop=True,
    rolling={"what": "reload", "left": 2},
    children=CHILDREN,
    redis=RedisView(reachable=True, durability="weak: everysec", eviction="noeviction", database=4),
    streams=STREAMS,
    gate=GATE,
    output_length=61,
    dead_letter_length=21,
    measured=Measured((6.5, 1, 0, 2, *FEW), (0.25, 3, 0, 0, *FEW), 700, 80),
    keys=Keys.of(load(None, {})),
    seen=True,
)
NOW_S = 1000.0

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(snapshot: Snapshot) -> Samples:
    return {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(render(snapshot, NOW_S).decode())
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def test_the_metrics_say_what_the_snapshot_says() -> None:
    group = (("db", "db4"), ("group", "enrichers"), ("stream", "{events}:raw"))
    expected: Samples = {
        ("millhand_build_info", (("python", platform.python_version()), ("version", __version__))): 1,
        ("millhand_health", (("status", "ok"),)): 0,
        ("millhand_health", (("status", "degraded"),)): 1,
        ("millhand_health", (("status", "down"),)): 0,
        ("millhand_ready", ()): 0,
        ("millhand_supervisor_silent_seconds", ()): 3,
        ("millhand_paused", ()): 1,
        ("millhand_crash_loop", ()): 1,
        ("millhand_rolling_workers", ()): 2,
        ("millhand_worker_in_hand_events", (("child", "worker-1"),)): 5,
        ("millhand_worker_in_hand_events", (("child", "worker-2"),)): 0,
        ("millhand_worker_oldest_seconds", (("child", "worker-1"),)): 2.5,
        ("millhand_worker_oldest_seconds", (("child", "worker-2"),)): 0,
        ("millhand_redis_durable", ()): 0,
        ("millhand_redis_evicts", ()): 0,
        ("redis_stream_length", (group[0], group[2])): 100,
        ("redis_stream_length", (group[0], ("stream", "{events}:enriched"))): 61,
        ("redis_stream_length", (group[0], ("stream", "{events}:dead_letter"))): 21,
        ("redis_stream_group_messages_pending", group): 5,
        ("redis_stream_group_consumers", group): 3,
        ("millhand_backlog_age_seconds", ()): 95.5,
        ("millhand_undelivered_age_seconds", ()): 90,
        ("millhand_drained_in_seconds", ()): 47,
        ("millhand_added_events_total", ()): 130,
        ("millhand_event_latency_seconds_count", ()): 3,
        ("millhand_event_latency_seconds_sum", ()): 6.5,
        ("millhand_model_call_seconds_count", ()): 3,
        ("millhand_model_call_seconds_sum", ()): 0.25,
        ("millhand_model_tokens_total", (("direction", "in"),)): 700,
        ("millhand_model_tokens_total", (("direction", "out"),)): 80,
        ("millhand_breaker_open", ()): 1,
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
        ("millhand_log_dropped_total", (("child", "worker-1"),)): 7,
        ("millhand_restarts_total", (("child", "janitor"),)): 1,
        ("millhand_restarts_total", (("child", "desk"),)): 0,
        ("millhand_restarts_total", (("child", "worker-1"),)): 4,
        ("millhand_restarts_total", (("child", "worker-2"),)): 2,
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
        ("millhand_success_ratio", (("window", "all"),)): 0.75,
        ("millhand_success_ratio", (("window", "1m"),)): 1,
        ("millhand_success_ratio", (("window", "5m"),)): 0.5,
        **{("millhand_dead_letters_total", (("reason", reason.value),)): 0 for reason in Reason},
        ("millhand_dead_letters_total", (("reason", "timeout"),)): 15,
        ("millhand_dead_letters_total", (("reason", "malformed"),)): 5,
    }
    assert samples(SNAPSHOT) == expected


def test_counts_are_counters_and_states_are_gauges() -> None:
    kinds = {family.name: family.type for family in text_string_to_metric_families(render(SNAPSHOT, NOW_S).decode())}
    counters = {name for name, kind in kinds.items() if kind == "counter"}
    assert "millhand_enriched_events" in counters
    assert counters == {name.removesuffix("_total") for name, _ in samples(SNAPSHOT) if name.endswith("_total")}
    assert {name for name, kind in kinds.items() if kind == "histogram"} == {
        "millhand_event_latency_seconds",
        "millhand_model_call_seconds",
    }
    assert set(kinds.values()) == {"counter", "gauge", "histogram"}


def test_a_histograms_buckets_add_up_as_prometheus_means_them() -> None:
    """Each holds what is up to its bound, the last one everything."""
    text = render(SNAPSHOT, NOW_S).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    buckets = {
        sample.labels["le"]: sample.value
        for sample in families["millhand_event_latency_seconds"].samples
        if sample.name.endswith("_bucket")
    }
    assert list(buckets) == [*(str(bound) for bound in BOUNDS_S), "+Inf"]
    assert (buckets["0.025"], buckets["0.05"], buckets["0.1"], buckets["3600.0"], buckets["+Inf"]) == (1, 1, 3, 3, 3)


def test_every_metric_says_what_it_is() -> None:
    assert all(family.documentation for family in text_string_to_metric_families(render(SNAPSHOT, NOW_S).decode()))


def test_there_is_no_success_ratio_before_the_first_event_is_settled() -> None:
    """A ratio of 0 would set off the alarm of every new fleet."""
    assert not [name for name, _ in samples(Snapshot("events", 0.0, "tiny:1b")) if name == "millhand_success_ratio"]


def test_a_fleet_that_has_just_begun_has_its_counters_at_nought() -> None:
    found = samples(Snapshot("events", 0.0, "tiny:1b", seen=True))
    assert found["millhand_enriched_events_total", ()] == 0
    assert found["millhand_redis_up", ()] == 0


def test_a_desk_that_has_not_seen_redis_yet_sets_no_counter_back() -> None:
    """F50: after `worker-ctl restart` all that was ever buried or lost would look like new, and somebody be woken."""
    told = samples(Snapshot("events", 0.0, "tiny:1b", keys=Keys.of(load(None, {}))))
    names = {name for name, _ in told}
    assert not {name for name in names if name.endswith("_events_total") or name.startswith("redis_")}
    assert "millhand_backlog_events" not in names
    assert "millhand_dead_letters_total" not in names
    assert told["millhand_redis_up", ()] == 0


def test_the_first_dead_letter_of_a_reason_is_a_rise() -> None:
    """Prometheus sees none in a series that begins at 1, and the alarm would miss the first burst."""
    none_yet = samples(Snapshot("events", 0.0, "tiny:1b", seen=True))
    assert {none_yet["millhand_dead_letters_total", (("reason", reason.value),)] for reason in Reason} == {0}


@pytest.mark.parametrize(
    ("durability", "eviction", "found"),
    [("durable", "noeviction", (1, 0)), ("none", "allkeys-lru", (0, 1)), ("unknown", "unknown", (None, None))],
)
def test_what_a_server_does_not_tell_is_not_made_up(
    durability: str, eviction: str, found: tuple[float | None, float | None]
) -> None:
    """CONFIG may be forbidden: no alarm then, and no all-clear."""
    redis = RedisView(reachable=True, durability=durability, eviction=eviction)
    seen = samples(Snapshot("events", 0.0, "tiny:1b", redis=redis))
    assert (seen.get(("millhand_redis_durable", ())), seen.get(("millhand_redis_evicts", ()))) == found


def test_a_reason_with_any_characters_is_one_label() -> None:
    odd = 'a"b\\c\nd{e="f"}'
    snapshot = Snapshot("events", 0.0, "tiny:1b", streams=StreamsView(dead=1, dead_by_reason={odd: 1}), seen=True)
    assert samples(snapshot)["millhand_dead_letters_total", (("reason", odd),)] == 1


@pytest.mark.parametrize(("enriched", "dead", "rate"), [(0, 0, None), (0, 3, 0.0), (3, 0, 1.0), (3, 1, 0.75)])
def test_the_success_rate_is_a_share_of_what_was_settled(enriched: int, dead: int, rate: float | None) -> None:
    assert StreamsView(enriched=enriched, dead=dead).success_rate == rate
