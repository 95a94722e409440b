"""The cache of answers: one call for what many ask at once, over all processes, and how long an answer is kept."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from tests.integration.paper import DIGEST, GOOD, TTL_S, UNTIL_S_MAX, WALKS, Mill, ended
from tests.rig import eventually_async

from millhand import cache
from millhand.stream import Script

pytestmark = pytest.mark.every_server


@pytest.fixture
async def mill(redis_url: str) -> AsyncIterator[Mill]:
    """Stand on the shared server."""
    mill = Mill(redis_url)
    await mill.redis.config_resetstat()
    yield mill
    await mill.close()


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
    owner = await mill.redis.get(mill.marker())
    second = mill.walk(impatient, 2)
    await mill.model.asked(2)
    assert await mill.redis.get(mill.marker()) == owner
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


async def test_what_a_worker_died_of_does_not_wait_for_its_own_marker(mill: Mill) -> None:
    """F9: it would die as one that only waited, and so for ever; but what is known it is told."""
    await mill.redis.set(mill.marker(), "dead:w1:x 7-1", px=60_000)

    assert await ended(mill.walk(mill.process(), 7, count=2)) == [GOOD]
    assert len(mill.model.calls) == 1
    assert await ended(mill.walk(mill.process(), 8, count=2)) == [GOOD]
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


# -- many looked up at once --------------------------------------------------------------------------------------------


async def test_many_are_looked_up_at_once_and_each_that_is_found_is_a_hit(mill: Mill) -> None:
    """What is not there is nobody's to ask yet, and no miss: that is for its own walk to find."""
    answers = mill.process()
    await ended(*(mill.walk(answers, n, text) for n, text in enumerate(("one", "two"))))
    await mill.redis.delete(mill.keys.totals)
    await mill.redis.config_resetstat()

    found = await mill.process().find_all(["two", "three", "one", "two"], DIGEST)

    stored = await mill.kept()
    one, two = (stored[mill.question(text).encode()] for text in ("one", "two"))
    assert found == [two, None, one, two]
    assert answers.valid(two) == (GOOD, {"sentiment": {"label": "positive", "confidence": 90}})
    assert await mill.totals() == {"cache_hits": 3}
    assert not await mill.redis.exists(mill.marker("three"))
    stats: Any = await mill.redis.info("commandstats")
    assert sum(stats.get(name, {}).get("calls", 0) for name in ("cmdstat_evalsha", "cmdstat_eval")) <= 2


async def test_any_number_can_be_looked_up(mill: Mill) -> None:
    """More than Lua can unpack at once."""
    answers = mill.process()
    await ended(mill.walk(answers, 1, "known"))

    found = await answers.find_all([*map(str, range(9000)), "known"], DIGEST)

    assert found[:9000] == [None] * 9000
    assert found[9000] is not None
    assert answers.errors == 0


async def test_of_many_only_what_is_young_enough_is_found(mill: Mill) -> None:
    """By the limit of whoever looks; and an answer to other weights is none."""
    answers = mill.process()
    await ended(*(mill.walk(answers, n, text) for n, text in enumerate(("old", "new"))))
    old = mill.question("old")
    await mill.redis.zincrby(mill.keys.answer_times, -60_000, old)

    looks = [mill.process(30.0).find_all(["old", "new"], DIGEST), mill.process(90.0).find_all(["old", "new"], DIGEST)]
    short, long = await asyncio.gather(*looks)

    assert [answer is None for answer in short] == [True, False]
    assert [answer is None for answer in long] == [False, False]
    assert await mill.process().find_all(["new"], "d2") == [None]


@pytest.mark.parametrize("key", ["answers", "answer_times"])
async def test_of_many_what_has_lost_its_answer_or_its_time_is_not_found(mill: Mill, key: str) -> None:
    answers = mill.process()
    await ended(mill.walk(answers))
    await mill.redis.delete(f"{{events}}:{key}")

    assert await answers.find_all(["a fine day"], DIGEST) == [None]
    assert await answers.find_all([], DIGEST) == []
    assert answers.errors == 0


async def test_what_another_hand_has_put_there_is_no_valid_answer(mill: Mill) -> None:
    answers = mill.process()
    for foreign in (b"", b"{}", b"\xff", b'{"content":"no JSON","tokens_in":1,"tokens_out":1,"model_s":1.0}'):
        assert answers.valid(foreign) is None
