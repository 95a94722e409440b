"""park and take_due: an event waits its time outside everybody's hands, and comes back with what it has spent."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.integration.race import Race
from tests.rig import eventually_async

from millhand.settle import Settled, Settler
from millhand.stream import Stream
from millhand.verdict import Bury, Delivery, Reason, Release, Retry

pytestmark = pytest.mark.every_server
PARKED = "@parked"
RETRY = Retry(0.0, 1, ("invalid_answer: no JSON",))


@pytest.fixture
async def stream(race: Race, redis_url: str) -> AsyncIterator[Stream]:
    """Read as one consumer of the group."""
    stream = Stream(redis_url, race.keys, "taker:w1:t", 2)
    yield stream
    await stream.close()


async def test_retry_parks_the_event_until_it_is_due(race: Race, settler: Settler, stream: Stream) -> None:
    """Its delivery count stays, its attempt is written down, and nobody gets it before its time."""
    delivery = await race.delivered()
    before_ms = await race.server_ms()

    assert await settler.settle(delivery, Retry(60.0, 1, ("timeout: slow",))) is Settled.OK

    assert await race.held() == {delivery.id: (PARKED, 1)}
    assert await race.attempts() == {delivery.id: {"attempts": 1, "errors": ["timeout: slow"]}}
    due_ms = (await race.parked())[delivery.id]
    assert before_ms - 1 + 60_000 <= due_ms <= await race.server_ms() + 60_000
    assert await race.totals() == {"retried": 1}
    assert await stream.take_due(10) == []
    assert not stream.may_take_due()
    stream.expect_due(0.0)
    assert stream.may_take_due()


async def test_retry_sent_again_after_a_lost_reply_spends_no_second_attempt(race: Race, settler: Settler) -> None:
    """F4: parked with these attempts before means settled."""
    delivery = await race.delivered()
    await settler.settle(delivery, RETRY)

    assert await settler.settle(delivery, RETRY) is Settled.GONE
    assert await race.totals() == {"retried": 1}
    assert (await race.attempts())[delivery.id]["attempts"] == 1


async def test_retry_sent_again_after_its_event_was_taken_again_does_not_park_it_twice(
    race: Race, settler: Settler, stream: Stream
) -> None:
    """F4: same owner, same count, but these attempts are written down already."""
    delivery = await race.delivered("taker:w1:t")
    await settler.settle(delivery, RETRY)
    (taken,) = await stream.take_due(1)
    assert (taken.owner, taken.count) == (delivery.owner, delivery.count)

    assert await settler.settle(delivery, RETRY) is Settled.GONE
    assert await race.held() == {taken.id: ("taker:w1:t", 1)}


@pytest.mark.parametrize("verdict", [RETRY, Release()], ids=["retry", "release"])
@pytest.mark.parametrize(("owner", "count"), [("other:w1:a", 2), ("successor:w1:b", 1)])
async def test_parking_is_refused_to_whoever_holds_it_no_longer(
    race: Race, settler: Settler, verdict: Retry | Release, owner: str, count: int
) -> None:
    """F6: neither a retry nor a release takes an event out of a successor's hands."""
    delivery = await race.delivered("other:w1:a")
    await race.steal(delivery.id, owner, count=count)

    assert await settler.settle(delivery, verdict) is Settled.LOST
    assert await race.held() == {delivery.id: (owner, count)}
    assert await race.parked() == {}
    assert await race.attempts() == {}


async def test_released_event_is_due_at_once_and_has_spent_nothing(
    race: Race, settler: Settler, stream: Stream
) -> None:
    """Neither its delivery count nor its attempts change on the way from hand to hand."""
    delivery = await race.delivered()

    assert await settler.settle(delivery, Release()) is Settled.OK

    (taken,) = await stream.take_due(10)
    assert taken == Delivery(delivery.id, delivery.fields, "taker:w1:t", count=1, attempts=0, history=())
    assert await race.attempts() == {}
    assert await race.totals() == {"released": 1}


async def test_release_sent_again_changes_nothing(race: Race, settler: Settler) -> None:
    """F4: the second sending finds other hands."""
    delivery = await race.delivered()
    await settler.settle(delivery, Release())
    parked = await race.parked()

    assert await settler.settle(delivery, Release()) is Settled.LOST
    assert await race.parked() == parked
    assert await race.totals() == {"released": 1}


async def test_handing_back_spends_a_delivery(race: Race, settler: Settler, stream: Stream) -> None:
    """What a dead worker held comes back with a higher count: the crash budget."""
    delivery = await race.delivered()

    assert await settler.hand_back(delivery) is Settled.OK
    assert await settler.hand_back(delivery) is Settled.LOST

    (taken,) = await stream.take_due(10)
    assert taken.count == 2
    assert await race.held() == {delivery.id: ("taker:w1:t", 2)}
    assert await race.totals() == {"handed_back": 1}


