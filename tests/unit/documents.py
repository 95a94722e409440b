"""Documents as the desk gives them, for what renders them."""

from typing import Any

CALLS = {"ok": 4012, "strike": 1, "late": 2, "busy": 0, "refused": 0}


def worker(number: int, state: str = "ready", **stats: Any) -> dict[str, Any]:
    """Make the row of a worker."""
    given = {"in_hand": 8, "oldest_s": 1.26, "waits_for": None, "asking": 7, "done": 1311, "retry": 2} | stats
    return {
        "name": f"worker-{number}", "state": state, "pid": 4000 + number, "for_s": 3725.4, "restarts": 0,
        "failures": 0, "last_exit": None, "rss_mib": 71.0, "stats": given,
    }  # fmt: skip


def document(workers: int = 2, **parts: dict[str, Any]) -> dict[str, Any]:
    """Make a document of a fleet at work; `parts` change members of its objects."""
    made: dict[str, Any] = {
        "health": {
            "status": "ok", "ready": True, "reasons": [], "fleet": "events", "backlog": 1234, "success_rate": 0.9961,
            "success_rate_over": {"1m": 1.0, "5m": 0.99123, "15m": None}, "workers_ready": workers,
            "workers_desired": workers,
        },
        "version": "1.0", "fleet": "events", "model": "llama3.2:3b", "at": "2026-11-26T22:10:03.120Z",
        "desired": workers, "supervisor_pid": 4000, "paused": False, "crash_loop": False, "rolling": None,
        "children": [
            {"name": "janitor", "state": "ready", "pid": 3999, "for_s": 90_000.0, "restarts": 0, "last_exit": None,
             "stats": {"waits_for": None, "sweeps": 12, "sweep": {"examined": 3}}},
            *(worker(number) for number in range(1, workers + 1)),
        ],
        "redis": {"reachable": True, "error": None, "server": "Valkey 9.1.0", "durability": "durable"},
        "gate": {"state": "closed", "since_s": 0.0, "until_s": 0.0, "says": "", "permits": 14, "permits_max": 16,
                 "tokens": None, "calls": CALLS},
        "streams": {
            "backlog": 1234, "pending": 18, "parked": 2, "enriched": 4003, "dead": 16,
            "dead_by_reason": {"malformed": 4, "timeout": 12}, "cache_hits": 1, "cache_joined": 1, "cache_misses": 8,
            "in_per_s": 12.1, "enriched_per_s": 11.84, "dead_per_s": 0.1, "backlog_age_s": 34.2, "drained_in_s": 104.0,
        },
        "latency": {"event": {"count": 700, "p50_s": 0.41, "p95_s": 0.9, "p99_s": 12.4},
                    "model": {"count": 720, "p50_s": 0.38, "p95_s": 0.84, "p99_s": None}},
        "recent_dead": [{"id": "1763892381190-0", "at": "2026-11-26T22:09:58Z", "src": "1763892380007-3",
                         "reason": "timeout", "detail": "no answer within 60 s\x1b[2J"}],
        "recent_enriched": [],
    }  # fmt: skip
    for name, members in parts.items():
        made[name] = made[name] | members
    return made
