"""Age: an event older than `delivery.age_max_s` is buried as expired instead of asked about, by Redis's own clock."""

import json
import time
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.integration.hands import CONSUMER, sweeping, working
from tests.integration.race import Race
from tests.rig import config_for, eventually_async

from millhand import enriching as enriching_module
from millhand import settle as settle_module
from millhand.config import Config
from millhand.settle import Settler
from millhand.stream import Stream
from millhand.verdict import Retry
from scripts.fake_ollama import FakeOllama

HOUR_S = 3600.0
HALF_A_DAY_S = 12 * HOUR_S


def mortal(redis_url: str, fake: FakeOllama, age_max_s: float, flags: Mapping[str, Any] | None = None) -> Config:
    """Configure how old an event may become."""
    return config_for(redis_url, fake.url, {"delivery.age_max_s": age_max_s, **(flags or {})})


async def add_aged(race: Race, age_s: float, text: str = "old") -> str:
    """Produce an event that looks as if it had been added so long ago. Older ones must be added first."""
    entry_id = f"{int(await race.server_ms() - age_s * 1000)}-0"
    await race.redis.xadd(race.keys.input, {"data": json.dumps({"text": text})}, id=entry_id)
    return entry_id


async def test_event_that_is_too_old_is_buried_without_a_call(
    race: Race, redis_url: str, fake: FakeOllama, told: list[MutableMapping[str, Any]]
) -> None:
    """Its dead letter says how old it was; a younger neighbour, read in the same batch, is enriched."""
    old, young = await add_aged(race, 2 * HOUR_S), await add_aged(race, HOUR_S / 2, "young")
    async with working(mortal(redis_url, fake, HOUR_S)):
        buried, enriched = await race.until_buried(), await race.until_enriched(1)

    assert (list(buried), list(enriched)) == ([old], [young])
    letter = buried[old]
    assert (letter["failure_reason"], letter["attempts"], letter["deliveries"]) == ("expired", "0", "1")
    assert letter["failure_detail"] == "7200 s old, delivery.age_max_s is 3600"
    assert [call.text for call in fake.calls] == ["young"]
    assert await race.totals() == {"enriched": 1, "dead": 1, "dead:expired": 1}
    assert await race.is_clean()
    (row,) = [row for row in told if row["event"] == "event.settled" and row["verdict"] == "bury"]
    assert (row["id"], row["reason"], row["log_level"]) == (old, "expired", "warning")


async def test_no_event_is_too_old_where_nothing_is_said(race: Race, redis_url: str, fake: FakeOllama) -> None:
    """A backlog of half a century is work."""
    await race.redis.xadd(race.keys.input, {"data": '{"text": "old"}'}, id="1-1")
    async with working(config_for(redis_url, fake.url)):
        assert list(await race.until_enriched(1)) == ["1-1"]


async def test_event_from_the_future_is_not_too_old(race: Race, redis_url: str, fake: FakeOllama) -> None:
    """F40: after a jump of the server's clock by -1 h ids lie an hour ahead of it."""
    entry_id = await add_aged(race, -HOUR_S)
    async with working(mortal(redis_url, fake, 0.001)):
        assert list(await race.until_enriched(1)) == [entry_id]


async def test_event_that_waits_at_a_closed_gate_expires_there(race: Race, redis_url: str, fake: FakeOllama) -> None:
    """F46: the model is away for longer than it may live; it was young when it was asked about, and is not again."""
    async with working(mortal(redis_url, fake, 0.9, {"model.concurrency": 1})) as at_work:
        await at_work.ready()
        fake.outage(503, retry_after=1)
        entry_id = await race.add()
        buried = await race.until_buried()

    assert buried[entry_id]["failure_reason"] == "expired"
    assert buried[entry_id]["attempts"] == "0"
    assert len(fake.calls) == 1


async def test_event_expires_between_two_attempts(race: Race, redis_url: str, fake: FakeOllama) -> None:
    """What it has spent by then is in its dead letter."""
    entry_id = await race.add("[[fake length delay=0.1]]")
    config = mortal(redis_url, fake, 1.0, {"delivery.retries": 100, "model.concurrency": 1})
    async with working(config):
        buried = await race.until_buried()

    letter = buried[entry_id]
    assert letter["failure_reason"] == "expired"
    assert 0 < int(letter["attempts"]) == len(fake.calls) < 100


async def test_event_that_was_parked_for_too_long_expires_when_it_is_due(
    race: Race, redis_url: str, fake: FakeOllama, settler: Settler
) -> None:
    """Its attempts and their errors are in its dead letter."""
    old = await add_aged(race, 2 * HOUR_S)
    (delivery,) = await race.deliver()
    await settler.settle(delivery, Retry(0.0, 2, ("timeout: one", "timeout: two")))
    async with working(mortal(redis_url, fake, HOUR_S)):
        letter = (await race.until_buried())[old]

    assert (letter["failure_reason"], letter["attempts"]) == ("expired", "2")
    assert json.loads(letter["errors"]) == ["timeout: one", "timeout: two"]
    assert not fake.calls
    assert await race.is_clean()


