"""The fast lane: events whose answers are known leave many at a time, each exactly once; all others walk."""

import json
from collections.abc import AsyncIterator, Collection, MutableMapping
from typing import Any

import pytest
from tests.fleet.chaos.proxy import FaultProxy
from tests.integration.hands import CONSUMER, working
from tests.integration.race import DONE, Race
from tests.rig import RedisServer, config_for, eventually_async

from millhand.config import Config
from millhand.settle import Settled, Settler
from millhand.verdict import Delivery
from scripts.fake_ollama import FakeOllama

TEXT = "the mill runs well"
THIEF = "thief:w1:b"
TTL_S = 3600.0


def config_of(redis_url: str, fake: FakeOllama, **settings: Any) -> Config:
    flags = {name.replace("__", "."): value for name, value in settings.items()}
    return config_for(redis_url, fake.url, {"cache.ttl_s": TTL_S, **flags})


@pytest.fixture
async def learned(race: Race, redis_url: str, fake: FakeOllama) -> str:
    """Have one answer kept; return the id of the event that was asked about."""
    entry_id = await race.add(TEXT)
    async with working(config_of(redis_url, fake)):
        await race.until_enriched(1)
    fake.calls.clear()
    return entry_id


@pytest.fixture
async def proxy(redis_server: RedisServer) -> AsyncIterator[FaultProxy]:
    """Stand between the worker and its server."""
    async with FaultProxy(redis_server.port) as proxy:
        yield proxy


def of(told: Collection[MutableMapping[str, Any]], event: str, entry_id: str) -> list[MutableMapping[str, Any]]:
    return [row for row in told if row["event"] == event and row["id"] == entry_id]


# -- what is known -----------------------------------------------------------------------------------------------------


@pytest.mark.every_server
async def test_known_events_leave_without_a_call(race: Race, redis_url: str, fake: FakeOllama, learned: str) -> None:
    """Many more than there are slots; each is a hit, is counted, and leaves nothing behind."""
    ids = [await race.add(TEXT) for _ in range(700)]
    async with working(config_of(redis_url, fake, model__concurrency=2)) as at_work:
        enriched = await race.until_enriched(701)
        await eventually_async(lambda: at_work.ear.stats()["in_hand"] == 0)
        stats = at_work.ear.stats()

    assert set(enriched) == {learned, *ids}
    assert not fake.calls
    assert await race.is_clean()
    assert await race.totals() == {"enriched": 701, "cache_misses": 1, "cache_hits": 700}
    assert stats["done"] == sum(stats["counts"]["event_s"][1:]) == 700
    assert stats["counts"]["tokens"] == [0, 0]


async def test_known_event_leaves_as_it_would_by_its_walk(
    race: Race, redis_url: str, fake: FakeOllama, settler: Settler, learned: str
) -> None:
    """Byte for byte, but for the times; one that a dead worker had in hand before goes the long way."""
    data = json.dumps({"n": 1.10, "text": TEXT, "b": [True]}, indent=1).encode()
    walked = await race.add_data(data, event_id=b"7", other=b"x")
    (delivery,) = await race.deliver("dead:w1:x")
    known = await race.add_data(data, event_id=b"7", other=b"x")
    assert await settler.hand_back(delivery) is Settled.OK
    async with working(config_of(redis_url, fake)):
        enriched = await race.until_enriched(3)

    records = {record.pop(b"src").decode(): record for record in await race.output()}
    for entry_id in (walked, known):
        meta = enriched[entry_id]["meta"]
        for name in ("at", "total_s"):
            records[entry_id][b"data"] = records[entry_id][b"data"].replace(json.dumps(meta[name]).encode(), b"?", 1)
        assert meta["cached"] is True
        assert meta["attempts"] == 1
        assert 0 <= meta["total_s"] < 60
    assert records[walked] == records[known]
    assert records[known][b"data"].startswith(data[:-2] + b',"ai_enrichment":{"sentiment":{')
    assert records[known][b"hash"] == records[learned][b"hash"]
    assert not fake.calls


async def test_known_and_unknown_events_of_one_batch_all_leave(
    race: Race, redis_url: str, fake: FakeOllama, learned: str
) -> None:
    """What is no event is buried, and what is unknown is asked about, whatever stands beside it."""
    fine = {await race.add(TEXT if n % 3 else f"unknown {n}") for n in range(60)}
    bad = {await race.add_data(data) for data in (b"no JSON", b"{}", b"[]")}
    fine |= {await race.add(TEXT) for _ in range(10)}
    async with working(config_of(redis_url, fake)):
        enriched, buried = await race.until_enriched(71), await race.until_buried(3)

    assert set(enriched) == {learned, *fine}
    assert set(buried) == bad
    assert len(fake.calls) == 20
    assert await race.is_clean()
    totals = await race.totals()
    assert totals["cache_hits"] == 50
    assert totals["cache_misses"] == 21


