"""Trimming: what every group has acknowledged leaves the input; nothing else ever does."""

import asyncio
import random
from typing import Any

import pytest
from redis.exceptions import ResponseError
from tests.integration.hands import sweeping, working
from tests.integration.race import Race
from tests.rig import config_for, eventually_async

from millhand.log import logger
from millhand.settle import Settler
from millhand.stream import Script, connect
from millhand.verdict import Delivery, Skip
from millhand_fleet import janitor as janitor_module
from millhand_fleet.backlog import Backlog
from millhand_fleet.janitor import Janitor
from millhand_fleet.trimming import foresee, foresee_output, trim, trim_output
from scripts.fake_ollama import FakeOllama

pytestmark = pytest.mark.every_server

HOUR_MS = 3_600_000
SEQUENCE_MAX = 2**64 - 1
COUNTED_MAX = 2**53  # what a number of Lua's can hold
OTHER = "reporters"
FUTURE_MS = 2**64 - 1


class Input:
    """An input stream with entries of any age, read by any number of groups."""

    def __init__(self, race: Race) -> None:
        self.race = race
        self._trim = Script(race.redis, "trim")
        self._redis = race.redis
        self._key = race.keys.input

    async def add(self, *ids: str) -> None:
        for entry_id in ids:
            await self._redis.xadd(self._key, {"data": "{}"}, id=entry_id)

    async def add_group(self, name: str = OTHER, start: str = "0") -> None:
        await self._redis.xgroup_create(self._key, name, start, mkstream=True)

    async def deliver(self, count: int, group: str = "enrichers") -> list[str]:
        reply: Any = await self._redis.xreadgroup(group, "c", {self._key: ">"}, count=count)
        return [entry_id.decode() for _, entries in reply for entry_id, _ in entries]

    async def acknowledge(self, *ids: str, group: str = "enrichers") -> None:
        await self._redis.xack(self._key, group, *ids)

    async def finish(self, count: int, group: str = "enrichers") -> None:
        """Let a group have done with so many more."""
        await self.acknowledge(*await self.deliver(count, group), group=group)

    async def trim(self, keep_ms: int = 0, entries_max: int = 5000) -> int:
        """Trim a piece; return how many entries went."""
        keys = [self._key, self.race.keys.totals, self.race.keys.closed]
        trimmed: int = await self._trim(keys=keys, args=[keep_ms, entries_max])
        return trimmed

    async def trim_all(self, keep_ms: int = 0, entries_max: int = 5000) -> int:
        total = 0
        while trimmed := await self.trim(keep_ms, entries_max):
            total += trimmed
        return total

    async def ids(self) -> list[str]:
        entries: Any = await self._redis.xrange(self._key)
        return [entry_id.decode() for entry_id, _ in entries]

    async def needed(self) -> list[str]:
        """Return by hand what some group still needs, and all that comes after it."""
        needed: list[tuple[int, int]] = []
        for group in await self._redis.xinfo_groups(self._key):
            rows: Any = await self._redis.xpending_range(self._key, group["name"], min="-", max="+", count=10_000)
            needed += [order(row["message_id"].decode()) for row in rows]
            milliseconds, sequence = order(group["last-delivered-id"].decode())
            needed.append((milliseconds, sequence + 1))
        return [entry_id for entry_id in await self.ids() if order(entry_id) >= min(needed)]


def order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)


def in_order(ids: set[tuple[int, int]]) -> list[str]:
    return [f"{milliseconds}-{sequence}" for milliseconds, sequence in sorted(ids)]


@pytest.fixture
def stream(race: Race) -> Input:
    """Open an input that one group reads."""
    return Input(race)


# -- what may go, and what may not -------------------------------------------------------------------------------------


async def test_what_the_only_group_has_acknowledged_goes(stream: Input) -> None:
    """The rest stays: what is pending, what is not delivered, and what was acknowledged after something pending."""
    await stream.add("1-1", "2-1", "3-1", "4-1", "5-1")
    delivered = await stream.deliver(4)
    await stream.acknowledge(delivered[0], delivered[1], delivered[3])

    assert await stream.trim() == 2

    assert await stream.ids() == ["3-1", "4-1", "5-1"]
    assert set(await stream.race.held()) == {"3-1"}
    assert (await stream.race.totals())["trimmed"] == 2
    assert await stream.trim() == 0


