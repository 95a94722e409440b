"""The worker while the model or Redis is away: it waits, spends nothing, and goes on."""

import asyncio
import json
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from redis.exceptions import RedisError
from tests.conftest import StartRedis
from tests.fleet.chaos.proxy import FaultProxy
from tests.integration.hands import CONSUMER, AtWork, sweeping, working
from tests.integration.race import Race
from tests.integration.test_settle import ALWAYS
from tests.rig import RedisServer, config_for, eventually_async

from millhand import gate as gate_module
from millhand import worker as worker_module
from millhand.config import Config
from millhand.keys import Keys
from millhand.pulse import PAUSED
from millhand.stream import connect
from scripts.fake_ollama import FakeOllama

PARKED = "@parked"
QUICK = {"delivery.lease_s": 0.5, "janitor.every_s": 0.1, "model.concurrency": 4}


@pytest.fixture
def config(redis_url: str, fake: FakeOllama) -> Config:
    """Work on the shared server with the fake model."""
    return config_for(redis_url, fake.url)


# -- the model is away ------------------------------------------------------------------------------------------------


class Outage:
    """A way for the model to be away, and back."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason

    @property
    def told(self) -> list[tuple[str, str]]:
        """How the log tells of its beginning and its end, and how loudly."""
        if self.reason == "model_busy":
            return [("gate.paused", "warning"), ("gate.resumed", "info")]
        return [("model.away", "error"), ("model.back", "info")]

    async def begin(self, fake: FakeOllama) -> None:
        """Take the model away."""
        match self.name:
            case "gone":
                await fake.__aexit__()
            case "missing":
                fake.model = "other:1b"
            case "dropping":
                fake.script({"drop": True})
            case status:
                fake.outage(int(status))

    async def end(self, fake: FakeOllama) -> None:
        """Bring it back."""
        match self.name:
            case "gone":
                await fake.__aenter__()
            case "missing":
                fake.model = "fake:1b"
            case _:
                fake.script()


OUTAGES = [
    Outage("503", "model_busy"),
    Outage("502", "model_unreachable"),
    Outage("429", "model_busy"),
    Outage("gone", "model_unreachable"),
    Outage("dropping", "model_unreachable"),
    Outage("missing", "model_missing"),
    Outage("401", "model_refuses"),
]
EACH_OUTAGE = pytest.mark.parametrize("outage", OUTAGES, ids=[outage.name for outage in OUTAGES])


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look after an absent model often."""
    monkeypatch.setattr(gate_module, "PAUSE_FIRST_S", 0.05)


@EACH_OUTAGE
@pytest.mark.usefixtures("soon")
async def test_outage_spends_no_attempt_and_work_goes_on_after_it(
    race: Race, config: Config, fake: FakeOllama, outage: Outage, told: list[MutableMapping[str, Any]]
) -> None:
    """F43, F46: what was in hand stays in hand, the rest is not even read; the log tells of both ends."""
    async with working(config) as at_work:
        await at_work.ready()
        await outage.begin(fake)
        ids = [await race.add(str(n)) for n in range(6)]
        await eventually_async(lambda: at_work.ear.stats()["waits_for"])
        assert at_work.ear.stats()["waits_for"].startswith(outage.reason)
        assert len(await race.pending()) <= config.model.concurrency
        await outage.end(fake)
        enriched = await race.until_enriched(6)
        assert at_work.ear.stats()["waits_for"] is None

    assert set(enriched) == set(ids)
    assert {one["meta"]["attempts"] for one in enriched.values()} == {1}
    assert await race.totals() == {"enriched": 6}
    assert await race.is_clean()
    ends = [(row["event"], row["log_level"]) for row in told if row["event"] in {end for end, _ in outage.told}]
    assert dict(ends) == dict(outage.told)
    assert ends[-1] == outage.told[-1]


@pytest.mark.parametrize("outage", [*OUTAGES, Outage("500", "model_error")], ids=lambda outage: outage.name)
@pytest.mark.usefixtures("soon")
async def test_worker_that_starts_during_an_outage_waits_for_its_end(
    race: Race, config: Config, fake: FakeOllama, outage: Outage
) -> None:
    """F46: it reads nothing before it has met the model, and does not end."""
    await race.add()
    await outage.begin(fake)
    async with working(config) as at_work:
        await eventually_async(lambda: at_work.ear.stats()["waits_for"] or at_work.running.done())
        assert not at_work.running.done(), "the worker ended"
        assert not at_work.ear.ready
        assert await race.pending() == []
        await outage.end(fake)
        await race.until_enriched(1)


