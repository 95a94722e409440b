"""Fixtures that every shelf may use."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING

import pytest
from tests.rig import SERVERS, RedisServer

from millhand.stream import connect

if TYPE_CHECKING:
    from redis.asyncio import Redis

StartRedis = Callable[[Mapping[str, str]], RedisServer]
RunServer = Callable[[str], RedisServer]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let any test run on any server."""
    parser.addoption("--server", choices=list(SERVERS), help="run all tests on this kind of server alone")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that is marked `every_server` on each of them, if it stands on one at all."""
    if "server_kind" in metafunc.fixturenames and metafunc.definition.get_closest_marker("every_server"):
        chosen = metafunc.config.getoption("--server")
        metafunc.parametrize("server_kind", [chosen] if chosen else list(SERVERS))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip here where there is no such server: the skips of a fixture would be told line by line."""
    kind = item.callspec.params.get("server_kind") if hasattr(item, "callspec") else None
    if kind:
        SERVERS[kind]()


@pytest.fixture
def server_kind(pytestconfig: pytest.Config) -> str:
    """Name the kind of server that the test stands on, one of `SERVERS`."""
    return str(pytestconfig.getoption("--server") or next(iter(SERVERS)))


@pytest.fixture(scope="session")
def run_server() -> Iterator[RunServer]:
    """Start one real server of a kind, for all tests that do not harm it; it keeps nothing on disk."""
    with ExitStack() as stack:
        yield cache(
            lambda kind: stack.enter_context(RedisServer({"enable-debug-command": "local"}, binary=SERVERS[kind]()))
        )


@pytest.fixture
def redis_server(run_server: RunServer, server_kind: str) -> RedisServer:
    """Share a server with other tests."""
    return run_server(server_kind)


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
def start_redis(server_kind: str) -> Iterator[StartRedis]:
    """Start a server of the test's own, to be killed, paused or filled up; ended after the test."""
    with ExitStack() as stack:
        yield lambda options: stack.enter_context(RedisServer(options, binary=SERVERS[server_kind]()))
