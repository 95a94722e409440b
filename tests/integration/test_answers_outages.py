"""A Redis that forgets, refuses or is away costs calls, and no event waits for its cache."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import StartRedis
from tests.integration.paper import DIGEST, GOOD, WALKS, Mill, ended
from tests.rig import RedisServer

from millhand import cache
from millhand.stream import COMMAND_TIMEOUT_S

if TYPE_CHECKING:
    from redis.asyncio import Redis

pytestmark = pytest.mark.every_server


@pytest.fixture
async def mill(redis_url: str) -> AsyncIterator[Mill]:
    """Stand on the shared server."""
    mill = Mill(redis_url)
    await mill.redis.config_resetstat()
    yield mill
    await mill.close()


@pytest.fixture
async def own(start_redis: StartRedis) -> AsyncIterator[tuple[Mill, RedisServer]]:
    """Stand on a server of the test's own, to be filled up or paused."""
    server = start_redis({"maxmemory-policy": "noeviction"})
    mill = Mill(server.url)
    yield mill, server
    await mill.close()


def warnings(told: list[MutableMapping[str, Any]]) -> list[str]:
    return [row["event"] for row in told if row["log_level"] == "warning"]


async def test_everything_forgotten_in_the_middle_costs_calls_only(mill: Mill) -> None:
    """F32: those who wait find nobody who asks, so one of them does; the first one's answer is good all the same."""
    mill.model.may_answer.clear()
    walks = [mill.walk(mill.process(), n) for n in range(6)]
    await mill.model.asked(1)
    await mill.waits(5)
    await mill.redis.flushall()
    await mill.model.asked(2)
    await mill.waits(4)
    assert len(mill.model.calls) == 2
    mill.model.may_answer.set()

    assert await ended(*walks) == [GOOD] * 6
    assert len(await mill.kept()) == 1


@pytest.mark.parametrize("key", ["answers", "answer_times"])
async def test_one_of_the_two_keys_deleted_alone_leaves_nothing_that_would_never_go(mill: Mill, key: str) -> None:
    answers = mill.process()
    await ended(*(mill.walk(answers, n, str(n)) for n in range(3)))
    await mill.redis.delete(f"{{events}}:{key}")
    await ended(mill.walk(answers, 4, "0"))

    assert set(await mill.kept()) == {mill.question("0").encode()}
    assert len(mill.model.calls) == 4


@pytest.mark.parametrize("key", ["answers", "answer_times", "totals", "asking"])
async def test_key_of_another_type_costs_calls_only_and_is_told_once(
    mill: Mill, key: str, told: list[MutableMapping[str, Any]]
) -> None:
    """F36: every event is asked about, however often the cache fails."""
    await mill.redis.sadd(mill.marker() if key == "asking" else f"{{events}}:{key}", "x")
    answers = mill.process()

    for n in range(3):
        assert await ended(mill.walk(answers, n)) == [GOOD]
    assert answers.errors >= 3
    assert warnings(told) == ["cache.not_used"]


async def test_full_server_keeps_no_answers_and_lets_every_event_go_on(
    own: tuple[Mill, RedisServer], told: list[MutableMapping[str, Any]]
) -> None:
    """F30: who waits is refused and asks; no answer is kept and no marker stays; with room it goes on."""
    mill, _ = own
    answers = mill.process()
    mill.model.may_answer.clear()
    walks = [mill.walk(answers, n) for n in range(4)]
    await mill.model.asked(1)
    await mill.redis.config_set("maxmemory", 1)
    await mill.model.asked(4)
    mill.model.may_answer.set()

    assert await ended(*walks, mill.walk(answers, 5)) == [GOOD] * 5
    assert await mill.kept() == {}
    assert not await mill.redis.exists(mill.marker())
    assert warnings(told) == ["cache.not_used"]

    await mill.redis.config_set("maxmemory", 0)
    await ended(*(mill.walk(answers, n) for n in range(3)))
    assert len(mill.model.calls) == 6
    assert len(await mill.kept()) == 1


async def test_frozen_server_delays_an_event_by_seconds_at_most_and_is_used_again_after_it(
    own: tuple[Mill, RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """F22: neither who waits nor who asks is held up, and no late reply is taken for another command's."""
    monkeypatch.setattr(cache, "COMMAND_S_MAX", 0.2)
    mill, server = own
    answers = mill.process()
    await ended(mill.walk(answers, 1, "kept"))
    mill.model.may_answer.clear()
    walks = [mill.walk(answers, n) for n in range(4)]
    await mill.model.asked(2)
    server.pause()
    async with asyncio.timeout(0.75 * COMMAND_TIMEOUT_S):
        await mill.model.asked(5)
        mill.model.may_answer.set()
        assert await asyncio.gather(*walks) == [GOOD] * 4
    server.resume()

    assert await ended(*(mill.walk(answers, n, "kept") for n in range(WALKS))) == [GOOD] * WALKS
    assert len(mill.model.calls) == 5


async def test_server_that_is_gone_costs_calls_only(own: tuple[Mill, RedisServer]) -> None:
    """F20: before the look, and while others wait."""
    mill, server = own
    answers = mill.process()
    mill.model.may_answer.clear()
    walks = [mill.walk(answers, n) for n in range(3)]
    await mill.model.asked(1)
    server.kill()
    await mill.model.asked(3)
    mill.model.may_answer.set()
    assert await ended(*walks, mill.walk(answers, 4)) == [GOOD] * 4
    server.start()

    await ended(*(mill.walk(answers, n) for n in range(3)))
    assert len(mill.model.calls) == 5


async def test_forgotten_scripts_are_sent_in_full(mill: Mill) -> None:
    """F33: nobody notices."""
    answers = mill.process()
    await ended(mill.walk(answers, 1))
    await mill.redis.script_flush()

    await ended(mill.walk(answers, 2), mill.walk(answers, 3, "other"))
    assert answers.errors == 0
    assert len(mill.model.calls) == 2


async def test_server_that_became_a_replica_loses_its_connections(own: tuple[Mill, RedisServer]) -> None:
    """F35: the next command goes to whatever the address leads to by then."""
    mill, _ = own
    answers = mill.process()
    await ended(mill.walk(answers, 1))
    redis: Redis = answers._courier._redis
    before = await redis.client_id()
    await mill.redis.replicaof("127.0.0.1", "9")

    assert await ended(mill.walk(answers, 2)) == [GOOD]
    assert await redis.client_id() != before


@pytest.mark.parametrize("key", ["answers", "answer_times", "totals"])
async def test_look_at_many_that_fails_finds_nothing_and_is_told_once(
    mill: Mill, key: str, told: list[MutableMapping[str, Any]]
) -> None:
    """F36: everybody asks then."""
    answers = mill.process()
    await ended(mill.walk(answers))
    await mill.redis.delete(f"{{events}}:{key}")
    await mill.redis.sadd(f"{{events}}:{key}", "x")

    for _ in range(3):
        assert await answers.find_all(["a fine day"], DIGEST) == [None]
    assert answers.errors == 3
    assert warnings(told) == ["cache.not_used"]
