"""The fault proxy: what a client sees of each fault, and what the server does not."""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest
import redis as blocking_redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.conftest import StartRedis
from tests.fleet.chaos import link as link_module
from tests.fleet.chaos.proxy import FaultProxy
from tests.rig import HOST, RedisServer, eventually_async

from millhand.stream import RedisError, connect
from scripts.fake_ollama import FakeOllama

if TYPE_CHECKING:
    from redis.asyncio import Redis

LOOP, THREAD = "in the loop", "in a thread"
SILENCE_S = 0.15
WAIT_S = 5.0


@contextlib.asynccontextmanager
async def standing(manner: str, port: int) -> AsyncIterator[FaultProxy]:
    """Run a proxy in either manner; both take their orders from this thread."""
    if manner == THREAD:
        with FaultProxy(port).in_thread() as proxy:
            yield proxy
    else:
        async with FaultProxy(port) as proxy:
            yield proxy


@pytest.fixture(params=[LOOP, THREAD])
async def proxy(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[FaultProxy]:
    """Stand before the shared server, which is empty."""
    async with standing(request.param, urlsplit(redis_url).port or 0) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: FaultProxy) -> "AsyncIterator[Redis]":
    """Make a client through the proxy."""
    client = connect(proxy.redis_url)
    yield client
    await client.aclose()


