"""The snapshot in Prometheus's text format.

What redis_exporter measures too stands here under its names and labels as well, so that panels made for it can be used;
the scrape's `job` tells the two apart. But neither `redis_up`, since the desk is not Redis, nor its lag, which may be
wrong: the backlog is `millhand_backlog_events`.
"""

import platform
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from millhand import __version__
from millhand.histogram import BOUNDS_S
from millhand.verdict import Reason
from millhand_fleet.gate_view import GateView
from millhand_fleet.health import STATUSES, judge_health
from millhand_fleet.snapshot import Snapshot, StreamsView

GATE_STATES = ("closed", "paused", "throttled", "away", "misconfigured")


class SnapshotCollector(Collector):
    """Renders one snapshot. `now_s` in the desk's monotonic seconds."""

    def __init__(self, snapshot: Snapshot, now_s: float) -> None:
        self._snapshot = snapshot
        self._now_s = now_s

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        snapshot = self._snapshot
        yield from self._fleet()
        yield from _redis(snapshot)
        yield from _latency(snapshot)
        if snapshot.seen:  # or a desk that has just begun would set every counter back, and all would seem to rise anew
            yield from _waiting(snapshot.streams)
            yield from _counters(snapshot.streams)
            yield from _gate(snapshot.gate)
        yield from _janitor(snapshot)

    def _fleet(self) -> Iterator[Metric]:
        snapshot, health = self._snapshot, judge_health(self._snapshot, self._now_s)
        build = {"version": __version__, "python": platform.python_version()}
        yield _labelled("build_info", "Always 1; what runs is in the labels.", tuple(build), [(*build.values(), 1)])
        rows = [(status, float(status == health.status)) for status in STATUSES]
        yield _labelled("health", "1 for how the fleet is now.", ("status",), rows)
        yield _gauge("ready", "Whether events are being enriched.", float(health.ready))
        silent_s = self._now_s - snapshot.heard_at if snapshot.supervisor_pid else 0.0
        yield _gauge("supervisor_silent_seconds", "Since the supervisor last reported.", max(0.0, silent_s))
        yield _gauge("workers_desired", "Workers there should be.", snapshot.desired)
        ready = sum(row["state"] == "ready" for row in snapshot.workers)
        yield _gauge("workers_ready", "Workers at work.", ready)
        yield _gauge("paused", "Whether an operator has paused the fleet.", float(snapshot.paused))
        yield _gauge("crash_loop", "Whether the workers die one after another.", float(snapshot.crash_loop))
        rolling = (snapshot.rolling or {}).get("left", 0)
        yield _gauge("rolling_workers", "Processes that a rolling restart has still to replace.", rolling)
        restarts = CounterMetricFamily("millhand_restarts", "Children started again.", labels=["child"])
        for row in snapshot.children:
            restarts.add_metric([row["name"]], row["restarts"])
        yield restarts
        dropped = CounterMetricFamily("millhand_log_dropped", "Log lines that nobody read in time.", labels=["child"])
        for row in snapshot.children:
            if (lines := row.get("stats", {}).get("log_dropped")) is not None:
                dropped.add_metric([row["name"]], lines)
        yield dropped
        working = [(row["name"], row.get("stats", {})) for row in snapshot.workers]
        in_hand = [(name, stats.get("in_hand", 0)) for name, stats in working]
        yield _labelled("worker_in_hand_events", "Events that a worker has in hand.", ("child",), in_hand)
        oldest = [(name, stats.get("oldest_s", 0)) for name, stats in working]
        yield _labelled("worker_oldest_seconds", "For how long, the one longest in hand.", ("child",), oldest)


def _redis(snapshot: Snapshot) -> Iterator[Metric]:
    redis, streams, keys = snapshot.redis, snapshot.streams, snapshot.keys
    yield _gauge("redis_up", "Whether Redis answers.", float(redis.reachable))
    if redis.durability != "unknown":
        text = "Whether what Redis has acknowledged survives a power cut."
        yield _gauge("redis_durable", text, float(redis.durability == "durable"))
    if redis.eviction != "unknown":
        text = "Whether Redis throws events away when its memory is full."
        yield _gauge("redis_evicts", text, float(redis.eviction != "noeviction"))
    if keys is None or not snapshot.seen:
        return
    database = f"db{redis.database}"
    lengths = GaugeMetricFamily("redis_stream_length", "Entries in a stream.", labels=["db", "stream"])
    lengths.add_metric([database, keys.input], streams.input_length)
    lengths.add_metric([database, keys.output], snapshot.output_length)
    lengths.add_metric([database, keys.dead_letter], snapshot.dead_letter_length)
    yield lengths
    labels, values = ["db", "stream", "group"], [database, keys.input, keys.group]
    for name, text, value in (
        ("redis_stream_group_messages_pending", "Entries delivered and not acknowledged.", streams.pending),
        ("redis_stream_group_consumers", "Consumers of the group.", streams.consumers),
    ):
        family = GaugeMetricFamily(name, text, labels=labels)
        family.add_metric(values, value)
        yield family


