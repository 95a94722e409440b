"""Reading: new and due events, from a group that may vanish, on a server that may be unfit."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvloop
from tests.conftest import StartRedis
from tests.fleet.chaos.proxy import FaultProxy
from tests.integration.race import Race
from tests.rig import SERVERS, RedisServer, eventually_async, name_of, old_redis

from millhand.errors import Unusable
from millhand.settle import Settler
from millhand.stream import ALONG_BYTES_MAX, BLOCK_MS, RedisError, Stream, connect, require_streams
from millhand.verdict import Delivery, Retry

pytestmark = pytest.mark.every_server
CONSUMER = "here:w1:a"


@pytest.fixture
async def stream(race: Race, redis_url: str) -> AsyncIterator[Stream]:
    """Read as one consumer of the group."""
    stream = Stream(redis_url, race.keys, CONSUMER, 3)
    yield stream
    await stream.close()


# -- what is read -----------------------------------------------------------------------------------------------------


async def test_new_events_are_read_in_order_and_no_more_than_asked_for(race: Race, stream: Stream) -> None:
    """Each is delivered for the first time, to this consumer."""
    ids = [await race.add(str(n)) for n in range(3)]

    first, second = await stream.read(2), await stream.read(2)

    assert [delivery.id for delivery in first] == ids[:2]
    assert second == [Delivery(ids[2], {b"data": b'{"text": "2"}'}, CONSUMER, 1)]
    assert await race.held() == dict.fromkeys(ids, (CONSUMER, 1))


async def test_reading_waits_for_an_event(race: Race, stream: Stream) -> None:
    """A reader that waits is woken by the producer."""
    reading = asyncio.create_task(stream.read(1))
    await eventually_async(race.somebody_is_blocked)

    entry_id = await race.add()

    assert [delivery.id for delivery in await reading] == [entry_id]


async def test_reading_waits_no_longer_than_until_something_parked_is_due(
    race: Race, stream: Stream, settler: Settler
) -> None:
    """The due event is not kept waiting by a stream that is quiet."""
    delivery = await race.delivered()
    await settler.settle(delivery, Retry(0.1, 1, ("x",)))
    assert await stream.take_due(1) == []
    started = time.monotonic()

    assert await stream.read(1) == []

    assert time.monotonic() - started < BLOCK_MS / 1000
    assert [due.id for due in await eventually_async(lambda: stream.take_due(1))] == [delivery.id]


async def test_bytes_that_are_no_text_do_not_hurt_the_neighbours(race: Race, stream: Stream) -> None:
    """F48: fields are bytes, whatever they hold; of a repeated name the last one counts."""
    await race.add_pairs(b"\xff", b"\x80", b"data", b"1", b"data", b"2")
    neighbour = await race.add()

    odd, even = await stream.read(10)

    assert odd.fields == {b"\xff": b"\x80", b"data": b"2"}
    assert even.id == neighbour


async def test_entries_come_along_with_places_only_while_they_are_small(race: Race, stream: Stream) -> None:
    """Known by those that were read last; where a read failed, by nothing."""
    assert stream.reading(1, 1, 0) is None
    for text in ("small", "small", "x" * (ALONG_BYTES_MAX // 4), "small"):
        await race.add(text)

    await stream.read(1)
    assert stream.reading(8, 2, 3) == (CONSUMER, 2, 3)
    stream.read_failed()
    assert stream.reading(1, 1, 0) is None
    await stream.read(1)
    assert stream.reading(1, 1, 0) == (CONSUMER, 1, 0)
    await stream.read(1)
    assert stream.reading(1, 1, 0) == (CONSUMER, 1, 0)
    assert stream.reading(2, 2, 0) is None


async def test_lost_reply_leaves_a_ghost_that_is_not_read_again(race: Race, redis_server: RedisServer) -> None:
    """F5: it is pending under our name, and our next read does not bring it."""
    entry_id = await race.add()
    async with FaultProxy(redis_server.port) as proxy:
        stream = Stream(proxy.redis_url, race.keys, CONSUMER, 3)
        proxy.swallow(b"XREADGROUP")
        with pytest.raises(RedisError):
            await stream.read(1)
        neighbour = await race.add()

        assert [delivery.id for delivery in await stream.read(10)] == [neighbour]

        await stream.close()
    assert (await race.held())[entry_id] == (CONSUMER, 1)


# -- the server -------------------------------------------------------------------------------------------------------


async def test_server_tells_what_it_is(race: Race, server_kind: str) -> None:
    """The name is the server's own, not the Redis version that Valkey claims for old clients."""
    assert await require_streams(race.redis) == name_of(SERVERS[server_kind]())


async def test_redis_that_is_too_old_is_refused() -> None:
    """Redis 6.2 knows no script flags: the message names both versions and the setting."""
    with RedisServer(binary=old_redis()) as server:
        client = connect(server.url)
        with pytest.raises(Unusable, match=r"Redis 6\.2\.\d+ is too old: millhand needs 7\.0 or newer.*redis\.url"):
            await require_streams(client)
        await client.aclose()


@pytest.mark.parametrize("login", [":wrong@", "nobody:wrong@", ""], ids=["password", "user", "none"])
async def test_server_that_refuses_the_login_is_refused(start_redis: StartRedis, login: str) -> None:
    """F37: a wrong password is a person's to cure, and the message says where; the password is not in it."""
    server = start_redis({"requirepass": "secret"})
    client = connect(server.url.replace("redis://", f"redis://{login}"))
    with pytest.raises(Unusable, match=r"refuses the login.*redis\.url") as caught:
        await require_streams(client)
    await client.aclose()
    assert "wrong@" not in str(caught.value)


async def test_right_password_lets_us_in(start_redis: StartRedis, server_kind: str) -> None:
    """The counterpart of the refusal."""
    server = start_redis({"requirepass": "secret"})
    client = connect(server.url.replace("redis://", "redis://:secret@"))
    assert await require_streams(client) == name_of(SERVERS[server_kind]())
    await client.aclose()


async def test_server_that_loads_or_is_full_is_waited_for(redis_server: RedisServer, race: Race) -> None:
    """F37: too many clients is no reason to give up for good."""
    await race.redis.config_set("maxclients", 1)
    try:
        client = connect(redis_server.url)
        with pytest.raises(RedisError) as caught:
            await require_streams(client)
        await client.aclose()
    finally:
        await race.redis.config_set("maxclients", 10_000)
    assert not isinstance(caught.value, Unusable)


async def test_client_never_repeats_a_command_by_itself(redis_server: RedisServer, race: Race) -> None:
    """F4: a lost reply is an error to the caller, and one entry in the stream."""
    async with FaultProxy(redis_server.port) as proxy:
        client = connect(proxy.redis_url)
        proxy.swallow(b"XADD")
        with pytest.raises(RedisError):
            await client.xadd(race.keys.input, {"data": "{}"})
        await client.aclose()

    assert await race.redis.xlen(race.keys.input) == 1


def test_connection_that_was_reset_is_told_as_such(redis_server: RedisServer) -> None:
    """F25: uvloop has an error of its own for it, of which a process must not die."""

    async def ask_after_a_reset() -> None:
        client = connect(redis_server.url, connections_max=1)
        await client.ping()
        connection: Any = next(iter(client.connection_pool._available_connections))
        connection._writer.transport.abort()
        try:
            await client.ping()
        finally:
            await client.aclose()

    with pytest.raises(RedisError, match="reset"):
        uvloop.run(ask_after_a_reset())
