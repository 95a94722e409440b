"""Another server takes over: the fleet follows the address, and what the old one did not pass on is done again."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.conftest import StartRedis
from tests.fleet.chaos.proxy import FaultProxy
from tests.fleet.conftest import INPUT, RunningFleet, Streams
from tests.fleet.test_redis_faults import EVENTS, ends_well, under_load
from tests.rig import HOST, RedisServer, eventually

from scripts.fake_ollama import FakeOllama

LEASE_S = 2.0
RAN_AHEAD = 10  # records of the old server that the new one never saw, at least


class Pair:
    """A server and its replica, with a fault proxy between the two and one before whichever serves."""

    def __init__(self, old: RedisServer, new: RedisServer, link: FaultProxy, address: FaultProxy) -> None:
        self.old, self.new = old, new
        self.link, self.address = link, address

    def has_caught_up(self) -> bool:
        """Whether the replica is in step."""
        with self.old.client() as old, self.new.client() as new:
            there: Any = new.info("replication")
            here = old.info("replication")
            return bool((there["master_link_status"], there["slave_repl_offset"]) == ("up", here["master_repl_offset"]))


@pytest.fixture
def pair(fleet: RunningFleet, durable_redis: RedisServer, start_redis: StartRedis) -> Iterator[Pair]:
    """Give the old server a replica, and the fleet an address before the old one."""
    new = start_redis({"appendonly": "yes", "appendfsync": "always"})
    with FaultProxy(durable_redis.port).in_thread() as link, FaultProxy(durable_redis.port).in_thread() as address:
        pair = Pair(durable_redis, new, link, address)
        with durable_redis.client() as old, new.client() as replica:
            old.config_set("repl-diskless-sync-delay", 0)
            replica.replicaof(HOST, link.port)
        eventually(pair.has_caught_up, 20)
        fleet.environment["MILLHAND_REDIS_URL"] = address.redis_url
        yield pair


def test_what_the_new_server_never_saw_is_done_again_and_written_once(
    fleet: RunningFleet, streams: Streams, pair: Pair, fake: FakeOllama
) -> None:
    """F34: record and acknowledgement roll back together; a reader who had run ahead finds the same `src` once more."""
    under_load(fleet, streams)
    pair.link.black_hole()
    with pair.new.client() as client:
        new = Streams(client)
        streams.produce(20)
        eventually(lambda: len(sources(streams) - sources(new)) >= RAN_AHEAD, 20)
        seen = sources(streams)
        pair.old.kill()
        seen -= sources(new)
        client.replicaof("NO", "ONE")
        pair.address.target_port = pair.new.port
        pair.address.reset()
        ends_well(fleet, new, EVENTS)
        assert seen <= sources(new)
    assert seen
    assert len(fake.calls) >= EVENTS + len(seen)


def test_calls_under_way_outlast_a_planned_failover_though_no_connection_breaks(
    fleet: RunningFleet, streams: Streams, pair: Pair, fake: FakeOllama
) -> None:
    """F35: the old server goes on answering, as a replica; who meets READONLY looks anew where the address leads."""
    fleet.environment["MILLHAND_DELIVERY_LEASE_S"] = f"{LEASE_S}"
    fleet.up()
    streams.produce(4, "event {n} [[fake hold]]")
    eventually(lambda: fake.held == 4)
    streams.client.execute_command("FAILOVER")
    with pair.new.client() as client:
        eventually(lambda: client.info("replication")["role"] == "master")
        pair.address.target_port = pair.new.port
        until = time.monotonic() + 3.5 * LEASE_S
        eventually(lambda: time.monotonic() > until, what="three and a half leases have passed")
        assert {row["times_delivered"] for row in client.xpending_range(INPUT, "enrichers", "-", "+", 10)} == {1}
        fake.release()
        new = Streams(client)
        new.produce(EVENTS)
        ends_well(fleet, new, EVENTS + 4)
    assert len(fake.calls) == EVENTS + 4
    assert pair.address.resets == 0


def sources(streams: Streams) -> set[bytes]:
    """Return the events that have a record."""
    return {record[b"src"] for record in streams.enriched()}