class Wire:
    """A bare connection to a Redis, which takes a command in a line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def say(self, text: str) -> None:
        self._writer.write(text.encode())

    async def hear(self, timeout_s: float = WAIT_S) -> bytes:
        """Return what comes next; nothing at the end."""
        return await asyncio.wait_for(self._reader.read(1 << 16), timeout_s)

    async def pings(self) -> bool:
        self.say("PING\r\n")
        return await self.hear() == b"+PONG\r\n"

    def vanish(self) -> None:
        """Break off without a farewell."""
        one_end = self._writer.get_extra_info("socket")
        one_end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def is_silent(self) -> bool:
        with contextlib.suppress(TimeoutError):
            await self.hear(SILENCE_S)
            return False
        return True


@contextlib.asynccontextmanager
async def wire(proxy: FaultProxy) -> AsyncIterator[Wire]:
    """Connect through the proxy."""
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def value_of(redis: "Redis", key: str) -> Any:
    return await redis.get(key)


def has_passed(proxy: FaultProxy, count: int) -> bool:
    """Whether so many bytes have gone to the server."""
    return proxy.bytes_up == count


# -- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order",
    [FaultProxy.passing, lambda proxy: proxy.delaying(0.02), lambda proxy: proxy.slicing(997)],
    ids=["passing", "delaying", "slicing"],
)
async def test_all_bytes_arrive_in_order(
    proxy: FaultProxy, client: "Redis", redis: "Redis", order: Callable[[FaultProxy], None]
) -> None:
    """F25: latency and slices harm nothing that passes."""
    value = b"".join(b"%07d" % n for n in range(100_000))
    order(proxy)

    await client.set("k", value)

    assert await redis.get("k") == value
    assert await client.get("k") == value
    assert len(value) < proxy.bytes_up < len(value) + 1000
    assert len(value) < proxy.bytes_down < len(value) + 1000


async def test_short_queue_loses_nothing(
    proxy: FaultProxy, client: "Redis", redis: "Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    """F25: who sends more than may be on its way waits until there is room."""
    monkeypatch.setattr(link_module, "QUEUE_BYTES_MAX", 10_000)
    proxy.delaying(0.002)
    value = b"".join(b"%07d" % n for n in range(100_000))
    await client.set("k", value)
    assert await redis.get("k") == value
    assert await client.get("k") == value


async def test_delay_is_paid_each_way_but_throttles_nobody(proxy: FaultProxy, client: "Redis") -> None:
    """F25: what is on its way does not wait for what went before."""
    await client.ping()
    proxy.delaying(0.1)

    began_s = time.monotonic()
    await client.ping()
    assert time.monotonic() - began_s >= 0.2

    began_s = time.monotonic()
    await client.set("k", bytes(12_000_000))  # one after the other, its parts would take 4.6 s and more
    assert time.monotonic() - began_s < 2.5


async def test_black_hole_is_silent_and_its_connections_end_with_it(proxy: FaultProxy, redis: "Redis") -> None:
    """F26: what was said into it is lost; a connection that said nothing never knows."""
    async with wire(proxy) as speaker, wire(proxy) as idle:
        assert await speaker.pings()
        assert await idle.pings()
        proxy.black_hole()
        async with wire(proxy) as late:
            speaker.say("SET k v\r\n")
            late.say("PING\r\n")
            assert await speaker.is_silent()
            assert await late.is_silent()
            passed_on = proxy.bytes_up

            proxy.passing()

            for lost in (speaker, late):
                with pytest.raises(ConnectionResetError):
                    await lost.hear()
        assert await idle.pings()
    assert await redis.get("k") is None
    assert proxy.bytes_up - passed_on == len("PING\r\n")
    assert proxy.bytes_lost == len("SET k v\r\nPING\r\n")
    assert (proxy.connections, proxy.resets) == (3, 2)


async def test_black_hole_hides_the_end_of_the_server(start_redis: StartRedis) -> None:
    """F26: a server that dies behind it is not missed before it is gone; then its clients are reset."""
    server = start_redis({})
    async with FaultProxy(server.port) as proxy, wire(proxy) as old:
        assert await old.pings()
        proxy.black_hole()
        server.kill()
        async with wire(proxy) as late:
            assert await old.is_silent()
            assert await late.is_silent()
            proxy.delaying(0)
            for lost in (old, late):
                with pytest.raises(ConnectionResetError):
                    await lost.hear()


async def test_slices_arrive_one_by_one(proxy: FaultProxy, redis: "Redis") -> None:
    """F25: a client reads a reply in many parts."""
    await redis.set("k", "v" * 300)
    async with wire(proxy) as client:
        proxy.slicing()
        client.say("GET k\r\n")
        reply = b"$300\r\n" + b"v" * 300 + b"\r\n"
        parts: list[bytes] = []
        while sum(map(len, parts)) < len(reply):
            parts.append(await client.hear())

    assert b"".join(parts) == reply
    assert len(parts) > 10


async def test_half_closed_connection_still_carries_requests(proxy: FaultProxy, redis: "Redis") -> None:
    """F25: the client is told that nothing will come, and the server still does as it is told."""
    async with wire(proxy) as old:
        assert await old.pings()
        proxy.half_closed()
        async with wire(proxy) as new:
            for n, client in enumerate((old, new)):
                assert await client.hear() == b""
                client.say(f"SET k{n} v\r\n")
                await eventually_async(partial(value_of, redis, f"k{n}"))
    proxy.passing()
    async with wire(proxy) as new:
        assert await new.pings()


async def test_reset_strikes_once_and_all_that_are_there(proxy: FaultProxy) -> None:
    """F25: by RST, without a word; who comes after it is served."""
    async with wire(proxy) as one, wire(proxy) as other:
        assert await one.pings()
        assert await other.pings()
        proxy.reset()
        for client in (one, other):
            with pytest.raises(ConnectionResetError):
                await client.hear()
    async with wire(proxy) as new:
        assert await new.pings()
    assert proxy.resets == 2


async def test_refusing_resets_who_comes_and_leaves_who_is_there(proxy: FaultProxy) -> None:
    """F25: as long as it lasts."""
    async with wire(proxy) as old:
        assert await old.pings()
        proxy.refusing()
        for _ in range(2):
            with pytest.raises(ConnectionResetError):
                async with wire(proxy) as new:
                    await new.hear()
        assert await old.pings()
    proxy.passing()
    async with wire(proxy) as new:
        assert await new.pings()
    assert (proxy.connections, proxy.resets) == (4, 2)


# -- lost replies -----------------------------------------------------------------------------------------------------


async def test_command_whose_reply_is_swallowed_has_run(proxy: FaultProxy, client: "Redis", redis: "Redis") -> None:
    """F4: the client knows nothing, the server has done it; each pattern as often as it was armed."""
    proxy.swallow(b"INCR", times=2)
    proxy.swallow(b"APPEND")
    pipeline: Any = client.pipeline(transaction=False).incr("n")
    for ask, expected in ((pipeline.incr("n").execute, b"2"), (partial(client.incr, "n"), b"3")):
        with pytest.raises(RedisError):
            await ask()
        assert await redis.get("n") == expected
    assert await client.incr("n") == 4
    with pytest.raises(RedisError):
        await client.append("text", "a")
    assert await client.append("text", "b") == 2
    assert proxy.swallowed == {b"INCR": 2, b"APPEND": 1}
    assert proxy.resets == 3


async def test_script_is_known_by_its_hash(proxy: FaultProxy, client: "Redis", redis: "Redis") -> None:
    """F4: that is what travels."""
    sha = await client.script_load("return redis.call('INCR', KEYS[1])")
    proxy.swallow(sha.encode() if isinstance(sha, str) else sha)
    with pytest.raises(RedisError):
        await client.evalsha(sha, 1, "n")
    assert await redis.get("n") == b"1"


async def test_pattern_is_found_across_the_parts_of_a_request(proxy: FaultProxy, redis: "Redis") -> None:
    """F4: wherever TCP cuts."""
    async with wire(proxy) as client:
        proxy.swallow(b"INCR needle")
        passed = 0
        for part in ("INC", "R n", "eedle\r\n"):
            passed += len(part)
            client.say(part)
            await eventually_async(partial(has_passed, proxy, passed))
        with pytest.raises(ConnectionResetError):
            await client.hear()
    assert await redis.get("needle") == b"1"


async def test_request_is_held_in_the_middle_of_a_pattern_and_goes_on_there(proxy: FaultProxy, redis: "Redis") -> None:
    """F2: what had passed before the pattern was whole is not sent again."""
    held = proxy.hold(b"INCR needle")
    async with wire(proxy) as client:
        client.say("INCR nee")
        await eventually_async(partial(has_passed, proxy, len("INCR nee")))
        client.say("dle\r\nPING\r\n")
        await held.caught()
        assert await redis.get("needle") is None
        held.release()
        assert await client.hear() == b":1\r\n+PONG\r\n"


async def test_reply_that_a_server_dies_on_is_not_counted(start_redis: StartRedis) -> None:
    """F20: there was none to swallow; the client sees the server's end."""
    server = start_redis({})
    async with FaultProxy(server.port) as proxy, wire(proxy) as client:
        proxy.swallow(b"BLPOP")
        client.say("BLPOP list 0\r\n")
        await eventually_async(partial(has_passed, proxy, len("BLPOP list 0\r\n")))
        server.kill()
        assert await client.hear() == b""
        assert proxy.swallowed.total() == 0


