"""The desk: its numbers are right, and it answers whatever Redis does."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from tests.conftest import StartRedis
from tests.integration.hands import Ear
from tests.integration.race import DONE, Race
from tests.rig import HOST, RedisServer, config_for, eventually_async

from millhand.config import Config
from millhand.keys import Keys
from millhand.settle import Settler
from millhand.stop import Stop
from millhand.stream import connect
from millhand.verdict import Bury, Reason, Release, Retry
from millhand_fleet import snapshot as snapshot_module
from millhand_fleet.desk import Desk
from millhand_fleet.serving import serve
from millhand_fleet.snapshot import Observer

FLEET: dict[str, Any] = {
    "desired": 2,
    "pid": 4711,
    "children": [
        {"name": "worker-1", "state": "ready", "pid": 1, "restarts": 3, "stats": {"waits_for": None}},
        {"name": "worker-2", "state": "ready", "pid": 2, "restarts": 0, "stats": {"waits_for": None}},
        {"name": "janitor", "state": "ready", "pid": 3, "restarts": 0, "stats": {}},
    ],
}
REDIS_TIMEOUT_S, ANSWER_S_MAX = 60.0, 5.0  # far apart, so that a busy machine is not taken for waiting
CROWD, CROWDED_ANSWER_S_MAX = 500, 10.0
COUNTS = {"event_s": [3.0, 0, 0, 0, 0, 0, 2], "model_s": [1.0, 0, 0, 0, 2], "tokens": [70, 8]}
NO_COUNTS = {"event_s": [0.0], "model_s": [0.0], "tokens": [0, 0]}


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refresh often, and give up on Redis soon."""
    monkeypatch.setattr(snapshot_module, "REFRESH_EVERY_S", 0.02)
    monkeypatch.setattr(snapshot_module, "HEALTH_TIMEOUT_S", 0.3)


class Counter:
    """A desk that is open: its observer, and clients of both faces."""

    def __init__(self, observer: Observer, ear: Ear, public: httpx.AsyncClient, private: httpx.AsyncClient) -> None:
        self.observer = observer
        self.ear = ear
        self.public = public
        self.private = private

    async def fresh(self) -> None:
        """Wait until a picture was taken that began after now."""
        for _ in range(2):
            taken_at = self.observer.snapshot.taken_at
            await eventually_async(lambda taken_at=taken_at: self.observer.snapshot.taken_at > taken_at)  # type: ignore[misc]

    async def health(self) -> dict[str, Any]:
        """Ask for fresh health."""
        await self.fresh()
        document: dict[str, Any] = (await self.public.get("/healthz")).json()
        return document


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[Counter]:
    """Open a desk whose supervisor has reported."""
    stop, ear = Stop(20), Ear()
    observer = Observer(config)
    observer.hear({"fleet": FLEET})
    desk = Desk(observer, ear)
    observing = asyncio.create_task(observer.run(stop))
    async with client(desk.public()) as public, client(desk.private()) as private:
        try:
            yield Counter(observer, ear, public, private)
        finally:
            stop.request()
            try:
                await observing
            finally:
                await observer._redis.aclose()  # where it failed, it has not done so itself


