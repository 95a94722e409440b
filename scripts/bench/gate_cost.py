"""What the gate costs: the same work with a gate that limits nothing, one that limits calls, one that limits the rate.

How many scripts Redis runs an event, and what they cost it, is counted over all scripts: the gate's are among them.
"""

from typing import Any

from scripts.bench.events import events
from scripts.bench.pace import pace
from scripts.bench.rig import fast_model, fleet, server
from scripts.bench.rows import Report, Row

WORKERS = 2
FIRST = 1_000_000  # so that all numbers have as many digits
CASES = {
    "nothing to limit": ({"model.in_flight_max": 1000}, 6000),
    "8 calls at once": ({"model.in_flight_max": 8}, 6000),
    "1,000 calls a second, bursts of 10": (
        {"model.in_flight_max": 1000, "model.rate_per_s": 1000, "model.burst": 10},
        6000,
    ),
}


def measure(*, short: bool = False) -> Report:
    """Let two workers with 16 calls each ask a model that answers at once."""
    rows: list[Row] = []
    for what, (settings, most) in CASES.items():
        count = most // (3 if short else 1)
        with (
            server("everysec") as (running, client),
            fast_model(64, 0) as model,
            fleet(running.url, model, workers=WORKERS, settings={"model.concurrency": 16, **settings}) as up,
        ):
            before = scripts_run(client)
            seen = pace(up, running, client, events(0, 100), events(FIRST, count))
            calls, usec = (after - first for first, after in zip(before, scripts_run(client), strict=True))
            rows.append(
                {
                    "gate": what,
                    "events_per_s": seen.per_s,
                    "scripts_an_event": calls / count,
                    "script_us_an_event": usec / count,
                    "cpu_ms": seen.cpu_ms,
                    "server_cpu_ms": seen.server_cpu_ms,
                }
            )
    return Report(f"{WORKERS} workers, 16 calls each, a model that answers at once, appendfsync everysec", rows)


def scripts_run(client: Any) -> tuple[int, int]:
    """Return how many scripts the server has run, and for how many microseconds."""
    stats = client.info("commandstats")
    found = [stats[name] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in stats]
    return sum(one["calls"] for one in found), sum(one["usec"] for one in found)
