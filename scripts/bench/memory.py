"""What a fleet of eight weighs: at rest, before a backlog of a million events, and while it works them off.

PSS: memory of one's own, and a share of what others use too.
"""

import time
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
from tests.fleet.conftest import RunningFleet

from scripts.bench.backlog import STALL_S, NotOnce, fill
from scripts.bench.events import events
from scripts.bench.report import Report, Row
from scripts.bench.rig import INPUT, OUTPUT, fast_model, fleet, server

WORKERS = 8
EVENTS, EVENTS_SHORT = 1_000_000, 100_000
POINTS = 20  # of the series
SETTLED_S = 3.0  # after the last worker is ready, or the last event came out
POLL_S = 0.1
FIRST = 1_000_000  # so that all numbers have as many digits
KIB_PER_MIB, BYTES_PER_MIB = 1024, 1 << 20


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
        rows = [look(up, client, "at rest", began_s=time.monotonic())]
        up.ctl("pause")
        fill(client, INPUT, events(FIRST, count))
        time.sleep(SETTLED_S)
        rows.append(look(up, client, "before the backlog", began_s=time.monotonic()))
        up.ctl("resume")
        rows += series(up, client, count)
        time.sleep(SETTLED_S)
        rows.append(look(up, client, "at rest again", began_s=time.monotonic()))
    return Report(
        f"{WORKERS} workers, {count:,} events of some 300 bytes, all answers known, appendfsync everysec", rows
    )


def series(up: RunningFleet, client: Any, count: int) -> list[Row]:
    """Look each time a part of the events has come out."""
    rows: list[Row] = []
    began_s = heard_s = time.monotonic()
    done = -1
    for point in range(1, POINTS + 1):
        while (now := client.xlen(OUTPUT)) < count * point // POINTS:
            if now != done:
                done, heard_s = now, time.monotonic()
            elif time.monotonic() > heard_s + STALL_S:
                raise NotOnce(f"{now} of {count} events came out, and then none for {STALL_S:g} s")
            time.sleep(POLL_S)
        rows.append(look(up, client, "at work", began_s=began_s))
    return rows


def look(up: RunningFleet, client: Any, when: str, *, began_s: float) -> Row:
    """Return what everybody weighs now, in MiB."""
    weights = {name: [pss_mib(pid) for pid in pids] for name, pids in kinds(up).items()}
    return {
        "when": when,
        "s": round(time.monotonic() - began_s, 1),
        "events_out": int(client.xlen(OUTPUT)),
        "worker_mib": mean(weights["worker"]),
        "heaviest_mib": max(weights["worker"]),
        "janitor_mib": sum(weights["janitor"]),
        "desk_mib": sum(weights["desk"]),
        "supervisor_mib": sum(weights["supervisor"]),
        "server_mib": int(client.info("memory")["used_memory"]) / BYTES_PER_MIB,
    }


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
