"""Fixtures that every shelf may use."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from tests.rig import RedisServer

from millhand.stream import connect

if TYPE_CHECKING:
    from redis.asyncio import Redis

StartRedis = Callable[[Mapping[str, str]], RedisServer]


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """Start one real server for all tests that do not harm it; it keeps nothing on disk."""
    with RedisServer({"enable-debug-command": "local"}) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """Empty the shared server, and say where it is."""
    with redis_server.client() as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
async def redis(redis_url: str) -> "AsyncIterator[Redis]":
    """Make a client as the product does: bytes, and no repeats."""
    client = connect(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def start_redis() -> Iterator[StartRedis]:
    """Start a server of the test's own, to be killed, paused or filled up; ended after the test."""
    with ExitStack() as stack:
        yield lambda options: stack.enter_context(RedisServer(options))
