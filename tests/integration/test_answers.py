"""The cache of answers: one call for what many ask at once, over all processes; and no event that depends on it."""

import asyncio
import time
from collections.abc import AsyncIterator, MutableMapping
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.conftest import StartRedis
from tests.rig import RedisServer, config_for, eventually_async

from millhand import cache
from millhand.cache import Answers, question_of
from millhand.config import Config
from millhand.keys import Keys
from millhand.log import logger
from millhand.model.answer import Answer
from millhand.stream import Script, connect
from millhand.tasks.catalogue import chosen_tasks
from millhand.tasks.task import Questions
from millhand.verdict import Delivery

if TYPE_CHECKING:
    from redis.asyncio import Redis

pytestmark = pytest.mark.every_server

DIGEST = "d1"
TTL_S = 3600.0
WALKS = 8  # of one process
GOOD = Answer('{"sentiment":{"label":"positive","confidence":90}}', 200, 12, 1.25)
UNTIL_S_MAX = 10.0


class Paper:
    """A model on paper: it answers as soon as it is let, and counts."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.failures = 0  # calls that fail before one does not
        self.answer = GOOD

    async def generate(self, text: str) -> Answer:
        """Answer, or fail."""
        self.calls.append(text)
        if self.failures:
            self.failures -= 1
            raise ValueError(text)
        await self.may_answer.wait()
        return self.answer

    async def asked(self, times: int) -> None:
        """Wait until so many calls have come."""
        await eventually_async(lambda: len(self.calls) >= times, what=f"{times} calls have come")


class Mill:
    """Processes with a connection pool each, on one server, before one model."""

    def __init__(self, url: str) -> None:
        self.config = config_for(url, flags={"cache.ttl_s": TTL_S, "model.timeout_s": 5.0})
        self.keys = Keys.of(self.config)
        self.model = Paper()
        self.redis = connect(url)
        self._clients = [self.redis]
        self._walks: list[asyncio.Task[Any]] = []

    def process(self, ttl_s: float = TTL_S) -> Answers:
        """Begin another process, with as many connections as a worker has."""
        cached = msgspec.structs.replace(self.config.cache, ttl_s=ttl_s)
        config = msgspec.structs.replace(self.config, cache=cached)
        client = connect(config.redis.url, connections_max=WALKS + 4)
        self._clients.append(client)
        return Answers(client, self.keys, config, questions(config), logger())

    def walk(self, answers: Answers, n: int = 1, text: str = "a fine day", attempts: int = 0) -> "asyncio.Task[Answer]":
        """Take one event to its answer, as a worker does."""
        delivery = Delivery(f"{n}-1", {}, f"here:w{id(answers)}:a", 1, attempts)
        walk = asyncio.create_task(self._answer(answers, text, delivery))
        self._walks.append(walk)
        return walk

    async def _answer(self, answers: Answers, text: str, delivery: Delivery) -> Answer:
        async with answers.turn(questions(self.config).prompt(text), delivery, DIGEST) as turn:
            if turn.found:
                answer, results = turn.found
                assert results["sentiment"]["label"] == "positive"
                return answer
            answer = await self.model.generate(text)
            await turn.keep(answer)
            return answer

    async def waits(self, n: int) -> None:
        """Wait until so many looks at a question have found that somebody else asks it, for sure."""
        before = await self.looks()
        await eventually_async(lambda: self._looked_again(before + 2 * n), what=f"{n} events wait")

    async def _looked_again(self, looks: int) -> bool:
        return await self.looks() >= looks

    async def looks(self) -> int:
        """Return how often anybody has looked for an answer's age."""
        stats: Any = await self.redis.info("commandstats")
        return int(stats.get("cmdstat_zscore", {}).get("calls", 0))

    async def totals(self) -> dict[str, int]:
        """Return what the scripts have counted."""
        counted: Any = await self.redis.hgetall(self.keys.totals)
        return {name.decode(): int(value) for name, value in counted.items()}

    def marker(self, text: str = "a fine day") -> str:
        """Name the marker of the question about a text."""
        return self.keys.asking(self.question(text))

    def question(self, text: str = "a fine day") -> str:
        """Return the question about a text."""
        return question_of(questions(self.config).prompt(text), self.config.model, DIGEST)

    async def kept(self) -> dict[bytes, bytes]:
        """Return the answers that are kept. Fails if the two keys disagree."""
        answers: Any = await self.redis.hgetall(self.keys.answers)
        assert set(answers) == set(await self.redis.zrange(self.keys.answer_times, 0, -1))
        return dict(answers)

    async def close(self) -> None:
        """End what a test has left, and close the connections."""
        for walk in self._walks:
            walk.cancel()
        await asyncio.gather(*self._walks, return_exceptions=True)
        for client in self._clients:
            await client.aclose()


