"""A kept connection: every reply belongs to the command that it answers, whatever happened to those before."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis import exceptions
from tests.conftest import StartRedis
from tests.fleet.chaos.proxy import FaultProxy
from tests.integration.race import Race
from tests.rig import RedisServer, eventually_async

from millhand.line import Line
from millhand.stream import RedisError, connect

TIMEOUT_S = 0.3


@asynccontextmanager
async def line_to(url: str, timeout_s: float = 5.0) -> AsyncIterator[Line]:
    """Have a line for the length of the block; its client closes it."""
    client = connect(url, timeout_s=timeout_s)
    try:
        yield Line(client)
    finally:
        await client.aclose()


async def clients(race: Race) -> list[Any]:
    """Return the clients whose last command was a GET."""
    return [client for client in await race.redis.client_list() if client["cmd"] == "get"]


async def test_replies_come_in_the_order_of_their_commands_with_errors_in_their_places(
    race: Race, redis_url: str
) -> None:
    async with line_to(redis_url) as line:
        replies = await line.round_trip([("SET", race.keys.dead_letter, "1"), ("NO", "SUCH"), ("PING",)])
        assert replies[0::2] == [b"OK", b"PONG"]
        assert isinstance(replies[1], exceptions.ResponseError)
        with pytest.raises(exceptions.ResponseError, match="WRONGTYPE"):
            await line.call("XLEN", race.keys.dead_letter)
        assert await line.call("PING") == b"PONG"


async def test_one_connection_serves_all_round_trips_and_goes_with_its_client(race: Race, redis_url: str) -> None:
    async with line_to(redis_url) as line:
        for _ in range(3):
            await line.call("GET", race.keys.dead_letter)
        (own,) = await clients(race)
        await line.call("GET", race.keys.dead_letter)
        assert [client["id"] for client in await clients(race)] == [own["id"]]

    async def is_gone() -> bool:
        return not await clients(race)

    await eventually_async(is_gone)


async def test_a_connection_that_ended_between_two_round_trips_is_made_anew(race: Race, redis_url: str) -> None:
    """Nothing was sent on it, so nobody needs to hear of it."""
    async with line_to(redis_url) as line:
        await line.call("GET", race.keys.dead_letter)
        (own,) = await clients(race)
        await race.redis.client_kill_filter(_id=own["id"])
        connection = line._connection
        await eventually_async(connection.can_read)
        assert await line.call("PING") == b"PONG"


async def test_what_was_asked_in_vain_is_not_the_next_ones_answer(race: Race, redis_server: RedisServer) -> None:
    """F4: a reply that is lost, late or no longer waited for goes with its connection."""
    redis_url = redis_server.url
    async with FaultProxy(redis_server.port) as proxy, line_to(proxy.redis_url) as line:
        proxy.swallow(b"ECHO")
        with pytest.raises(RedisError):
            await line.call("ECHO", "lost")
        assert await line.call("PING") == b"PONG"

    blocking = ("BLPOP", race.keys.dead_letter, 0)
    async with line_to(redis_url, TIMEOUT_S) as line:
        with pytest.raises(exceptions.TimeoutError, match=r"0\.3 s"):
            await line.call(*blocking)
    async with line_to(redis_url) as line:
        waiting = asyncio.create_task(line.call(*blocking))
        await eventually_async(race.somebody_is_blocked)
        waiting.cancel()
        await asyncio.wait({waiting})
        await race.redis.rpush(race.keys.dead_letter, "late")
        assert await line.call("PING") == b"PONG"


async def test_a_client_that_drops_its_connections_ends_a_round_trip_and_not_the_next(
    race: Race, redis_url: str
) -> None:
    """F34: the address may lead to another server by then."""
    client = connect(redis_url)
    line = Line(client)
    assert await line.call("PING") == b"PONG"
    waiting = asyncio.create_task(line.call("BLPOP", race.keys.dead_letter, 0))
    await eventually_async(race.somebody_is_blocked)
    await client.connection_pool.disconnect()
    with pytest.raises(RedisError):
        await waiting
    assert await line.call("PING") == b"PONG"
    await client.aclose()


async def test_a_line_finds_a_server_that_comes_and_goes(start_redis: StartRedis) -> None:
    server = start_redis({})
    async with line_to(server.url) as line:
        assert await line.call("PING") == b"PONG"
        server.kill()
        for _ in range(2):
            with pytest.raises(RedisError):
                await line.call("PING")
        server.start()
        assert await line.call("PING") == b"PONG"


async def test_a_server_that_lets_us_not_in_says_so(start_redis: StartRedis) -> None:
    server = start_redis({"requirepass": "secret"})
    async with line_to(server.url.replace("redis://", "redis://:wrong@")) as line:
        with pytest.raises(exceptions.AuthenticationError):
            await line.call("PING")