def client(app: Starlette) -> httpx.AsyncClient:
    """Speak to an app without a socket."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://desk", timeout=5)


@pytest.fixture
async def counter(race: Race, config: Config) -> AsyncIterator[Counter]:
    """Open a desk on the shared server."""
    assert race
    async with opened(config) as counter:
        yield counter


# -- numbers ----------------------------------------------------------------------------------------------------------


async def test_health_counts_what_waits_what_is_in_hand_and_what_is_settled(
    race: Race, settler: Settler, counter: Counter
) -> None:
    """Three wait, one is in hand, one is parked, two are enriched and one is dead."""
    for _ in range(8):
        await race.add()
    one, two, bad, slow, _ = await race.deliver(count=5)
    await settler.settle(one, DONE)
    await settler.settle(two, DONE)
    await settler.settle(bad, Bury(Reason.TIMEOUT, "x", 4))
    await settler.settle(slow, Retry(60.0, 1, ("x",)))

    document = await counter.health()
    assert 0 < document.pop("backlog_age_s") < 60
    assert document == {
        "status": "ok",
        "ready": True,
        "reasons": [],
        "notes": document["notes"],
        "fleet": "events",
        "backlog": 3,
        "pending": 2,
        "enriched": 2,
        "dead_letters": 1,
        "drained_in_s": None,
        "success_rate": 0.666667,
        "success_rate_over": document["success_rate_over"],
        "enriched_per_s": counter.observer.snapshot.streams.enriched_per_s,
        "workers_ready": 2,
        "workers_desired": 2,
    }
    assert counter.observer.snapshot.streams.parked == 1
    assert counter.observer.snapshot.streams.dead_by_reason == {"timeout": 1}


async def test_events_that_come_and_go_between_two_looks_make_no_backlog_below_none(
    race: Race, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group and the stream are looked at one after the other, and the fleet does not wait for that."""
    redis = counter.observer._redis

    async def and_go_on(look: Callable[[str], Awaitable[Any]], stream: str) -> Any:
        found = await look(stream)
        await race.delivered()
        return found

    monkeypatch.setattr(redis, "xinfo_stream", partial(and_go_on, redis.xinfo_stream))
    monkeypatch.setattr(redis, "xinfo_groups", partial(and_go_on, redis.xinfo_groups))
    assert {(await counter.health())["backlog"] for _ in range(5)} <= {0, 1}
    monkeypatch.undo()
    assert (await counter.health())["backlog"] == 0


async def test_backlog_stays_exact_through_deletions_and_trims(race: Race, counter: Counter) -> None:
    """F38: where XINFO's lag is wrong, the backlog is not."""
    ids = [await race.add() for _ in range(10)]
    await race.deliver(count=2)
    assert (await counter.health())["backlog"] == 8
    for gone, left in ((ids[8], 7), (ids[4], 6), (ids[0], 6), (ids[1], 6)):
        await race.redis.xdel(race.keys.input, gone)
        assert (await counter.health())["backlog"] == left
    await race.redis.xtrim(race.keys.input, maxlen=2, approximate=False)
    assert (await counter.health())["backlog"] == 2
    await race.deliver(count=10)
    assert (await counter.health())["backlog"] == 0


async def test_success_rate_is_unknown_before_the_first_event_is_settled(counter: Counter) -> None:
    """Nothing of nothing is not zero."""
    document = await counter.health()

    assert document["success_rate"] is None
    assert (document["backlog"], document["pending"]) == (0, 0)


async def test_metrics_are_prometheus_text_and_agree_with_health(
    race: Race, settler: Settler, counter: Counter
) -> None:
    """One picture, two faces."""
    for _ in range(6):
        await race.add()
    one, two, three, four = await race.deliver(count=4)
    await settler.settle(one, DONE)
    await settler.settle(two, Bury(Reason.MALFORMED, "x"))
    await settler.settle(three, Bury(Reason.TIMEOUT, "x"))
    await settler.settle(four, Release())
    await counter.fresh()
    reply = await counter.public.get("/metrics")

    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }
    expected = {
        ("millhand_redis_up",): 1,
        ("millhand_redis_durable",): 0,
        ("millhand_backlog_events",): 2,
        ("millhand_pending_events",): 1,
        ("millhand_added_events_total",): 6,
        ("millhand_enriched_events_total",): 1,
        ("millhand_released_events_total",): 1,
        ("millhand_restarts_total", "worker-1"): 3,
        ("millhand_success_ratio", "all"): pytest.approx(1 / 3),
        ("millhand_dead_letters_total", "malformed"): 1,
        ("millhand_dead_letters_total", "timeout"): 1,
        ("redis_stream_length", "db0", "{events}:raw"): 6,
        ("redis_stream_length", "db0", "{events}:enriched"): 1,
        ("redis_stream_length", "db0", "{events}:dead_letter"): 2,
        ("redis_stream_group_messages_pending", "db0", "enrichers", "{events}:raw"): 1,
    }
    assert {name: samples.get(name) for name in expected} == expected
    assert samples["millhand_backlog_age_seconds",] > 0


