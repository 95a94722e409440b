"""The worker's leases and its stop: what it holds stays its own, until it is lost or handed back."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest
from tests.integration.hands import CONSUMER, sweeping, working
from tests.integration.race import DONE, Race
from tests.rig import config_for, eventually_async

from millhand.config import Config
from millhand.settle import Settled, Settler
from millhand.verdict import Delivery
from scripts.fake_ollama import FakeOllama

PARKED = "@parked"
THIEF = "thief:w1:b"
QUICK = {"delivery.lease_s": 0.5, "janitor.every_s": 0.1}


@pytest.fixture
def config(redis_url: str, fake: FakeOllama) -> Config:
    """Work on the shared server with the fake model, with short leases."""
    return config_for(redis_url, fake.url, QUICK)


# -- leases -----------------------------------------------------------------------------------------------------------


async def test_lost_lease_cancels_the_call_and_writes_nothing(
    race: Race, config: Config, fake: FakeOllama, settler: Settler, told: list[MutableMapping[str, Any]]
) -> None:
    """F6: the model is freed, the thief keeps the event, and the worker goes on with others."""
    stolen = await race.add("[[fake hold]]")
    async with working(config) as at_work:
        await fake.until(lambda: fake.held == 1)
        await race.steal(stolen, THIEF)
        await fake.until(lambda: fake.in_flight == 0)
        await eventually_async(lambda: at_work.ear.stats()["in_hand"] == 0)
        assert fake.calls[0].status == "disconnected"
        assert await race.held() == {stolen: (THIEF, 2)}
        assert await race.attempts() == {}
        assert await race.totals() == {}

        other = await race.add()
        assert list(await race.until_enriched(1)) == [other]

    assert [row["id"] for row in told if row["event"] == "lease.lost"] == [stolen]
    assert await settler.settle(Delivery(stolen, {}, THIEF, 2), DONE) is Settled.OK
    assert await race.is_clean()


async def test_event_settled_by_another_hand_is_not_written_twice(
    race: Race, config: Config, fake: FakeOllama, settler: Settler
) -> None:
    """F6: the answer that comes second finds it gone."""
    entry_id = await race.add("[[fake hold]]")
    async with working(config) as at_work:
        await fake.until(lambda: fake.held == 1)
        await settler.settle(Delivery(entry_id, {}, THIEF, 2), DONE)
        fake.release()
        await eventually_async(lambda: at_work.ear.stats()["in_hand"] == 0)

    assert len(await race.output()) == 1
    assert await race.is_clean()


async def test_slow_model_with_a_living_worker_is_not_reclaimed(race: Race, config: Config, fake: FakeOllama) -> None:
    """F8: three leases and more go by with heartbeats; there is one call, and the janitor takes nothing."""
    entry_id = await race.add("[[fake hold]]")
    loop = asyncio.get_running_loop()
    async with sweeping(config), working(config):
        await fake.until(lambda: fake.held == 1)
        until = loop.time() + 3.5 * config.delivery.lease_s
        await eventually_async(lambda: loop.time() > until, what="three and a half leases have passed")
        assert await race.held() == {entry_id: (CONSUMER, 1)}
        fake.release()
        await race.until_enriched(1)

    assert len(fake.calls) == 1
    assert await race.totals() == {"enriched": 1}


async def test_entry_deleted_while_it_is_enriched_still_leaves_its_record(
    race: Race, config: Config, fake: FakeOllama
) -> None:
    """F38: the worker has its bytes; the heartbeat does not drop it."""
    entry_id = await race.add("[[fake hold]]")
    async with working(config):
        await fake.until(lambda: fake.held == 1)
        await race.redis.xdel(race.keys.input, entry_id)
        fake.release()
        assert list(await race.until_enriched(1)) == [entry_id]

    assert await race.is_clean()


async def test_entry_deleted_while_its_answer_is_useless_gets_a_tombstone(
    race: Race, config: Config, fake: FakeOllama
) -> None:
    """F38: a retry of what is no longer there ends in the dead letters."""
    entry_id = await race.add("[[fake hold length]]")
    async with working(config):
        await fake.until(lambda: fake.held == 1)
        await race.redis.xdel(race.keys.input, entry_id)
        fake.release()
        buried = await race.until_buried()

    assert buried[entry_id]["failure_reason"] == "deleted"
    assert await race.is_clean()


async def test_two_workers_share_the_work_and_double_none(race: Race, config: Config, fake: FakeOllama) -> None:
    """Each event is asked about once, by one of them."""
    fake.latency_s = 0.005
    ids = [await race.add(str(n)) for n in range(60)]
    async with working(config, "here:w1:a"), working(config, "here:w2:b"):
        enriched = await race.until_enriched(60)

    assert set(enriched) == set(ids)
    assert {one["meta"]["worker"] for one in enriched.values()} == {"here:w1:a", "here:w2:b"}
    assert len(fake.calls) == 60


async def test_event_that_has_its_last_chance_is_worked_on_alone(
    race: Race, redis_url: str, fake: FakeOllama, settler: Settler
) -> None:
    """F9: it waits, with its lease renewed, until the hands are empty; the rest waits until it is settled."""
    config = config_for(redis_url, fake.url, {**QUICK, "model.concurrency": 4, "delivery.deliveries_max": 2})
    suspect = await race.add("[[fake hold]] suspect")
    (left_behind,) = await race.deliver("dead:w1:x")
    first = await race.add("[[fake hold]] first")
    async with working(config):
        await fake.until(lambda: fake.held == 1)
        assert await settler.hand_back(left_behind) is Settled.OK
        await eventually_async(lambda: owner_of(race, suspect, CONSUMER))
        later = [await race.add(str(n)) for n in range(6)]
        for _ in range(3):
            await race.age(suspect)
            await eventually_async(lambda: is_renewed(race, suspect))
        assert len(fake.calls) == 1
        assert set(await race.held()) == {first, suspect}

        fake.release()
        await fake.until(lambda: fake.held == 1 and len(fake.calls) == 2)
        assert set(await race.held()) == {suspect}
        assert fake.in_flight == 1

        fake.release()
        enriched = await race.until_enriched(8)
        await eventually_async(race.is_clean)

    assert set(enriched) == {first, suspect, *later}


async def owner_of(race: Race, entry_id: str, consumer: str) -> bool:
    """Whether a consumer holds an entry."""
    return (await race.held()).get(entry_id, ("", 0))[0] == consumer


async def is_renewed(race: Race, entry_id: str) -> bool:
    """Whether an aged entry has been touched again."""
    return (await race.pending_row(entry_id)).idle_ms < 60_000


# -- stop -------------------------------------------------------------------------------------------------------------


async def test_stop_lets_the_calls_in_hand_finish_and_reads_nothing_new(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    """F15: before the deadline nothing is thrown away; what was not read yet stays unread, though places are free."""
    config = config_for(redis_url, fake.url, {"model.concurrency": 2})
    in_hand = [await race.add(f"[[fake hold]] {n}") for n in range(2)]
    async with working(config) as at_work:
        await fake.until(lambda: fake.held == 2)
        waiting = await race.add("not read")
        at_work.stop.request()
        at_work.stop.request()
        fake.release()
        await at_work.ended()

    assert set(await race.enriched()) == set(in_hand)
    assert await race.is_clean()
    assert [delivery.id for delivery in await race.deliver(count=10)] == [waiting]


async def test_what_is_not_finished_at_the_deadline_is_released_unspent(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    """F15: same delivery count, no attempt, due at once; the model is freed."""
    before = await race.add("[[fake length times=1]] once")
    config = config_for(redis_url, fake.url, {"fleet.drain_s": 0.5})
    async with working(config) as at_work:
        await race.until_enriched(1)
        held = [await race.add(f"[[fake hold]] {n}") for n in range(2)]
        await fake.until(lambda: fake.held == 2)
        at_work.stop.request()
        await asyncio.wait_for(at_work.running, 3)
        await fake.until(lambda: fake.in_flight == 0)

    assert list(await race.enriched()) == [before]
    assert await race.held() == dict.fromkeys(held, (PARKED, 1))
    assert await race.attempts() == {}
    now_ms = await race.server_ms()
    assert all(due_ms <= now_ms for due_ms in (await race.parked()).values())
    assert await race.totals() == {"enriched": 1, "retried": 1, "released": 2}


async def test_released_event_is_enriched_by_the_next_worker_as_if_nothing_had_been(
    race: Race, config: Config, fake: FakeOllama
) -> None:
    """F15: its attempts count from where they were."""
    entry_id = await race.add("[[fake hold times=1]]")
    async with working(config) as at_work:
        await fake.until(lambda: fake.held == 1)
        at_work.stop.request(0)
        await at_work.ended()
    async with working(config, "here:w1:next"):
        enriched = await race.until_enriched(1)

    assert enriched[entry_id]["meta"]["attempts"] == 1
    assert enriched[entry_id]["meta"]["worker"] == "here:w1:next"
    assert await race.is_clean()


async def test_nearer_deadline_overtakes_the_drain(race: Race, config: Config, fake: FakeOllama) -> None:
    """F12: a worker that drains and then loses its supervisor leaves within a second or two."""
    entry_id = await race.add("[[fake hold]]")
    async with working(config) as at_work:
        await fake.until(lambda: fake.held == 1)
        at_work.stop.request()
        at_work.stop.request(0.1)
        await asyncio.wait_for(at_work.running, 3)

    assert await race.held() == {entry_id: (PARKED, 1)}


async def test_idle_worker_stops_as_soon_as_its_read_ends(race: Race, config: Config) -> None:
    """F15: nobody waits out a drain time with empty hands."""
    async with working(config) as at_work:
        await at_work.ready()
        at_work.stop.request()
        await asyncio.wait_for(at_work.running, 2)

    assert await race.pending() == []