def questions(config: Config) -> Questions:
    return Questions(chosen_tasks(config))


async def ended(*walks: "asyncio.Task[Answer]") -> list[Answer]:
    """Return the answers, all within a bounded time."""
    async with asyncio.timeout(UNTIL_S_MAX):
        return await asyncio.gather(*walks)


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


# -- one call for what many ask ----------------------------------------------------------------------------------------


async def test_what_many_ask_at_once_in_four_processes_is_asked_once(mill: Mill) -> None:
    mill.model.may_answer.clear()
    processes = [mill.process() for _ in range(4)]
    walks = [mill.walk(answers, n) for n in range(WALKS) for answers in processes]
    await mill.model.asked(1)
    await mill.waits(len(walks) - 1)
    mill.model.may_answer.set()

    assert await ended(*walks) == [GOOD] * len(walks)
    assert len(mill.model.calls) == 1
    assert await mill.totals() == {"cache_misses": 1, "cache_joined": len(walks) - 1}
    assert not await mill.redis.exists(mill.marker())
    assert [answers.errors for answers in processes] == [0] * 4


async def test_many_questions_at_once_are_asked_once_each(mill: Mill) -> None:
    """Nobody holds the model up here, so that every order of looks and keeps comes up."""
    processes = [mill.process() for _ in range(3)]
    for round_of in range(20):
        await ended(*(mill.walk(processes[n % 3], n, f"{round_of} {n % 4}") for n in range(3 * WALKS)))

    assert sorted(mill.model.calls) == sorted(f"{round_of} {n}" for round_of in range(20) for n in range(4))
    totals = await mill.totals()
    assert totals["cache_misses"] == 80
    assert sum(totals.values()) == 20 * 3 * WALKS


async def test_answer_is_found_by_whoever_comes_later(mill: Mill) -> None:
    assert await ended(mill.walk(mill.process())) == [GOOD]
    assert await ended(mill.walk(mill.process(), 2)) == [GOOD]

    assert len(mill.model.calls) == 1
    assert await mill.totals() == {"cache_misses": 1, "cache_hits": 1}


async def test_those_who_wait_have_the_answer_soon_after_it_is_there(mill: Mill) -> None:
    mill.model.may_answer.clear()
    walks = [mill.walk(mill.process(), n) for n in range(4)]
    await mill.model.asked(1)
    await mill.waits(8 * 3)
    mill.model.may_answer.set()
    answered = time.monotonic()
    await ended(*walks)

    assert time.monotonic() - answered < 4 * cache.PAUSE_MAX_S


# -- who asks fails, dies or takes long --------------------------------------------------------------------------------


async def test_the_next_one_asks_where_the_first_has_failed(mill: Mill) -> None:
    mill.model.failures = 1
    walks = [mill.walk(mill.process(), n) for n in range(4)]
    async with asyncio.timeout(UNTIL_S_MAX):
        outcomes = await asyncio.gather(*walks, return_exceptions=True)

    assert sum(isinstance(outcome, ValueError) for outcome in outcomes) == 1
    assert outcomes.count(GOOD) == 3
    assert len(mill.model.calls) == 2


