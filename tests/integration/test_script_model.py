"""The real scripts do on a real server as the model says, from every state that its exploration has met."""

from typing import TYPE_CHECKING

import pytest
from tests.integration.stage import Case, Stage
from tests.model.server import LUA
from tests.model.worlds import WORLDS, explored

from millhand import stream
from millhand.keys import Keys
from millhand.stream import script_text

if TYPE_CHECKING:
    from redis.asyncio import Redis

CASES_MIN = 5_000
EVERY_NTH = 3  # of the calls that concern one entry of two: the other one stands by
TOLD_MAX = 3

FENCE = "if pending[2] ~= owner or pending[4] ~= count then"
STANDS = "if #redis.call('XRANGE', key, id, id) == 0 then"
NEVER = "if false then"
WRONG = {
    "finish does not ask": ("finish", "if not pending[id] and #redis.call('XPENDING', key, group, id, id, 1) == 0 then",
                            NEVER),
    "finish by a neighbour": ("finish", "pending[row[1]] = true", "pending[ARGV[2]] = true"),
    "finish leaves a due time": ("finish", "redis.call('ZREM', parked, id)", ""),
    "bury by anybody": ("bury", FENCE, NEVER),
    "bury without the count": ("bury", FENCE, "if pending[2] ~= owner then"),
    "bury forgets a total": ("bury", "redis.call('HINCRBY', totals, 'dead:' .. reason, 1)", ""),
    "park without the owner": ("park", FENCE, "if pending[4] ~= count then"),
    "park counts again": ("park", "if before and cjson.decode(before)['attempts'] >= spent then", NEVER),
    "park drops what is deleted": ("park", STANDS, NEVER),
    "release without the count": ("release", FENCE, "if pending[2] ~= owner then"),
    "release for nothing": ("release", "'RETRYCOUNT', ARGV[5], 'JUSTID'", "'JUSTID'"),
    "release drops what is deleted": ("release", STANDS, NEVER),
    "renew without the count": ("renew", "or pending[4] ~= tonumber(ARGV[i + 1])", ""),
    "renew drops what is deleted": ("renew", "elseif #redis.call('XRANGE', key, id, id) == 1 then", "else"),
    "renew does nothing": ("renew", "redis.call('XCLAIM', key, group, consumer, 0, id, 'JUSTID')", ""),
    "take spends a delivery": ("take_due", "redis.call('XCLAIM', key, group, consumer, 0, id, 'JUSTID')",
                               "redis.call('XCLAIM', key, group, consumer, 0, id)"),
    "take by the zset": ("take_due", "if pending and pending[2] == PARKED then", "if pending then"),
    "take a suspect with others": ("take_due", "if suspect and #taken > 0 then", NEVER),
    "take others with a suspect": ("take_due", "if suspect then", NEVER),
    "take every returner alone": ("take_due", "pending[4] >= last_chance", "true"),
    "take drops what is deleted": ("take_due", "if entry then", "if true then"),
    "retire does not ask": ("retire_consumer", "ARGV[2]) > 0 then", "ARGV[2]) > 9 then"),
    "skip forgets": ("skip", "redis.call('ZADD', closed, string.match(id, '^%d+'), id)", ""),
}  # fmt: skip


def cases(*scripts: str) -> list[Case]:
    """Return calls of these scripts, each on each server on which an exploration has met it."""
    met = {met: answer for bounds in WORLDS.values() for met, answer in explored(bounds).answers.items()}
    every = [Case(server, call, answer) for (server, call), answer in met.items() if call.script in scripts]
    of_one = [case for case in every if len(case.server.entries) > 1 and case.call.entry >= 0]
    others = [case for case in every if len(case.server.entries) == 1 or case.call.entry < 0]
    return others + of_one[::EVERY_NTH]


@pytest.mark.every_server
async def test_scripts_do_as_the_model_says(redis: "Redis", keys: Keys) -> None:
    """F3, F4, F5, F6, F10, F11, F38, F39: each answer, and all that is seen after it, from every state met."""
    every = cases(*LUA)

    wrong = await Stage(redis, keys).play(every)

    assert not wrong, "\n".join(
        f"{case.server}\n {case.call}\n {seen}\n {right}" for case, seen, right in wrong[:TOLD_MAX]
    )
    assert len(every) > CASES_MIN
    assert {case.call.script for case in every} == set(LUA)


@pytest.mark.parametrize("name", WRONG)
async def test_script_that_does_otherwise_is_found(
    name: str, redis: "Redis", keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F3, F4, F5, F6, F11, F38, F39: a line changed in a script shows in some answer, or in what is seen after it."""
    script, right, wrong = WRONG[name]
    assert right in script_text(script)
    monkeypatch.setattr(stream, "script_text", lambda of: script_text(of).replace(right, wrong))

    assert await Stage(redis, keys).play(cases(script))
