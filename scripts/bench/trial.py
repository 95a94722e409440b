"""One run of one entrant at one cell: warm workers, a backlog or an even load, and the check that all came out once."""

import time
from typing import Any

import msgspec

from scripts.bench import backlog
from scripts.bench.cases import Cell
from scripts.bench.entrants import Entrant, Stage
from scripts.bench.events import DATA
from scripts.bench.figures import percentile
from scripts.bench.rig import cpu_s, fast_model, server

WARM = 200  # events before the clock: connections are open, code is warm, and every text has been seen
FIRST = 1_000_000  # the number of the first event that counts, so that all have the same length
SETTLING_SHARE = 0.2  # of an even load, before latencies count
READ_MS = 500
STALL_S = 30.0


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was seen. CPU is user and system time in ms an event: of the workers with all their kin, and of the server.

    Latency is from the XADD of the raw event (or the product's own way to add it) to the reading of the enriched one;
    `own_ms` is the model's own time of it.
    """

    entrant: str
    cell: str
    durability: str
    events: int
    events_per_s: float
    cpu_ms: float
    server_cpu_ms: float
    calls: int
    in_flight_max: int
    own_ms: dict[str, float]
    latency_ms: dict[str, float] = {}


def trial(entrant: Entrant, cell: Cell, durability: str, count: int) -> Result:
    """Measure. Raises NotOnce if any event did not come out exactly once."""
    with (
        server(durability) as (running, client),
        fast_model(cell.case.slots, cell.case.latency_ms) as model,
    ):
        stage = Stage(running.url, client, model)
        if cell.load is None:
            _feed(entrant, stage, FIRST, count)
            backlog.hold(client, entrant.queues)
        with entrant.at_work(cell, stage) as pids:
            _feed(entrant, stage, 0, WARM)
            backlog.wait_for(client, entrant.output, WARM)
            model.reset()
            spent, spent_server = cpu_s(*pids), cpu_s(running.pid)
            latencies: list[float] = []
            if cell.load is None:
                start_s = backlog.begin(client, entrant.queues, entrant.output)
                spent_server = cpu_s(running.pid)
                seconds = backlog.wait_for(client, entrant.output, count) - start_s
            else:
                client.delete(entrant.output)
                began_s = time.monotonic()
                latencies = _latencies(entrant, stage, count, cell.load * (cell.case.ideal_per_s or 0))
                seconds = time.monotonic() - began_s
            spent, spent_server = cpu_s(*pids) - spent, cpu_s(running.pid) - spent_server
            backlog.check(client, entrant.output, FIRST, count)
        stats = model.stats()
        if stats["calls"] < count if cell.case.asks else stats["calls"]:
            raise backlog.NotOnce(f"the model was asked {stats['calls']} times about {count} events")
        return Result(
            entrant.name,
            cell.name,
            durability,
            count,
            count / seconds,
            spent / count * 1000,
            spent_server / count * 1000,
            **stats,
            latency_ms={f"p{p}": percentile(latencies, p) for p in (50, 99)} if latencies else {},
        )


def _feed(entrant: Entrant, stage: Stage, first: int, count: int) -> None:
    if code := entrant.feeder(stage, first, count).wait():
        raise RuntimeError(f"{entrant.label} could not be given its events: exit {code}")


def _latencies(entrant: Entrant, stage: Stage, count: int, per_s: float) -> list[float]:
    """Feed evenly, and return in ms how long each event took, without those of the beginning."""
    decode = msgspec.json.Decoder(_Sent).decode
    feeder = entrant.feeder(stage, FIRST, count, per_s)
    last: Any = "0"
    found: list[float] = []
    heard_s = time.monotonic()
    while len(found) < count:
        page = stage.client.xread({entrant.output: last}, block=READ_MS)
        now_us = time.time_ns() // 1000
        for _, entries in page:
            found += ((now_us - decode(fields[DATA.encode()]).sent_us) / 1000 for _, fields in entries)
            last, heard_s = entries[-1][0], time.monotonic()
        if time.monotonic() - heard_s > STALL_S:
            raise backlog.NotOnce(f"{len(found)} of {count} events came out, and then none for {STALL_S:g} s")
    feeder.wait()
    return found[int(count * SETTLING_SHARE) :]


class _Sent(msgspec.Struct):
    sent_us: int