async def test_model_that_cannot_list_itself_for_a_while_spends_no_attempt(
    race: Race, config: Config, fake: FakeOllama
) -> None:
    """F43: on its way back the model's listing fails with a 500 before it works: that is no event's fault."""
    async with working(config) as at_work:
        await at_work.ready()
        fake.outage(503)
        entry_id = await race.add()
        await eventually_async(lambda: at_work.ear.stats()["waits_for"])
        fake.outage(500)

        async def noticed() -> bool:
            return "500" in str(at_work.ear.stats()["waits_for"]) or bool(await race.attempts())

        await eventually_async(noticed)
        fake.script()
        enriched = await race.until_enriched(1)

    assert enriched[entry_id]["meta"]["attempts"] == 1


async def test_stop_during_an_outage_releases_what_is_in_hand_unspent(
    race: Race, config: Config, fake: FakeOllama
) -> None:
    """F46: a worker that waits for the model does not wait out its drain time."""
    async with working(config) as at_work:
        await at_work.ready()
        fake.outage(503, retry_after=60)
        entry_id = await race.add()
        await eventually_async(lambda: at_work.ear.stats()["waits_for"])

        at_work.stop.request()
        await asyncio.wait_for(at_work.running, 3)

    assert await race.held() == {entry_id: (PARKED, 1)}
    assert await race.attempts() == {}


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_honoured(race: Race, config: Config, fake: FakeOllama, status: int, form: str) -> None:
    """F42: once it is known nothing is asked before the time is over, by none of the calls; then it goes on."""
    now = datetime(2031, 5, 5, tzinfo=UTC)  # the reply's own clock, which is wrong by years
    until = format_datetime(now + timedelta(seconds=1), usegmt=True)
    headers = {"Date": format_datetime(now, usegmt=True), "Retry-After": until if form == "date" else "1"}
    async with working(config) as at_work:
        await at_work.ready()
        await race.add(f"[[fake times=1 status={status} headers={json.dumps(headers)}]]")
        await eventually_async(lambda: at_work.ear.stats()["waits_for"])
        for n in range(3):
            await race.add(str(n))
        enriched = await race.until_enriched(4)

    first, *later = fake.calls
    assert first.status == status
    waits = [call.arrival_s - (first.end_s or 0) for call in later if call.arrival_s > (first.end_s or 0)]
    assert len(waits) >= 3
    assert 1.0 <= min(waits) < 2.0
    assert {one["meta"]["attempts"] for one in enriched.values()} == {1}


@pytest.mark.parametrize("retry_after", ["-5", "soon", "1e9", "Mon, 01 Jan 1990 00:00:00 GMT", "0"])
async def test_absurd_retry_after_delays_only_a_moment(
    race: Race, config: Config, fake: FakeOllama, retry_after: str
) -> None:
    """F42: what cannot be used is the default wait."""
    await race.add(f"[[fake times=1 status=503 retry_after={json.dumps(retry_after)}]]")
    async with working(config):
        await race.until_enriched(1)

    first, second = fake.calls
    assert 0.4 < second.arrival_s - first.arrival_s < 2.0


# -- Redis is away ----------------------------------------------------------------------------------------------------


async def test_redis_killed_under_load_loses_and_doubles_nothing(start_redis: StartRedis, fake: FakeOllama) -> None:
    """F20: three times dead, every event leaves exactly once."""
    server = start_redis(ALWAYS)
    config = config_for(server.url, fake.url, QUICK)
    client = connect(server.url)
    race = await Race(client, Keys.of(config)).open()
    fake.latency_s = 0.005
    ids = [await race.add(str(n)) for n in range(150)]
    async with sweeping(config) as (janitor, _), working(config):
        await janitor.ready()
        for done in (10, 40, 70):
            await eventually_async(lambda done=done: enriched_at_least(race, done), 20)  # type: ignore[misc]
            server.restart()
        enriched = await eventually_async(lambda: enriched_at_least(race, 150), 30)
        assert enriched
        await eventually_async(race.is_clean)

    assert set(await race.enriched()) == set(ids)
    assert await race.buried() == {}
    await race.totals()
    await client.aclose()


async def enriched_at_least(race: Race, count: int) -> bool:
    """Whether so many have left; no if Redis does not answer."""
    try:
        return await race.redis.xlen(race.keys.output) >= count
    except (RedisError, OSError):
        return False


