"""Settling in batches: what comes up together goes out together, and each verdict has its own answer."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from redis.exceptions import ReadOnlyError, ResponseError
from tests.conftest import StartRedis
from tests.fleet.chaos.proxy import FaultProxy
from tests.integration.hands import CONSUMER, working
from tests.integration.race import DONE, Race
from tests.rig import HOST, RedisServer, config_for, eventually_async

from millhand.courier import BATCH_MAX, RUN_BYTES_MAX
from millhand.keys import Keys
from millhand.log import logger
from millhand.settle import Settled, Settler, settle_surely
from millhand.stream import RedisError, connect
from millhand.verdict import Bury, Delivery, Done, Enriched, Reason, Release, Retry, Skip, Verdict
from scripts.fake_ollama import FakeOllama

BURY = Bury(Reason.TIMEOUT, "slow", 4, ())
RETRY = Retry(60.0, 1, ("timeout: slow",))
EACH_KIND: tuple[Verdict, ...] = (DONE, BURY, RETRY, Release(), Skip("1-1"))
UNTIL_S_MAX = 10.0
ID_PART_MAX = 2**64 - 1


class Desk:
    """A settler before a proxy, and what it sends, round trip by round trip."""

    def __init__(self, race: Race, proxy: FaultProxy, settler: Settler) -> None:
        self.race = race
        self.proxy = proxy
        self.settler = settler
        self.trips: list[int] = []
        pipelined = settler._courier._pipelined

        async def counted(runs: list[Any], **options: Any) -> list[Any]:
            self.trips.append(sum(len(run.calls) for run in runs))
            return await pipelined(runs, **options)

        settler._courier._pipelined = counted  # type: ignore[method-assign]

    async def delivered(self, count: int) -> list[Delivery]:
        """Produce events, and deliver them."""
        for n in range(count):
            await self.race.add(str(n))
        return await self.race.deliver(count=count)

    def settle(self, deliveries: Sequence[Delivery], *verdicts: Verdict) -> "list[asyncio.Task[Settled]]":
        """Settle all at once, by turns with these verdicts."""
        each = [verdicts[n % len(verdicts)] for n in range(len(deliveries))]
        pairs = zip(deliveries, each, strict=True)
        return [asyncio.create_task(self.settler.settle(delivery, verdict)) for delivery, verdict in pairs]

    async def answers(self, settling: "Sequence[asyncio.Task[Settled]]") -> list[Any]:
        """Return what came of each: an answer or an error. Fails if one waits for ever."""
        async with asyncio.timeout(UNTIL_S_MAX):
            return await asyncio.gather(*settling, return_exceptions=True)

    async def sent(self) -> int:
        """Return how many script calls the server has had, whether it knew them or not."""
        stats: Any = await self.race.redis.info("commandstats")
        return sum(stats.get(name, {}).get("calls", 0) for name in ("cmdstat_evalsha", "cmdstat_eval"))


@pytest.fixture
async def desk(race: Race, redis_server: RedisServer) -> AsyncIterator[Desk]:
    """Settle through a proxy; every script is known to the server."""
    async with FaultProxy(redis_server.port) as proxy:
        client = connect(proxy.redis_url)
        desk = Desk(race, proxy, Settler(client, race.keys))
        for delivery, verdict in zip(await desk.delivered(5), EACH_KIND, strict=True):
            await desk.settler.settle(delivery, verdict)
        await race.redis.delete(race.keys.output, race.keys.dead_letter, race.keys.parked, race.keys.totals)
        await race.redis.xgroup_destroy(race.keys.input, race.keys.group)
        await race.redis.delete(race.keys.input, race.keys.attempts, race.keys.closed)
        await race.open()
        await race.redis.config_resetstat()
        desk.trips.clear()
        yield desk
        await client.aclose()


# -- together ----------------------------------------------------------------------------------------------------------


async def test_many_verdicts_at_once_go_out_in_few_round_trips(desk: Desk) -> None:
    """Two and a half batches full, of all kinds; each is carried out."""
    deliveries = await desk.delivered(250)

    answers = await desk.answers(desk.settle(deliveries, *EACH_KIND))

    assert desk.trips == [BATCH_MAX, BATCH_MAX, 50]
    assert answers == [Settled.OK] * 250
    assert len(await desk.race.enriched()) == len(await desk.race.buried()) == 50
    assert await desk.race.totals() == {
        "enriched": 50, "dead": 50, "dead:timeout": 50, "retried": 50, "released": 50, "skipped": 50
    }  # fmt: skip
    assert await desk.sent() == 200 + len(desk.trips)  # the fifty that are done shared a run in each


async def test_lone_verdict_goes_out_at_once_and_what_comes_up_meanwhile_goes_together(desk: Desk) -> None:
    """Nothing waits for company; while a reply is on its way the rest gathers."""
    first, *rest = await desk.delivered(31)
    held = desk.proxy.hold_reply(first.id.encode())
    settling = desk.settle([first], DONE)
    for _ in range(5):
        await asyncio.sleep(0)  # no time, but a turn for everybody
    assert desk.trips == [1]
    await held.caught()
    settling += desk.settle(rest, DONE)
    await eventually_async(lambda: len(desk.settler._courier._waiting) == 30)
    assert await desk.sent() == 1
    held.release()

    assert await desk.answers(settling) == [Settled.OK] * 31

    assert desk.trips == [1, 30]
    assert len(await desk.race.enriched()) == 31


async def test_each_verdict_has_its_own_answer(desk: Desk) -> None:
    """Done, gone, lost and deleted in one round trip; what was deleted is buried in a second."""
    done, gone, lost, deleted, again = await desk.delivered(5)
    await desk.race.redis.xack(desk.race.keys.input, desk.race.keys.group, gone.id)
    await desk.race.steal(lost.id)
    await desk.race.redis.xdel(desk.race.keys.input, deleted.id)

    answers = await desk.answers(desk.settle([done, gone, lost, deleted, again], DONE, DONE, BURY, RETRY, BURY))

    assert answers == [Settled.OK, Settled.GONE, Settled.LOST, Settled.OK, Settled.OK]
    assert desk.trips == [5, 1]
    reasons = {source: letter["failure_reason"] for source, letter in (await desk.race.buried()).items()}
    assert reasons == {deleted.id: "deleted", again.id: "timeout"}


# -- one among many ----------------------------------------------------------------------------------------------------


@pytest.mark.every_server
async def test_scripts_forgotten_in_the_middle_of_a_batch_are_sent_in_full(desk: Desk) -> None:
    """F33: the server knows one of three scripts; the answers still go to whom they belong."""
    deliveries = await desk.delivered(9)
    await desk.race.steal(deliveries[1].id)
    await desk.race.redis.script_flush()
    await desk.race.redis.script_load(desk.settler._finish.text)

    answers = await desk.answers(desk.settle(deliveries, DONE, BURY, RETRY))

    assert answers == [Settled.OK, Settled.LOST, *[Settled.OK] * 7]
    assert desk.trips == [9, 6]
    assert await desk.race.totals() == {"enriched": 3, "dead": 2, "dead:timeout": 2, "retried": 3}
    assert await desk.answers(desk.settle(await desk.delivered(3), DONE, BURY, RETRY)) == [Settled.OK] * 3
    assert desk.trips == [9, 6, 3]


async def test_refused_verdict_does_not_spoil_its_neighbours(desk: Desk) -> None:
    """F36: the dead letters are no stream; whoever wanted to bury is told so, and the rest is settled."""
    deliveries = await desk.delivered(6)
    await desk.race.redis.set(desk.race.keys.dead_letter, "mine")

    answers = await desk.answers(desk.settle(deliveries, DONE, BURY))

    assert answers[::2] == [Settled.OK] * 3
    assert all(isinstance(answer, ResponseError) and "WRONGTYPE" in str(answer) for answer in answers[1::2])
    assert set(await desk.race.held()) == {delivery.id for delivery in deliveries[1::2]}
    await desk.race.redis.delete(desk.race.keys.dead_letter)
    assert await desk.answers(desk.settle(deliveries[1::2], BURY)) == [Settled.OK] * 3


@pytest.mark.every_server
async def test_what_stood_before_an_event_that_cannot_be_written_is_done_and_counted(desk: Desk) -> None:
    """F36: the output has two ids left; nobody knows what became of theirs, and sent again two of three are gone."""
    deliveries = await desk.delivered(3)
    await desk.race.redis.xadd(desk.race.keys.output, {"data": "{}"}, id=f"{ID_PART_MAX}-{ID_PART_MAX - 2}")

    answers = await desk.answers(desk.settle(deliveries, DONE))
    assert all(isinstance(answer, ResponseError) for answer in answers)
    assert await desk.race.redis.hget(desk.race.keys.totals, "enriched") == b"2"
    assert set(await desk.race.held()) == {deliveries[2].id}

    await desk.race.redis.xtrim(desk.race.keys.output, maxlen=2)
    await desk.race.redis.rename(desk.race.keys.output, desk.race.keys.output + ":full")
    assert await desk.answers(desk.settle(deliveries, DONE)) == [Settled.GONE, Settled.GONE, Settled.OK]


async def test_large_events_do_not_share_a_run_beyond_its_bytes(desk: Desk) -> None:
    """Three of half a MiB: two fit into one run, and all go in one round trip."""
    large = Done(Enriched(b"x" * (RUN_BYTES_MAX // 2 - 1000), "h" * 32))

    answers = await desk.answers(desk.settle(await desk.delivered(3), large))

    assert answers == [Settled.OK] * 3
    assert desk.trips == [3]
    assert await desk.sent() == 2


@pytest.mark.parametrize("place", ["on its way", "waiting"])
async def test_cancelling_one_leaves_the_others(desk: Desk, place: str) -> None:
    """F26: a worker that gives one up goes on with the rest; what was not yet on its way is not sent any more."""
    first, *rest = await desk.delivered(6)
    held = desk.proxy.hold_reply(first.id.encode())
    on_their_way = desk.settle([first], DONE)
    await held.caught()
    waiting = desk.settle(rest, DONE)
    await eventually_async(lambda: len(desk.settler._courier._waiting) == 5)

    given_up = (on_their_way if place == "on its way" else waiting)[0]
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    held.release()

    others = [task for task in (*on_their_way, *waiting) if task is not given_up]
    assert await desk.answers(others) == [Settled.OK] * 5
    sent = [first, *rest] if place == "on its way" else [first, *rest[1:]]
    assert set(await desk.race.enriched()) == {delivery.id for delivery in sent}


async def test_cancelled_courier_leaves_nobody_waiting_and_the_next_one_goes(desk: Desk) -> None:
    """F15: neither those whose reply was on its way, nor those who waited for the next round trip."""
    deliveries = await desk.delivered(4)
    held = desk.proxy.hold_reply(deliveries[0].id.encode())
    settling = desk.settle(deliveries[:2], DONE)
    await held.caught()
    settling += desk.settle(deliveries[2:], DONE)
    await eventually_async(lambda: len(desk.settler._courier._waiting) == 2)
    courier = desk.settler._courier._carrying
    assert courier is not None

    courier.cancel()

    assert [type(answer) for answer in await desk.answers(settling)] == [asyncio.CancelledError] * 4
    held.release()
    assert set(await desk.answers(desk.settle(deliveries, DONE))) <= {Settled.OK, Settled.GONE}
    assert desk.trips == [2, 4]
    assert set(await desk.race.enriched()) == {delivery.id for delivery in deliveries}


# -- the connection goes -----------------------------------------------------------------------------------------------


async def test_batch_whose_replies_are_lost_is_settled_once_when_sent_again(desk: Desk) -> None:
    """F4: everybody is told that it is unknown, and finds that it had happened."""
    deliveries = await desk.delivered(20)
    desk.proxy.swallow(deliveries[7].id.encode())

    answers = await desk.answers(desk.settle(deliveries, DONE, BURY))
    assert all(isinstance(answer, RedisError) for answer in answers)

    assert await desk.answers(desk.settle(deliveries, DONE, BURY)) == [Settled.GONE] * 20
    assert (len(await desk.race.enriched()), len(await desk.race.buried())) == (10, 10)
    assert desk.proxy.swallowed.total() == 1
    await desk.race.totals()


@pytest.mark.parametrize("place", [0, 7, 19])
async def test_batch_that_is_cut_in_the_middle_is_settled_once_when_sent_again(desk: Desk, place: int) -> None:
    """F25: the server had a part of it; everybody is told that it is unknown, and everything is sent again."""
    deliveries = await desk.delivered(20)
    held = desk.proxy.hold(deliveries[place].id.encode())
    settling = desk.settle(deliveries, BURY)
    await held.caught()
    await eventually_async(lambda: settled_at_least(desk.race, place))
    held.drop()

    answers = await desk.answers(settling)
    assert all(isinstance(answer, RedisError) for answer in answers)

    again = await desk.answers(desk.settle(deliveries, BURY))
    assert again == [Settled.GONE] * place + [Settled.OK] * (20 - place)
    assert len(await desk.race.buried()) == 20
    await desk.race.totals()


async def settled_at_least(race: Race, count: int) -> bool:
    return await race.redis.xlen(race.keys.output) + await race.redis.xlen(race.keys.dead_letter) >= count


async def test_hundreds_are_settled_exactly_once_over_a_connection_that_breaks_all_the_time(desk: Desk) -> None:
    """F24: resets, lost replies and cuts, until all have their answer."""
    deliveries = await desk.delivered(300)
    for n in range(0, 300, 30):
        desk.proxy.swallow(deliveries[n].id.encode())
    settling = [
        asyncio.create_task(settle_surely(desk.settler, one, BURY if n % 3 else DONE, logger()))
        for n, one in enumerate(deliveries)
    ]
    await eventually_async(lambda: desk.proxy.swallowed.total() >= 3)
    desk.proxy.reset()

    answers = await desk.answers(settling)

    assert set(answers) <= {Settled.OK, Settled.GONE}
    assert (len(await desk.race.enriched()), len(await desk.race.buried())) == (100, 200)
    assert await desk.race.is_clean()
    await desk.race.totals()


# -- the server becomes a replica --------------------------------------------------------------------------------------


@pytest.mark.every_server
async def test_server_that_becomes_a_replica_loses_its_connections(start_redis: StartRedis) -> None:
    """F35: the address may lead to another server by now; nothing is spent, and once it takes writes all is settled."""
    server = start_redis({})
    async with FaultProxy(server.port) as proxy:
        client, admin = connect(proxy.redis_url), connect(server.url)
        race = await Race(admin, Keys.of(config_for(server.url))).open()
        settler = Settler(client, race.keys)
        deliveries = [await race.delivered() for _ in range(4)]
        assert await settler.settle(deliveries[0], DONE) is Settled.OK
        await admin.replicaof(HOST, "9")
        connections = proxy.connections

        for _ in range(2):
            with pytest.raises(ReadOnlyError):
                await settler.settle(deliveries[1], DONE)
        assert proxy.connections == connections + 1, "the second try goes by a new connection"

        await admin.replicaof("NO", "ONE")
        settling = [settler.settle(one, verdict) for one, verdict in zip(deliveries[1:], EACH_KIND, strict=False)]
        assert await asyncio.gather(*settling) == [Settled.OK] * 3
        assert await race.totals() == {"enriched": 2, "dead": 1, "dead:timeout": 1, "retried": 1}
        for one in (client, admin):
            await one.aclose()


class Pair:
    """A primary and its replica behind one address, and who of them it leads to."""

    def __init__(self, primary: RedisServer, replica: RedisServer) -> None:
        self.primary, self.replica = primary, replica

    async def follow(self) -> None:
        """Let the replica follow, and wait until it has everything."""
        with self.replica.client() as client:
            client.replicaof(HOST, self.primary.port)
            await eventually_async(lambda: client.info("replication")["master_link_status"] == "up")

    async def fail_over(self, proxy: FaultProxy) -> None:
        """Swap their roles. Connections that are there stay with the old primary, which is a replica now."""
        with self.primary.client() as old, self.replica.client() as new:
            old.execute_command("FAILOVER")
            await eventually_async(lambda: new.info("replication")["role"] == "master")
            proxy.target_port = self.replica.port
            await eventually_async(lambda: old.info("replication")["role"] == "slave")


@pytest.mark.parametrize("flags", [{}, {"input.dedupe_event_id_s": 3600.0}], ids=["plain", "event_ids"])
async def test_worker_follows_a_failover_with_what_it_has_in_hand(
    start_redis: StartRedis, fake: FakeOllama, flags: dict[str, Any]
) -> None:
    """F35: whatever it does next by its old connections is refused; it makes new ones, and nothing is spent."""
    options = {"repl-diskless-sync-delay": "0", "appendonly": "no"}
    pair = Pair(start_redis(options), start_redis(options))
    await pair.follow()
    async with FaultProxy(pair.primary.port) as proxy:
        slow_beats = {"delivery.lease_s": 3600.0, "model.concurrency": 2, **flags}
        config = config_for(proxy.redis_url, fake.url, slow_beats)
        old = connect(pair.primary.url)
        await (await Race(old, Keys.of(config)).open()).add("[[fake hold]]", event_id=b"1")
        async with working(config) as at_work:
            await Race(old, Keys.of(config)).add("before", event_id=b"2")
            await Race(old, Keys.of(config)).until_enriched(1)
            await fake.until(lambda: fake.held == 1)
            await pair.fail_over(proxy)
            new = connect(pair.replica.url)
            race = Race(new, Keys.of(config))
            after = await race.add("after", event_id=b"3")
            assert after in await race.until_enriched(2)
            fake.release()
            enriched = await race.until_enriched(3)
            await eventually_async(race.is_clean)
            assert at_work.ear.stats()["waits_for"] is None

    assert {one["meta"]["attempts"] for one in enriched.values()} == {1}
    assert {one["meta"]["worker"] for one in enriched.values()} == {CONSUMER}
    assert len(fake.calls) == 3
    for client in (old, new):
        await client.aclose()
