"""Repetitions by a producer: with `input.dedupe_event_id_s` an event_id is enriched once within the window."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, MutableMapping
from typing import Any

import pytest
from tests.conftest import StartRedis
from tests.fleet.chaos.proxy import FaultProxy
from tests.integration.hands import CONSUMER, sweeping, working
from tests.integration.race import Race
from tests.rig import RedisServer, config_for, eventually_async

from millhand.config import Config
from millhand.keys import Keys
from millhand.log import logger
from millhand.settle import Settled, Settler, settle_surely
from millhand.stream import EventIds, connect
from millhand.verdict import Delivery, Retry, Skip
from scripts.fake_ollama import FakeOllama

WINDOW_S = 3600.0
PARKED = "@parked"
SKIP = Skip("0-1")


def remembering(redis_url: str, fake: FakeOllama, flags: Mapping[str, Any] | None = None) -> Config:
    """Configure that event_ids are remembered for an hour."""
    return config_for(redis_url, fake.url, {"input.dedupe_event_id_s": WINDOW_S, **(flags or {})})


@pytest.fixture
def config(redis_url: str, fake: FakeOllama) -> Config:
    """Work on the shared server with the fake model, and remember event_ids."""
    return remembering(redis_url, fake)


async def skipped(race: Race, count: int = 1) -> None:
    """Wait until so many repetitions have been acknowledged."""

    async def counted() -> bool:
        return int(await race.redis.hget(race.keys.totals, "skipped") or 0) >= count

    await eventually_async(counted, what=f"{count} events are skipped")


# -- what a producer sees ----------------------------------------------------------------------------------------------


async def test_repeated_event_is_enriched_twice_where_nothing_is_said(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    """F49: an event_id is the producer's business by default: it is passed on, and no mark is set for it."""
    await race.redis.config_resetstat()
    for _ in range(2):
        await race.add(event_id=b"order-7")
    async with working(config_for(redis_url, fake.url)):
        await race.until_enriched(2)

    assert "cmdstat_set" not in await race.redis.info("commandstats")
    assert [record[b"event_id"] for record in await race.output()] == [b"order-7"] * 2
    assert await race.totals() == {"enriched": 2}


@pytest.mark.every_server
async def test_repeated_event_is_acknowledged_and_counted_but_not_enriched_again(
    race: Race, config: Config, fake: FakeOllama, told: list[MutableMapping[str, Any]]
) -> None:
    """F49: the record of the first is the record of both; the log says so."""
    first, second = [await race.add(event_id=b"order-7") for _ in range(2)]
    other, nameless, empty = await race.add(event_id=b"order-8"), await race.add(), await race.add(event_id=b"")
    another_empty = await race.add(event_id=b"")
    async with working(config) as at_work:
        enriched = await race.until_enriched(5)
        await skipped(race)
        await eventually_async(lambda: at_work.ear.stats().get("skip") == 1)

    assert set(enriched) == {first, other, nameless, empty, another_empty}
    assert len(fake.calls) == 5
    assert await race.totals() == {"enriched": 5, "skipped": 1}
    (row,) = [row for row in told if row["event"] == "event.settled" and row["verdict"] == "skip"]
    assert (row["id"], row["repeats"], row["settled"]) == (second, first, "ok")