@pytest.mark.parametrize(
    ("options", "durability"),
    [
        ({"appendonly": "yes", "appendfsync": "always"}, "durable"),
        ({"appendonly": "yes", "appendfsync": "everysec"}, "weak: everysec"),
        ({"appendonly": "no"}, "none"),
    ],
)
async def test_status_tells_how_durable_the_server_is(
    start_redis: StartRedis, options: dict[str, str], durability: str
) -> None:
    """F29: "nothing lost" is a promise of `always` only, and the picture says so."""
    config = config_for(start_redis(options).url)
    redis = connect(config.redis.url)
    await Race(redis, Keys.of(config)).open()
    await redis.aclose()
    async with opened(config) as counter:
        await counter.fresh()
        status = (await counter.public.get("/status")).json()

    assert status["redis"]["durability"] == durability
    assert status["redis"]["server"].startswith(("Valkey ", "Redis "))
    assert status["health"]["status"] == "ok"


async def test_status_says_all_that_is_known(race: Race, settler: Settler, counter: Counter) -> None:
    """The document that `status`, `top` and the web page render: what is not in it, they cannot show."""
    for _ in range(4):
        await race.add()
    one, two, _ = await race.deliver(count=3)
    await settler.settle(one, DONE)
    await settler.settle(two, Bury(Reason.MALFORMED, "no JSON"))
    told = {"paused": True, "crash_loop": True, "rolling": {"what": "reload", "left": 1}, "stop_wait_note": "x", "y": 7}
    counter.observer.hear({"fleet": {**FLEET, **told}})
    counter.observer.hear({"counts": {"w1:a": NO_COUNTS}})
    counter.observer.hear({"counts": {"w1:a": COUNTS}})
    await counter.fresh()
    status = (await counter.public.get("/status")).json()

    assert {name: status[name] for name in told} == told
    assert status.keys() >= {
        "health", "version", "fleet", "model", "at", "desired", "supervisor_pid", "children", "redis", "gate",
        "streams", "latency", "recent_dead", "recent_enriched",
    }  # fmt: skip
    assert status["streams"].keys() >= {
        "in_per_s", "enriched_per_s", "dead_per_s", "backlog_age_s", "drained_in_s"
    }  # fmt: skip
    assert status["health"]["success_rate_over"].keys() == {"1m", "5m", "15m"}
    assert status["latency"]["model"] == {"count": 2, "p50_s": 0.175, "p95_s": 0.242, "p99_s": 0.248}
    assert status["latency"]["event"]["count"] == 2
    (dead,) = status["recent_dead"]
    assert (dead["src"], dead["reason"], dead["detail"]) == (two.id, "malformed", "no JSON")
    assert abs(time.time() - datetime.fromisoformat(dead["at"]).timestamp()) < 3600
    (enriched,) = status["recent_enriched"]
    assert (enriched["src"], enriched["results"], enriched["payload"]) == (one.id, None, None)
    assert status["health"]["backlog_age_s"] > 0


async def test_ages_are_those_of_the_oldest_and_unknown_where_none_waits(race: Race, counter: Counter) -> None:
    """Delivered or not, by the server's clock; an id that a producer made up is no time."""
    await race.redis.xadd(race.keys.input, {"data": "{}"}, id="7-1")
    assert (await counter.health())["backlog_age_s"] is None
    await race.deliver(count=1)
    await race.redis.xack(race.keys.input, race.keys.group, "7-1")
    seconds, _ = await race.redis.time()
    for age_s in (50, 30, 10):
        await race.redis.xadd(race.keys.input, {"data": "{}"}, id=f"{(seconds - age_s) * 1000}-0")
    await race.deliver(count=1)
    assert 49 < (await counter.health())["backlog_age_s"] < 110
    streams = counter.observer.snapshot.streams
    assert (streams.backlog, 29 < (streams.undelivered_age_s or 0) < 90) == (2, True)
    await race.deliver(count=2)
    await counter.fresh()
    assert counter.observer.snapshot.streams.undelivered_age_s is None
    pending: Any = await race.redis.xpending_range(race.keys.input, race.keys.group, "-", "+", 9)
    await race.redis.xack(race.keys.input, race.keys.group, *(row["message_id"] for row in pending))
    assert (await counter.health())["backlog_age_s"] is None


