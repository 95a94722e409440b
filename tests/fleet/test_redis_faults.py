"""What can happen to Redis under a working fleet: it waits, spends nothing, says why, and goes on."""

import asyncio
import contextlib
import json
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx
import pytest
from tests.fleet.chaos.proxy import FaultProxy
from tests.fleet.conftest import DEAD, INPUT, OUTPUT, RunningFleet, Streams, gone
from tests.integration.race import DONE
from tests.rig import HOST, SERVERS, RedisServer, config_for, eventually, eventually_async

from millhand.keys import Keys
from millhand.settle import Settler
from millhand.stream import COMMAND_TIMEOUT_S, connect
from millhand.verdict import Delivery
from millhand_fleet.state import ENDPOINTS, StateDir
from scripts.fake_ollama import FakeOllama

if TYPE_CHECKING:
    from redis import Redis

EVENTS = 120
LOAD = "event {n} [[fake delay=0.05]]"
MEND_S_MAX = 60.0
NOTICE_S_MAX = 20.0
RESUME_S_MAX = 5.0
DRAIN_S = 5.0  # as the fixture `fleet` has it
STOP_S_MAX = DRAIN_S + 5.0
STORM_EVERY_S = 0.1
BUSY_SCRIPT = "local s = redis.call('TIME')[1] repeat until redis.call('TIME')[1] - s > 4"
WORKERS = {"worker-1", "worker-2"}


@pytest.fixture
def durable_redis(server_kind: str, tmp_path: Path) -> Iterator[RedisServer]:
    """Start a server that hears of a full disk from `write`, as on a real one, and not by the signal of its limit."""
    program = tmp_path / "redis-server"
    program.write_text(f'#!/bin/sh\ntrap "" XFSZ\nexec {SERVERS[server_kind]()} "$@"\n')
    program.chmod(0o755)
    with RedisServer({"appendonly": "yes", "appendfsync": "always"}, binary=program) as server:
        yield server


# -- what is asked of a fleet -----------------------------------------------------------------------------------------


