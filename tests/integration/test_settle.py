"""Settling while Redis fails: every event leaves exactly once, and none before its record is written."""

import asyncio
from collections.abc import AsyncIterator, Iterator, MutableMapping
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError
from tests.conftest import StartRedis
from tests.fleet.chaos.proxy import FaultProxy
from tests.integration.race import DONE, Race
from tests.rig import RedisServer, config_for, eventually_async

from millhand.keys import Keys
from millhand.log import logger
from millhand.settle import Settled, Settler, settle_surely
from millhand.stream import Script, Stream, connect
from millhand.verdict import Bury, Delivery, Reason, Release, Retry, Verdict

pytestmark = pytest.mark.every_server
ALWAYS = {"appendonly": "yes", "appendfsync": "always"}
RETRY = Retry(0.0, 1, ("timeout: slow",))
BURY = Bury(Reason.TIMEOUT, "slow", 4, ())
VERDICTS: list[Verdict] = [DONE, BURY, RETRY, Release()]
EACH_VERDICT = pytest.mark.parametrize("verdict", VERDICTS, ids=["done", "bury", "retry", "release"])
SHORT_S = 0.3


class Own:
    """A server of the test's own, and a fleet's streams on it."""

    def __init__(self, server: RedisServer, race: Race) -> None:
        self.server = server
        self.race = race
        self.settler = Settler(race.redis, race.keys)

    async def revive(self) -> None:
        """Start the killed server again; connections to the dead one are forgotten."""
        self.server.start()
        await self.race.redis.connection_pool.disconnect()

    def surely(self, delivery: Delivery, verdict: Verdict) -> "asyncio.Task[Settled]":
        """Start settling."""
        return asyncio.create_task(settle_surely(self.settler, delivery, verdict, logger()))


@pytest.fixture
async def own(start_redis: StartRedis) -> AsyncIterator[Own]:
    """Start a server that loses nothing it has acknowledged."""
    server = start_redis(ALWAYS)
    client = connect(server.url, timeout_s=SHORT_S, connections_max=64)
    yield Own(server, await Race(client, Keys.of(config_for(server.url))).open())
    await client.aclose()


# -- Redis goes away --------------------------------------------------------------------------------------------------


@EACH_VERDICT
async def test_settling_waits_for_a_killed_redis_and_happens_once(
    own: Own, verdict: Verdict, told: list[MutableMapping[str, Any]]
) -> None:
    """F20: it is sent again until Redis answers; the event is settled when it does, and was not before."""
    delivery = await own.race.delivered()
    own.server.kill()
    settling = own.surely(delivery, verdict)
    await eventually_async(lambda: [row for row in told if row["event"] == "settle.resending"])
    own.server.start()

    assert await settling is Settled.OK

    assert len(await own.race.output()) == (verdict is DONE)
    assert len(await own.race.dead()) == (verdict is BURY)
    assert set(await own.race.parked()) == ({delivery.id} if verdict in (RETRY, Release()) else set())
    await own.race.totals()


@EACH_VERDICT
async def test_settled_before_the_kill_is_settled_after_it(own: Own, verdict: Verdict) -> None:
    """F20: what was acknowledged is on disk; to send it again writes nothing more."""
    delivery = await own.race.delivered()
    await own.settler.settle(delivery, verdict)
    own.server.restart()

    assert await own.surely(delivery, verdict) in {Settled.GONE, Settled.LOST}

    assert len(await own.race.output()) == (verdict is DONE)
    assert len(await own.race.dead()) == (verdict is BURY)
    assert sum((await own.race.totals()).values()) == (2 if verdict is BURY else 1)


async def test_hundred_events_are_settled_exactly_once_while_redis_is_killed_again_and_again(own: Own) -> None:
    """F20: every event ends in one record, whatever was under way when Redis died."""
    for _ in range(100):
        await own.race.add()
    deliveries = await own.race.deliver(count=100)
    settling: list[asyncio.Task[Settled]] = []
    for start in range(0, 100, 25):
        settling += [
            own.surely(delivery, BURY if n % 5 == 0 else DONE)
            for n, delivery in enumerate(deliveries[start : start + 25])
        ]
        await asyncio.wait(settling[start:], return_when=asyncio.FIRST_COMPLETED)
        own.server.restart()

    await asyncio.gather(*settling)

    enriched, buried = await own.race.enriched(), await own.race.buried()
    assert sorted([*enriched, *buried]) == sorted(delivery.id for delivery in deliveries)
    assert len(buried) == 20
    assert await own.race.is_clean()
    await own.race.totals()


async def test_settling_a_frozen_redis_is_bounded_and_its_late_command_does_no_harm(
    own: Own, told: list[MutableMapping[str, Any]]
) -> None:
    """F22: each try ends in time; what the server carries out after its pause counts once."""
    delivery = await own.race.delivered()
    own.server.pause()
    settling = own.surely(delivery, DONE)
    await eventually_async(lambda: [row for row in told if row["event"] == "settle.resending"])
    own.server.resume()

    assert await settling in {Settled.OK, Settled.GONE}
    assert len(await own.race.output()) == 1
    assert await own.race.is_clean()


async def test_cancelled_settling_leaves_the_event_pending(own: Own) -> None:
    """F26: at the end of its time a worker gives up; the janitor finds the event."""
    delivery = await own.race.delivered()
    own.server.kill()
    settling = own.surely(delivery, DONE)
    settling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await settling
    await own.revive()

    assert await own.race.held() == {delivery.id: (delivery.owner, 1)}