async def test_worker_that_starts_without_redis_waits_for_it(
    start_redis: StartRedis, fake: FakeOllama, monkeypatch: pytest.MonkeyPatch, told: list[MutableMapping[str, Any]]
) -> None:
    """F20: and for the janitor, who makes the group."""
    monkeypatch.setattr(worker_module, "REDIS_PAUSE_MAX_S", 0.05)
    server = start_redis({})
    server.kill()
    config = config_for(server.url, fake.url)
    async with working(config) as at_work:
        await eventually_async(lambda: [row for row in told if row["event"] == "redis.waiting"])
        assert not at_work.ear.ready
        server.start()
        await at_work.ready()
        client = connect(server.url)
        race = await Race(client, Keys.of(config)).open()
        await race.add()
        await race.until_enriched(1)
        await client.aclose()


async def test_killed_connections_make_no_duplicates(race: Race, redis_url: str, fake: FakeOllama) -> None:
    """F24: every connection is cut again and again; what was lost on the way comes back as a ghost."""
    config = config_for(redis_url, fake.url, QUICK)
    fake.latency_s = 0.005
    ids = [await race.add(str(n)) for n in range(120)]
    async with sweeping(config) as (janitor, _), working(config):
        await janitor.ready()
        for done in range(0, 60, 10):
            await race.until_enriched(done)
            await race.redis.client_kill_filter(_type="normal", skipme=True)
        await race.until_enriched(120)
        await eventually_async(race.is_clean)

    assert set(await race.enriched()) == set(ids)
    assert await race.buried() == {}
    await race.totals()


@pytest.mark.parametrize("loss", ["XGROUP DESTROY", "DEL", "FLUSHALL"])
async def test_group_that_vanishes_while_blocked_is_put_back_and_work_goes_on(
    race: Race, redis_url: str, fake: FakeOllama, told: list[MutableMapping[str, Any]], loss: str
) -> None:
    """F32: the janitor puts it back, as critical: nothing that still stands in the stream is passed over."""
    config = config_for(redis_url, fake.url, QUICK)
    async with sweeping(config) as (janitor, _), working(config, block_ms=1000) as at_work:
        await janitor.ready()
        await at_work.ready()
        await eventually_async(race.somebody_is_blocked)
        match loss:
            case "DEL":
                await race.redis.delete(race.keys.input)
            case "FLUSHALL":
                await race.redis.flushall()
            case _:
                await race.redis.xgroup_destroy(race.keys.input, race.keys.group)
        entry_id = await race.add()
        assert list(await race.until_enriched(1)) == [entry_id]

    assert [row["log_level"] for row in told if row["event"] == "group.recreated"] == ["critical"]


async def test_lost_reply_of_a_read_comes_back_although_its_reader_lives(
    race: Race, redis_server: RedisServer, fake: FakeOllama
) -> None:
    """F5: a ghost is not renewed by the one who never saw it; its lease runs out."""
    async with FaultProxy(redis_server.port) as proxy:
        config = config_for(proxy.redis_url, fake.url, QUICK)
        async with sweeping(config), working(config, block_ms=1000) as at_work:
            await at_work.ready()
            await eventually_async(race.somebody_is_blocked)
            proxy.swallow(b"XREADGROUP")
            ids = [await race.add(str(n)) for n in range(2)]
            await race.until_enriched(2)
            await eventually_async(race.is_clean)

    assert proxy.swallowed.total() == 1
    assert set(await race.enriched()) == set(ids)
    assert max((await race.totals()).values()) == 2


async def test_lost_reply_of_a_read_along_with_the_places_comes_back_too(
    race: Race, redis_server: RedisServer, fake: FakeOllama
) -> None:
    """F5: the events are there when the places are asked for, and are pending when the reply is lost."""
    async with FaultProxy(redis_server.port) as proxy:
        config = config_for(proxy.redis_url, fake.url, QUICK)
        async with sweeping(config), working(config) as at_work:
            await race.add("small, as is known now")
            await race.until_enriched(1)
            at_work.ear.hear({"pause": True})
            await eventually_async(lambda: at_work.ear.stats()["waits_for"] == PAUSED)
            ids = [await race.add(str(n)) for n in range(2)]
            proxy.swallow(b"\r\nread\r\n")
            at_work.ear.hear({"pause": False})
            await race.until_enriched(3)
            await eventually_async(race.is_clean)

    assert proxy.swallowed.total() == 1
    assert set(ids) < set(await race.enriched())
    assert await race.totals() == {"enriched": 3, "handed_back": 2}
    assert len(fake.calls) == 3


