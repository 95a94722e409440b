"""A Redis whose memory is full: nothing more is read, what is in hand is finished, and with room it goes on."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import pytest
from tests.conftest import StartRedis
from tests.integration.hands import CONSUMER, sweeping, working
from tests.integration.race import Race
from tests.rig import config_for, eventually_async

from millhand import worker as worker_module
from millhand.config import Config
from millhand.keys import Keys
from millhand.log import logger
from millhand.settle import Settler
from millhand.stream import connect
from millhand.verdict import Release, Retry
from millhand_fleet.janitor import Janitor, Sweep
from scripts.fake_ollama import FakeOllama

pytestmark = pytest.mark.every_server
PARKED = "@parked"
DEAD = "dead:w1:x"


class Full(Race):
    """The streams on a server of the test's own, which can be full."""

    url: str

    async def fill(self) -> None:
        """Let nothing more be added. The scripts that finish are not known to the server yet."""
        await self.redis.config_set("maxmemory", 1)

    async def make_room(self) -> None:
        await self.redis.config_set("maxmemory", 0)

    async def calls(self, command: str) -> int:
        """Return how often a command was carried out."""
        stats: Any = await self.redis.info("commandstats")
        return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))


@pytest.fixture
async def race(start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Full]:
    """Open the streams on a server that throws nothing away. Workers look often whether there is room."""
    monkeypatch.setattr(worker_module, "REDIS_PAUSE_MIN_S", 0.01)
    monkeypatch.setattr(worker_module, "REDIS_PAUSE_MAX_S", 0.02)
    server = start_redis({"maxmemory-policy": "noeviction"})
    client = connect(server.url)
    race = Full(client, Keys.of(config_for(server.url)))
    race.url = server.url
    await race.open()
    yield race
    await client.aclose()


@pytest.fixture
def config(race: Full, fake: FakeOllama) -> Config:
    """Work one event after the other."""
    return config_for(race.url, fake.url, {"model.concurrency": 1})


async def test_nothing_more_is_read_while_memory_is_full_what_is_in_hand_is_finished_and_then_it_goes_on(
    race: Full, config: Config, fake: FakeOllama, told: list[MutableMapping[str, Any]]
) -> None:
    """F30: the worker says what it waits for, in its stats and once in the log at each end."""
    first, *backlog = [await race.add(f"[[fake hold]] {n}") for n in range(5)]
    async with working(config) as at_work:
        await fake.until(lambda: fake.held == 1)
        assert at_work.ear.stats()["waits_for"] is None
        await race.fill()
        fake.release()

        assert list(await race.until_enriched(1)) == [first]
        await eventually_async(lambda: at_work.ear.stats()["waits_for"])
        assert at_work.ear.stats()["waits_for"].startswith("redis: ")
        assert "maxmemory" in at_work.ear.stats()["waits_for"]
        reads = await race.calls("xreadgroup")
        await eventually_async(lambda: tried_again(race, 10), what="the worker has tried to go on ten times")
        assert await race.calls("xreadgroup") == reads
        assert await race.held() == {}

        await race.make_room()
        await eventually_async(lambda: released(race, fake, 5))
        assert at_work.ear.stats()["waits_for"] is None

    assert set(await race.enriched()) == {first, *backlog}
    assert await race.is_clean()
    ends = [(row["event"], row["log_level"]) for row in told if row["event"] in {"redis.waiting", "redis.back"}]
    assert ends == [("redis.waiting", "warning"), ("redis.back", "info")]


async def tried_again(race: Full, times: int) -> bool:
    """Whether the one script that brings in more has been refused so often."""
    errors: Any = await race.redis.info("errorstats")
    return int(errors.get("errorstat_OOM", {}).get("count", 0)) >= times


async def released(race: Full, fake: FakeOllama, count: int) -> bool:
    """Let go of what the model holds, and tell whether so many have left."""
    fake.release()
    return len(await race.output()) >= count


