"""Fixtures that every shelf may use."""

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from tests.rig import SERVERS, RedisServer
from tests.turns import MARK, Turns, is_alone

from millhand.stream import connect

if TYPE_CHECKING:
    from redis.asyncio import Redis

StartRedis = Callable[[Mapping[str, str]], RedisServer]
RunServer = Callable[[str], RedisServer]
TURNS = pytest.StashKey[Turns]()
FOLDER = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let any test run on any server."""
    parser.addoption("--server", choices=list(SERVERS), help="run all tests on this kind of server alone")


def pytest_configure(config: pytest.Config) -> None:
    """Give the processes of pytest-xdist a folder in which they arrange their turns; one process needs none."""
    if hasattr(config, "workerinput"):
        turns = config.stash[TURNS] = Turns(Path(config.workerinput["turns"]))
        config.add_cleanup(turns.close)
    elif config.getoption("numprocesses", None):
        folder = TemporaryDirectory(prefix="millhand-turns-")
        config.stash[FOLDER] = folder.name
        config.add_cleanup(folder.cleanup)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process where."""
    node.workerinput["turns"] = node.config.stash[FOLDER]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one process run all that is marked `alone`, in one go."""
    for item in items:
        if is_alone(item):
            item.add_marker(pytest.mark.xdist_group(MARK))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Wait for the test's turn, before its time is taken; keep it where the next test needs the same."""
    turns = item.config.stash.get(TURNS, None)
    if turns is None:
        return (yield)
    turns.enter(alone=is_alone(item))
    try:
        return (yield)
    finally:
        if not (is_alone(item) and is_alone(nextitem)):
            turns.leave()


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
def short_path() -> Iterator[Path]:
    """Make a folder that has room for a unix socket's path, which `tmp_path` of a parallel run has not."""
    with TemporaryDirectory(prefix="mh-") as folder:
        yield Path(folder)


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
        client.script_flush()  # each test meets a server as new as its first one does
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
