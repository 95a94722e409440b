"""How long a fleet of eight takes to start, to replace its workers, to make up for a killed one, and to stop."""

import os
import signal
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
    return Report(f"{WORKERS} workers, no events, appendfsync everysec; until the fleet says that all are ready", rows)


def one_life() -> dict[str, float]:
    """Take one fleet from its start to its end; return how long each step took."""
    with (
        server("everysec") as (running, _),
        fast_model(64, 0) as model,
        tempfile.TemporaryDirectory(prefix="millhand-bench-") as folder,
        RunningFleet(Path(folder), environment_of(running.url, model, workers=WORKERS)) as fleet,
    ):
        started_s = timed(fleet.up)
        assert fleet.process is not None  # noqa: S101 - for the type checker: it is up
        cpu = cpu_s(fleet.process.pid)
        return {
            "start": started_s,
            "start, CPU": cpu,
            "worker-ctl restart, one by one": timed(lambda: restart(fleet)),
            "kill -9 of a worker": timed(lambda: replaced(fleet)),
            "stop": timed(fleet.terminate),
        }


def timed(act: Callable[[], object]) -> float:
    """Return how long something takes."""
    began_s = time.monotonic()
    act()
    return time.monotonic() - began_s


def restart(fleet: RunningFleet) -> None:
    """Have all children but the supervisor replaced."""
    if (answer := fleet.ctl("restart", "--wait")).returncode:
        raise RuntimeError(answer.stderr.decode())


def replaced(fleet: RunningFleet) -> None:
    """Kill a worker, and wait until there are as many again."""
    victim, *_ = fleet.pids().values()
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in (pids := fleet.pids().values()) and len(pids) == WORKERS, WITHIN_S)
    eventually(fleet.is_ready, WITHIN_S)
