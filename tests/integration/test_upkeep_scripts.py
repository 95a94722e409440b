"""renew, retire_consumer and count_after: leases, consumers and counts."""

from collections.abc import Iterable

import pytest
from tests.integration.race import Race

from millhand.stream import Script
from millhand.verdict import Delivery

pytestmark = pytest.mark.every_server
IDLE_MS = 3_600_000


@pytest.fixture
async def held(race: Race) -> list[Delivery]:
    """Deliver three events to one consumer; nobody has touched them for an hour."""
    deliveries = [await race.delivered() for _ in range(3)]
    for delivery in deliveries:
        await race.age(delivery.id, IDLE_MS)
    return deliveries


@pytest.fixture
def renew(race: Race) -> Script:
    """Get the script as leases call it."""
    return Script(race.redis, "renew")


async def beat(race: Race, renew: Script, tokens: Iterable[tuple[str, int]], consumer: str = "other:w1:a") -> list[str]:
    """Renew, and return the ids that are lost."""
    parts = [part for token in tokens for part in token]
    return [lost.decode() for lost in await renew(keys=[race.keys.input], args=[race.keys.group, consumer, *parts])]


async def fresh(race: Race) -> set[str]:
    """Return the ids that are not idle."""
    return {row.id for row in await race.pending() if row.idle_ms < IDLE_MS}


async def test_only_the_ids_that_are_named_are_renewed(race: Race, held: list[Delivery], renew: Script) -> None:
    """F5: what stands under the same name and was never received keeps growing idle."""
    first, second, ghost = held

    assert await beat(race, renew, [(first.id, 1), (second.id, 1)]) == []
    assert await beat(race, renew, [(first.id, 1), (second.id, 1)]) == []

    assert await fresh(race) == {first.id, second.id}
    assert await race.held() == {one.id: ("other:w1:a", 1) for one in (first, second, ghost)}


async def test_only_the_owner_with_the_right_count_can_renew(race: Race, held: list[Delivery], renew: Script) -> None:
    """F6: a heartbeat neither steals an entry nor keeps it from its successor."""
    stolen, claimed_again, kept = held
    await race.steal(stolen.id, "thief:w1:b", count=1)
    await race.steal(claimed_again.id, "other:w1:a", count=2)
    for delivery in held:
        await race.age(delivery.id, IDLE_MS)
    before = await race.held()

    lost = await beat(race, renew, [(one.id, 1) for one in held])

    assert lost == [stolen.id, claimed_again.id]
    assert await fresh(race) == {kept.id}
    assert await race.held() == before


async def test_settled_entries_are_lost_to_the_heartbeat(race: Race, held: list[Delivery], renew: Script) -> None:
    """Who holds what is settled already is told so."""
    await race.redis.xack(race.keys.input, race.keys.group, held[0].id)

    assert await beat(race, renew, [(one.id, 1) for one in held]) == [held[0].id]


async def test_heartbeat_leaves_a_deleted_entry_pending(race: Race, held: list[Delivery], renew: Script) -> None:
    """F38: claiming a deleted entry would drop it from the pending list without a word."""
    await race.redis.xdel(race.keys.input, held[0].id)

    assert await beat(race, renew, [(one.id, 1) for one in held]) == []
    assert set(await race.held()) == {one.id for one in held}


async def test_consumer_that_holds_something_is_not_retired(race: Race) -> None:
    """F39: forgetting it would destroy what it holds."""
    delivery = await race.delivered()
    retire = Script(race.redis, "retire_consumer")

    assert await retire([race.keys.input, race.keys.totals], [race.keys.group, delivery.owner]) == b"lost"
    assert await race.held() == {delivery.id: (delivery.owner, 1)}


async def test_consumer_that_holds_nothing_is_retired_and_once_more_does_no_harm(race: Race) -> None:
    """F39: the name is gone after it, and counted once."""
    delivery = await race.delivered()
    await race.redis.xack(race.keys.input, race.keys.group, delivery.id)
    retire = Script(race.redis, "retire_consumer")

    answers = [await retire([race.keys.input, race.keys.totals], [race.keys.group, delivery.owner]) for _ in range(2)]
    assert answers == [b"ok", b"gone"]
    assert await race.consumers() == set()
    assert (await race.totals())["retired"] == 1


async def test_a_stretch_is_counted_page_by_page(race: Race) -> None:
    """The start is exclusive, the end inclusive, and a page tells where the next one starts."""
    count_after = Script(race.redis, "count_after")
    ids = [await race.add() for _ in range(7)]

    async def page(after: str, until: str = "+", size: int = 3) -> tuple[int, str]:
        count, last = await count_after(keys=[race.keys.input], args=[after, until, size])
        return count, last.decode()

    assert await page("0-0") == (3, ids[2])
    assert await page(ids[2]) == (3, ids[5])
    assert await page(ids[5]) == (1, ids[6])
    assert await page(ids[6]) == (0, "")
    assert await page(ids[0], until=ids[2]) == (2, ids[2])
    assert await page(ids[2], until=ids[2]) == (0, "")


async def test_a_stream_that_is_not_there_counts_nothing(race: Race) -> None:
    """F32: no stream, no error."""
    await race.redis.delete(race.keys.input)

    count, last = await Script(race.redis, "count_after")(keys=[race.keys.input], args=["0-0", "+", 10])

    assert (count, last) == (0, b"")
