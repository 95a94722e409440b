"""What a fleet of eight weighs: at rest, before a backlog of a million events, and while it works them off.

PSS: memory of one's own, and a share of what others use too.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import msgspec
import psutil
from tests.fleet.conftest import RunningFleet

from scripts.bench.backlog import STALL_S, NotOnce, fill
from scripts.bench.events import events
from scripts.bench.rig import INPUT, OUTPUT, fast_model, fleet, server
from scripts.bench.rows import Report
from scripts.bench.summary import Goal

WORKERS = 8
EVENTS, EVENTS_SHORT = 1_000_000, 100_000
REST_MIB, FLAT = 30.0, 1.05
POINTS = 20  # of the series
SETTLED_S = 3.0  # after the last worker is ready, or the last event came out
POLL_S = 0.1
FIRST = 1_000_000  # so that all numbers have as many digits
KIB_PER_MIB, BYTES_PER_MIB = 1024, 1 << 20


class Weights(msgspec.Struct, frozen=True):
    """What everybody weighs at a moment of the run: PSS of the fleet's processes, and the server's own count."""

    when: str
    s: float  # since the backlog was let loose
    events_out: int
    worker_mib: float  # on average
    heaviest_mib: float
    janitor_mib: float
    desk_mib: float
    supervisor_mib: float
    server_mib: float


def measure(*, short: bool = False) -> Report:
    """Look before, during and after the handling of a million events whose answers are known."""
    count = EVENTS_SHORT if short else EVENTS
    settings = {"model.in_flight_max": 1000, "cache.ttl_s": 86_400}
    with (
        server("everysec") as (running, client),
        fast_model(64, 0) as model,
        fleet(running.url, model, workers=WORKERS, settings=settings) as up,
    ):
        time.sleep(SETTLED_S)
        rest = look(up, client, "at rest", 0.0)
        up.ctl("pause")
        fill(client, INPUT, events(FIRST, count))
        time.sleep(SETTLED_S)
        before = look(up, client, "before the backlog", 0.0)
        up.ctl("resume")
        at_work = list(series(up, client, count))
        time.sleep(SETTLED_S)
        after = look(up, client, "at rest again", at_work[-1].s + SETTLED_S)
    goals = [
        Goal("memory of a worker at rest, MiB", REST_MIB, rest.worker_mib, at_most=True),
        Goal("memory before a backlog, of that at rest", FLAT, before.worker_mib / rest.worker_mib, at_most=True),
        Goal("memory at the end of the backlog, of that at its beginning", FLAT, growth(at_work), at_most=True),
    ]
    about = f"{WORKERS} workers, {count:,} events of some 300 bytes, all answers known, appendfsync everysec"
    return Report(about, [msgspec.structs.asdict(one) for one in (rest, before, *at_work, after)], goals)


def growth(at_work: Sequence[Weights]) -> float:
    """Return what a worker weighs in the last quarter of a series, of what it weighs in the first."""
    quarter = max(1, len(at_work) // 4)
    first, last = (mean(one.worker_mib for one in part) for part in (at_work[:quarter], at_work[-quarter:]))
    return last / first


def series(up: RunningFleet, client: Any, count: int) -> Iterator[Weights]:
    """Look each time a part of the events has come out."""
    began_s = heard_s = time.monotonic()
    done = -1
    for point in range(1, POINTS + 1):
        while (now := client.xlen(OUTPUT)) < count * point // POINTS:
            if now != done:
                done, heard_s = now, time.monotonic()
            elif time.monotonic() > heard_s + STALL_S:
                raise NotOnce(f"{now} of {count} events came out, and then none for {STALL_S:g} s")
            time.sleep(POLL_S)
        yield look(up, client, "at work", time.monotonic() - began_s)


def look(up: RunningFleet, client: Any, when: str, at_s: float) -> Weights:
    """Weigh everybody now."""
    weights = {name: [pss_mib(pid) for pid in pids] for name, pids in kinds(up).items()}
    return Weights(
        when,
        round(at_s, 1),
        int(client.xlen(OUTPUT)),
        mean(weights["worker"]),
        max(weights["worker"]),
        sum(weights["janitor"]),
        sum(weights["desk"]),
        sum(weights["supervisor"]),
        int(client.info("memory")["used_memory"]) / BYTES_PER_MIB,
    )


def kinds(up: RunningFleet) -> dict[str, list[int]]:
    """Return the pids of the fleet's processes by what they are."""
    assert up.process is not None  # noqa: S101 - for the type checker: it is up
    found: dict[str, list[int]] = {"worker": [], "janitor": [], "desk": [], "supervisor": [up.process.pid]}
    for child in psutil.Process(up.process.pid).children():
        for kind in ("worker", "janitor", "desk"):
            if child.name().startswith(f"millhand-{kind}"[:15]):
                found[kind].append(child.pid)
    return found


def pss_mib(pid: int) -> float:
    """Return a process's proportional share of memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / KIB_PER_MIB
