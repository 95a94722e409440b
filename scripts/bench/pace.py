"""How fast a fleet is at work: warm workers, a backlog that they get at one moment, and what it costs."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from tests.fleet.conftest import INPUT, OUTPUT, RunningFleet
from tests.rig import RedisServer

from scripts.bench import backlog
from scripts.bench.rig import cpu_s

HELD = f"{INPUT}:held"  # where `backlog.release` finds it


class Pace(NamedTuple):
    """What was seen; CPU in ms an event."""

    per_s: float
    cpu_ms: float
    server_cpu_ms: float


def pace(fleet: RunningFleet, server: RedisServer, client: Any, warm: Iterable[bytes], work: Iterable[bytes]) -> Pace:
    """Warm a fleet, then time it with the rest of the events; they come out once, or a NotOnce is raised."""
    client.delete(OUTPUT)
    given = client.xlen(INPUT)
    backlog.fill(client, INPUT, warm)
    backlog.wait_for(client, OUTPUT, client.xlen(INPUT) - given)
    backlog.fill(client, HELD, work)
    count = client.xlen(HELD)
    assert fleet.process is not None  # noqa: S101 - for the type checker: it is up
    spent_s = cpu_s(fleet.process.pid)
    start_s = backlog.begin(client, [INPUT], OUTPUT)
    server_s = cpu_s(server.pid)
    seconds = backlog.wait_for(client, OUTPUT, count) - start_s
    spent_s, server_s = cpu_s(fleet.process.pid) - spent_s, cpu_s(server.pid) - server_s
    sources = {fields[b"src"] for _, fields in client.xrange(OUTPUT)}
    if len(sources) != count or client.xlen(OUTPUT) != count:
        raise backlog.NotOnce(f"{client.xlen(OUTPUT)} records of {len(sources)} events, of {count}")
    return Pace(count / seconds, spent_s / count * 1000, server_s / count * 1000)