async def test_lost_reply_of_a_finish_makes_neither_a_duplicate_nor_a_dead_letter(
    race: Race, redis_server: RedisServer, fake: FakeOllama
) -> None:
    """F4: sent again, the answer is `gone`, and that is success."""
    async with FaultProxy(redis_server.port) as proxy, working(config_for(proxy.redis_url, fake.url)) as at_work:
        await race.add()
        await race.until_enriched(1)
        proxy.swallow(b"ai_enrichment")
        await race.add()
        await race.until_enriched(2)
        await eventually_async(lambda: at_work.ear.stats().get("gone") == 1)

    assert proxy.swallowed.total() == 1
    assert await race.buried() == {}
    assert await race.is_clean()
    assert await race.totals() == {"enriched": 2}


async def test_output_that_is_no_stream_stops_nothing_for_good(
    race: Race, config: Config, told: list[MutableMapping[str, Any]]
) -> None:
    """F36: the answers wait in hand, nothing is acknowledged; as soon as the key is mended they leave."""
    await race.redis.set(race.keys.output, "mine")
    ids = {await race.add(str(n)) for n in range(2)}
    async with working(config):
        await eventually_async(lambda: [row for row in told if row["event"] == "settle.resending"])
        assert await race.held() == dict.fromkeys(ids, (CONSUMER, 1))
        await race.redis.delete(race.keys.output)
        assert set(await race.until_enriched(2)) == ids

    assert await race.is_clean()


@asynccontextmanager
async def hands_full(race: Race, redis_url: str, fake: FakeOllama) -> AsyncIterator[AtWork]:
    """Have a worker with two slots in whose hands four answers are that cannot be written out; 16 events wait."""
    await race.redis.set(race.keys.output, "mine")
    for n in range(20):
        await race.add(str(n))
    async with working(config_for(redis_url, fake.url, {"model.concurrency": 2})) as at_work:
        await eventually_async(lambda: at_work.ear.stats()["in_hand"] == 4 and not at_work.ear.stats()["asking"])
        yield at_work


async def test_worker_reads_no_more_than_it_may_have_in_hand_while_nothing_can_be_written_out(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    """F36: as many that have their answers as may be asked about at once; the rest stays in the stream."""
    async with hands_full(race, redis_url, fake):
        assert len(await race.pending()) == 4
        await race.redis.delete(race.keys.output)
        await race.until_enriched(20)
        await eventually_async(race.is_clean)

    assert len(fake.calls) == 20


async def test_a_stop_while_nothing_can_be_written_out_is_the_end_of_reading(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    """F36: what is in hand is all that is to be finished before the deadline."""
    async with hands_full(race, redis_url, fake) as at_work:
        at_work.stop.request()
        await race.redis.delete(race.keys.output)
        await at_work.ended()

    assert len(await race.output()) == 4
    assert len(fake.calls) == 4


async def test_worker_finishes_what_it_holds_although_memory_is_full(start_redis: StartRedis, fake: FakeOllama) -> None:
    """F30: what is in hand leaves; what waits is worked off once there is room again."""
    server = start_redis({"maxmemory-policy": "noeviction"})
    config = config_for(server.url, fake.url)
    client = connect(server.url)
    race = await Race(client, Keys.of(config)).open()
    await race.add("[[fake hold]]")
    async with working(config):
        await fake.until(lambda: fake.held == 1)
        await client.config_set("maxmemory", 1)
        fake.release()
        await race.until_enriched(1)
        await client.config_set("maxmemory", 0)
        await race.add()
        await race.until_enriched(2)
        await eventually_async(race.is_clean)
    await client.aclose()


@pytest.mark.usefixtures("soon")
async def test_event_on_which_the_model_always_drops_the_connection_is_buried_in_the_end(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    """F44: an outage spends no attempt, but an event that makes the model server die must not stop the fleet."""
    poison = await race.add("[[fake drop]]")
    good = await race.add("good")
    async with working(config_for(redis_url, fake.url, {"delivery.retries": 0})):
        buried = await race.until_buried(1)
        enriched = await race.until_enriched(1)
    assert {source: letter["failure_reason"] for source, letter in buried.items()} == {poison: "model_error"}
    assert list(enriched) == [good]