async def test_known_events_take_no_place_in_a_shared_call(
    race: Race, redis_url: str, fake: FakeOllama, learned: str
) -> None:
    for n in range(40):
        await race.add(TEXT if n % 2 else f"unknown {n}")
    async with working(config_of(redis_url, fake, model__events_per_call=8)):
        enriched = await race.until_enriched(41)

    assert sum("cached" in one["meta"] for one in enriched.values()) == 20
    assert len(fake.calls) < 20
    assert learned in enriched
    assert await race.is_clean()


@pytest.mark.every_server
async def test_what_was_read_in_hope_and_is_not_known_is_handed_back_unspent(
    race: Race, redis_url: str, fake: FakeOllama, learned: str
) -> None:
    """There is no slot for it: others may take it at once, and it has lost nothing."""
    ids = [await race.add(TEXT if n < 200 else f"unknown {n}") for n in range(300)]
    async with working(config_of(redis_url, fake, model__concurrency=2, delivery__deliveries_max=2)):
        enriched = await race.until_enriched(301)

    assert set(enriched) == {learned, *ids}
    assert len(fake.calls) == 100
    totals = await race.totals()
    assert totals.pop("released") > 0
    assert totals == {"enriched": 301, "cache_hits": 200, "cache_misses": 101}
    assert await race.is_clean()


async def test_two_workers_share_known_events_and_double_none(
    race: Race, redis_url: str, fake: FakeOllama, learned: str
) -> None:
    config = config_of(redis_url, fake)
    async with working(config, "here:w1:a"), working(config, "here:w2:b"):
        ids = [await race.add(TEXT) for _ in range(600)]
        enriched = await race.until_enriched(601)

    assert set(enriched) == {learned, *ids}
    assert (await race.totals())["enriched"] == 601
    assert await race.is_clean()


# -- what is not -------------------------------------------------------------------------------------------------------


async def test_nothing_is_looked_up_where_no_answers_are_kept(
    race: Race, redis_url: str, fake: FakeOllama, learned: str
) -> None:
    await race.add(TEXT)
    async with working(config_of(redis_url, fake, cache__ttl_s=0.0)):
        enriched = await race.until_enriched(2)

    assert len(fake.calls) == 1
    assert not any("cached" in one["meta"] for one in enriched.values())
    assert "cache_hits" not in await race.totals()
    assert learned in enriched


async def test_answer_that_is_too_old_is_asked_for_anew(
    race: Race, redis_url: str, fake: FakeOllama, learned: str
) -> None:
    await race.redis.zincrby(race.keys.answer_times, -1000 * TTL_S, (await race.redis.hkeys(race.keys.answers))[0])
    ids = {await race.add(TEXT) for _ in range(5)}
    async with working(config_of(redis_url, fake)):
        assert set(await race.until_enriched(6)) == {learned, *ids}

    assert len(fake.calls) == 1


async def test_answer_that_another_hand_has_put_there_is_asked_for_anew(
    race: Race, redis_url: str, fake: FakeOllama, learned: str
) -> None:
    (question,) = await race.redis.hkeys(race.keys.answers)
    await race.redis.hset(race.keys.answers, question, '{"content":"{}","tokens_in":1,"tokens_out":1,"model_s":1}')
    entry_id = await race.add(TEXT)
    async with working(config_of(redis_url, fake)):
        enriched = await race.until_enriched(2)

    assert len(fake.calls) == 1
    assert "cached" not in enriched[entry_id]["meta"]
    assert learned in enriched


async def test_event_that_repeats_an_event_id_is_skipped_although_its_answer_is_known(
    race: Race, redis_url: str, fake: FakeOllama, learned: str
) -> None:
    first = await race.add(TEXT, event_id=b"order-7")
    other = await race.add(TEXT)
    await race.add(TEXT, event_id=b"order-7")
    async with working(config_of(redis_url, fake, input__dedupe_event_id_s=60.0)):
        enriched = await race.until_enriched(3)
        await eventually_async(race.is_clean)

    assert set(enriched) == {learned, first, other}
    assert (await race.totals())["skipped"] == 1
    assert not fake.calls


async def test_look_that_redis_refuses_makes_every_event_walk(
    race: Race, redis_url: str, fake: FakeOllama, learned: str, told: list[MutableMapping[str, Any]]
) -> None:
    """F36: the answers are no hash any more."""
    await race.redis.set(race.keys.answers, "mine")
    ids = {await race.add(f"{TEXT} {n}") for n in range(20)}
    async with working(config_of(redis_url, fake)):
        assert set(await race.until_enriched(21)) == {learned, *ids}

    assert len(fake.calls) == 20
    assert [row["event"] for row in told if row["log_level"] == "warning"] == ["cache.not_used"]


# -- faults on the way out ---------------------------------------------------------------------------------------------