@pytest.mark.parametrize("shown", [False, True])
async def test_payloads_are_shown_only_where_that_is_configured(race: Race, redis_url: str, shown: bool) -> None:  # noqa: FBT001
    """Whoever may read the desk may not always read the events; and nobody needs a megabyte of them."""
    enrichment = {"spam": {"is_spam": False}, "meta": {"model": "tiny"}}
    for n in range(7):
        record = {
            "data": json.dumps({"text": f"secret {n} " + "x" * 900, "ai_enrichment": enrichment}),
            "src": f"{n}-0",
        }
        await race.redis.xadd(race.keys.output, record)  # type: ignore[arg-type]
    await race.redis.xadd(race.keys.output, {"data": '{"text": "' + "y" * 100_000 + '"}', "src": "7-0"})
    async with opened(config_for(redis_url, flags={"desk.show_payloads": shown})) as counter:
        await counter.fresh()
        reply = await counter.public.get("/status")

    long, *rest = reply.json()["recent_enriched"]
    assert [record["src"] for record in (long, *rest)] == ["7-0", "6-0", "5-0", "4-0", "3-0"]
    assert ("secret" in reply.text, "is_spam" in reply.text) == (shown, shown)
    if shown:
        assert rest[0]["results"] == {"spam": {"is_spam": False}}
        assert rest[0]["payload"].startswith('{"text":"secret 6 xxx')
        assert (long["results"], long["payload"][:12]) == (None, '{"text": "yy')
        assert len(reply.content) < 20_000


async def test_an_output_that_is_no_stream_takes_nothing_else_from_the_picture(race: Race, counter: Counter) -> None:
    """The workers cannot write to it and say so; the desk goes on counting."""
    await race.redis.set(race.keys.output, "not a stream")
    await race.add()
    assert (await counter.health())["backlog"] == 1
    assert counter.observer.snapshot.redis.reachable


# -- trouble ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "field"), [("totals", "enriched"), ("gate", "open"), ("gate", "strikes")])
async def test_a_number_that_a_foreign_hand_has_spoilt_is_told_and_does_not_end_the_desk(
    counter: Counter, race: Race, where: str, field: str
) -> None:
    """The page that shows what is wrong must not be what goes first."""
    key = getattr(race.keys, where)
    await race.redis.hset(key, field, "inf" if field == "strikes" else "much")
    health = await counter.health()
    assert health["status"] == "down"
    assert health["reasons"][0].startswith("redis does not answer: ")
    await race.redis.hdel(key, field)
    assert (await counter.health())["status"] != "down"


@pytest.mark.parametrize("trouble", ["killed", "frozen"])
async def test_desk_says_down_while_redis_is_away_and_keeps_its_last_numbers(
    start_redis: StartRedis, trouble: str
) -> None:
    """F20, F22: 503 with the reason; when Redis is back, so is the desk."""
    server = start_redis({"appendonly": "yes", "appendfsync": "always"})
    config = config_for(server.url)
    redis = connect(server.url)
    race = await Race(redis, Keys.of(config)).open()
    for _ in range(3):
        await race.add()
    async with opened(config) as counter:
        assert (await counter.health())["backlog"] == 3
        server.kill() if trouble == "killed" else server.pause()
        await eventually_async(lambda: not counter.observer.snapshot.redis.reachable)

        reply = await counter.public.get("/healthz")
        assert reply.status_code == 503
        document = reply.json()
        assert (document["status"], document["ready"], document["backlog"]) == ("down", False, 3)
        assert "redis does not answer: " in document["reasons"][0]
        assert (await counter.public.get("/readyz")).status_code == 503
        assert "millhand_redis_up 0.0" in (await counter.public.get("/metrics")).text

        server.start() if trouble == "killed" else server.resume()
        await eventually_async(lambda: counter.observer.snapshot.redis.reachable)
        assert (await counter.public.get("/healthz")).status_code == 200
        assert (await counter.health())["backlog"] == 3
    await redis.aclose()


