"""The backlog is exact, whatever was added, delivered, deleted or trimmed, and however it is counted in between."""

import random
from typing import Any

import pytest
from tests.integration.race import Race

from millhand_fleet import backlog as backlog_module
from millhand_fleet.backlog import Backlog

STEPS = 60


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every count need more than one page."""
    monkeypatch.setattr(backlog_module, "PAGE", 4)


async def delivered_until(race: Race) -> str:
    """Return the group's last delivered id."""
    (group,) = await race.redis.xinfo_groups(race.keys.input)
    last: bytes = group["last-delivered-id"]
    return last.decode()


async def counted(race: Race, backlog: Backlog) -> int:
    """Count as the desk does."""
    info: Any = await race.redis.xinfo_stream(race.keys.input)
    return await backlog.count(await delivered_until(race), info)


async def true_backlog(race: Race) -> int:
    """Count by reading every entry."""
    entries: Any = await race.redis.xrange(race.keys.input, min="(" + await delivered_until(race))
    return len(entries)


async def step(race: Race, chance: random.Random) -> str:
    """Do something to the stream; say what."""
    entries: Any = await race.redis.xrange(race.keys.input)
    ids = [entry_id.decode() for entry_id, _ in entries]
    what = chance.choice(["add", "add", "deliver", "deliver", "delete", "delete", "trim", "min id", "rewind", "empty"])
    match what:
        case "add":
            for _ in range(chance.randint(1, 9)):
                await race.add()
        case "deliver" if ids:
            await race.redis.xreadgroup(race.keys.group, "c", {race.keys.input: ">"}, count=chance.randint(1, 6))
        case "delete" if ids:
            await race.redis.xdel(race.keys.input, *chance.sample(ids, min(len(ids), chance.randint(1, 3))))
        case "trim" if ids:
            keep = chance.randint(len(ids) // 2, len(ids))
            await race.redis.xtrim(race.keys.input, maxlen=keep, approximate=False)
        case "min id" if ids:
            await race.redis.xtrim(race.keys.input, minid=chance.choice(ids[: len(ids) // 2 + 1]), approximate=False)
        case "rewind" if ids and chance.random() < 0.3:
            await race.redis.xgroup_setid(race.keys.input, race.keys.group, chance.choice(["0", "$", *ids]))
        case "empty" if chance.random() < 0.1:
            await race.redis.xtrim(race.keys.input, maxlen=0, approximate=False)
    return what


@pytest.mark.parametrize("seed", range(12))
async def test_backlog_agrees_with_a_count_by_hand_after_every_step(race: Race, seed: int) -> None:
    """F38: random adding, delivering, deleting, trimming and rewinding; counted now and then, and always right."""
    chance = random.Random(seed)  # noqa: S311 - a seed to repeat it by
    backlog = Backlog(race.redis, race.keys.input)
    history: list[str] = []
    for _ in range(STEPS):
        history.append(await step(race, chance))
        if chance.random() < 0.7:
            assert await counted(race, backlog) == await true_backlog(race), history


async def test_deletions_from_the_end_to_the_beginning_are_all_noticed(race: Race) -> None:
    """F38: a deletion below an earlier one leaves the stream's highest deleted id as it is, and counts all the same."""
    backlog = Backlog(race.redis, race.keys.input)
    ids = [await race.add() for _ in range(10)]
    assert await counted(race, backlog) == 10

    for left, entry_id in zip(range(9, 0, -1), reversed(ids[1:]), strict=True):
        await race.redis.xdel(race.keys.input, entry_id)
        assert await counted(race, backlog) == left


async def test_trimmed_backlog_is_counted_again(race: Race) -> None:
    """F38: what a producer's MAXLEN took is no backlog any more."""
    backlog = Backlog(race.redis, race.keys.input)
    for _ in range(20):
        await race.add()
    assert await counted(race, backlog) == 20

    await race.redis.xtrim(race.keys.input, maxlen=3, approximate=False)
    assert await counted(race, backlog) == 3


async def test_stream_that_began_anew_is_counted_anew(race: Race) -> None:
    """F32: after FLUSHALL the new stream's entries are its backlog."""
    backlog = Backlog(race.redis, race.keys.input)
    for _ in range(5):
        await race.add()
    await race.deliver(count=3)
    assert await counted(race, backlog) == 2

    await race.redis.flushall()
    await race.open()
    assert await counted(race, backlog) == 0
    for _ in range(4):
        await race.add()
    assert await counted(race, backlog) == 4


async def test_stream_that_began_anew_before_anything_was_delivered_is_counted_anew(race: Race) -> None:
    """F32: nothing was delivered and nothing deleted in either life; the first one's entries are gone all the same."""
    backlog = Backlog(race.redis, race.keys.input)
    for _ in range(5):
        await race.add()
    assert await counted(race, backlog) == 5

    await race.redis.flushall()
    await race.open()
    for _ in range(6):
        await race.add()
    assert await counted(race, backlog) == 6


async def test_quiet_stream_costs_no_recount(race: Race, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without deletions only what came and what was delivered since the last time is counted."""
    monkeypatch.setattr(backlog_module, "PAGE", 1000)
    backlog = Backlog(race.redis, race.keys.input)
    for _ in range(500):
        await race.add()
    await counted(race, backlog)
    asked: list[int] = []
    count_after = backlog._count_after

    async def listen(keys: list[str], args: list[Any]) -> list[Any]:
        answer: list[Any] = await count_after(keys=keys, args=args)
        asked.append(answer[0])
        return answer

    monkeypatch.setattr(backlog, "_count_after", listen)
    await race.deliver(count=10)
    await race.add()

    assert await counted(race, backlog) == 491
    assert sum(asked) == 11
