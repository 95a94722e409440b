"""How long a fleet of eight takes to start, to replace its workers, to make up for a killed one, and to stop."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.fleet.conftest import RunningFleet
from tests.rig import eventually

from scripts.bench.figures import Spread
from scripts.bench.rig import cpu_s, environment_of, fast_model, server
from scripts.bench.rows import Report, Row

WORKERS = 8
WITHIN_S = 60.0


def measure(*, short: bool = False) -> Report:
    """Start and stop some fleets."""
    seen: dict[str, list[float]] = {}
    for _ in range(1 if short else 3):
        for what, seconds in one_life().items():
            seen.setdefault(what, []).append(seconds)
    spreads = {what: Spread.of(values) for what, values in seen.items()}
    rows: list[Row] = [
        {"what": what, "median_s": one.median, "low_s": one.low, "high_s": one.high} for what, one in spreads.items()
    ]
    return Report(
        f"{WORKERS} workers, no events, appendfsync everysec; until all workers say that they are ready", rows
    )


def one_life() -> dict[str, float]:
    """Take one fleet from its start to its end; return how long each step took."""
    with (
        server("everysec") as (running, _),
        fast_model(64, 0) as model,
        tempfile.TemporaryDirectory(prefix="millhand-bench-") as folder,
        RunningFleet(
            Path(folder), environment_of(running.url, model, workers=WORKERS, settings={"log.level": "info"})
        ) as fleet,
    ):
        started_s = timed(lambda: start(fleet))
        assert fleet.process is not None  # noqa: S101 - for the type checker: it is up
        cpu = cpu_s(fleet.process.pid)
        fleet.eventually_ready()
        return {
            "start": started_s,
            "start, CPU": cpu,
            "worker-ctl restart, one by one": timed(lambda: restart(fleet)),
            "kill -9 of a worker": timed(lambda: replace(fleet)),
            "stop": timed(fleet.terminate),
        }


def timed(act: Callable[[], object]) -> float:
    """Return how long something takes."""
    began_s = time.monotonic()
    act()
    return time.monotonic() - began_s


def start(fleet: RunningFleet) -> None:
    """Start it, and wait until all workers say that they are ready."""
    fleet.up(ready=False)
    eventually(lambda: workers_ready(fleet) == WORKERS, WITHIN_S, what="all workers are ready")


def restart(fleet: RunningFleet) -> None:
    """Have all children but the supervisor replaced."""
    if (answer := fleet.ctl("restart", "--wait")).returncode:
        raise RuntimeError(answer.stderr.decode())


def replace(fleet: RunningFleet) -> None:
    """Kill a worker, and wait until another one is ready."""
    before = workers_ready(fleet)
    victim = next(one for one in fleet.family() if one.name().startswith("millhand-worker"))
    victim.kill()
    eventually(lambda: workers_ready(fleet) > before, WITHIN_S, what="there is another worker")


def workers_ready(fleet: RunningFleet) -> int:
    """Return how often a worker has said that it is ready."""
    return len(fleet.told("worker.ready"))