async def test_desk_answers_from_its_picture_at_once_while_redis_hangs(
    start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F50: who asks never waits for Redis."""
    monkeypatch.setattr(snapshot_module, "HEALTH_TIMEOUT_S", REDIS_TIMEOUT_S)
    server = start_redis({})
    config = config_for(server.url)
    redis = connect(server.url)
    race = await Race(redis, Keys.of(config)).open()
    await race.add()
    await redis.aclose()
    async with opened(config) as counter:
        assert (await counter.health())["backlog"] == 1
        server.pause()
        for path in ("/healthz", "/readyz", "/status", "/metrics"):
            started = time.monotonic()
            reply = await counter.public.get(path)
            assert time.monotonic() - started < ANSWER_S_MAX
            assert reply.status_code == 200
        assert (await counter.public.get("/healthz")).json()["backlog"] == 1
        server.resume()


async def test_crowd_of_slow_clients_and_a_frozen_redis_keep_nobody_waiting(start_redis: StartRedis) -> None:
    """F50: 500 of them, byte by byte. How fast it is, scripts/bench/desk.py measures; here it need only be."""
    server = start_redis({})
    config = config_for(server.url)
    redis = connect(server.url)
    await (await Race(redis, Keys.of(config)).open()).add()
    await redis.aclose()
    stop = Stop(1)
    with socket.socket() as tcp:
        tcp.bind((HOST, 0))
        tcp.listen(128)
        port = tcp.getsockname()[1]
        async with opened(config) as counter:
            assert (await counter.health())["backlog"] == 1
            server.pause()
            open_for_all = asyncio.create_task(serve(Desk(counter.observer, Ear()).public(), [tcp], stop))
            crowd = [await asyncio.open_connection(HOST, port) for _ in range(CROWD)]
            for byte in b"GET /status":
                for _, writer in crowd:
                    writer.write(bytes([byte]))
            async with httpx.AsyncClient(base_url=f"http://{HOST}:{port}", timeout=CROWDED_ANSWER_S_MAX) as behaved:
                for path in ("/healthz", "/readyz", "/status", "/metrics"):
                    assert (await behaved.get(path)).content
                assert (await behaved.get("/status")).json()["streams"]["backlog"] == 1
            for _, writer in crowd:
                writer.close()
            stop.request()
            await open_for_all
            server.resume()


@pytest.mark.parametrize("loss", ["XGROUP DESTROY", "FLUSHALL", "never there"])
async def test_desk_outlives_a_group_that_is_not_there(
    race: Race, config: Config, redis_server: RedisServer, loss: str
) -> None:
    """F32: it goes on looking, says that something is wrong, and finds the group when it is back."""
    assert redis_server.pid
    async with opened(config) as counter:
        await counter.fresh()
        if loss == "FLUSHALL":
            await race.redis.flushall()
        else:
            await race.redis.xgroup_destroy(race.keys.input, race.keys.group)
            await race.add()
        await counter.fresh()
        assert (await counter.public.get("/healthz")).json()["status"] != "ok"

        await race.open()
        await race.add()
        backlog = await race.redis.xlen(race.keys.input)
        await eventually_async(lambda: counter.observer.snapshot.streams.backlog == backlog)
        assert (await counter.health())["status"] == "ok"


async def test_desk_never_asked_says_so(config: Config) -> None:
    """Before the first picture it is down, not empty."""
    observer = Observer(config)
    async with client(Desk(observer, Ear()).public()) as public:
        reply = await public.get("/healthz")

    assert reply.status_code == 503
    assert reply.json()["reasons"][0] == "redis has not been asked yet: the desk has just begun"


# -- orders -----------------------------------------------------------------------------------------------------------


async def test_public_face_takes_no_orders(counter: Counter) -> None:
    """F51: on loopback there is nothing but reading."""
    for path in ("/scale", "/pause", "/resume", "/restart", "/reload", "/stop"):
        assert (await counter.public.post(path, json={"workers": 1})).status_code == 404
    for path in ("/healthz", "/metrics", "/status", "/readyz"):
        assert (await counter.public.post(path)).status_code == 405
    assert counter.ear.said == []
