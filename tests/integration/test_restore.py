"""The consumer group: where it begins, and how it is put back without a loss and without doing anything twice."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.exceptions import ResponseError
from tests.integration.race import Race
from tests.rig import eventually_async

from millhand.settle import Settled, Settler
from millhand.stream import RedisError, Script, Stream
from millhand.verdict import Bury, Delivery, Done, Enriched, Reason, Retry, Skip
from millhand_fleet import restore
from millhand_fleet.deadletters import DeadLetters, Requeued, Selection
from millhand_fleet.restore import Restored, restore_group

pytestmark = pytest.mark.every_server
CONSUMER = "here:w1:a"


@pytest.fixture
async def stream(race: Race, redis_url: str) -> AsyncIterator[Stream]:
    """Read as one consumer of the group."""
    stream = Stream(redis_url, race.keys, CONSUMER, 3)
    yield stream
    await stream.close()


def done(delivery: Delivery) -> Done:
    """Enrich as the worker does."""
    return Done(Enriched(delivery.fields[b"data"][:-1] + b',"ai_enrichment":{}}', "0" * 32))


async def destroy(race: Race) -> None:
    assert await race.redis.xgroup_destroy(race.keys.input, race.keys.group)


async def still_to_do(stream: Stream) -> list[str]:
    """Take everything that can be had: what is due, then what is new."""
    due = [delivery for _ in range(50) for delivery in await stream.take_due(100)]
    return [delivery.id for delivery in [*due, *await stream.read(1000)]]


async def test_new_group_begins_with_the_backlog(race: Race, stream: Stream) -> None:
    """F32: what stood in the stream before there was a group is work, whatever records other groups have left."""
    await race.redis.flushall()
    ids = [await race.add() for _ in range(3)]
    await race.redis.xadd(race.keys.output, {"src": ids[0], "data": '{"text": "a fine day","ai_enrichment":{}}'})

    assert await restore_group(race.redis, race.keys) == Restored("0-0")
    assert await restore_group(race.redis, race.keys) is None

    assert await still_to_do(stream) == ids


async def test_group_is_created_with_its_stream(race: Race) -> None:
    """A fleet may be there before its first producer."""
    await race.redis.flushall()

    assert await restore_group(race.redis, race.keys) == Restored("0-0")
    assert await race.pending() == []


async def test_destroyed_group_is_put_back_with_exactly_what_is_still_to_do(
    race: Race, stream: Stream, settler: Settler
) -> None:
    """F32: enriched, buried, parked, in hand, waiting: only the first two have their record already."""
    ids = [await race.add(str(n)) for n in range(8)]
    deliveries = await race.deliver(count=6)
    await settler.settle(deliveries[4], done(deliveries[4]))
    await settler.settle(deliveries[0], done(deliveries[0]))
    await settler.settle(deliveries[2], Bury(Reason.MALFORMED, "it is"))
    await settler.settle(deliveries[1], Retry(3600.0, 1, ("timeout: late",)))
    await destroy(race)

    assert await restore_group(race.redis, race.keys) == Restored(ids[4], 2, vanished=True)

    assert await still_to_do(stream) == [ids[1], ids[3], ids[5], ids[6], ids[7]]
    assert (await race.attempts())[ids[1]]["attempts"] == 1, "what was spent stays spent"


async def test_nothing_is_remembered_of_what_was_deleted_before_the_group_vanished(
    race: Race, stream: Stream, settler: Settler
) -> None:
    """F32, F38: parked or in hand, no tombstone will come for it, with which the record of its attempts would go."""
    in_hand, parked, kept = [await race.delivered() for _ in range(3)]
    for delivery in (in_hand, parked, kept):
        await settler.settle(delivery, Retry(0.0, 1, ("timeout: late",)))
    assert [delivery.id for delivery in await stream.take_due(1)] == [in_hand.id]
    await race.redis.xdel(race.keys.input, in_hand.id, parked.id)
    await destroy(race)

    assert await restore_group(race.redis, race.keys) == Restored("0-0", lost=1, vanished=True)

    assert set(await race.attempts()) == {kept.id}
    assert await still_to_do(stream) == [kept.id]


async def test_worker_that_had_an_event_in_hand_still_finishes_it(race: Race, stream: Stream, settler: Settler) -> None:
    """F32: the first finisher wins, also over the vanishing of the group."""
    mine = await race.delivered()
    last = await race.delivered()
    await settler.settle(last, done(last))
    await destroy(race)
    with pytest.raises(ResponseError, match="NOGROUP"):
        await settler.settle(mine, done(mine))
    await restore_group(race.redis, race.keys)

    assert await settler.settle(mine, done(mine)) is Settled.OK

    assert await still_to_do(stream) == []
    assert len(await race.enriched()) == 2


async def test_record_of_another_streams_event_with_the_same_id_is_not_taken_for_ours(
    race: Race, stream: Stream
) -> None:
    """Two fleets may write to one output: an id alone proves nothing, and a loss would be worse than a repetition."""
    entry_id = await race.add("ours")
    await race.redis.xadd(race.keys.output, {"src": entry_id, "data": '{"text": "theirs","ai_enrichment":{}}'})
    await race.deliver()
    await destroy(race)

    await restore_group(race.redis, race.keys)

    assert await still_to_do(stream) == [entry_id]


async def test_new_stream_under_the_old_name_is_read_from_its_beginning(
    race: Race, stream: Stream, settler: Settler
) -> None:
    """F32: DEL takes the ids with it; what comes after may have smaller ones."""
    delivery = await race.delivered()
    await settler.settle(delivery, done(delivery))
    await race.redis.delete(race.keys.input)
    await race.redis.xadd(race.keys.input, {"data": '{"text": "new"}'}, id="1-1")

    assert await restore_group(race.redis, race.keys) == Restored("1-1", 1, vanished=True)
    await race.redis.xadd(race.keys.input, {"data": '{"text": "newer"}'}, id="2-1")

    assert await still_to_do(stream) == ["1-1", "2-1"]


async def test_more_holes_than_one_call_can_carry_are_read_anew(
    race: Race, stream: Stream, settler: Settler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the last hole that fits, some are done twice rather than one not at all."""
    monkeypatch.setattr(restore, "HOLES_MAX", 2)
    ids = [await race.add(str(n)) for n in range(5)]
    last = (await race.deliver(count=5))[-1]
    await settler.settle(last, done(last))
    await destroy(race)

    assert await restore_group(race.redis, race.keys) == Restored(ids[1], 2, vanished=True)

    assert await still_to_do(stream) == ids


