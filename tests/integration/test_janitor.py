"""The janitor: what nobody holds any more is handed back, and what somebody holds is left alone."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest
from redis.exceptions import NoPermissionError
from tests.conftest import StartRedis
from tests.fleet.chaos.proxy import FaultProxy
from tests.integration.hands import Ear, sweeping
from tests.integration.race import DONE, Race
from tests.rig import RedisServer, config_for, eventually_async

from millhand.config import Config
from millhand.keys import Keys
from millhand.lease import Leases
from millhand.log import logger
from millhand.settle import Settler
from millhand.stop import Stop
from millhand.stream import RedisError, Stream, connect, script_text
from millhand.verdict import Delivery, Release, Retry
from millhand_fleet import janitor as janitor_module
from millhand_fleet.janitor import Janitor, Sweep, consumer_prefix

OLD = f"{consumer_prefix()}1:old"
LIVING = f"{consumer_prefix()}2:new"
ELSEWHERE = "elsewhere:w1:x"
PARKED = "@parked"
LEASE_S = 30.0
LEASE_MS = int(LEASE_S * 1000)


@pytest.fixture
def config(redis_url: str) -> Config:
    """Sweep on news only: the timer is far away."""
    return config_for(redis_url, flags={"delivery.lease_s": LEASE_S, "janitor.every_s": 3600.0})


class Clock:
    """A monotonic clock that a test moves."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """Make the janitor's clock."""
    return Clock()


