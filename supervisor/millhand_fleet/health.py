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
    """Judge a snapshot. `now` in seconds since the epoch."""
    reasons = []
    if not snapshot.redis.reachable:
        reasons.append(f"redis does not answer: {snapshot.redis.error or 'not asked yet'}")
    if now - snapshot.taken_at > STALE_AFTER_S:
        reasons.append(f"this picture is {now - snapshot.taken_at:.0f} s old")
    down = bool(reasons)
    ready = [row for row in snapshot.workers if row["state"] == "ready"]
    waiting = [row["stats"]["waits_for"] for row in ready if row.get("stats", {}).get("waits_for")]
    if len(ready) < snapshot.desired:
        reasons.append(f"{len(ready)} of {snapshot.desired} workers are ready")
    if not snapshot.supervisor_pid:
        reasons.append("the supervisor has not reported yet")
    elif snapshot.desired == 0:
        reasons.append("scaled to 0 workers")
    reasons += sorted({f"waiting for the model: {reason}" for reason in waiting})
    working = len(ready) > len(waiting) and not down
    status = "down" if down else "degraded" if reasons else "ok"
    return Health(status, working, tuple(reasons))
