"""Whether the fleet is well: pure, from a snapshot."""

from collections.abc import Iterator

import msgspec

from millhand.pulse import PAUSED
from millhand_fleet.snapshot import Snapshot

STALE_AFTER_S = 10.0
OLD_AFTER_S = 900.0  # of the oldest event, where no end of the backlog is in sight
STATUSES = ("ok", "degraded", "down")
DURABILITIES_WITHOUT_A_NOTE = {"durable", "unknown"}


class Health(msgspec.Struct, frozen=True):
    """`ok`, `degraded` (works, but not as it should) or `down`; whether events are being enriched; and why not.

    `notes` are worth knowing and nothing to be woken for: they leave the status as it is.
    """

    status: str
    ready: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()


def judge_health(snapshot: Snapshot, now: float) -> Health:
    """Judge a snapshot. `now` in the desk's monotonic seconds."""
    down = tuple(_silences(snapshot, now))
    reasons = (*down, *_fleet_reasons(snapshot), *_stream_reasons(snapshot), *_gate_reasons(snapshot))
    # What a worker says may be a moment old; whether the fleet is paused is the supervisor's to say.
    working = any(row["state"] == "ready" and _waits_for(row) in {None, PAUSED} for row in snapshot.workers)
    ready = working and not down and not snapshot.gate.is_open and not snapshot.paused
    status = "down" if down else "degraded" if reasons else "ok"
    return Health(status, ready, reasons, tuple(_notes(snapshot)))


def _silences(snapshot: Snapshot, now: float) -> Iterator[str]:
    """Yield who does not answer: then all else is old."""
    if not snapshot.redis.reachable and snapshot.redis.error is None:
        yield "redis has not been asked yet: the desk has just begun"
    elif not snapshot.redis.reachable:
        yield f"redis does not answer: {snapshot.redis.error}"
    elif now - snapshot.taken_at > STALE_AFTER_S:
        yield f"redis was asked {now - snapshot.taken_at:.0f} s ago for the last time"
    if snapshot.supervisor_pid and now - snapshot.heard_at > STALE_AFTER_S:
        yield f"the supervisor has been silent for {now - snapshot.heard_at:.0f} s"


def _fleet_reasons(snapshot: Snapshot) -> Iterator[str]:
    if snapshot.crash_loop:
        yield "crash loop: the workers die one after another; the log says why, at child.died"
    ready = [row for row in snapshot.workers if row["state"] == "ready"]
    if len(ready) < snapshot.desired:
        yield f"{len(ready)} of {snapshot.desired} workers are ready"
    if not snapshot.supervisor_pid:
        yield "the supervisor has not reported yet"
    elif snapshot.desired == 0:
        yield "scaled to 0 workers"
    if snapshot.paused:
        yield "paused by an operator; `worker-ctl resume` lets it go on"


def _stream_reasons(snapshot: Snapshot) -> Iterator[str]:
    streams, eviction = snapshot.streams, snapshot.redis.eviction
    if eviction not in {"noeviction", "unknown"}:
        yield f"redis may throw events away: its maxmemory-policy is {eviction}, not noeviction"
    if (streams.backlog_age_s or 0.0) > OLD_AFTER_S and streams.drained_in_s is None:
        yield f"the oldest event has waited for {streams.backlog_age_s:.0f} s, and no end of the backlog is in sight"


def _gate_reasons(snapshot: Snapshot) -> Iterator[str]:
    gate = snapshot.gate
    if gate.is_open:
        yield f"{gate.state} for {gate.since_s:.0f} s, next probe in {gate.until_s:.1f} s: {gate.says}"
    elif gate.state == "paused":
        yield f"paused for {gate.until_s:.1f} s more: {gate.says}"
    said = {what for row in snapshot.children if (what := _waits_for(row))} - {
        gate.says,
        PAUSED,
        f"redis: {snapshot.redis.error}",
    }
    yield from sorted(f"waits for {what}" for what in said)


def _notes(snapshot: Snapshot) -> Iterator[str]:
    if rolling := snapshot.rolling:
        yield f"rolling {rolling.get('what', 'restart')}; processes to go: {rolling.get('left', '?')}"
    if snapshot.stop_wait_note:
        yield snapshot.stop_wait_note
    durability = snapshot.redis.durability
    if snapshot.redis.reachable and durability not in DURABILITIES_WITHOUT_A_NOTE:
        yield (
            f"redis durability is {durability}: what it has acknowledged may be gone after a crash; "
            "`appendonly yes` with `appendfsync always` keeps it"
        )


def _waits_for(row: dict[str, object]) -> str | None:
    stats = row.get("stats")
    what = stats.get("waits_for") if isinstance(stats, dict) else None
    return str(what) if what else None