async def test_parked_events_are_not_taken_up_either(race: Full, config: Config, fake: FakeOllama) -> None:
    """F30: their time has come, and they wait with the rest."""
    delivery = await race.delivered(DEAD)
    await Settler(race.redis, race.keys).settle(delivery, Release())
    await race.fill()
    async with working(config) as at_work:
        await eventually_async(lambda: at_work.ear.stats()["waits_for"])
        await eventually_async(lambda: tried_again(race, 5))
        assert await race.held() == {delivery.id: (PARKED, 1)}
        await race.make_room()
        await race.until_enriched(1)

    assert len(fake.calls) == 1


@pytest.mark.parametrize(
    ("orders", "settled"),
    [("", "enriched"), ("length", "retried"), ("status=400", "dead")],
)
async def test_whatever_becomes_of_what_is_in_hand_is_written(
    race: Full, config: Config, fake: FakeOllama, orders: str, settled: str
) -> None:
    """F30: every verdict commits although nothing may be added, by scripts the server has never seen."""
    entry_id = await race.add(f"[[fake hold {orders}]]")
    async with working(config):
        await fake.until(lambda: fake.held == 1)
        await race.fill()
        fake.release()
        await eventually_async(lambda: is_counted(race, settled))

    assert set(await race.held()) == ({entry_id} if settled == "retried" else set())
    await race.totals()


async def is_counted(race: Full, total: str) -> bool:
    return await race.redis.hget(race.keys.totals, total) == b"1"


async def test_stop_hands_back_what_is_in_hand_although_memory_is_full(
    race: Full, config: Config, fake: FakeOllama
) -> None:
    """F30: nothing is spent, and the stop is in time."""
    entry_id = await race.add("[[fake hold]]")
    async with working(config) as at_work:
        await fake.until(lambda: fake.held == 1)
        await race.fill()
        at_work.stop.request(0)
        await at_work.ended()

    assert await race.held() == {entry_id: (PARKED, 1)}
    assert await race.parked()


async def test_leases_are_kept_and_the_dead_are_handed_back_although_memory_is_full(
    race: Full, fake: FakeOllama
) -> None:
    """F30: a full memory costs no living worker its event, and a dead one's is not lost."""
    flags = {"model.concurrency": 1, "delivery.lease_s": 0.5, "janitor.every_s": 0.1}
    config = config_for(race.url, fake.url, flags)
    loop = asyncio.get_running_loop()
    await race.redis.zadd(race.keys.permits, {"@opened": -1})  # nobody is asked to tell what permits the dead one had
    left_behind = await race.delivered(DEAD)
    entry_id = await race.add("[[fake hold]]")
    async with sweeping(config) as (janitor, _), working(config):
        await janitor.ready()
        await fake.until(lambda: fake.held == 1)
        await race.fill()
        until = loop.time() + 3 * config.delivery.lease_s
        await eventually_async(lambda: is_handed_back(race, left_behind.id))
        await eventually_async(lambda: loop.time() > until, what="three leases have passed")
        assert await race.held() == {entry_id: (CONSUMER, 1), left_behind.id: (PARKED, 2)}
        await race.make_room()
        await eventually_async(lambda: released(race, fake, 2))

    assert await race.is_clean()


async def is_handed_back(race: Full, entry_id: str) -> bool:
    return (await race.pending_row(entry_id)).owner == PARKED


async def test_janitor_makes_room_although_it_may_not_put_lost_due_times_back(race: Full) -> None:
    """F30: what frees the memory must not wait for what needs some."""
    settler = Settler(race.redis, race.keys)
    finished, parked, held = [await race.delivered(DEAD) for _ in range(3)]
    await race.redis.xack(race.keys.input, race.keys.group, finished.id)
    await settler.settle(parked, Retry(3600.0, 1, ("timeout: slow",)))
    await race.redis.zrem(race.keys.parked, parked.id)
    await race.fill()
    config = config_for(race.url, flags={"input.keep_s": 0.0})
    janitor = Janitor(race.redis, config, [], logger())
    janitor.hear({"died": DEAD})

    assert await janitor.sweep() == Sweep(examined=2, handed_back=1, retired=1, trimmed=1, refused=1)

    await race.make_room()
    assert await janitor.sweep() == Sweep(examined=2, rehung=1)
    assert set(await race.parked()) == {parked.id, held.id}
