"""What more workers bring where the model has room: all have as many calls under way, so N could be N times one."""

from scripts.bench.events import events
from scripts.bench.pace import pace
from scripts.bench.rig import fast_model, fleet, server
from scripts.bench.rows import Report
from scripts.bench.summary import Goal

WORKERS = (1, 2, 4, 8)
LATENCY_MS = 50.0
SLOTS = 4096
CONCURRENCY = 8  # calls that a worker has under way
TWO_OF_TWICE_ONE = 0.95
FIRST = 1_000_000  # so that all numbers have as many digits


def measure(*, short: bool = False) -> Report:
    """Let 1, 2, 4 and 8 workers work for some seconds each."""
    seconds = 3.0 if short else 6.0
    rows: list[dict[str, float]] = []
    one_per_s = 0.0
    with fast_model(SLOTS, LATENCY_MS) as model:
        for workers in WORKERS:
            settings = {"model.concurrency": CONCURRENCY, "model.in_flight_max": SLOTS}
            ideal_per_s = workers * CONCURRENCY / LATENCY_MS * 1000
            with (
                server("everysec") as (running, client),
                fleet(running.url, model, workers=workers, settings=settings) as up,
            ):
                work = events(FIRST, round(ideal_per_s * seconds))
                seen = pace(up, running, client, events(0, 20 * workers), work)
            one_per_s = one_per_s or seen.per_s
            rows.append(
                {
                    "workers": workers,
                    "events_per_s": seen.per_s,
                    "of_N_times_one": seen.per_s / one_per_s / workers,
                    "of_the_ideal": seen.per_s / ideal_per_s,
                    "cpu_ms": seen.cpu_ms,
                    "server_cpu_ms": seen.server_cpu_ms,
                }
            )
    about = f"a model of {LATENCY_MS:g} ms with room for all, {CONCURRENCY} calls a worker, appendfsync everysec"
    goal = Goal("2 workers where the model has room: of twice one", TWO_OF_TWICE_ONE, rows[1]["of_N_times_one"])
    return Report(about, rows, [goal])