def _waiting(streams: StreamsView) -> Iterator[Metric]:
    yield _gauge("backlog_events", "Events not yet delivered to a worker.", streams.backlog)
    yield _gauge("pending_events", "Events delivered and not yet settled.", streams.pending)
    yield _gauge("parked_events", "Pending events that wait for their retry.", streams.parked)
    text = "Since the oldest event was added that is not settled; 0 where all are."
    yield _gauge("backlog_age_seconds", text, streams.backlog_age_s or 0.0)
    text = "Since the oldest event was added that no worker has had; 0 where there is none."
    yield _gauge("undelivered_age_seconds", text, streams.undelivered_age_s or 0.0)
    if streams.drained_in_s is not None:
        yield _gauge("drained_in_seconds", "Until all are settled, at this rate.", streams.drained_in_s)
    ratios = {"all": streams.success_rate, **streams.success_rate_over}
    text = "Enriched events as a share of all settled ones, over a window; absent where none was settled in it."
    rows = [(window, ratio) for window, ratio in ratios.items() if ratio is not None]
    yield _labelled("success_ratio", text, ("window",), rows)


def _counters(streams: StreamsView) -> Iterator[Metric]:
    yield _counter("added_events", "Events added to the input.", streams.added)
    yield _counter("enriched_events", "Events written to the output stream.", streams.enriched)
    yield _counter("retries", "Attempts that failed and were parked for another.", streams.retried)
    yield _counter("handed_back_events", "Deliveries that the janitor took from the dead.", streams.handed_back)
    yield _counter("released_events", "Deliveries that stopping workers handed back.", streams.released)
    yield _counter("skipped_events", "Entries that repeated an event_id.", streams.skipped)
    yield _counter("requeued_dead_letters", "Dead letters given back to the input.", streams.requeued)
    yield _counter("dropped_dead_letters", "Dead letters deleted for good.", streams.dropped)
    yield _counter("trimmed_events", "Finished events deleted from the input.", streams.trimmed)
    yield _counter("retired_consumers", "Consumers forgotten after their process ended.", streams.retired)
    yield _counter("lost_events", "Events gone with a stream that somebody deleted.", streams.lost)
    yield _counter("recreated_groups", "Times the consumer group had vanished.", streams.groups_recreated)
    reasons = {
        reason.value: 0 for reason in Reason
    } | streams.dead_by_reason  # where a series begins at 1, no rise is seen
    yield _counted("dead_letters", "Events buried, by reason.", "reason", reasons)
    lookups = {"hit": streams.cache_hits, "joined": streams.cache_joined, "miss": streams.cache_misses}
    yield _counted("cache_lookups", "Questions looked up in the cache.", "result", lookups)


def _latency(snapshot: Snapshot) -> Iterator[Metric]:
    measured = snapshot.measured
    text = "From an event's being added, by its id, to its being enriched or buried."
    yield _histogram("event_latency_seconds", text, measured.event)
    yield _histogram("model_call_seconds", "One call to the model, answered or failed.", measured.model)
    tokens = {"in": measured.tokens_in, "out": measured.tokens_out}
    yield _counted("model_tokens", "Tokens that the model has read and written.", "direction", tokens)


def _gate(gate: GateView) -> Iterator[Metric]:
    rows = [(name, float(name == gate.state)) for name in GATE_STATES]
    yield _labelled("gate_state", "1 for how the gate stands now.", ("state",), rows)
    yield _gauge("gate_shut_seconds", "How long nobody has been let through.", gate.since_s)
    yield _gauge("permits", "Calls to the model under way, and places that readers hold.", gate.permits)
    yield _gauge("permits_max", "Calls to the model at once, fleet-wide.", gate.permits_max)
    if gate.tokens is not None:
        yield _gauge("tokens", "Calls that may begin at once; below 0, calls that wait for theirs.", gate.tokens)
    yield _gauge("breaker_open", "Whether nobody reads, and one call at a time probes.", float(gate.is_open))
    yield _gauge("breaker_strikes", "Failed calls in a row.", gate.strikes)
    yield _counted("model_calls", "Calls to the model, by how they ended.", "end", gate.calls)


def _janitor(snapshot: Snapshot) -> Iterator[Metric]:
    """Yield what the janitor says of its last sweep."""
    rows = (row.get("stats", {}) for row in snapshot.children if row["name"] == "janitor")
    stats: dict[str, Any] = next(rows, {})
    yield _counter("janitor_sweeps", "Sweeps since the janitor process began.", stats.get("sweeps", 0))
    found = stats.get("sweep", {}).items()
    yield _labelled("janitor_last_sweep", "What the last sweep did.", ("what",), found)


def render(snapshot: Snapshot, now_s: float) -> bytes:
    """Return the exposition of a snapshot. `now_s` in the desk's monotonic seconds."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(snapshot, now_s))
    return generate_latest(registry)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"millhand_{name}", text, value=value)


def _labelled(name: str, text: str, labels: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> Metric:
    """Return a gauge of several values, each row its labels' values and the number."""
    family = GaugeMetricFamily(f"millhand_{name}", text, labels=labels)
    for *values, number in rows:
        family.add_metric(values, number)
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"millhand_{name}", text, value=value)


def _counted(name: str, text: str, label: str, counts: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"millhand_{name}", text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _histogram(name: str, text: str, counts: tuple[float, ...]) -> Metric:
    """Return a histogram of its sum in seconds and its counts by bucket."""
    sum_s, *by_bucket = counts
    bounds = [*(str(bound) for bound in BOUNDS_S), "+Inf"]
    buckets = list(zip(bounds, accumulate(by_bucket), strict=True))
    return HistogramMetricFamily(f"millhand_{name}", text, buckets=buckets, sum_value=sum_s)
