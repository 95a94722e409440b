"""finish: the enriched event leaves exactly once, and the first finisher wins."""

import pytest
from redis.exceptions import ResponseError
from tests.integration.race import DONE, Race

from millhand.settle import Settled, Settler
from millhand.verdict import Bury, Done, Enriched, Reason, Release, Retry

pytestmark = pytest.mark.every_server


async def test_finish_writes_the_enriched_event_and_acknowledges_the_raw_one(race: Race, settler: Settler) -> None:
    """The output carries data, source, hash and what is passed on; nothing stays behind."""
    delivery = await race.delivered()
    enriched = Enriched(b'{"x":1}', "h" * 32, {b"event_id": b"e-1", b"traceparent": b"\xff\x00"})

    assert await settler.settle(delivery, Done(enriched)) is Settled.OK

    (record,) = await race.output()
    assert record == {
        b"data": b'{"x":1}',
        b"src": delivery.id.encode(),
        b"hash": b"h" * 32,
        b"event_id": b"e-1",
        b"traceparent": b"\xff\x00",
    }
    assert await race.is_clean()
    assert await race.totals() == {"enriched": 1}


async def test_finish_sent_again_after_a_lost_reply_is_gone_and_writes_nothing(race: Race, settler: Settler) -> None:
    """F4: the second sending finds that its lost predecessor has settled the event."""
    delivery = await race.delivered()
    await settler.settle(delivery, DONE)

    assert await settler.settle(delivery, DONE) is Settled.GONE
    assert len(await race.output()) == 1
    assert await race.totals() == {"enriched": 1}


async def test_finish_by_a_non_owner_wins_and_the_owner_finds_it_gone(race: Race, settler: Settler) -> None:
    """F6: a zombie's right answer counts; its successor can neither write nor bury a second one."""
    zombies = await race.delivered()
    await race.steal(zombies.id, "successor:w1:b")
    successors = type(zombies)(zombies.id, zombies.fields, "successor:w1:b", 2)

    assert await settler.settle(zombies, DONE) is Settled.OK
    assert await settler.settle(successors, DONE) is Settled.GONE
    assert await settler.settle(successors, Bury(Reason.TIMEOUT, "late")) is Settled.GONE
    assert await settler.settle(successors, Retry(0.0, 1, ("late",))) is Settled.GONE
    assert await settler.settle(successors, Release()) is Settled.GONE
    assert list(await race.enriched()) == [zombies.id]
    assert await race.dead() == []
    assert await race.is_clean()


async def test_finish_of_a_parked_event_takes_it_off_the_parking(race: Race, settler: Settler) -> None:
    """F6: what was handed back meanwhile is not delivered again once its answer has arrived."""
    delivery = await race.delivered()
    await settler.settle(delivery, Retry(0.0, 1, ("timeout: slow",)))

    assert await settler.settle(delivery, DONE) is Settled.OK
    assert await race.is_clean()


async def test_finish_of_an_entry_deleted_meanwhile_still_leaves_its_one_record(race: Race, settler: Settler) -> None:
    """F38: the answer is there, so it is written; the pending list is clean."""
    delivery = await race.delivered()
    await race.redis.xdel(race.keys.input, delivery.id)

    assert await settler.settle(delivery, DONE) is Settled.OK
    assert len(await race.output()) == 1
    assert await race.is_clean()


async def test_finish_leaves_the_neighbours_alone(race: Race, settler: Settler) -> None:
    """Only the id that is named is acknowledged."""
    first, second = await race.delivered(), await race.delivered()

    await settler.settle(first, DONE)

    assert await race.held() == {second.id: (second.owner, 1)}


async def test_finish_without_its_group_says_so_and_writes_nothing(race: Race, settler: Settler) -> None:
    """F32: whether it is still ours to settle is unknown, so nothing is written."""
    delivery = await race.delivered()
    await race.redis.xgroup_destroy(race.keys.input, race.keys.group)

    with pytest.raises(ResponseError, match="NOGROUP"):
        await settler.settle(delivery, DONE)
    assert await race.output() == []


async def test_many_finished_at_once_are_each_fenced_for_themselves(race: Race, settler: Settler) -> None:
    """F6: in any order, with strangers' entries between them, one gone before, one there twice: each leaves once."""
    deliveries, strangers = [], []
    for _ in range(6):
        deliveries.append(await race.delivered())
        strangers.append(await race.delivered("stranger:w1:b"))
    first, gone, *rest = deliveries
    await settler.settle(gone, DONE)

    finished = [(delivery, DONE.enriched) for delivery in (*reversed(rest), gone, first, first, *rest)]
    answers = await settler.finish_all(finished)

    ok, late = Settled.OK, Settled.GONE
    assert answers == [*[ok] * len(rest), late, ok, late, *[late] * len(rest)]
    assert set(await race.enriched()) == {delivery.id for delivery in deliveries}
    assert set(await race.held()) == {delivery.id for delivery in strangers}
    assert await race.totals() == {"enriched": 6}