async def test_truncated_tail_rolls_output_and_acknowledgement_back_together(own: Own) -> None:
    """F27: a torn transaction is dropped whole: the event is pending again, and settled again once."""
    delivery = await own.race.delivered()
    await own.settler.settle(delivery, DONE)
    own.server.kill()
    (aof,) = (own.server.folder / "appendonlydir").glob("*.incr.aof")
    aof.write_bytes(aof.read_bytes()[:-10])
    await own.revive()

    assert await own.race.output() == []
    assert await own.race.held() == {delivery.id: (delivery.owner, 1)}
    assert await own.surely(delivery, DONE) is Settled.OK
    assert len(await own.race.output()) == 1
    assert await own.race.is_clean()


# -- replies go away --------------------------------------------------------------------------------------------------


@EACH_VERDICT
async def test_lost_reply_settles_nothing_twice(redis_server: RedisServer, race: Race, verdict: Verdict) -> None:
    """F4: the script ran, its reply was lost, it is sent again: one record, one count."""
    delivery = await race.delivered()
    async with FaultProxy(redis_server.port) as proxy:
        client = connect(proxy.redis_url)
        settler = Settler(client, race.keys)
        await settler.settle(await race.delivered(), verdict)  # so that the script is known
        proxy.swallow(delivery.id.encode())

        settled = await settle_surely(settler, delivery, verdict, logger())

        await client.aclose()
    assert proxy.swallowed.total() == 1
    assert settled in {Settled.GONE, Settled.LOST}
    assert len(await race.output()) == (2 if verdict is DONE else 0)
    assert len(await race.dead()) == (2 if verdict is BURY else 0)
    assert sum((await race.totals()).values()) == (4 if verdict is BURY else 2)


# -- Redis refuses ----------------------------------------------------------------------------------------------------


@pytest.fixture
def restricted(redis_server: RedisServer, redis_url: str) -> Iterator[str]:
    """Make a user who may do everything but XADD, and return the address with its password."""
    with redis_server.client() as admin:
        admin.execute_command("ACL SETUSER hand on >secret ~* +@all -xadd")
        yield redis_url.replace("redis://", "redis://hand:secret@")
        admin.acl_deluser("hand")


@pytest.mark.parametrize("verdict", [DONE, BURY], ids=["done", "bury"])
async def test_nothing_is_acknowledged_while_the_target_is_no_stream(
    race: Race, settler: Settler, verdict: Verdict
) -> None:
    """F36: the failing XADD leaves the event as it was; once the key is gone it is settled."""
    delivery = await race.delivered()
    target = race.keys.output if verdict is DONE else race.keys.dead_letter
    await race.redis.set(target, "mine")

    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await settler.settle(delivery, verdict)
    assert await race.held() == {delivery.id: (delivery.owner, 1)}
    assert set(await race.redis.hgetall(race.keys.totals)) == {b"group:enrichers"}

    await race.redis.delete(target)
    assert await settler.settle(delivery, verdict) is Settled.OK
    await race.totals()
    assert await race.is_clean()


@pytest.mark.parametrize("verdict", [DONE, BURY], ids=["done", "bury"])
async def test_nothing_is_acknowledged_without_the_permission_to_add(
    race: Race, redis_server: RedisServer, restricted: str, verdict: Verdict
) -> None:
    """F36: the script ends at the refused XADD; with the permission back it is settled."""
    delivery = await race.delivered()
    client = connect(restricted)
    settler = Settler(client, race.keys)

    with pytest.raises(RedisError, match=r"(?i)acl|perm|can't run this command"):
        await settler.settle(delivery, verdict)
    assert await race.held() == {delivery.id: (delivery.owner, 1)}
    assert await race.totals() == {}

    with redis_server.client() as admin:
        admin.execute_command("ACL SETUSER hand +xadd")
    assert await settler.settle(delivery, verdict) is Settled.OK
    assert await race.is_clean()
    await client.aclose()


async def test_events_in_hand_are_settled_although_memory_is_full(own: Own) -> None:
    """F30: with noeviction every script still commits, also one the server does not know yet."""
    race = own.race
    await race.redis.config_set("maxmemory-policy", "noeviction")
    deliveries = [await race.delivered() for _ in range(5)]
    kept = await race.delivered("keeper:w1:k")
    await race.redis.config_set("maxmemory", 1)
    with pytest.raises(RedisError, match="maxmemory"):
        await race.add()

    for delivery, verdict in zip(deliveries, VERDICTS, strict=False):
        assert await own.settler.settle(delivery, verdict) is Settled.OK
    assert await own.settler.hand_back(deliveries[4]) is Settled.OK
    stream = Stream(own.server.url, race.keys, "taker:w1:t", 3)
    with pytest.raises(OutOfMemoryError):
        await stream.take_due(10)
    await stream.close()
    renewed = await Script(race.redis, "renew")(keys=[race.keys.input], args=[race.keys.group, kept.owner, kept.id, 1])
    assert renewed == []
    retired = await Script(race.redis, "retire_consumer")(
        keys=[race.keys.input, race.keys.totals], args=[race.keys.group, deliveries[0].owner]
    )
    assert retired == b"ok"

    await race.redis.config_set("maxmemory", 0)
    assert list(await race.enriched()) == [deliveries[0].id]
    assert list(await race.buried()) == [deliveries[1].id]
    await race.totals()


@EACH_VERDICT
async def test_forgotten_scripts_are_loaded_again(race: Race, settler: Settler, verdict: Verdict) -> None:
    """F33: SCRIPT FLUSH between two events is not noticed."""
    first, second = await race.delivered(), await race.delivered()
    assert await settler.settle(first, verdict) is Settled.OK
    await race.redis.script_flush()

    assert await settler.settle(second, verdict) is Settled.OK
    await race.totals()
