"""The snapshot in Prometheus's text format."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from millhand_fleet.gate_view import GateView
from millhand_fleet.snapshot import Snapshot

GATE_STATES = ("closed", "paused", "throttled", "away", "misconfigured")


class SnapshotCollector(Collector):
    """Renders one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        snapshot, streams = self._snapshot, self._snapshot.streams
        yield _gauge("redis_up", "Whether Redis answers.", float(snapshot.redis.reachable))
        yield _gauge("backlog_events", "Events not yet delivered to a worker.", streams.backlog)
        yield _gauge("pending_events", "Events delivered and not yet settled.", streams.pending)
        yield _gauge("parked_events", "Pending events that wait for their retry.", streams.parked)
        yield _gauge("workers_desired", "Workers there should be.", snapshot.desired)
        ready = sum(row["state"] == "ready" for row in snapshot.workers)
        yield _gauge("workers_ready", "Workers at work.", ready)
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
        yield from self._janitor()
        yield from _gate(snapshot.gate)
        yield _counter("restarts", "Children started again.", sum(row["restarts"] for row in snapshot.children))
        lookups = CounterMetricFamily("millhand_cache_lookups", "Questions looked up in the cache.", labels=["result"])
        for result, count in (
            ("hit", streams.cache_hits), ("joined", streams.cache_joined), ("miss", streams.cache_misses)
        ):  # fmt: skip
            lookups.add_metric([result], count)
        yield lookups
        if streams.success_rate is not None:
            yield _gauge("success_ratio", "Enriched events as a share of all settled ones.", streams.success_rate)
        dead = CounterMetricFamily("millhand_dead_letters", "Events buried, by reason.", labels=["reason"])
        for reason, count in streams.dead_by_reason.items():
            dead.add_metric([reason], count)
        yield dead

    def _janitor(self) -> Iterator[Metric]:
        """Yield what the janitor says of its last sweep."""
        stats: dict[str, Any] = next(
            (row.get("stats", {}) for row in self._snapshot.children if row["name"] == "janitor"), {}
        )
        yield _counter("janitor_sweeps", "Sweeps since the janitor process began.", stats.get("sweeps", 0))
        sweep = GaugeMetricFamily("millhand_janitor_last_sweep", "What the last sweep did.", labels=["what"])
        for what, value in stats.get("sweep", {}).items():
            sweep.add_metric([what], value)
        yield sweep


def _gate(gate: GateView) -> Iterator[Metric]:
    """Yield what the gate lets through."""
    state = GaugeMetricFamily("millhand_gate_state", "1 for how the gate stands now.", labels=["state"])
    for name in GATE_STATES:
        state.add_metric([name], float(name == gate.state))
    yield state
    yield _gauge("gate_shut_seconds", "How long nobody has been let through.", gate.since_s)
    yield _gauge("permits", "Calls to the model under way, and places that readers hold.", gate.permits)
    yield _gauge("permits_max", "Calls to the model at once, fleet-wide.", gate.permits_max)
    if gate.tokens is not None:
        yield _gauge("tokens", "Calls that may begin at once; below 0, calls that wait for theirs.", gate.tokens)
    yield _gauge("breaker_strikes", "Failed calls in a row.", gate.strikes)
    calls = CounterMetricFamily("millhand_model_calls", "Calls to the model, by how they ended.", labels=["end"])
    for end, count in gate.calls.items():
        calls.add_metric([end], count)
    yield calls


def render(snapshot: Snapshot) -> bytes:
    """Return the exposition of a snapshot."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(snapshot))
    return generate_latest(registry)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"millhand_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"millhand_{name}", text, value=value)