@pytest.mark.every_server
async def test_known_events_whose_reply_is_lost_are_written_once(
    race: Race, proxy: FaultProxy, fake: FakeOllama, learned: str, told: list[MutableMapping[str, Any]]
) -> None:
    """F4: what was written out is sent again, and found gone."""
    ids = [await race.add(TEXT) for _ in range(100)]
    proxy.swallow(f"{ids[60]}\r\n".encode())
    async with working(config_of(proxy.redis_url, fake)) as at_work:
        enriched = await race.until_enriched(101)
        await eventually_async(lambda: at_work.ear.stats().get("gone"))
        await eventually_async(lambda: at_work.ear.stats()["in_hand"] == 0)
        stats = at_work.ear.stats()

    assert set(enriched) == {learned, *ids}
    assert proxy.swallowed.total() == 1
    assert stats["done"] + stats["gone"] == 100
    assert stats["waits_for"] is None
    assert await race.is_clean()
    assert (await race.totals())["enriched"] == 101
    resent = [row for row in told if row["event"] == "settle.resending"]
    assert ids[60] in {row["id"] for row in resent}
    assert sum(row["log_level"] == "warning" for row in resent) == 1
    assert len(of(told, "settle.sent", ids[60])) == 2


async def test_known_event_that_another_hand_settles_meanwhile_is_written_once(
    race: Race, proxy: FaultProxy, fake: FakeOllama, learned: str, told: list[MutableMapping[str, Any]]
) -> None:
    """F6: it was taken away, and the thief was faster; its neighbours are kept, and not held up.

    That its lease was lost is nothing to tell: nobody works on it any more, and it might be gone by our own hand.
    """
    ids = [await race.add(TEXT) for _ in range(3)]
    held = proxy.hold(f"{ids[1]}\r\n".encode())
    async with working(config_of(proxy.redis_url, fake, delivery__lease_s=0.5)) as at_work:
        await held.caught()
        await race.steal(ids[1], THIEF)
        assert await Settler(race.redis, race.keys).settle(Delivery(ids[1], {}, THIEF, 2), DONE) is Settled.OK
        await eventually_async(
            lambda: [ids[1]] in [row.get("lost") for row in told], what="the heartbeat has missed it"
        )
        held.release()
        await eventually_async(lambda: at_work.ear.stats().get("gone") == 1)
        await eventually_async(lambda: at_work.ear.stats()["in_hand"] == 0)

    assert set(await race.enriched()) == {learned, *ids}
    assert await race.is_clean()
    assert not [row for row in told if row["event"] == "lease.lost"]


async def test_stop_lets_known_events_leave_that_are_on_their_way(
    race: Race, proxy: FaultProxy, fake: FakeOllama, learned: str
) -> None:
    """F15: they are in hand, so the drain waits for them."""
    ids = [await race.add(TEXT) for _ in range(4)]
    held = proxy.hold(f"{ids[0]}\r\n".encode())
    async with working(config_of(proxy.redis_url, fake)) as at_work:
        await held.caught()
        at_work.stop.request(10.0)
        await eventually_async(lambda: at_work.stop.requested and at_work.ear.stats()["in_hand"] > 0)
        held.release()
        await at_work.ended()

    assert ids[0] in await race.enriched()
    assert learned in await race.enriched()
    assert all(owner == "@parked" or count == 1 for owner, count in (await race.held()).values())


async def test_each_known_event_is_told_of_where_all_is_told(
    race: Race, redis_url: str, fake: FakeOllama, learned: str, told: list[MutableMapping[str, Any]]
) -> None:
    """As of one that walks: in hand, on its way, settled."""
    ids = [await race.add(TEXT) for _ in range(30)]
    async with working(config_of(redis_url, fake)) as at_work:
        await race.until_enriched(31)
        await eventually_async(lambda: at_work.ear.stats()["in_hand"] == 0)

    for entry_id in ids:
        rows = [row for row in told if row.get("id") == entry_id]
        assert [row["event"] for row in rows] == ["event.delivered", "settle.sent", "event.settled"]
        assert {(row["owner"], row["count"], row["attempt"]) for row in rows} == {(CONSUMER, 1, 1)}
        assert (rows[2]["verdict"], rows[2]["settled"], rows[2]["log_level"]) == ("done", "ok", "debug")
    assert learned not in ids


async def test_very_many_known_events_of_one_read_leave_as_well(
    race: Race, redis_url: str, fake: FakeOllama, learned: str
) -> None:
    """More than go into one run of a script; all that many calls of many events each would have taken."""
    ids = {await race.add(TEXT) for _ in range(1200)}
    config = config_of(redis_url, fake, model__concurrency=64, model__events_per_call=32)
    async with working(config) as at_work:
        assert set(await race.until_enriched(1201)) == {learned, *ids}
        await eventually_async(lambda: at_work.ear.stats()["in_hand"] == 0)

    assert not fake.calls
    assert await race.is_clean()


async def test_large_known_events_leave_by_a_few_at_a_time(
    race: Race, redis_url: str, fake: FakeOllama, learned: str, told: list[MutableMapping[str, Any]]
) -> None:
    """They were read together, but the server is held up for none of them long."""
    data = json.dumps({"text": TEXT, "more": "x" * 200_000}).encode()
    ids = {await race.add_data(data) for _ in range(20)}
    async with working(config_of(redis_url, fake, model__events_per_call=8)):
        assert set(await race.until_enriched(21)) == {learned, *ids}
        await eventually_async(race.is_clean)

    steps = [row["event"] for row in told if row.get("id") in ids]
    assert steps[:25] == ["event.delivered"] * 20 + ["settle.sent"] * 5
    assert steps[25:30] == ["event.settled"] * 5
