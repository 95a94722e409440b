"""Fixtures of the shelf that needs a real Redis."""

from collections.abc import AsyncIterator, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs
from tests.integration.race import Race
from tests.rig import config_for

from millhand.config import Config
from millhand.keys import Keys
from millhand.settle import Settler
from scripts.fake_ollama import FakeOllama

if TYPE_CHECKING:
    from redis.asyncio import Redis


@pytest.fixture
def config(redis_url: str) -> Config:
    """Make a configuration on the shared server."""
    return config_for(redis_url)


@pytest.fixture
async def race(redis: "Redis", config: Config) -> Race:
    """Open the fleet's streams."""
    return await Race(redis, Keys.of(config)).open()


@pytest.fixture
def settler(race: Race) -> Settler:
    """Make a settler."""
    return Settler(race.redis, race.keys)


@pytest.fixture
def told() -> Iterator[list[MutableMapping[str, Any]]]:
    """Collect what is logged."""
    with capture_logs() as entries:
        yield entries


@pytest.fixture
def keys(config: Config) -> Keys:
    """Name the keys."""
    return Keys.of(config)


@pytest.fixture
async def fake() -> AsyncIterator[FakeOllama]:
    """Serve a fake model without latency."""
    async with FakeOllama() as server:
        yield server