async def test_blocked_read_loses_its_late_reply(proxy: FaultProxy, redis: "Redis") -> None:
    """F5: the reply that is swallowed is the one that comes, whenever it comes."""
    async with wire(proxy) as client:
        proxy.swallow(b"BLPOP")
        client.say("BLPOP list 0\r\n")
        assert await client.is_silent()
        assert proxy.swallowed.total() == 0
        await redis.rpush("list", "a")
        with pytest.raises(ConnectionResetError):
            await client.hear()
    assert await redis.llen("list") == 0


async def test_earlier_replies_do_not_spare_the_server_the_request(start_redis: StartRedis) -> None:
    """F4: the client is reset as soon as the replies pause; what it had sent until then is still done."""
    server = start_redis({"enable-debug-command": "local"})
    async with FaultProxy(server.port) as proxy:
        client = connect(proxy.redis_url)
        await client.ping()
        before = proxy.bytes_up
        server.pause()
        proxy.swallow(b"INCR")
        pipeline: Any = client.pipeline(transaction=False)
        pipeline.set("big", bytes(40_000))  # the server reads so much by itself, and answers before it reads on
        pipeline.execute_command("DEBUG", "SLEEP", "0.2")
        pipeline.set("big", bytes(40_000))
        running = asyncio.create_task(pipeline.incr("n").execute())
        await eventually_async(lambda: proxy.bytes_up > before + 80_000)
        server.resume()

        with pytest.raises(RedisError):
            await running
        with server.client() as direct:
            await eventually_async(lambda: direct.get("n") == b"1")
        assert proxy.swallowed == {b"INCR": 1}
        await client.aclose()


