"""A worker that an operator has paused: it ends what it has, takes nothing more, and says exactly when that is so."""

import asyncio
from typing import Any

import pytest
from tests.integration.hands import AtWork, working
from tests.integration.race import Race
from tests.rig import config_for, eventually_async

from millhand.config import Config
from millhand.pulse import PAUSED
from millhand.stream import Stream
from scripts.fake_ollama import FakeOllama


@pytest.fixture
def config(redis_url: str, fake: FakeOllama) -> Config:
    """Make a configuration with the fake model and two calls at once."""
    return config_for(redis_url, fake.url, {"model.name": fake.model, "model.concurrency": 2})


def rests(at_work: AtWork) -> bool:
    return bool(at_work.ear.stats()["waits_for"] == PAUSED)


async def test_a_paused_worker_ends_what_it_has_and_reads_nothing_until_it_is_resumed(
    race: Race, config: Config, fake: FakeOllama
) -> None:
    for n in range(2):
        await race.add(f"event {n} [[fake hold times=1]]")
    async with working(config) as at_work:
        await eventually_async(lambda: fake.held == 2)
        at_work.ear.hear({"pause": True})
        await race.add()
        assert at_work.ear.stats()["in_hand"] == 2
        fake.release()
        await eventually_async(lambda: rests(at_work) and at_work.ear.stats()["in_hand"] == 0)
        assert await race.redis.xlen(race.keys.output) == 2
        assert (await race.redis.xpending(race.keys.input, race.keys.group))["pending"] == 0

        at_work.ear.hear({"pause": False})
        await eventually_async(lambda: not rests(at_work))
        await eventually_async(lambda: at_work.ear.stats().get("done") == 3)


async def test_a_worker_that_is_paused_before_it_reads_gets_ready_and_reads_nothing(race: Race, config: Config) -> None:
    """As one that is born during a pause; what is due for a retry is not taken either."""
    await race.add()
    async with working(config) as at_work:
        at_work.ear.hear({"pause": True})
        await at_work.ready()
        await eventually_async(lambda: rests(at_work))
        assert (await race.redis.xpending(race.keys.input, race.keys.group))["pending"] == 0
        at_work.ear.hear({"pause": False})
        await eventually_async(lambda: at_work.ear.stats().get("done") == 1)


async def test_a_worker_says_that_it_rests_only_when_its_last_read_is_over(
    race: Race, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a drain would be told to be over while an event is on its way."""
    reading, go_on = asyncio.Event(), asyncio.Event()
    read = Stream.read

    async def held_up(self: Stream, count: int) -> Any:
        reading.set()
        await go_on.wait()
        return await read(self, count)

    monkeypatch.setattr(Stream, "read", held_up)
    async with working(config) as at_work:
        await asyncio.wait_for(reading.wait(), 10)
        at_work.ear.hear({"pause": True})
        assert not rests(at_work)
        await race.add()
        go_on.set()
        await eventually_async(lambda: rests(at_work) and at_work.ear.stats()["in_hand"] == 0)
        assert at_work.ear.stats()["done"] == 1


async def test_a_paused_worker_stops_at_once(race: Race, config: Config) -> None:
    assert race
    async with working(config) as at_work:
        await at_work.ready()
        at_work.ear.hear({"pause": True})
        await eventually_async(lambda: rests(at_work))
        at_work.stop.request()
        await at_work.ended()
