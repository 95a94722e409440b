"""Whether the fleet is well: pure, from a snapshot."""

import msgspec

from millhand_fleet.snapshot import Snapshot

STALE_AFTER_S = 10.0


class Health(msgspec.Struct, frozen=True):
    """`ok`, `degraded` (works, but not as it should) or `down`; whether events are being enriched; and why not."""

    status: str
    ready: bool
    reasons: tuple[str, ...]


def judge_health(snapshot: Snapshot, now: float) -> Health:
    """Judge a snapshot. `now` in the desk's monotonic seconds."""
    reasons = []
    if not snapshot.redis.reachable:
        reasons.append(f"redis does not answer: {snapshot.redis.error or 'not asked yet'}")
    elif now - snapshot.taken_at > STALE_AFTER_S:
        reasons.append(f"redis was asked {now - snapshot.taken_at:.0f} s ago for the last time")
    if snapshot.supervisor_pid and now - snapshot.heard_at > STALE_AFTER_S:
        reasons.append(f"the supervisor has been silent for {now - snapshot.heard_at:.0f} s")
    down = bool(reasons)
    ready = [row for row in snapshot.workers if row["state"] == "ready"]
    waiting = [row for row in snapshot.children if row.get("stats", {}).get("waits_for")]
    if len(ready) < snapshot.desired:
        reasons.append(f"{len(ready)} of {snapshot.desired} workers are ready")
    if not snapshot.supervisor_pid:
        reasons.append("the supervisor has not reported yet")
    elif snapshot.desired == 0:
        reasons.append("scaled to 0 workers")
    if snapshot.redis.eviction not in {"noeviction", "unknown"}:
        reasons.append(
            f"redis may throw events away: its maxmemory-policy is {snapshot.redis.eviction}, not noeviction"
        )
    gate = snapshot.gate
    if gate.is_open:
        reasons.append(f"{gate.state} for {gate.since_s:.0f} s, next probe in {gate.until_s:.1f} s: {gate.says}")
    elif gate.state == "paused":
        reasons.append(f"paused for {gate.until_s:.1f} s more: {gate.says}")
    said = {row["stats"]["waits_for"] for row in waiting} - {gate.says}
    reasons += sorted(f"waits for {what}" for what in said)
    working = any(row not in waiting for row in ready) and not down and not gate.is_open
    status = "down" if down else "degraded" if reasons else "ok"
    return Health(status, working, tuple(reasons))