@pytest.mark.parametrize(
    ("delivered", "acknowledged", "kept"),
    [
        pytest.param(0, 0, 6, id="has never read"),
        pytest.param(3, 3, 3, id="is behind"),
        pytest.param(3, 1, 5, id="has something pending"),
        pytest.param(6, 6, 0, id="has done with everything"),
    ],
)
async def test_another_group_of_the_stream_keeps_what_it_still_needs(
    stream: Input, delivered: int, acknowledged: int, kept: int
) -> None:
    """A stream may have readers that are none of ours."""
    ids = [f"{n}-1" for n in range(1, 7)]
    await stream.add(*ids)
    await stream.add_group()
    await stream.finish(6)
    if delivered:
        await stream.acknowledge(*(await stream.deliver(delivered, OTHER))[:acknowledged], "9-9", group=OTHER)

    assert await stream.trim_all() == 6 - kept

    assert await stream.ids() == ids[6 - kept :]
    assert await stream.needed() == await stream.ids()


async def test_parked_event_is_pending_and_stays(stream: Input) -> None:
    """What waits for its retry has its fields in the stream alone."""
    await stream.add("1-1", "2-1")
    await stream.deliver(2)
    await stream.race.steal("1-1", "@parked", count=1)
    await stream.acknowledge("2-1")

    assert await stream.trim_all() == 0
    assert await stream.ids() == ["1-1", "2-1"]


async def test_stream_that_nobody_reads_is_left_alone(stream: Input) -> None:
    """A group may be on its way to it."""
    await stream.add("1-1", "2-1")
    await stream.finish(2)
    await stream.race.redis.xgroup_destroy(stream.race.keys.input, "enrichers")

    assert await stream.trim() == 0
    assert await stream.ids() == ["1-1", "2-1"]


@pytest.mark.parametrize("state", ["empty", "never there", "emptied"])
async def test_nothing_is_trimmed_where_nothing_is(stream: Input, state: str) -> None:
    """F32: neither an error nor a stream that was not there before."""
    key = stream.race.keys.input
    if state == "never there":
        await stream.race.redis.delete(key)
    if state == "emptied":
        await stream.add("1-1")
        await stream.finish(1)
        assert await stream.trim() == 1

    assert await stream.trim() == 0

    assert await stream.race.redis.exists(key) == (state != "never there")
    assert await stream.race.totals() == ({"trimmed": 1} if state == "emptied" else {})


async def test_key_of_another_type_is_an_error(stream: Input) -> None:
    """F36: it is nothing that trimming could cure."""
    await stream.race.redis.delete(stream.race.keys.input)
    await stream.race.redis.set(stream.race.keys.input, "mine")

    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await stream.trim()