@pytest.fixture
def janitor(race: Race, config: Config, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Janitor:
    """Make a janitor that is swept by hand."""
    janitor = Janitor(race.redis, config, [LIVING], logger())
    monkeypatch.setattr(janitor, "_now", clock)
    return janitor


# -- at start ---------------------------------------------------------------------------------------------------------


async def test_at_start_earlier_lives_of_this_host_are_handed_back_and_the_living_are_not(
    race: Race, config: Config
) -> None:
    """F12: who is dead is known without waiting for a lease; other hosts are left to theirs."""
    dead, living, foreign = [await race.delivered(owner) for owner in (OLD, LIVING, ELSEWHERE)]

    async with sweeping(config, [LIVING]) as (at_work, _):
        await at_work.ready()

        assert await race.held() == {dead.id: (PARKED, 2), living.id: (LIVING, 1), foreign.id: (ELSEWHERE, 1)}
        assert await race.consumers() == {PARKED, LIVING, ELSEWHERE}


async def test_at_start_what_is_parked_stays_parked(race: Race, config: Config, settler: Settler) -> None:
    """`@parked` is no process: its entries are nobody's loss."""
    delivery = await race.delivered(OLD)
    await settler.settle(delivery, Retry(60.0, 1, ("x",)))
    await race.age(delivery.id)
    due = await race.parked()

    async with sweeping(config) as (at_work, _):
        await at_work.ready()

        assert await race.held() == {delivery.id: (PARKED, 1)}
        assert await race.parked() == due


async def test_start_waits_for_redis_and_says_so(
    start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch, told: list[MutableMapping[str, Any]]
) -> None:
    """F20: a janitor without Redis is not ready; it creates the group as soon as it can."""
    monkeypatch.setattr(janitor_module, "REDIS_PAUSE_S", 0.05)
    server = start_redis({})
    server.kill()
    async with sweeping(config_for(server.url)) as (at_work, janitor):
        await eventually_async(lambda: janitor.stats()["waits_for"])
        assert not at_work.ear.ready
        server.start()
        await at_work.ready()
        assert janitor.stats()["waits_for"] is None
    assert [row["group_created"] for row in told if row["event"] == "redis.connected"] == [True]


async def test_start_outlives_a_connection_that_breaks(
    race: Race, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F24: a reply that is lost right after Redis was found does not end the janitor."""
    monkeypatch.setattr(janitor_module, "REDIS_PAUSE_S", 0.05)
    dead = await race.delivered(OLD)
    async with FaultProxy(redis_server.port) as proxy:
        proxy.swallow(b"CONSUMERS")
        through_proxy = config_for(proxy.redis_url, flags={"delivery.lease_s": LEASE_S, "janitor.every_s": 0.1})
        async with sweeping(through_proxy) as (at_work, _):
            await at_work.ready()
            await eventually_async(race.parked)

    assert proxy.swallowed.total() == 1
    assert await race.held() == {dead.id: (PARKED, 2)}


# -- news of a death --------------------------------------------------------------------------------------------------


async def test_news_of_a_death_hands_back_at_once(race: Race, config: Config) -> None:
    """F1: neither the timer nor the lease is waited for."""
    async with sweeping(config, [OLD, LIVING]) as (at_work, janitor):
        await at_work.ready()
        dead, living = await race.delivered(OLD), await race.delivered(LIVING)

        janitor.hear({"died": OLD})
        await eventually_async(race.parked)

        assert await race.held() == {dead.id: (PARKED, 2), living.id: (LIVING, 1)}


async def test_event_of_the_dead_is_delivered_again_and_leaves_once(
    race: Race, janitor: Janitor, settler: Settler, redis_url: str
) -> None:
    """F2: its successor has the event whole; what the dead one sent before it died counts once."""
    dead = await race.delivered(OLD)
    janitor.hear({"died": OLD})
    await janitor.sweep()
    stream = Stream(redis_url, race.keys, LIVING, 3)
    (taken,) = await stream.take_due(10)
    await stream.close()
    assert taken == Delivery(dead.id, dead.fields, LIVING, 2)

    await settler.settle(dead, DONE)
    await settler.settle(taken, DONE)

    assert list(await race.enriched()) == [dead.id]
    assert await race.is_clean()


async def test_attempts_survive_a_death(race: Race, janitor: Janitor, settler: Settler, redis_url: str) -> None:
    """F1: a crash spends a delivery, not an attempt, and forgets none."""
    await settler.settle(await race.delivered(OLD), Retry(0.0, 2, ("a", "b")))
    first, second = Stream(redis_url, race.keys, OLD, 3), Stream(redis_url, race.keys, LIVING, 3)
    await first.take_due(1)
    janitor.hear({"died": OLD})
    await janitor.sweep()

    (taken,) = await second.take_due(1)

    assert (taken.attempts, taken.history, taken.count) == (2, ("a", "b"), 2)
    await first.close()
    await second.close()


# -- leases -----------------------------------------------------------------------------------------------------------


async def test_only_what_nobody_renewed_for_a_whole_lease_is_handed_back(
    race: Race, janitor: Janitor, clock: Clock
) -> None:
    """F1: where nobody saw the worker die, its lease runs out; a lease that still runs is respected."""
    expired, running = await race.delivered(ELSEWHERE), await race.delivered(ELSEWHERE)
    await race.age(running.id, LEASE_MS // 2)
    assert await janitor.sweep() == Sweep(examined=2)

    clock.now_s += LEASE_S / 2
    await race.age(running.id, 10)
    assert await janitor.sweep() == Sweep(examined=2)
    clock.now_s += LEASE_S / 2

    assert await janitor.sweep() == Sweep(examined=2, handed_back=1)
    assert await race.held() == {expired.id: (PARKED, 2), running.id: (ELSEWHERE, 1)}


async def test_idle_times_alone_take_nothing_from_anybody(race: Race, janitor: Janitor, clock: Clock) -> None:
    """F40: a clock put forward by an hour makes everything idle for an hour, though it was renewed a moment ago."""
    delivery = await race.delivered(ELSEWHERE)
    await race.age(delivery.id, 3_600_000)

    for _ in range(3):
        assert await janitor.sweep() == Sweep(examined=1)
        clock.now_s += LEASE_S / 4
    assert await race.held() == {delivery.id: (ELSEWHERE, 1)}


async def test_nothing_counts_that_was_seen_before_redis_was_away(race: Race, janitor: Janitor, clock: Clock) -> None:
    """F20: nobody could renew meanwhile, so everything is unchanged, and that costs nobody a delivery."""
    delivery = await race.delivered(ELSEWHERE)
    await janitor.sweep()
    clock.now_s += LEASE_S
    janitor._away(OSError("gone"))
    assert await janitor.sweep() == Sweep(examined=1)

    clock.now_s += LEASE_S
    assert await janitor.sweep() == Sweep(examined=1, handed_back=1)
    assert await race.held() == {delivery.id: (PARKED, 2)}


async def test_entry_that_cannot_be_buried_does_not_hold_up_the_rest(race: Race, janitor: Janitor) -> None:
    """F36: the dead-letter key is of the wrong type; the sweep goes on, and nothing is acknowledged."""
    poison, good = await race.delivered(OLD), await race.delivered(OLD)
    await race.steal(poison.id, OLD, count=3)
    await race.redis.set(race.keys.dead_letter, "not a stream")
    janitor.hear({"died": OLD})

    assert await janitor.sweep() == Sweep(examined=2, handed_back=1, refused=1)
    assert await race.held() == {poison.id: (OLD, 3), good.id: (PARKED, 2)}


async def test_upkeep_that_is_forbidden_does_not_keep_leases_from_running_out(
    race: Race, janitor: Janitor, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F36: a user that may not trim may still hand back, and the sweep says that something was refused."""
    delivery = await race.delivered(ELSEWHERE)

    async def forbidden(_: Sweep) -> None:
        raise NoPermissionError("NOPERM this user has no permissions to run the 'xtrim' command")

    monkeypatch.setattr(janitor, "_trim_finished", forbidden)
    assert await janitor.sweep() == Sweep(examined=1, refused=1)
    clock.now_s += LEASE_S

    assert await janitor.sweep() == Sweep(examined=1, handed_back=1, refused=1)
    assert await race.held() == {delivery.id: (PARKED, 2)}


async def test_lease_runs_out_on_the_timer_of_a_running_janitor(race: Race, redis_url: str) -> None:
    """F6: nobody tells, nobody beats: after a lease the event is handed back."""
    config = config_for(redis_url, flags={"delivery.lease_s": 0.5, "janitor.every_s": 0.1})
    async with sweeping(config) as (at_work, _):
        await at_work.ready()
        delivery = await race.delivered(ELSEWHERE)

        await eventually_async(race.parked)

        assert await race.held() == {delivery.id: (PARKED, 2)}


async def test_ghost_of_a_living_consumer_comes_back_while_what_it_renews_stays(
    race: Race, janitor: Janitor, clock: Clock
) -> None:
    """F5: an entry whose delivery never arrived is renewed by nobody, though its owner is alive and beating."""
    known, ghost = await race.delivered(LIVING), await race.delivered(LIVING)
    leases = Leases(race.redis, race.keys, LIVING, LEASE_S, logger())
    await race.age(known.id, LEASE_MS)
    await janitor.sweep()
    with leases.hold(known):
        await leases.renew()
        clock.now_s += LEASE_S

        sweep = await janitor.sweep()

    assert sweep == Sweep(examined=2, handed_back=1)
    assert await race.held() == {known.id: (LIVING, 1), ghost.id: (PARKED, 2)}


async def test_renewed_lease_is_not_taken_however_slow_the_model(race: Race, janitor: Janitor, clock: Clock) -> None:
    """F8: lease after lease goes by, and the event stays where it is worked on."""
    delivery = await race.delivered(LIVING)
    leases = Leases(race.redis, race.keys, LIVING, LEASE_S, logger())
    with leases.hold(delivery) as lease:
        for _ in range(3):
            await race.age(delivery.id, LEASE_MS)
            await janitor.sweep()
            await leases.renew()
            clock.now_s += LEASE_S
            assert await janitor.sweep() == Sweep(examined=1)
        assert not lease.lost
    assert await race.held() == {delivery.id: (LIVING, 1)}


async def test_what_is_held_together_is_renewed_and_tells_what_was_lost(
    race: Race, janitor: Janitor, clock: Clock
) -> None:
    """F8: for the length of the block, beside what is held alone."""
    alone, kept, stolen = [await race.delivered(LIVING) for _ in range(3)]
    leases = Leases(race.redis, race.keys, LIVING, LEASE_S, logger())
    with leases.hold(alone), leases.hold_all([kept, stolen]) as bundle:
        assert len(leases) == 3
        await race.steal(stolen.id, ELSEWHERE)
        for delivery in (alone, kept):
            await race.age(delivery.id, LEASE_MS)
        await janitor.sweep()
        await leases.renew()
        clock.now_s += LEASE_S
        await janitor.sweep()
        assert bundle.lost == {stolen.id}
    held = await race.held()
    assert held[alone.id] == held[kept.id] == (LIVING, 1)

    assert len(leases) == 0


# -- the crash budget -------------------------------------------------------------------------------------------------


async def test_event_that_was_delivered_too_often_is_buried_as_crash_loop(race: Race, janitor: Janitor) -> None:
    """F9: the third death in a row ends it; its neighbour with deliveries to spare is handed back."""
    poison, neighbour = await race.delivered(OLD), await race.delivered(OLD)
    await race.steal(poison.id, OLD, count=3)
    await race.steal(neighbour.id, OLD, count=2)
    janitor.hear({"died": OLD})

    sweep = await janitor.sweep()

    assert sweep == Sweep(examined=2, handed_back=1, buried=1, retired=1)
    letter = (await race.buried())[poison.id]
    assert letter["failure_reason"] == "crash_loop"
    assert letter["deliveries"] == "3"
    assert "deliveries_max is 3" in letter["failure_detail"]
    assert await race.held() == {neighbour.id: (PARKED, 3)}
    await race.totals()


async def test_crash_loop_keeps_the_attempts_in_its_dead_letter(race: Race, janitor: Janitor, settler: Settler) -> None:
    """F9: what the event had spent before it began to kill workers is part of its history."""
    delivery = await race.delivered(OLD)
    await settler.settle(delivery, Retry(0.0, 2, ("timeout: a", "timeout: b")))
    await race.steal(delivery.id, OLD, count=3)
    janitor.hear({"died": OLD})

    await janitor.sweep()

    letter = (await race.buried())[delivery.id]
    assert letter["failure_reason"] == "crash_loop"
    assert (letter["attempts"], letter["errors"]) == ("2", '["timeout: a","timeout: b"]')


async def test_neighbour_of_an_event_that_kills_its_workers_is_not_buried_with_it(
    race: Race, janitor: Janitor, settler: Settler, redis_url: str
) -> None:
    """F9: whoever was in the same hands each time is not blamed (DESIGN.md, promise 4)."""
    poison, neighbour = await race.add("poison"), await race.add("neighbour")
    in_hand = await race.deliver(f"{consumer_prefix()}1:life0", 2)
    for life in range(1, 8):
        consumer = f"{consumer_prefix()}1:life{life}"
        if poison in {delivery.id for delivery in in_hand}:
            janitor.hear({"died": f"{consumer_prefix()}1:life{life - 1}"})
            await janitor.sweep()
        else:
            for delivery in in_hand:
                await settler.settle(delivery, DONE)
        stream = Stream(redis_url, race.keys, consumer, 3)
        in_hand = await stream.take_due(2)
        await stream.close()

    assert {src: letter["failure_reason"] for src, letter in (await race.buried()).items()} == {poison: "crash_loop"}
    assert list(await race.enriched()) == [neighbour]


async def test_release_and_retry_spend_nothing_of_the_crash_budget(
    race: Race, janitor: Janitor, settler: Settler, redis_url: str
) -> None:
    """F9: ten retries and drains later the event is still at its first delivery."""
    stream = Stream(redis_url, race.keys, LIVING, 3)
    delivery = await race.delivered(LIVING)
    for attempts in range(1, 6):
        await settler.settle(delivery, Retry(0.0, attempts, ("x",)))
        (delivery,) = await stream.take_due(1)
        await settler.settle(delivery, Release())
        await janitor.sweep()
        (delivery,) = await stream.take_due(1)
    await stream.close()

    assert (delivery.count, delivery.attempts) == (1, 5)


async def test_event_that_only_waited_at_the_gate_is_not_blamed_for_the_death(race: Race, janitor: Janitor) -> None:
    """F9: what the dead one had in hand without working on it keeps its deliveries, as often as that happens."""
    waited, asked = await race.delivered(OLD), await race.delivered(OLD)
    for delivery in (waited, asked):
        await race.steal(delivery.id, OLD, count=3)

    janitor.hear({"died": OLD, "at_the_gate": [waited.id]})

    assert await janitor.sweep() == Sweep(examined=2, handed_back=1, buried=1, retired=1)
    assert await race.held() == {waited.id: (PARKED, 3)}
    assert list(await race.buried()) == [asked.id]
    await janitor.sweep()
    assert not janitor._blameless


async def test_permits_of_the_dead_are_free_at_once_and_those_of_the_living_stay(race: Race, janitor: Janitor) -> None:
    """F1: also of an earlier life of this host of which nobody has told."""
    stranger = f"{consumer_prefix()}7:before"
    far = 1e15
    await race.redis.zadd(race.keys.permits, {f"{OLD}/1": far, f"{LIVING}/1": far, f"{stranger}/9": far, "@opened": -1})
    await race.redis.hset(race.keys.gate, mapping={"prober": f"{OLD}/1", "prober_until": "1e15"})
    janitor.hear({"died": OLD})

    await janitor.sweep()

    assert set(await race.redis.zrange(race.keys.permits, 0, -1)) == {f"{LIVING}/1".encode(), b"@opened"}
    assert await race.redis.hgetall(race.keys.gate) == {}


# -- what was lost ----------------------------------------------------------------------------------------------------


async def test_lost_due_times_are_put_back_from_the_pending_list(
    race: Race, janitor: Janitor, settler: Settler, redis_url: str
) -> None:
    """F10: a parked event whose due time is lost is due now; those whose time is known keep it."""
    lost, kept = await race.delivered(LIVING), await race.delivered(LIVING)
    for delivery in (lost, kept):
        await settler.settle(delivery, Retry(60.0, 1, ("x",)))
    await race.redis.zrem(race.keys.parked, lost.id)
    due_ms = (await race.parked())[kept.id]

    assert await janitor.sweep() == Sweep(examined=2, rehung=1)
    assert await janitor.sweep() == Sweep(examined=2)

    assert await race.parked() == {lost.id: 0.0, kept.id: due_ms}
    stream = Stream(redis_url, race.keys, LIVING, 3)
    assert [delivery.id for delivery in await stream.take_due(10)] == [lost.id]
    await stream.close()


async def test_deleted_entry_of_the_dead_gets_a_tombstone(race: Race, janitor: Janitor) -> None:
    """F38: a loss by somebody's trimming is told, and the pending list is clean after it."""
    gone, kept = await race.delivered(OLD), await race.delivered(OLD)
    await race.redis.xdel(race.keys.input, gone.id)
    janitor.hear({"died": OLD})

    sweep = await janitor.sweep()

    assert sweep == Sweep(examined=2, handed_back=1, tombstoned=1, retired=1)
    assert {src: letter["failure_reason"] for src, letter in (await race.buried()).items()} == {gone.id: "deleted"}
    assert set(await race.held()) == {kept.id}
    await race.totals()


async def test_vanished_group_is_put_back_by_the_janitor(
    race: Race, redis_url: str, told: list[MutableMapping[str, Any]]
) -> None:
    """F32: and it is told as critical."""
    config = config_for(redis_url, flags={"janitor.every_s": 0.1})
    async with sweeping(config) as (at_work, _):
        await at_work.ready()
        await race.redis.xgroup_destroy(race.keys.input, race.keys.group)

        await eventually_async(lambda: [row for row in told if row["event"] == "group.recreated"])
        assert await has_group(race)

    assert [row["log_level"] for row in told if row["event"] == "group.recreated"] == ["critical"]


async def test_group_that_vanishes_in_the_middle_of_a_sweep_ends_the_sweep_and_not_the_janitor(
    race: Race, janitor: Janitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F32: whatever the sweep asks next, the answer is an error of Redis's."""
    trim = janitor._trim_finished

    async def trim_and_lose(sweep: Sweep) -> None:
        await trim(sweep)
        await race.redis.xgroup_destroy(race.keys.input, race.keys.group)

    monkeypatch.setattr(janitor, "_trim_finished", trim_and_lose)
    with pytest.raises(RedisError, match="NOGROUP"):
        await janitor.sweep()


async def has_group(race: Race) -> bool:
    """Whether the group is there."""
    return bool(await race.redis.xinfo_groups(race.keys.input))


async def test_long_pending_list_is_gone_through_whole(
    race: Race, janitor: Janitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F1: page after page, while the pages change under the janitor's hands."""
    monkeypatch.setattr(janitor_module, "PAGE", 7)
    for _ in range(50):
        await race.delivered(OLD)
    janitor.hear({"died": OLD})

    assert await janitor.sweep() == Sweep(examined=50, handed_back=50, retired=1)
    assert await janitor.sweep() == Sweep(examined=50)


# -- consumers --------------------------------------------------------------------------------------------------------


async def test_two_hundred_dead_consumers_are_retired_and_what_they_held_is_kept(race: Race, janitor: Janitor) -> None:
    """F39: names do not pile up, and none takes an event with it."""
    held = {}
    for n in range(200):
        consumer = f"{consumer_prefix()}1:{n:08x}"
        if n % 20 == 0:
            held[(await race.delivered(consumer)).id] = (PARKED, 2)
        else:
            await race.redis.xgroup_createconsumer(race.keys.input, race.keys.group, consumer)
        janitor.hear({"died": consumer})

    sweep = await janitor.sweep()

    assert sweep == Sweep(examined=10, handed_back=10, retired=200)
    assert await race.consumers() == {PARKED}
    assert await race.held() == held


async def test_consumers_that_may_live_are_not_retired(race: Race, janitor: Janitor) -> None:
    """F39: neither this host's living ones nor another host's of late, though they hold nothing."""
    for consumer in (LIVING, ELSEWHERE):
        await race.redis.xgroup_createconsumer(race.keys.input, race.keys.group, consumer)

    assert await janitor.sweep() == Sweep()
    assert await race.consumers() == {LIVING, ELSEWHERE}


async def test_consumers_of_another_host_that_were_silent_for_long_are_retired(
    race: Race, janitor: Janitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F39: nobody tells us of their deaths; one that still holds something is kept, and so is `@parked`."""
    monkeypatch.setattr(janitor_module, "RETIRE_IDLE_S", -1.0)
    await race.delivered(ELSEWHERE)
    for consumer in ("elsewhere:w2:y", LIVING, PARKED):
        await race.redis.xgroup_createconsumer(race.keys.input, race.keys.group, consumer)

    assert await janitor.sweep() == Sweep(examined=1, retired=1)
    assert await race.consumers() == {ELSEWHERE, LIVING, PARKED}


# -- more than one, and a bad line ------------------------------------------------------------------------------------


async def test_two_janitors_at_once_have_no_double_effect(race: Race, config: Config, redis_url: str) -> None:
    """F11: each event is handed back, buried or marked once, and its count rises by one."""
    deliveries = [await race.delivered(OLD) for _ in range(60)]
    for delivery in deliveries[:20]:
        await race.steal(delivery.id, OLD, count=3)
    await race.redis.xdel(race.keys.input, *[delivery.id for delivery in deliveries[20:30]])
    clients = [connect(redis_url) for _ in range(2)]
    janitors = [Janitor(client, config, [], logger()) for client in clients]
    for janitor in janitors:
        janitor.hear({"died": OLD})

    one, other = await asyncio.gather(*[janitor.sweep() for janitor in janitors])

    assert one.handed_back + other.handed_back == 30
    assert one.buried + other.buried == 20
    assert one.tombstoned + other.tombstoned == 10
    assert await race.held() == {delivery.id: (PARKED, 2) for delivery in deliveries[30:]}
    assert len(await race.buried()) == 30
    assert (await race.totals())["handed_back"] == 30
    for client in clients:
        await client.aclose()


async def test_janitor_that_lost_a_reply_repairs_in_its_next_pass(
    race: Race, config: Config, redis_server: RedisServer
) -> None:
    """F10: what was done before it broke off holds; the next pass finds that, and does nothing twice."""
    deliveries = [await race.delivered(OLD) for _ in range(5)]
    async with FaultProxy(redis_server.port) as proxy:
        client = connect(proxy.redis_url)
        janitor = Janitor(client, config, [], logger())
        janitor.hear({"died": OLD})
        await client.script_load(script_text("release"))  # or what is lost is that it has to be sent in full
        proxy.swallow(b"handed_back")

        with pytest.raises(RedisError):
            await janitor.sweep()
        assert await janitor.sweep() == Sweep(examined=5, retired=1), (
            "all five went out in the call whose reply was lost"
        )

        await client.aclose()
    assert await race.held() == {delivery.id: (PARKED, 2) for delivery in deliveries}
    assert (await race.totals())["handed_back"] == 5


async def test_janitor_outlives_a_redis_that_is_killed(start_redis: StartRedis) -> None:
    """F20: a pass that fails is followed by another; what was told meanwhile is not forgotten."""
    server = start_redis({"appendonly": "yes", "appendfsync": "always"})
    config = config_for(server.url, flags={"janitor.every_s": 0.1})
    client = connect(server.url)
    race = await Race(client, Keys.of(config)).open()
    async with sweeping(config, [LIVING]) as (at_work, janitor):
        await at_work.ready()
        delivery = await race.delivered(LIVING)
        server.kill()
        janitor.hear({"died": LIVING})
        server.start()
        await client.connection_pool.disconnect()

        await eventually_async(race.parked)

        assert await race.held() == {delivery.id: (PARKED, 2)}
    await client.aclose()


async def test_stopped_janitor_ends_at_once(race: Race, config: Config) -> None:
    """F15: neither its timer nor anything else keeps it."""
    stop, ear = Stop(20.0), Ear()
    running = asyncio.create_task(Janitor(race.redis, config, [], logger()).run(stop, ear))
    await eventually_async(lambda: ear.ready)

    stop.request()

    await asyncio.wait_for(running, 2)