async def test_earlier_reply_is_not_taken_for_the_one_to_hold(
    proxy: FaultProxy, redis: "Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    """F3: when a reply is caught, its request has run."""
    monkeypatch.setattr(link_module, "QUIET_S", 0.5)
    held = proxy.hold_reply(b"INCR last")
    async with wire(proxy) as client:
        client.say("INCR first\r\nINCR last")
        await eventually_async(partial(value_of, redis, "first"))
        with pytest.raises(TimeoutError):
            await held.caught(SILENCE_S)
        client.say("\r\n")
        await held.caught()
        assert await redis.get("last") == b"1"
        held.release()
        assert await client.hear() == b":1\r\n:1\r\n"


def test_chance_strikes_alike_with_the_same_seed(redis_server: RedisServer) -> None:
    """F4: a run can be repeated."""

    def lost(seed: int) -> list[int]:
        found = []
        with FaultProxy(redis_server.port).in_thread() as proxy:
            proxy.swallow(b"ECHO", times=100, probability=0.3, seed=seed)
            with blocking_client(proxy.redis_url) as client:
                for n in range(16):
                    try:
                        client.echo(str(n))
                    except blocking_redis.ConnectionError:
                        found.append(n)
            assert proxy.swallowed[b"ECHO"] == len(found)
        return found

    first = lost(seed=1)
    assert first == lost(seed=1) != lost(seed=2)
    assert 0 < len(first) < 16


async def test_disarmed_pattern_passes(proxy: FaultProxy, client: "Redis") -> None:
    for pattern in (b"INCR", b"APPEND", b"ECHO"):
        proxy.swallow(pattern)
    proxy.disarm(b"INCR")
    assert await client.incr("n") == 1
    with pytest.raises(RedisError):
        await client.append("text", "a")
    proxy.disarm()
    assert await client.echo("a") == b"a"


# -- held -------------------------------------------------------------------------------------------------------------


async def test_held_request_reaches_the_server_when_it_is_released(
    proxy: FaultProxy, client: "Redis", redis: "Redis"
) -> None:
    """F2: what was sent before it has run; other connections pass; the reply comes as if nothing had been."""
    pipeline: Any = client.pipeline(transaction=False)
    held = proxy.hold(b"second")
    running = asyncio.create_task(pipeline.incr("first").incr("second").execute())
    await held.caught()
    await eventually_async(partial(value_of, redis, "first"))
    assert await client.echo("a") == b"a"
    assert await redis.get("second") is None

    held.release()

    assert await running == [1, 1]
    assert await client.incr("second") == 2


async def test_dropped_request_never_reaches_the_server(proxy: FaultProxy, client: "Redis", redis: "Redis") -> None:
    """F2: its sender sees a broken connection, and cannot know."""
    held = proxy.hold(b"INCR")
    running = asyncio.ensure_future(client.incr("n"))
    await held.caught()

    held.drop()

    with pytest.raises(RedisError):
        await running
    assert await client.incr("n") == 1
    assert await redis.get("n") == b"1"


async def test_held_request_outlives_its_sender(proxy: FaultProxy, redis: "Redis") -> None:
    """F2: the command of one that was killed meanwhile arrives late."""
    held = proxy.hold(b"INCR")
    async with wire(proxy) as client:
        client.say("INCR n\r\n")
        await held.caught()
        client.vanish()
    assert await redis.get("n") is None

    held.release()

    await eventually_async(partial(value_of, redis, "n"))


@pytest.mark.parametrize("passes", [True, False], ids=["released", "dropped"])
async def test_held_reply_is_of_a_command_that_has_run(
    proxy: FaultProxy, client: "Redis", redis: "Redis", *, passes: bool
) -> None:
    """F3: applied, and nobody knows yet."""
    held = proxy.hold_reply(b"INCR")
    running = asyncio.ensure_future(client.incr("n"))
    await held.caught()
    assert await redis.get("n") == b"1"
    assert not running.done()

    if passes:
        held.release()
        assert await running == 1
    else:
        held.drop()
        with pytest.raises(RedisError):
            await running
    assert await client.incr("n") == 2


async def test_what_does_not_come_is_not_caught(proxy: FaultProxy, client: "Redis") -> None:
    held = proxy.hold(b"INCR")
    with pytest.raises(TimeoutError):
        await held.caught(0.05)
    held.release()
    assert await client.incr("n") == 1


# -- robustness -------------------------------------------------------------------------------------------------------


async def test_peers_that_vanish_do_not_harm_the_proxy(start_redis: StartRedis) -> None:
    """F20: a client that breaks off in the middle, a server that is killed and comes back: the port stays."""
    server = start_redis({})
    with FaultProxy(server.port).in_thread() as proxy:
        async with wire(proxy) as client:
            client.say("SET big 1000000\r\n")
            client.vanish()
        async with wire(proxy) as old:
            assert await old.pings()
            server.kill()
            assert await old.hear() == b""
            with pytest.raises(ConnectionResetError):
                async with wire(proxy) as new:
                    await new.hear()
            server.start()
        async with wire(proxy) as new:
            assert await new.pings()


async def test_server_soon_sees_that_a_client_has_left(proxy: FaultProxy, redis: "Redis") -> None:
    async def count() -> int:
        return int((await redis.info("clients"))["connected_clients"])

    async def is_as_before() -> bool:
        return await count() == before

    before = await count()
    async with wire(proxy) as polite, wire(proxy) as rude:
        assert await polite.pings()
        assert await rude.pings()
        assert await count() == before + 2
        rude.vanish()
    await eventually_async(is_as_before)


STATES: dict[str, Callable[[FaultProxy], object]] = {
    "passing": FaultProxy.passing,
    "delaying": lambda proxy: proxy.delaying(60),
    "black_hole": FaultProxy.black_hole,
    "half_closed": FaultProxy.half_closed,
    "swallow": lambda proxy: proxy.swallow(b"PING"),
    "hold": lambda proxy: proxy.hold(b"PING"),
    "hold_reply": lambda proxy: proxy.hold_reply(b"PING"),
}


@pytest.mark.parametrize("manner", [LOOP, THREAD])
@pytest.mark.parametrize("order", STATES.values(), ids=STATES)
async def test_closing_ends_connections_and_tasks_in_any_state(
    redis_server: RedisServer, manner: str, order: Callable[[FaultProxy], object]
) -> None:
    before = asyncio.all_tasks()
    async with contextlib.AsyncExitStack() as stack:
        async with standing(manner, redis_server.port) as proxy:
            old = await stack.enter_async_context(wire(proxy))
            assert await old.pings()
            order(proxy)
            new = await stack.enter_async_context(wire(proxy))
            for client in (old, new):
                client.say("PING\r\n")
            await eventually_async(lambda: proxy.connections == 2)

        assert asyncio.all_tasks() == before
        for client in (old, new):
            with contextlib.suppress(ConnectionResetError):
                while await client.hear():
                    pass
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(HOST, proxy.port)


# -- other users ------------------------------------------------------------------------------------------------------


def blocking_client(url: str) -> blocking_redis.Redis:
    """Make a blocking client that repeats nothing and has little patience."""
    return blocking_redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=0.3)


def test_orders_are_in_force_when_they_return_to_a_blocking_caller(redis_server: RedisServer, redis_url: str) -> None:
    """F25: from synchronous code, without a wait between an order and what it concerns."""
    with (
        blocking_client(redis_url) as direct,
        FaultProxy(redis_server.port).in_thread() as proxy,
        blocking_client(proxy.redis_url) as client,
        ThreadPoolExecutor(1) as other,
    ):
        client.ping()
        proxy.black_hole()
        with pytest.raises(blocking_redis.TimeoutError):
            client.set("n", 7)
        proxy.refusing()
        with pytest.raises(blocking_redis.ConnectionError):
            client.set("n", 8)
        proxy.passing()
        proxy.swallow(b"INCR")
        with pytest.raises(blocking_redis.ConnectionError):
            client.incr("n")
        assert direct.get("n") == b"1"

        held = proxy.hold(b"INCR")
        running = other.submit(client.incr, "n")
        held.block_until_caught()
        assert direct.get("n") == b"1"
        held.release()
        assert running.result(WAIT_S) == 2


async def test_model_behind_it_answers_late_or_in_vain(fake: FakeOllama) -> None:
    """F25: HTTP is as good as Redis: a call held before the model, and one whose answer is lost."""
    async with FaultProxy(fake.port) as proxy, httpx.AsyncClient(base_url=proxy.http_url) as http:

        async def ask(text: str) -> int:
            body = {"model": fake.model, "prompt": text, "stream": False}
            return (await http.post("/api/generate", json=body)).status_code

        assert await ask("an honest question") == 200
        held = proxy.hold(b"held question")
        running = asyncio.create_task(ask("a held question"))
        await held.caught()
        assert [call.text for call in fake.calls] == ["an honest question"]
        held.release()
        assert await running == 200

        proxy.swallow(b"lost question")
        with pytest.raises(httpx.ReadError):
            await ask("a lost question")
        assert [(call.text, call.status) for call in fake.calls][2:] == [("a lost question", 200)]
        assert await ask("an honest question") == 200