async def test_finished_event_is_kept_for_its_time_by_the_servers_clock(stream: Input) -> None:
    """The time in the id counts; what is not finished stays however old it is."""
    now_ms = int(await stream.race.server_ms())
    old, young = [f"{now_ms - age_ms}-0" for age_ms in (2 * HOUR_MS, HOUR_MS // 2)]
    await stream.add(old, young)
    await stream.finish(2)

    assert await stream.trim_all(keep_ms=3 * HOUR_MS) == 0
    assert await stream.trim_all(keep_ms=HOUR_MS) == 1
    assert await stream.ids() == [young]
    assert await stream.trim_all(keep_ms=0) == 1
    assert await stream.ids() == []


async def test_what_was_settled_without_a_record_is_remembered_for_as_long_as_it_is_in_the_input(
    stream: Input, settler: Settler
) -> None:
    """F32: a group that is put back must not begin with it again; what has left the input cannot come back."""
    keys = stream.race.keys
    await stream.add("1-1", "2-1", "2-2", "3-1")
    await stream.deliver(4)
    for entry_id in ("1-1", "2-1", "2-2"):
        await settler.settle(Delivery(entry_id, {}, "c", 1), Skip("0-1"))
    await stream.add_group(start="1-1")

    assert await stream.trim_all() == 1

    assert await stream.race.redis.zrange(keys.closed, 0, -1) == [b"2-1", b"2-2"]
    await stream.acknowledge("3-1")
    await stream.finish(3, OTHER)
    assert await stream.trim_all() == 3
    assert not await stream.race.redis.exists(keys.closed)


@pytest.mark.parametrize("keep_ms", [2**53, 10**30, 10**300])
async def test_any_time_to_keep_for_is_a_time(stream: Input, keep_ms: int) -> None:
    """Longer than since 1970 is for ever."""
    await stream.add("0-1")
    await stream.finish(1)

    assert await stream.trim(keep_ms) == 0
    assert await stream.ids() == ["0-1"]


# -- ids of all sizes --------------------------------------------------------------------------------------------------

BIG_IDS = in_order(
    {
        (milliseconds, sequence)
        for milliseconds in (9, 10)
        for sequence in (9, 10, COUNTED_MAX - 1, COUNTED_MAX, COUNTED_MAX + 1, SEQUENCE_MAX)
    }
)


@pytest.mark.parametrize("last", range(1, len(BIG_IDS) + 1))
async def test_numbers_that_lua_cannot_hold_are_compared_right(stream: Input, last: int) -> None:
    """Whatever the last acknowledged id: what comes after it stays, what comes before it goes.

    It itself stays where Lua could not count one further.
    """
    await stream.add(*BIG_IDS)
    await stream.finish(last)
    countable = order(BIG_IDS[last - 1])[1] < COUNTED_MAX

    await stream.trim_all()

    assert await stream.ids() == BIG_IDS[last if countable else last - 1 :]


@pytest.mark.parametrize("place", range(len(BIG_IDS)))
async def test_pending_entry_with_numbers_that_lua_cannot_hold_stays(stream: Input, place: int) -> None:
    """The first pending one, and all behind it; also where another group has done with it and with the next."""
    await stream.add(*BIG_IDS)
    await stream.add_group()
    await stream.finish(place + 2, OTHER)
    delivered = await stream.deliver(len(BIG_IDS))
    await stream.acknowledge(*(delivered[:place] or ["9-1"]), *delivered[place + 1 :])

    await stream.trim_all()

    assert await stream.ids() == BIG_IDS[place:]
    assert set(await stream.race.held()) == {BIG_IDS[place]}


async def test_entry_from_the_future_is_kept_until_then(stream: Input) -> None:
    """A producer may choose its ids; how long ago that was, nobody can say."""
    ids = ["1-1", f"{FUTURE_MS}-0", f"{FUTURE_MS}-{SEQUENCE_MAX}"]
    await stream.add(*ids)
    await stream.finish(3)

    assert await stream.trim_all() == 1
    assert await stream.ids() == ids[1:]


# -- piece by piece ----------------------------------------------------------------------------------------------------


async def test_a_call_deletes_no_more_than_it_may_until_all_is_gone(stream: Input) -> None:
    """The server is not held up for long; the totals hold the sum."""
    async with stream.race.redis.pipeline(transaction=False) as pipeline:
        for n in range(1, 1501):
            pipeline.xadd(stream.race.keys.input, {"data": "{}"}, id=f"{n}-1")
        await pipeline.execute()
    await stream.finish(1450)

    pieces = []
    while piece := await stream.trim(entries_max=300):
        pieces.append(piece)

    assert max(pieces) <= 300
    assert sum(pieces) == 1450
    assert (await stream.race.totals())["trimmed"] == 1450
    assert await stream.ids() == [f"{n}-1" for n in range(1451, 1501)]


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_groups_do_exactly_what_all_have_acknowledged_goes(stream: Input, seed: int) -> None:
    """Random adding, reading, acknowledging, deleting, rewinding and trimming by three groups; judged by hand.

    How many go is foreseen each time, as `worker-ctl trim --dry-run` does.
    """
    chance = random.Random(seed)  # noqa: S311 - a seed to repeat it by
    groups, last, history = ["enrichers"], 0, list[str]()
    for step in range(120):
        what = chance.choice(["add", "add", "deliver", "deliver", "acknowledge", "delete", "group", "rewind", "trim"])
        history.append(what)
        group = chance.choice(groups)
        match what:
            case "add":
                last += chance.randint(1, 3)
                await stream.add(*[f"{last}-{n}" for n in range(1, chance.randint(2, 60))])
            case "deliver":
                await stream.deliver(chance.randint(1, 50), group)
            case "acknowledge":
                await acknowledge_some(stream, group, chance)
            case "delete" if ids := await stream.ids():
                await stream.race.redis.xdel(stream.race.keys.input, chance.choice(ids))
            case "group" if len(groups) < 3 and step > 40:
                groups.append(f"group{step}")
                await stream.add_group(groups[-1], chance.choice(["0", "$"]))
            case "rewind" if (ids := await stream.ids()) and chance.random() < 0.3:
                await stream.race.redis.xgroup_setid(stream.race.keys.input, group, chance.choice(ids))
            case "trim":
                needed = await stream.needed()
                foreseen = await foresee(stream.race.redis, stream.race.keys, 0.0)
                assert await stream.trim_all(entries_max=chance.choice([1, 50, 5000])) == foreseen, history
                assert await stream.ids() == needed, history


async def acknowledge_some(stream: Input, group: str, chance: random.Random) -> None:
    rows: Any = await stream.race.redis.xpending_range(stream.race.keys.input, group, min="-", max="+", count=100)
    for row in rows:
        if chance.random() < 0.9:
            await stream.acknowledge(row["message_id"].decode(), group=group)


async def test_trimming_by_hand_takes_what_it_foresaw_and_tells_on_the_way(stream: Input) -> None:
    """By age: what is younger stays, and what is pending or not delivered, and all behind it."""
    now_ms = int(await stream.race.server_ms())
    await stream.add(*[f"{n}-1" for n in range(1, 2501)], f"{now_ms - HOUR_MS // 2}-0", f"{now_ms}-0")
    await stream.finish(2501)
    redis, keys, told = stream.race.redis, stream.race.keys, list[int]()

    assert await foresee(redis, keys, 3600.0) == 2500
    assert await trim(redis, keys, 3600.0, told.append) == 2500
    assert told[-1] == 2500
    assert len(told) > 1
    assert await foresee(redis, keys, 3600.0) == 0
    assert await foresee(redis, keys, 60.0) == 1
    assert await stream.ids() == [f"{now_ms - HOUR_MS // 2}-0", f"{now_ms}-0"]


async def test_nothing_is_foreseen_where_there_is_no_stream_or_no_group(stream: Input) -> None:
    """As the script does: a stream without a group is left alone."""
    redis, keys = stream.race.redis, stream.race.keys
    await stream.add("1-1")
    await redis.xgroup_destroy(keys.input, keys.group)
    assert await foresee(redis, keys, 0.0) == 0
    await redis.delete(keys.input)
    assert await foresee(redis, keys, 0.0) == 0


# -- the output --------------------------------------------------------------------------------------------------------


async def record(stream: Input, source: str, entry_id: str = "*") -> str:
    written: Any = await stream.race.redis.xadd(stream.race.keys.output, {"src": source, "data": "{}"}, id=entry_id)
    return str(written.decode())


async def records(stream: Input) -> list[str]:
    entries: Any = await stream.race.redis.xrange(stream.race.keys.output)
    return [entry_id.decode() for entry_id, _ in entries]


async def trim_records(stream: Input, keep_s: float = 0.0) -> int:
    """Trim the output, which has to do what it foresaw."""
    foreseen = await foresee_output(stream.race.redis, stream.race.keys, keep_s)
    trimmed = await trim_output(stream.race.redis, stream.race.keys, keep_s, lambda _: None)
    assert trimmed == foreseen
    return trimmed


async def test_a_record_stays_while_its_event_stands_in_the_input(stream: Input) -> None:
    """If the group were lost, the event would be enriched a second time; also where the clock was put back."""
    await stream.add("3-1", "4-1")
    for entry_id, source in [("2-1", "1-1"), ("3-0", "2-1"), ("3-2", "3-1"), ("5-1", "2-2")]:
        await record(stream, source, entry_id)
    assert await trim_records(stream) == 2
    assert await records(stream) == ["3-2", "5-1"]
    await stream.finish(1)
    await stream.trim_all()
    assert await trim_records(stream) == 2


async def test_records_are_kept_for_as_long_as_asked_and_for_every_group_that_reads_them(stream: Input) -> None:
    redis, output = stream.race.redis, stream.race.keys.output
    now_ms = int(await stream.race.server_ms())
    old = [await record(stream, f"{n}-1", f"{now_ms - 2 * HOUR_MS}-{n}") for n in range(250)]
    young = await record(stream, "9-1", f"{now_ms - HOUR_MS // 2}-0")
    await redis.xgroup_create(output, OTHER, "0")
    assert await trim_records(stream, 3600.0) == 0
    reply: Any = await redis.xreadgroup(OTHER, "c", {output: ">"}, count=240)
    ids = [entry_id.decode() for _, entries in reply for entry_id, _ in entries]
    await redis.xack(output, OTHER, *ids[:200], *ids[201:])
    assert await trim_records(stream, 3600.0) == 200
    await redis.xack(output, OTHER, ids[200])
    assert await trim_records(stream, 3600.0) == 40
    await redis.xgroup_destroy(output, OTHER)
    assert await trim_records(stream, 3600.0) == 10
    assert await records(stream) == [young]
    assert len(old) == 250


async def test_an_output_that_is_not_there_or_holds_what_no_fleet_wrote_is_no_trouble(stream: Input) -> None:
    """An entry without a src counts by its own id."""
    assert await trim_records(stream) == 0
    redis, output = stream.race.redis, stream.race.keys.output
    await redis.xadd(output, {"src": "nonsense"}, id="1-1")
    await redis.xadd(output, {"other": "field"}, id="2-1")
    await redis.xadd(output, {"src": "1-1"}, id=f"{FUTURE_MS}-{SEQUENCE_MAX}")
    assert await trim_records(stream) == 2


# -- the janitor -------------------------------------------------------------------------------------------------------


async def test_backlog_is_exact_after_everything_was_trimmed(stream: Input) -> None:
    """What is counted as waiting is neither the trimmed nor what came before them."""
    backlog = Backlog(stream.race.redis, stream.race.keys.input)

    async def counted() -> int:
        info: Any = await stream.race.redis.xinfo_stream(stream.race.keys.input)
        (group,) = await stream.race.redis.xinfo_groups(stream.race.keys.input)
        return await backlog.count(group["last-delivered-id"].decode(), info)

    for _ in range(3):
        for n in range(30):
            await stream.race.add(str(n))
        assert await counted() == 30
        await stream.finish(30)
        assert await counted() == 0
        await eventually_async(lambda: is_trimmed(stream), what="the input is empty")
        assert await counted() == 0
        await stream.race.add()
        assert await counted() == 1
        await stream.finish(1)


async def is_trimmed(stream: Input) -> bool:
    """Trim, and tell whether nothing is left; what was added in this very millisecond is."""
    await stream.trim_all()
    return not await stream.ids()


@pytest.mark.parametrize("keep_s", [float("inf"), 1e306])
async def test_what_is_to_be_kept_for_ever_is(stream: Input, redis_url: str, keep_s: float) -> None:
    """Also where milliseconds would be more than a number can hold."""
    await stream.add("0-1", "1-1")
    await stream.finish(2)
    janitor = Janitor(stream.race.redis, config_for(redis_url, flags={"input.keep_s": keep_s}), [], logger())

    assert (await janitor.sweep()).trimmed == 0
    assert await stream.ids() == ["0-1", "1-1"]


async def test_finished_input_is_kept_for_a_day_where_nothing_is_said(stream: Input, redis_url: str) -> None:
    """A sweep tells how many entries it deleted."""
    now_ms = int(await stream.race.server_ms())
    young = f"{now_ms - 23 * HOUR_MS}-0"
    await stream.add("1-1", f"{now_ms - 25 * HOUR_MS}-0", young)
    await stream.finish(3)
    janitor = Janitor(stream.race.redis, config_for(redis_url), [], logger())

    assert (await janitor.sweep()).trimmed == 2
    assert (await janitor.sweep()).trimmed == 0
    assert await stream.ids() == [young]


async def test_a_sweep_trims_so_many_pieces_and_the_next_goes_on(
    stream: Input, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep after a long time without one does not keep the janitor from its other work."""
    monkeypatch.setattr(janitor_module, "TRIM_PIECE", 100)
    monkeypatch.setattr(janitor_module, "TRIM_PIECES_MAX", 2)
    await stream.add(*[f"{n}-1" for n in range(1, 501)])
    await stream.finish(500)
    janitor = Janitor(stream.race.redis, config_for(redis_url), [], logger())

    trimmed = [(await janitor.sweep()).trimmed for _ in range(5)]

    assert trimmed == [200, 200, 100, 0, 0]


async def test_nothing_is_lost_while_a_producer_adds_workers_settle_and_the_janitor_trims_all_the_time(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    """With nothing kept the input is empty in the end, and every event that was ever accepted has left once."""
    flags = {"input.keep_s": 0.0, "janitor.every_s": 0.1, "model.concurrency": 4}
    config = config_for(redis_url, fake.url, flags)
    produced: list[str] = []
    client = connect(redis_url)
    producer = Race(client, race.keys)

    async def produce() -> None:
        for n in range(300):
            bad = n % 10 == 0
            produced.append(await producer.add_data(b"no" if bad else b'{"text":"a"}'))
            if n % 50 == 49:
                await eventually_async(lambda: settled_at_least(race, n - 20))  # noqa: B023 - it is awaited here

    async with sweeping(config) as (janitor, _), working(config), working(config, "here:w2:b"):
        await janitor.ready()
        await produce()
        await eventually_async(lambda: settled_at_least(race, 300), 20)
        await eventually_async(lambda: is_empty(race), what="the input is empty")
    await client.aclose()

    assert sorted([*await race.enriched(), *await race.buried()]) == sorted(produced)
    assert {letter["failure_reason"] for letter in (await race.buried()).values()} == {"malformed"}
    assert (await race.totals())["trimmed"] == 300
    assert await race.is_clean()


async def settled_at_least(race: Race, count: int) -> bool:
    return await race.redis.xlen(race.keys.output) + await race.redis.xlen(race.keys.dead_letter) >= count


async def is_empty(race: Race) -> bool:
    return await race.redis.xlen(race.keys.input) == 0


async def test_entries_added_while_others_are_trimmed_are_all_delivered(stream: Input, redis_url: str) -> None:
    """A producer, a reader that acknowledges at once, and a trimmer race; the reader sees everything."""
    race = stream.race
    clients = [connect(redis_url) for _ in range(2)]
    producer, trimmer = [Race(client, race.keys) for client in clients]
    produced, seen = list[str](), list[str]()

    async def produce() -> None:
        produced.extend([await producer.add(str(n)) for n in range(600)])

    async def read() -> None:
        while len(seen) < 600:
            ids = await stream.deliver(7)
            seen.extend(ids)
            if ids:
                await stream.acknowledge(*ids)

    async def trim() -> None:
        while len(seen) < 600:
            await Input(trimmer).trim()

    async with asyncio.timeout(30), asyncio.TaskGroup() as racers:
        for racer in (produce(), read(), trim()):
            racers.create_task(racer)

    assert seen == produced
    assert (await race.totals())["trimmed"] > 0
    for client in clients:
        await client.aclose()