async def test_event_of_a_dead_worker_expires_in_its_successors_hands(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    """F1: the crash that delayed it does not make it any younger."""
    old = await add_aged(race, 2 * HOUR_S)
    await race.deliver("dead:w1:x")
    config = mortal(redis_url, fake, HOUR_S, {"delivery.lease_s": 0.5, "janitor.every_s": 0.1})
    async with sweeping(config), working(config):
        letter = (await race.until_buried())[old]

    assert (letter["failure_reason"], letter["deliveries"]) == ("expired", "2")


# -- whose clock -------------------------------------------------------------------------------------------------------


class Jumped:
    """A `datetime` whose clock is far off."""

    def __init__(self, by_s: float) -> None:
        self._by_s = by_s

    def now(self, zone: Any) -> datetime:
        return datetime.fromtimestamp(time.clock_gettime(time.CLOCK_REALTIME) + self._by_s, zone)


@pytest.mark.parametrize("by_s", [HALF_A_DAY_S, -HALF_A_DAY_S], ids=["ahead", "behind"])
async def test_wall_clock_of_the_worker_is_not_asked(
    race: Race, redis_url: str, fake: FakeOllama, monkeypatch: pytest.MonkeyPatch, by_s: float
) -> None:
    """F41: half a day off, either way, makes no young event old and no old one young. Only records are dated by it."""
    for module in (enriching_module, settle_module):
        monkeypatch.setattr(module, "datetime", Jumped(by_s))
    monkeypatch.setattr(time, "time", lambda: time.clock_gettime(time.CLOCK_REALTIME) + by_s)
    monkeypatch.setattr(time, "time_ns", lambda: time.clock_gettime_ns(time.CLOCK_REALTIME) + int(by_s * 1e9))
    old, young = await add_aged(race, 2 * HOUR_S), await add_aged(race, HOUR_S / 2)
    async with working(mortal(redis_url, fake, HOUR_S)):
        buried, enriched = await race.until_buried(), await race.until_enriched(1)

    assert (list(buried), list(enriched)) == ([old], [young])
    dated = [datetime.fromisoformat(stamp) for stamp in (buried[old]["failed_at"], enriched[young]["meta"]["at"])]
    assert all(abs((stamp - datetime.now(UTC)).total_seconds() - by_s) < HOUR_S for stamp in dated)


async def test_worker_that_can_only_read_knows_how_old_events_are_from_the_first_on(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    """The clock is read before the first event is, and goes on while the worker waits for one."""
    config = mortal(redis_url, fake, 10.0, {"model.concurrency": 1})
    async with working(config, block_ms=1000) as at_work:
        await at_work.ready()
        await eventually_async(race.somebody_is_blocked)
        old = await add_aged(race, 15.0)
        assert list(await race.until_buried()) == [old]
        young = await race.add()
        assert list(await race.until_enriched(1)) == [young]


class Monotonic:
    """A `time` whose monotonic clock a test puts forward."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return time.clock_gettime(time.CLOCK_MONOTONIC) + self.ahead_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Monotonic:
    """Give the stream a clock of its own."""
    clock = Monotonic()
    monkeypatch.setattr("millhand.stream.time", clock)
    return clock


async def test_age_goes_on_while_redis_is_not_asked(
    race: Race, redis_url: str, fake: FakeOllama, clock: Monotonic
) -> None:
    """F22: between two readings of Redis's clock the worker's monotonic one counts."""
    entry_id = await race.add("[[fake hold status=503 times=1]]")
    async with working(mortal(redis_url, fake, HOUR_S, {"model.concurrency": 1})):
        await fake.until(lambda: fake.arrived == 1)
        clock.ahead_s = 2 * HOUR_S
        fake.release()
        buried = await race.until_buried()

    assert buried[entry_id]["failure_reason"] == "expired"


async def test_age_is_right_again_as_soon_as_redis_was_asked(race: Race, redis_url: str, clock: Monotonic) -> None:
    """F41: whatever the worker's own clock has done meanwhile, a host that slept for hours makes no event old."""
    delivery = await race.delivered()
    stream = Stream(redis_url, race.keys, CONSUMER, 3)
    for ahead_s in (2 * HOUR_S, -2 * HOUR_S, 0.0):
        clock.ahead_s = ahead_s
        await stream.take_due(1)
        assert -1 < stream.age_s(delivery) < HOUR_S / 60
    await stream.close()