async def test_each_event_id_is_enriched_once_by_two_workers_at_once(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    """F49: forty ids four times each, at random, to two workers with four slots each."""
    config = remembering(redis_url, fake, {"model.concurrency": 4})
    repeated = [f"order-{n % 40}".encode() for n in range(160)]
    random.Random(7).shuffle(repeated)  # noqa: S311 - a seed to repeat it by
    fake.latency_s = 0.005
    for event_id in repeated:
        await race.add(event_id.decode(), event_id=event_id)
    async with working(config), working(config, "here:w2:b"):
        await race.until_enriched(40)
        await skipped(race, 120)

    assert Counter(record[b"event_id"] for record in await race.output()) == dict.fromkeys(set(repeated), 1)
    assert len(fake.calls) == 40
    assert await race.is_clean()
    assert await race.totals() == {"enriched": 40, "skipped": 120}


@pytest.mark.parametrize("size_bytes", [3, 1 << 20], ids=["short", "a megabyte"])
async def test_event_id_is_any_bytes_of_any_length(race: Race, config: Config, size_bytes: int) -> None:
    """F48: no text, and long; those that differ in the last byte are two; the key in Redis stays short."""
    stem = b"\xff\x00\xfe" * (size_bytes // 3)
    for event_id in (stem + b"1", stem + b"2", stem + b"1"):
        await race.add(event_id=event_id)
    async with working(config):
        await race.until_enriched(2)
        await skipped(race)

    assert {record[b"event_id"] for record in await race.output()} == {stem + b"1", stem + b"2"}
    markers = await race.redis.keys(race.keys.seen_prefix + "*")
    assert len(markers) == 2
    assert max(map(len, markers)) < 100


# -- the first has no record yet ---------------------------------------------------------------------------------------


async def test_repetition_of_what_is_still_in_hand_is_skipped_at_once(
    race: Race, config: Config, fake: FakeOllama
) -> None:
    """F49: it does not wait for the first one's record."""
    first = await race.add("[[fake hold]]", event_id=b"order-7")
    async with working(config):
        await fake.until(lambda: fake.held == 1)
        await race.add("[[fake hold]]", event_id=b"order-7")
        await skipped(race)
        assert await race.held() == {first: (CONSUMER, 1)}
        fake.release()
        assert list(await race.until_enriched(1)) == [first]

    assert len(fake.calls) == 1
    assert await race.is_clean()


async def test_event_that_is_tried_again_is_no_repetition_of_itself(
    race: Race, config: Config, fake: FakeOllama
) -> None:
    """F49: the second attempt finds its own mark."""
    entry_id = await race.add("[[fake length times=1]]", event_id=b"order-7")
    async with working(config):
        enriched = await race.until_enriched(1)

    assert enriched[entry_id]["meta"]["attempts"] == 2
    assert len(fake.calls) == 2
    assert await race.totals() == {"enriched": 1, "retried": 1}


async def test_repetition_of_what_is_parked_is_skipped(race: Race, config: Config, settler: Settler) -> None:
    """F49: the first waits for its retry, and its second attempt enriches it."""
    await race.add(event_id=b"order-7")
    (first,) = await race.deliver()
    await EventIds(race.redis, race.keys, WINDOW_S).first_with(b"order-7", first)
    await settler.settle(first, Retry(3600.0, 1, ("timeout: slow",)))
    await race.add(event_id=b"order-7")
    async with working(config):
        await skipped(race)
        assert await race.held() == {first.id: (PARKED, 1)}
        await race.redis.zadd(race.keys.parked, {first.id: 0.0})
        assert list(await race.until_enriched(1)) == [first.id]

    assert await race.is_clean()


async def test_repetition_of_what_is_buried_is_skipped(race: Race, config: Config, fake: FakeOllama) -> None:
    """F49: the dead letter is the record of both; from there it can be requeued."""
    first = await race.add("[[fake status=400]]", event_id=b"order-7")
    async with working(config):
        assert list(await race.until_buried()) == [first]
        await race.add("good", event_id=b"order-7")
        await skipped(race)

    assert len(fake.calls) == 1
    assert await race.totals() == {"dead": 1, "dead:rejected": 1, "skipped": 1}


async def test_what_is_no_event_takes_nobodys_event_id(race: Race, config: Config) -> None:
    """F48: a producer that repeats in full what it sent cut off gets its record."""
    cut_off = await race.add_data(b'{"text": "a fi', event_id=b"order-7")
    whole = await race.add(event_id=b"order-7")
    async with working(config):
        assert list(await race.until_buried()) == [cut_off]
        assert list(await race.until_enriched(1)) == [whole]


async def test_event_whose_worker_died_after_marking_it_is_enriched(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    """F1: the mark is the event's, not the worker's: its successor does not take it for a repetition of itself."""
    await race.add(event_id=b"order-7")
    (first,) = await race.deliver("dead:w1:x")
    await EventIds(race.redis, race.keys, WINDOW_S).first_with(b"order-7", first)
    config = remembering(redis_url, fake, {"delivery.lease_s": 0.5, "janitor.every_s": 0.1})
    async with sweeping(config), working(config):
        assert list(await race.until_enriched(1)) == [first.id]
        await race.add(event_id=b"order-7")
        await skipped(race)


# -- the window --------------------------------------------------------------------------------------------------------


async def test_event_id_is_free_again_when_the_window_is_over(race: Race, redis_url: str, fake: FakeOllama) -> None:
    """F49: what a producer sends again after it is a new event."""
    async with working(remembering(redis_url, fake, {"input.dedupe_event_id_s": 0.05})):
        await race.add(event_id=b"order-7")
        await race.until_enriched(1)
        await eventually_async(lambda: is_free(race, b"order-7"))
        await race.add(event_id=b"order-7")
        await race.until_enriched(2)


async def is_free(race: Race, event_id: bytes) -> bool:
    return not await race.redis.exists(race.keys.seen(event_id))


@pytest.mark.every_server
@pytest.mark.parametrize(
    ("window_s", "window_ms"), [(WINDOW_S, 3_600_000), (0.25, 250), (31_536_000.0, 31_536_000_000)]
)
async def test_window_begins_with_the_first_and_no_repetition_prolongs_it(
    race: Race, window_s: float, window_ms: int
) -> None:
    """F49: a producer that repeats itself all day does not keep an id for ever; nor does a lost reply."""
    first, second = Delivery("5-1", {}, "c", 1), Delivery("5-2", {}, "c", 1)
    assert await EventIds(race.redis, race.keys, window_s).first_with(b"order-7", first) == first.id
    assert window_ms / 2 < await race.redis.pttl(race.keys.seen(b"order-7")) <= window_ms
    await race.redis.pexpire(race.keys.seen(b"order-7"), 200)

    for delivery in (first, second, first):
        assert await EventIds(race.redis, race.keys, window_s).first_with(b"order-7", delivery) == first.id

    assert await race.redis.pttl(race.keys.seen(b"order-7")) <= 200


# -- Redis goes away ---------------------------------------------------------------------------------------------------


async def test_lost_answer_about_an_event_id_is_asked_for_again(
    race: Race, redis_server: RedisServer, fake: FakeOllama
) -> None:
    """F4: the first has set its mark, and finds it; the second is still told that it is a repetition."""
    async with FaultProxy(redis_server.port) as proxy:
        proxy.swallow(race.keys.seen(b"order-7").encode())
        first = await race.add(event_id=b"order-7")
        async with working(remembering(proxy.redis_url, fake)):
            assert list(await race.until_enriched(1)) == [first]
            proxy.swallow(race.keys.seen(b"order-7").encode())
            await race.add(event_id=b"order-7")
            await skipped(race)

    assert proxy.swallowed.total() == 2
    assert len(fake.calls) == 1
    assert await race.totals() == {"enriched": 1, "skipped": 1}


async def test_stop_while_redis_does_not_answer_about_an_event_id_is_in_time(
    race: Race, redis_server: RedisServer, fake: FakeOllama
) -> None:
    """F26: it asks no longer than until the drain deadline."""
    async with FaultProxy(redis_server.port) as proxy:
        config = remembering(proxy.redis_url, fake, {"fleet.drain_s": 0.5})
        held = proxy.hold(race.keys.seen(b"order-7").encode())
        entry_id = await race.add(event_id=b"order-7")
        async with working(config) as at_work:
            await held.caught()
            at_work.stop.request()
            await asyncio.wait_for(at_work.running, 5)

    assert await race.held() == {entry_id: (PARKED, 1)}
    assert not fake.calls


# -- skip -------------------------------------------------------------------------------------------------------------


@pytest.mark.every_server
async def test_skipping_leaves_nothing_behind_but_a_count(race: Race, settler: Settler) -> None:
    """F49: neither a due time nor attempts; and it is nobody's record."""
    delivery = await race.delivered()
    await settler.settle(delivery, Retry(0.0, 1, ("timeout: slow",)))

    assert await settler.settle(delivery, SKIP) is Settled.OK

    assert await race.is_clean()
    assert await race.totals() == {"retried": 1, "skipped": 1}


@pytest.mark.every_server
async def test_skipping_sent_again_after_a_lost_reply_counts_once(redis_server: RedisServer, race: Race) -> None:
    """F4: no longer pending means settled."""
    delivery = await race.delivered()
    async with FaultProxy(redis_server.port) as proxy:
        client = connect(proxy.redis_url)
        settler = Settler(client, race.keys)
        await settler.settle(await race.delivered(), SKIP)  # so that the script is known
        proxy.swallow(delivery.id.encode())

        assert await settle_surely(settler, delivery, SKIP, logger()) is Settled.GONE

        await client.aclose()
    assert proxy.swallowed.total() == 1
    assert await race.totals() == {"skipped": 2}
    assert await race.is_clean()


@pytest.mark.every_server
async def test_repetition_in_a_successors_hands_is_skipped_all_the_same(race: Race, settler: Settler) -> None:
    """F6: whoever finds out first may; the successor's own answer then counts for nothing."""
    delivery = await race.delivered()
    await race.steal(delivery.id)

    assert await settler.settle(delivery, SKIP) is Settled.OK
    assert await settler.settle(Delivery(delivery.id, {}, "thief:w1:b", 2), SKIP) is Settled.GONE
    assert await race.totals() == {"skipped": 1}


async def test_event_id_is_told_although_memory_is_full(start_redis: StartRedis) -> None:
    """F30: what is in hand must end, and an event that has an event_id asks for it first."""
    server = start_redis({"maxmemory-policy": "noeviction"})
    client = connect(server.url)
    race = await Race(client, Keys.of(config_for(server.url))).open()
    first, second = await race.delivered(), await race.delivered()
    await client.config_set("maxmemory", 1)

    event_ids = EventIds(client, race.keys, 60.0)

    assert await event_ids.first_with(b"order-7", first) == first.id
    assert await event_ids.first_with(b"order-7", second) == first.id
    await client.aclose()
