"""How long an event takes at a given load: from the XADD of the raw one to that of the enriched one, by Redis's clock.

Both times stand in the ids of the entries, in whole milliseconds.
"""

from typing import Any

from scripts.bench.backlog import wait_for
from scripts.bench.events import DATA, paced
from scripts.bench.figures import percentile
from scripts.bench.rig import INPUT, OUTPUT, cpu_s, fast_model, fleet, server
from scripts.bench.rows import Report, Row

SLOTS, LATENCY_MS = 16, 50.0
IDEAL_PER_S = SLOTS / LATENCY_MS * 1000
LOADS = (0.2, 0.5, 0.8, 0.95)
PERCENTS = (50, 90, 99, 100)
WORKERS, CONCURRENCY = 2, 10
SETTLING_SHARE = 0.2  # of a run, before latencies count
WARM = 100


def measure(*, short: bool = False) -> Report:
    """Give a fleet events evenly, at each of the loads."""
    seconds = 5.0 if short else 15.0
    rows: list[Row] = []
    settings = {"model.concurrency": CONCURRENCY, "model.in_flight_max": WORKERS * CONCURRENCY}
    with (
        fast_model(SLOTS, LATENCY_MS) as model,
        server("everysec") as (running, client),
        fleet(running.url, model, workers=WORKERS, settings=settings) as up,
    ):
        feed(client, WARM, IDEAL_PER_S)
        for load in LOADS:
            model.reset()
            per_s = load * IDEAL_PER_S
            assert up.process is not None  # noqa: S101 - for the type checker: it is up
            spent_s = cpu_s(up.process.pid)
            count = round(per_s * seconds)
            took_ms = feed(client, count, per_s)[int(count * SETTLING_SHARE) :]
            own = model.stats()["own_ms"]
            rows.append(
                {
                    "load": load,
                    "events_per_s": per_s,
                    **{f"p{percent}_ms": percentile(took_ms, percent) for percent in PERCENTS},
                    "model_p50_ms": own["p50"],
                    "model_p99_ms": own["p99"],
                    "cpu_ms": (cpu_s(up.process.pid) - spent_s) / count * 1000,
                }
            )
    model_is = f"a model of {LATENCY_MS:g} ms and {SLOTS} slots"
    return Report(f"{WORKERS} workers, {CONCURRENCY} calls each, {model_is}, evenly fed, appendfsync everysec", rows)


def feed(client: Any, count: int, per_s: float) -> list[float]:
    """Add events evenly; return in ms how long each took, in the order in which they were added."""
    client.delete(OUTPUT)
    for data in paced(0, count, per_s):
        client.xadd(INPUT, {DATA: data})
    wait_for(client, OUTPUT, count)
    records = sorted((_ms(fields[b"src"]), _ms(record)) for record, fields in client.xrange(OUTPUT))
    return [float(enriched - added) for added, enriched in records]


def _ms(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])