async def test_nobody_waits_for_one_asker_after_the_other(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who have waited for two ask on their own, at the same time: a bad event makes no queue."""
    monkeypatch.setattr(cache, "PAUSE_MAX_S", 0.03)
    mill.model.may_answer.clear()
    answers = mill.process()
    walks = [mill.walk(answers, n) for n in range(WALKS)]
    for asker in range(cache.ASKERS_MAX):
        await mill.model.asked(asker + 1)
        await mill.waits(WALKS)
        assert len(mill.model.calls) == asker + 1
        owner: Any = await mill.redis.get(mill.marker())
        walks[int(owner.split(b" ")[1].partition(b"-")[0])].cancel()
    await mill.model.asked(WALKS)
    mill.model.may_answer.set()
    async with asyncio.timeout(UNTIL_S_MAX):
        outcomes = await asyncio.gather(*walks, return_exceptions=True)

    assert outcomes.count(GOOD) == WALKS - cache.ASKERS_MAX
    assert await mill.totals() == {"cache_misses": WALKS}
    assert not await mill.redis.exists(mill.marker())


async def test_nobody_waits_for_ever_for_one_who_asks(mill: Mill) -> None:
    mill.model.may_answer.clear()
    first = mill.walk(mill.process(), 1)
    await mill.model.asked(1)
    impatient = mill.process()
    impatient._wait_s_max = 0.1
    second = mill.walk(impatient, 2)
    await mill.model.asked(2)
    mill.model.may_answer.set()

    assert await ended(first, second) == [GOOD, GOOD]


async def test_marker_of_one_who_died_runs_out(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    """F1: nobody says that it died, and those who wait for it wait no longer than that."""
    monkeypatch.setattr(cache, "HOLD_S", 0.3)
    await mill.redis.set(mill.marker(), "dead:w1:x 7-1", px=300)
    walks = [mill.walk(mill.process(), n) for n in range(4)]
    await mill.waits(4)

    assert await ended(*walks) == [GOOD] * 4
    assert len(mill.model.calls) == 1


async def test_marker_lasts_as_long_as_the_one_who_asks_lives(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    """F8: a slow model, or a long pause at the gate, makes no second call."""
    monkeypatch.setattr(cache, "HOLD_S", 0.3)
    loop = asyncio.get_running_loop()
    mill.model.may_answer.clear()
    walks = [mill.walk(mill.process(), n) for n in range(4)]
    await mill.model.asked(1)
    until = loop.time() + 4 * cache.HOLD_S
    await eventually_async(lambda: loop.time() > until, what="four times a marker's life has passed")
    mill.model.may_answer.set()

    assert await ended(*walks) == [GOOD] * 4
    assert len(mill.model.calls) == 1


async def test_nothing_is_renewed_when_nothing_is_asked(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "HOLD_S", 0.3)
    answers = mill.process()
    await ended(*(mill.walk(answers, n, str(n)) for n in range(3)))

    assert answers._renewing is None
    assert answers._asking == set()
    await ended(mill.walk(answers, 4, "again"))
    assert answers._renewing is None


async def test_cancelled_asker_leaves_the_question_to_the_next(mill: Mill) -> None:
    mill.model.may_answer.clear()
    first = mill.walk(mill.process(), 1)
    await mill.model.asked(1)
    first.cancel()
    await asyncio.wait([first], timeout=UNTIL_S_MAX)

    assert first.cancelled()
    assert not await mill.redis.exists(mill.marker())


async def test_cancelled_waiter_takes_nothing_from_the_asker(mill: Mill) -> None:
    mill.model.may_answer.clear()
    first = mill.walk(mill.process(), 1)
    await mill.model.asked(1)
    owner = await mill.redis.get(mill.marker())
    second = mill.walk(mill.process(), 2)
    await mill.waits(1)
    second.cancel()
    await asyncio.wait([second], timeout=UNTIL_S_MAX)

    assert await mill.redis.get(mill.marker()) == owner
    mill.model.may_answer.set()
    assert await ended(first) == [GOOD]


async def test_stranger_can_neither_end_nor_renew_the_asking(mill: Mill) -> None:
    await mill.redis.set(mill.marker(), "here:w1:a 1-1", px=5000)

    assert await Script(mill.redis, "stop_asking")([mill.marker()], ["here:w1:a 1-2"]) == 0
    assert await Script(mill.redis, "renew_asking")([mill.marker()], [9000, "here:w1:a 1-2"]) == 0
    assert 0 < await mill.redis.pttl(mill.marker()) <= 5000
    assert await Script(mill.redis, "renew_asking")([mill.marker()], [9000, "here:w1:a 1-1"]) == 1
    assert await mill.redis.pttl(mill.marker()) > 5000
    assert await Script(mill.redis, "stop_asking")([mill.marker()], ["here:w1:a 1-1"]) == 1
    assert not await mill.redis.exists(mill.marker())


async def test_late_answer_is_kept_and_leaves_the_successors_marker_alone(mill: Mill) -> None:
    """F6: whoever was stopped for longer than its marker lasted has a good answer all the same."""
    mill.model.may_answer.clear()
    late = mill.walk(mill.process(), 1)
    await mill.model.asked(1)
    await mill.redis.set(mill.marker(), "successor:w1:a 2-1")
    mill.model.may_answer.set()
    await ended(late)

    assert await mill.redis.get(mill.marker()) == b"successor:w1:a 2-1"
    assert await ended(mill.walk(mill.process(), 3)) == [GOOD]
    assert len(mill.model.calls) == 1


# -- what is kept, and for how long ------------------------------------------------------------------------------------


async def test_retry_asks_on_its_own_and_its_answer_is_not_kept(mill: Mill) -> None:
    await ended(mill.walk(mill.process(), 1, attempts=1))
    assert await mill.kept() == {}
    await ended(mill.walk(mill.process(), 2))
    await ended(mill.walk(mill.process(), 1, attempts=1))

    assert len(mill.model.calls) == 3
    assert await mill.totals() == {"cache_misses": 1}


async def test_nothing_is_kept_or_asked_of_redis_where_no_time_is_set(mill: Mill) -> None:
    answers = mill.process(ttl_s=0.0)
    await ended(*(mill.walk(answers, n) for n in range(4)))

    assert len(mill.model.calls) == 4
    assert await mill.redis.keys("*") == []


async def test_answer_is_good_for_its_time_and_a_shorter_time_holds_at_once(mill: Mill) -> None:
    await ended(mill.walk(mill.process(), 1))
    kept_at_ms: Any = await mill.redis.zscore(mill.keys.answer_times, mill.question())
    for key in (mill.keys.answers, mill.keys.answer_times):
        assert TTL_S * 500 < await mill.redis.pttl(key) <= TTL_S * 1000

    await mill.redis.zadd(mill.keys.answer_times, {mill.question(): kept_at_ms - 2000})
    await ended(mill.walk(mill.process(), 2))
    assert len(mill.model.calls) == 1
    await ended(mill.walk(mill.process(ttl_s=1.0), 3))
    assert len(mill.model.calls) == 2


async def test_old_answers_go_as_new_ones_come(mill: Mill) -> None:
    answers = mill.process()
    await ended(*(mill.walk(answers, n, f"old {n}") for n in range(4)))
    await mill.redis.zadd(mill.keys.answer_times, {mill.question(f"old {n}"): n for n in range(4)})
    await ended(mill.walk(answers, 5, "new 1"))
    assert len(await mill.kept()) == 3
    await ended(mill.walk(answers, 6, "new 2"))

    assert set(await mill.kept()) == {mill.question(f"new {n}").encode() for n in (1, 2)}


async def test_no_more_than_so_many_answers_are_kept_and_the_oldest_go(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "ANSWERS_MAX", 3)
    answers = mill.process()
    for n in range(6):
        await ended(mill.walk(answers, n, str(n)))
        await mill.redis.zadd(mill.keys.answer_times, {mill.question(str(n)): time.time() * 1000 - 1000 + n})

    assert set(await mill.kept()) == {mill.question(str(n)).encode() for n in (3, 4, 5)}


async def test_answer_that_is_too_long_is_not_kept_and_nobody_waits_for_it(mill: Mill) -> None:
    mill.model.answer = msgspec.structs.replace(GOOD, content=GOOD.content + " " * cache.ANSWER_BYTES_MAX)
    await ended(*(mill.walk(mill.process(), n) for n in range(3)))

    assert len(mill.model.calls) == 3
    assert await mill.kept() == {}
    assert not await mill.redis.exists(mill.marker())


@pytest.mark.parametrize(
    "stored", [b"", b"\xff", b"[1]", b'{"content":1}', msgspec.json.encode(msgspec.structs.replace(GOOD, content="{}"))]
)
async def test_what_is_no_valid_answer_is_asked_for_anew_and_replaced(mill: Mill, stored: bytes) -> None:
    await ended(mill.walk(mill.process(), 1))
    await mill.redis.hset(mill.keys.answers, mill.question(), stored)

    assert await ended(mill.walk(mill.process(), 2)) == [GOOD]
    assert len(mill.model.calls) == 2
    assert list((await mill.kept()).values()) == [msgspec.json.encode(GOOD)]


# -- Redis forgets, refuses or is away ---------------------------------------------------------------------------------


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
    await mill.model.asked(5)
    mill.model.may_answer.set()
    assert await ended(*walks) == [GOOD] * 4
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
    redis: Redis = answers._redis
    before = await redis.client_id()
    await mill.redis.replicaof("127.0.0.1", "9")

    assert await ended(mill.walk(answers, 2)) == [GOOD]
    assert await redis.client_id() != before