async def test_taken_event_brings_its_attempts_and_their_errors(race: Race, settler: Settler, stream: Stream) -> None:
    """Releasing in between keeps them."""
    delivery = await race.delivered()
    await settler.settle(delivery, Retry(0.0, 2, ("one", "two")))
    (taken,) = await stream.take_due(1)
    await settler.settle(taken, Release())

    (again,) = await stream.take_due(1)

    assert (again.attempts, again.history, again.attempt) == (2, ("one", "two"), 3)


async def test_only_what_is_due_is_given_out_and_no_more_than_asked_for(
    race: Race, settler: Settler, stream: Stream
) -> None:
    """Three are due, one is not: two, then one, then none."""
    due = [await race.delivered() for _ in range(3)]
    later = await race.delivered()
    for delivery in due:
        await settler.settle(delivery, Release())
    await settler.settle(later, Retry(60.0, 1, ("x",)))

    first, second, third = [await stream.take_due(2) for _ in range(3)]

    assert [len(first), len(second), len(third)] == [2, 1, 0]
    assert {delivery.id for delivery in first + second} == {delivery.id for delivery in due}
    assert set(await race.parked()) == {later.id}


async def test_event_that_has_its_last_chance_is_given_out_alone(race: Race, settler: Settler, stream: Stream) -> None:
    """F9: if it kills this worker too, nothing else is in hand with it that could be buried for it."""
    first, second, third, fourth = [await race.delivered() for _ in range(4)]
    suspects = (first.id, fourth.id)
    for delivery in (first, second, third, fourth):
        settle = settler.hand_back(delivery) if delivery.id in suspects else settler.settle(delivery, Release())
        assert await settle is Settled.OK
    await race.redis.zadd(race.keys.parked, {one.id: n for n, one in enumerate((first, second, third, fourth))})

    taken = [[delivery.id for delivery in await stream.take_due(10)] for _ in range(4)]

    assert taken == [[first.id], [second.id, third.id], [fourth.id], []]


async def test_parked_event_comes_back_when_its_time_has_come(race: Race, settler: Settler, stream: Stream) -> None:
    """Its due time is by the server's clock."""
    delivery = await race.delivered()
    await settler.settle(delivery, Retry(0.1, 1, ("x",)))
    due_ms = (await race.parked())[delivery.id]

    (taken,) = await eventually_async(lambda: stream.take_due(1))

    assert taken.id == delivery.id
    assert await race.server_ms() >= due_ms


async def test_two_takers_never_get_the_same_event(race: Race, settler: Settler, redis_url: str) -> None:
    """F11: every due event goes to exactly one of them."""
    ids = {(await race.delivered()).id for _ in range(40)}
    for row in await race.pending():
        await settler.settle(Delivery(row.id, {}, row.owner, row.count), Release())
    takers = [Stream(redis_url, race.keys, f"taker:w{n}:t", 2) for n in range(4)]

    rounds = [await asyncio.gather(*[taker.take_due(3) for taker in takers]) for _ in range(4)]

    got = [delivery.id for taken in rounds for deliveries in taken for delivery in deliveries]
    assert sorted(got) == sorted(ids)
    for taker in takers:
        await taker.close()


async def test_entry_deleted_while_parked_is_given_out_empty_and_buried_by_its_taker(
    race: Race, settler: Settler, stream: Stream
) -> None:
    """F38: it stays with `@parked`, whose token its taker has, until the tombstone is written."""
    delivery = await race.delivered()
    await settler.settle(delivery, RETRY)
    await race.redis.xdel(race.keys.input, delivery.id)

    (taken,) = await stream.take_due(1)
    assert taken == Delivery(delivery.id, {}, PARKED, 1, 1, RETRY.history)
    assert await race.held() == {delivery.id: (PARKED, 1)}

    assert await settler.settle(taken, Bury(Reason.DELETED, "trimmed", 1, taken.history)) is Settled.OK
    assert await race.is_clean()
    assert await race.totals() == {"retried": 1, "dead": 1, "dead:deleted": 1}


async def test_stale_due_times_give_nothing_out_and_are_swept_away(race: Race, stream: Stream) -> None:
    """The pending list of `@parked` is the truth: what is settled, or in somebody's hands, stays as it is."""
    held = await race.delivered()
    await race.redis.zadd(race.keys.parked, {held.id: 0.0, "1-1": 0.0})

    assert await stream.take_due(10) == []
    assert await race.held() == {held.id: (held.owner, 1)}
    assert await race.parked() == {}


async def test_taken_event_is_not_idle(race: Race, settler: Settler, stream: Stream) -> None:
    """A lease begins when the event is taken, however long it was parked."""
    delivery = await race.delivered()
    await settler.settle(delivery, Release())
    await race.age(delivery.id)

    await stream.take_due(1)

    assert (await race.pending_row(delivery.id)).idle_ms < 60_000