def under_load(fleet: RunningFleet, streams: Streams) -> None:
    """Start a fleet, and let it come into the midst of its work."""
    fleet.environment["MILLHAND_DELIVERY_LEASE_S"] = "3"
    fleet.up()
    streams.produce(EVENTS, LOAD)
    eventually(lambda: streams.client.xlen(OUTPUT) >= EVENTS // 6)


def reasons(fleet: RunningFleet) -> str:
    """Return why the fleet is not well, as the health endpoint says."""
    desk = StateDir(fleet.state_dir).read(ENDPOINTS)["desk_url"]
    health = httpx.get(f"{desk}/healthz", timeout=10).json()
    assert (health["status"] == "ok") is not bool(health["reasons"])
    return "; ".join(health["reasons"])


def who_waits(fleet: RunningFleet) -> set[str]:
    """Return the processes that have told of trouble with Redis."""
    return {record["process"] for record in fleet.told("redis.waiting") + fleet.told("settle.resending")}


def ends_well(fleet: RunningFleet, streams: Streams, count: int) -> None:
    """Every event has one record, none an attempt too many, and the processes are well and the same as before."""
    eventually(lambda: not reasons(fleet), MEND_S_MAX, what="the fleet is well again")
    eventually(lambda: streams.settled_once(count), MEND_S_MAX)
    eventually(lambda: streams.client.xpending(INPUT, "enrichers")["pending"] == 0)
    eventually(lambda: not reasons(fleet), what="the fleet is still well")
    assert not streams.dead()
    enrichments = [json.loads(record[b"data"])["ai_enrichment"] for record in streams.enriched()]
    assert {enrichment["meta"]["attempts"] for enrichment in enrichments} == {1}
    assert not fleet.told("child.died")


# -- one fault at a time ----------------------------------------------------------------------------------------------


class Site(NamedTuple):
    """Where a fault is brought about: a server, and a connection to it that was there before."""

    server: RedisServer
    admin: "Redis"


Act = Callable[[Site], None]


def ordering(*commands: str) -> Act:
    """Return how to give the server orders, all at once."""

    def order(site: Site) -> None:
        with site.admin.pipeline() as transaction:
            for command in commands:
                transaction.execute_command(*command.split())  # type: ignore[no-untyped-call]
            transaction.execute()

    return order


def start_loading(site: Site) -> None:
    """Let it be busy with loading for four seconds."""
    site.admin.eval("for i = 1, 4000 do redis.call('SET', 'filler' .. i, string.rep('x', 100)) end", 0)
    site.admin.bgrewriteaof()
    eventually(lambda: not site.admin.info("persistence")["aof_rewrite_in_progress"])
    site.server.kill()
    site.server._options |= {"key-load-delay": "1000", "loading-process-events-interval-bytes": "1024"}  # us, bytes
    site.server.launch()


def freeze(site: Site) -> None:
    site.server.pause()


def thaw(site: Site) -> None:
    site.server.resume()


def spoil_log(site: Site) -> None:
    """Overwrite the beginning of a command in the middle; the server refuses that as often as it is started."""
    site.server.kill()
    log = log_of(site.server)
    whole = log.read_bytes()
    log.with_suffix(".whole").write_bytes(whole)
    middle = whole.index(b"*", len(whole) // 2)
    log.write_bytes(whole[:middle] + b"?" + whole[middle + 1 :])
    for _ in range(3):
        site.server.launch()
        eventually(lambda: has_ended(site.server))
        assert "Bad file format" in site.server.log
        site.server.kill()


def repair_log(site: Site) -> None:
    log = log_of(site.server)
    log.with_suffix(".whole").rename(log)
    site.server.start()


def fill_disk(site: Site) -> None:
    """Let no file grow beyond what the append-only file is now."""
    size_bytes = log_of(site.server).stat().st_size
    resource.prlimit(site.server.pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def fill_disk_under_everysec(site: Site) -> None:
    site.admin.config_set("appendfsync", "everysec")
    fill_disk(site)


def free_disk(site: Site) -> None:
    resource.prlimit(site.server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def start_with_a_free_disk(site: Site) -> None:
    assert has_ended(site.server), "it cannot keep its promise, and goes on"
    site.server.restart()


def occupy(site: Site) -> None:
    """Run a script that holds the server up, and do not wait for its end."""
    site.admin.config_set("busy-reply-threshold", 300)
    with socket.create_connection((HOST, site.server.port)) as connection:
        connection.sendall(f'EVAL "{BUSY_SCRIPT}" 0\r\n'.encode())


def take_password_back(site: Site) -> None:
    site.admin.config_set("requirepass", "")


def by_itself(_: Site) -> None:
    """End a fault that does not last."""


def log_of(server: RedisServer) -> Path:
    """Return the append-only file that grows."""
    (file,) = (server.folder / "appendonlydir").glob("*.incr.aof")
    return file


def has_ended(server: RedisServer) -> bool:
    return server._running().poll() is not None


KILL_CLIENTS = "CLIENT KILL TYPE normal SKIPME yes"


class Fault(NamedTuple):
    """How to bring it about, what health must say of it, and how to mend it."""

    name: str
    begin: Act
    said: str
    mend: Act = by_itself


FAULTS = [
    Fault("F21 loading", start_loading, "loading the dataset"),
    Fault("F22 frozen", freeze, "redis does not answer: Timeout", thaw),
    Fault("F23 pause WRITE", ordering("CLIENT PAUSE 60000 WRITE"), "", ordering("CLIENT UNPAUSE")),
    Fault("F23 pause ALL", ordering("CLIENT PAUSE 12000 ALL"), "redis does not answer: Timeout"),
    Fault("F28 corrupt log", spoil_log, "redis does not answer: Error 111", repair_log),
    Fault("F29 full disk, everysec", fill_disk_under_everysec, "redis: MISCONF", free_disk),
    Fault("F29 full disk, always", fill_disk, "redis does not answer: Error 111", start_with_a_free_disk),
    Fault("F35 read only", ordering("REPLICAOF 127.0.0.1 9"), "READONLY", ordering("REPLICAOF NO ONE")),
    Fault(
        "F36 permission",
        ordering("ACL SETUSER default -xadd"),
        "waits for redis: ",  # Redis 7.0 does not name the command
        ordering("ACL SETUSER default +xadd"),
    ),
    Fault(
        "F36 wrong type",
        ordering(f"RENAME {OUTPUT} aside", f"SET {OUTPUT} mine"),
        "redis: WRONGTYPE",
        ordering(f"RENAME aside {OUTPUT}"),
    ),
    Fault("F37 busy script", occupy, "BUSY"),
    Fault(
        "F37 max clients",
        ordering("CONFIG SET maxclients 1", KILL_CLIENTS),
        "max number of clients",
        ordering("CONFIG SET maxclients 1000"),
    ),
    Fault(
        "F37 no replicas",
        ordering("CONFIG SET min-replicas-to-write 1"),
        "redis: NOREPLICAS",
        ordering("CONFIG SET min-replicas-to-write 0"),
    ),
    Fault(
        "F37 password", ordering("CONFIG SET requirepass another", KILL_CLIENTS), "Authentication", take_password_back
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fleet_waits_while_redis_does_not_do_as_asked_says_why_and_goes_on(
    fleet: RunningFleet, streams: Streams, durable_redis: RedisServer, fault: Fault
) -> None:
    """F21, F22, F23, F28, F29, F35, F36, F37: both workers have met the fault, and no process has died of it."""
    under_load(fleet, streams)
    site = Site(durable_redis, streams.client)
    fault.begin(site)
    eventually(lambda: fault.said in reasons(fleet), NOTICE_S_MAX, what=f"health says {fault.said!r}")
    eventually(lambda: who_waits(fleet) >= WORKERS, NOTICE_S_MAX, what="both workers have told")
    fault.mend(site)
    ends_well(fleet, streams, EVENTS)


# -- again and again --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "act",
    [pytest.param(ordering(KILL_CLIENTS), id="F24"), pytest.param(ordering("SCRIPT FLUSH"), id="F33")],
)
def test_a_fleet_makes_progress_in_a_storm(
    fleet: RunningFleet, streams: Streams, durable_redis: RedisServer, act: Act
) -> None:
    """F24, F33: connections cut, or scripts forgotten, every tenth of a second."""
    under_load(fleet, streams)
    site = Site(durable_redis, streams.client)
    acted = 0.0

    def is_nearly_done() -> bool:
        nonlocal acted
        if time.monotonic() - acted >= STORM_EVERY_S:
            act(site)
            acted = time.monotonic()
        return bool(streams.client.xlen(OUTPUT) >= EVENTS * 3 // 4)

    eventually(is_nearly_done, MEND_S_MAX)
    ends_well(fleet, streams, EVENTS)


@pytest.mark.alone
def test_a_fleet_resumes_within_seconds_whenever_redis_is_killed(
    fleet: RunningFleet, streams: Streams, durable_redis: RedisServer
) -> None:
    """F20: kill -9 under load, with appendfsync always."""
    under_load(fleet, streams)
    for _ in range(4):
        before = streams.client.xlen(OUTPUT)
        durable_redis.restart()
        eventually(lambda before=before: streams.client.xlen(OUTPUT) > before, RESUME_S_MAX)  # type: ignore[misc]
    ends_well(fleet, streams, EVENTS)


def test_a_dead_letter_that_cannot_be_written_is_told_and_written_as_soon_as_it_can(
    fleet: RunningFleet, streams: Streams
) -> None:
    """F36: the janitor is refused, not a worker; what it must bury stays pending."""
    streams.client.xgroup_create(INPUT, "enrichers", "0", mkstream=True)
    streams.produce(1)
    ((_, ((poison, _),)),) = streams.client.xreadgroup("enrichers", "elsewhere:w1:a", {INPUT: ">"})
    streams.client.xclaim(INPUT, "enrichers", "elsewhere:w1:a", 0, [poison], retrycount=3)
    streams.client.set(DEAD, "mine")
    fleet.environment["MILLHAND_DELIVERY_LEASE_S"] = "1"
    fleet.up(ready=False)
    eventually(lambda: fleet.told("janitor.refused"), NOTICE_S_MAX)
    eventually(lambda: "waits for redis: WRONGTYPE" in _said(fleet), NOTICE_S_MAX)
    assert streams.client.xpending(INPUT, "enrichers")["pending"] == 1
    streams.client.delete(DEAD)
    eventually(lambda: [record[b"failure_reason"] for record in streams.dead()] == [b"crash_loop"])
    eventually(lambda: not reasons(fleet))


# -- a log with an end of its own -------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [1, 8])
def test_what_a_torn_log_has_forgotten_is_done_again_and_written_once(
    fleet: RunningFleet, streams: Streams, durable_redis: RedisServer, fake: FakeOllama, torn: int
) -> None:
    """F27: the append-only file is cut between a record and its acknowledgement: both go, and so does all after it."""
    under_load(fleet, streams)
    eventually(lambda: streams.settled_once(EVENTS), MEND_S_MAX)
    before = {fields[b"src"]: entry_id for entry_id, fields in streams.client.xrange(OUTPUT)}
    calls = len(fake.calls)
    durable_redis.kill()
    forgotten = tear(log_of(durable_redis), torn)
    durable_redis.start()
    ends_well(fleet, streams, EVENTS)
    after = {fields[b"src"]: entry_id for entry_id, fields in streams.client.xrange(OUTPUT)}
    assert len(before.items() - after.items()) == forgotten
    assert len(fake.calls) == calls + forgotten


def tear(log: Path, torn: int) -> int:
    """Cut the append-only file in the midst of the transaction that wrote the last record but so many.

    Returns how many records go with it: a transaction holds those of all events that were finished together.
    """
    whole = log.read_bytes()
    cut = len(whole)
    for _ in range(torn):
        cut = whole.rindex(OUTPUT.encode(), 0, cut)
    transaction = whole.rindex(b"MULTI", 0, cut)
    assert whole.find(b"XACK", cut) > 0
    log.write_bytes(whole[: cut + len(OUTPUT)])
    return whole.count(OUTPUT.encode(), transaction)


# -- a full memory, and who makes room --------------------------------------------------------------------------------


def test_a_fleet_reads_nothing_more_while_memory_is_full_and_finishes_what_it_has(
    fleet: RunningFleet, streams: Streams, fake: FakeOllama
) -> None:
    """F30: what is read could not be parked any more; `status` says why nothing moves."""
    fleet.up()
    streams.produce(4, "event {n} [[fake hold]]")
    eventually(lambda: fake.held == 4)
    streams.produce(EVENTS)
    streams.client.config_set("maxmemory", 1)
    fake.release()
    eventually(lambda: who_waits(fleet) >= WORKERS, NOTICE_S_MAX)
    eventually(lambda: streams.client.xpending(INPUT, "enrichers")["pending"] == 0)
    assert 4 <= streams.client.xlen(OUTPUT) < EVENTS
    eventually(lambda: b"used memory > 'maxmemory'" in fleet.ctl("status").stdout)
    streams.client.config_set("maxmemory", 0)
    ends_well(fleet, streams, EVENTS + 4)


def test_a_server_that_may_throw_events_away_is_told_of(fleet: RunningFleet, streams: Streams) -> None:
    """F31."""
    streams.client.config_set("maxmemory-policy", "allkeys-lru")
    fleet.up(ready=False)
    streams.produce(4)
    eventually(lambda: "redis may throw events away" in _said(fleet), NOTICE_S_MAX)
    assert [record["policy"] for record in fleet.told("redis.may_evict")] == ["allkeys-lru"]
    streams.client.config_set("maxmemory-policy", "noeviction")
    ends_well(fleet, streams, 4)


# -- a black hole -----------------------------------------------------------------------------------------------------


def test_a_fleet_goes_on_after_a_black_hole(fleet: RunningFleet, streams: Streams, durable_redis: RedisServer) -> None:
    """F26: no call lasts for ever; each process tries anew, several times, until it is answered."""
    with FaultProxy(durable_redis.port).in_thread() as proxy:
        fleet.environment["MILLHAND_REDIS_URL"] = proxy.redis_url
        under_load(fleet, streams)
        before = proxy.connections
        proxy.black_hole()
        eventually(lambda: who_waits(fleet) >= {*WORKERS, "janitor"}, NOTICE_S_MAX)
        eventually(lambda: proxy.connections > before + 10, NOTICE_S_MAX)
        assert "redis does not answer" in reasons(fleet)
        proxy.passing()
        ends_well(fleet, streams, EVENTS)


@pytest.mark.parametrize("when", ["at work", "at the start"])
def test_a_fleet_stops_in_time_while_redis_is_a_black_hole(
    fleet: RunningFleet, streams: Streams, durable_redis: RedisServer, when: str
) -> None:
    """F15, F26: SIGTERM, twice; what could not be handed back is found by the next fleet."""
    with FaultProxy(durable_redis.port).in_thread() as proxy:
        fleet.environment["MILLHAND_REDIS_URL"] = proxy.redis_url
        if when == "at work":
            under_load(fleet, streams)
            proxy.black_hole()
        else:
            streams.produce(EVENTS)
            proxy.black_hole()
            fleet.up(ready=False)
        eventually(lambda: "janitor" in who_waits(fleet), NOTICE_S_MAX)
        family = fleet.family()
        asked = time.monotonic()
        assert fleet.process is not None
        fleet.process.send_signal(signal.SIGTERM)
        assert fleet.terminate() == 0
        assert time.monotonic() - asked < STOP_S_MAX
        eventually(lambda: gone(family), 3)
        assert not fleet.told("child.killed")
        proxy.passing()
        fleet.up()
        ends_well(fleet, streams, EVENTS)


async def test_settling_that_was_cancelled_begins_no_round_trip_anew(durable_redis: RedisServer) -> None:
    """F15, F26: a worker at its end closes its connections, and nothing opens another one to wait for."""
    async with FaultProxy(durable_redis.port) as proxy:
        redis = connect(proxy.redis_url)
        settler = Settler(redis, Keys.of(config_for(proxy.redis_url)))
        proxy.black_hole()
        under_way = asyncio.create_task(settler.settle(Delivery("1-1", {}, "here:w1:a", 1), DONE))
        await eventually_async(lambda: proxy.bytes_lost)
        behind_it = asyncio.create_task(settler.settle(Delivery("2-1", {}, "here:w1:a", 1), DONE))
        await eventually_async(lambda: settler._courier._waiting)
        under_way.cancel()
        behind_it.cancel()
        await redis.aclose()
        await eventually_async(
            lambda: settler._courier._carrying and settler._courier._carrying.done(), COMMAND_TIMEOUT_S / 2
        )
        assert proxy.connections == 1


def _said(fleet: RunningFleet) -> str:
    """Return why the fleet is not well; nothing before there is a desk."""
    with contextlib.suppress(httpx.TransportError, KeyError):
        return reasons(fleet)
    return ""
