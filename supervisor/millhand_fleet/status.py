"""The document that `worker-ctl status`, `top` and the web page render."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from millhand import __version__
from millhand_fleet.health import judge_health
from millhand_fleet.snapshot import Snapshot

GOOD_S = 0.5


class Kept:
    """What was rendered of a snapshot, as long as there is no newer one: many who ask are one rendering."""

    def __init__(self, render: Callable[[Snapshot, float], bytes]) -> None:
        self._render = render
        self._of: Snapshot | None = None
        self._made_s = 0.0
        self._rendered = b""

    def of(self, snapshot: Snapshot, now_s: float) -> bytes:
        """Return a snapshot rendered. `now_s` in the desk's monotonic seconds."""
        if snapshot is not self._of or now_s - self._made_s > GOOD_S:
            self._rendered, self._of, self._made_s = self._render(snapshot, now_s), snapshot, now_s
        return self._rendered


def status_json(snapshot: Snapshot, now_s: float) -> bytes:
    """Return the document as JSON."""
    return msgspec.json.encode(status_document(snapshot, now_s))


def status_document(snapshot: Snapshot, now_s: float) -> dict[str, Any]:
    """Return all that is known of the fleet. `now_s` in the desk's monotonic seconds."""
    picture = msgspec.to_builtins(snapshot)
    more = picture.pop("more")
    del picture["measured"]  # for Prometheus, which keeps its own history; `latency` says it to people
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {**more, "health": health_document(snapshot, now_s), "version": __version__, "at": at, **picture}


def health_document(snapshot: Snapshot, now_s: float) -> dict[str, Any]:
    """Return whether the fleet is well, with the numbers that tell."""
    health = judge_health(snapshot, now_s)
    streams = snapshot.streams
    return {
        "status": health.status,
        "ready": health.ready,
        "reasons": list(health.reasons),
        "notes": list(health.notes),
        "fleet": snapshot.fleet,
        "backlog": streams.backlog,
        "backlog_age_s": streams.backlog_age_s,
        "drained_in_s": streams.drained_in_s,
        "pending": streams.pending,
        "enriched": streams.enriched,
        "dead_letters": streams.dead,
        "success_rate": None if streams.success_rate is None else round(streams.success_rate, 6),
        "success_rate_over": streams.success_rate_over,
        "enriched_per_s": streams.enriched_per_s,
        "workers_ready": sum(row["state"] == "ready" for row in snapshot.workers),
        "workers_desired": snapshot.desired,
    }