async def test_two_janitors_put_a_group_back_once(race: Race, stream: Stream, settler: Settler) -> None:
    """F11: whoever is second finds it there."""
    first, _ = await race.delivered(), await race.delivered()
    await settler.settle(first, done(first))
    await destroy(race)

    restored = await asyncio.gather(*(restore_group(race.redis, race.keys) for _ in range(5)))

    assert len([one for one in restored if one]) == 1
    assert len(await still_to_do(stream)) == 1


@pytest.mark.parametrize("loss", ["DEL", "XGROUP DESTROY", "FLUSHALL"])
@pytest.mark.parametrize("blocked", [False, True], ids=["before reading", "while blocked"])
async def test_reading_fails_while_there_is_no_group_and_goes_on_after(
    race: Race, stream: Stream, loss: str, *, blocked: bool
) -> None:
    """F32: also where the group goes while the reader waits."""
    command = {
        "DEL": ["DEL", race.keys.input],
        "XGROUP DESTROY": ["XGROUP", "DESTROY", race.keys.input, race.keys.group],
        "FLUSHALL": ["FLUSHALL"],
    }[loss]
    reading = asyncio.create_task(stream.read(1)) if blocked else None
    if reading:
        await eventually_async(race.somebody_is_blocked)
    await race.redis.execute_command(*command)  # type: ignore[no-untyped-call]

    with pytest.raises(RedisError, match=r"NOGROUP|UNBLOCKED"):
        await (reading or stream.read(1))

    assert await restore_group(race.redis, race.keys)
    entry_id = await race.add()
    assert [delivery.id for delivery in await stream.read(1)] == [entry_id]


async def test_key_of_another_type_is_left_alone(race: Race) -> None:
    """F36: creating a group does not cure it."""
    await race.redis.delete(race.keys.input)
    await race.redis.set(race.keys.input, "mine")

    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await restore_group(race.redis, race.keys)


async def test_entries_that_need_no_record_any_more_do_not_come_back(
    race: Race, stream: Stream, settler: Settler
) -> None:
    """F32: a repetition, a dead letter that was requeued under a new id, and one that was dropped."""
    deliveries = [await race.delivered(CONSUMER) for _ in range(4)]
    await settler.settle(deliveries[0], Skip("0-1"))
    for delivery in deliveries[1:3]:
        await settler.settle(delivery, Bury(Reason.TIMEOUT, "late"))
    letters = DeadLetters(race.redis, race.keys, print)
    everything = await letters.stretch(Selection())
    requeued, dropped = [letter async for letter in letters.select(Selection(), everything)]
    assert await letters.requeue(requeued, 3) is Requeued.OK
    assert await letters.drop([dropped.id]) == 1
    entries: Any = await race.redis.xrevrange(race.keys.input, count=1)
    newest = entries[0][0].decode()
    await destroy(race)

    await restore_group(race.redis, race.keys)

    assert await still_to_do(stream) == [deliveries[3].id, newest]


async def test_what_needs_no_record_is_remembered_no_longer_than_it_is_in_the_input(
    race: Race, settler: Settler
) -> None:
    """Memory: the trim forgets it with the entry."""
    first, second = await race.delivered(), await race.delivered()
    for delivery in (first, second):
        await settler.settle(delivery, Skip("0-1"))
    assert await race.redis.zcard(race.keys.closed) == 2

    trim = Script(race.redis, "trim")

    async def nothing_is_remembered() -> bool:
        await trim([race.keys.input, race.keys.totals, race.keys.closed], [0, 100])
        return await race.redis.zcard(race.keys.closed) == 0

    await eventually_async(nothing_is_remembered)  # at once, unless the server's clock stands at the entries' own ms
