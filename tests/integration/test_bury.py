"""bury: the original goes to the dead letters byte for byte, once, by the hand that holds it."""

import json

import pytest
from tests.integration.race import DONE, Race

from millhand.settle import Settled, Settler
from millhand.verdict import Bury, Delivery, Reason, Release, Retry

pytestmark = pytest.mark.every_server
BURY = Bury(Reason.INVALID_ANSWER, "no JSON", 4, ("a", "b", "c", "d"))
OURS = 4 * 2 + 6 * 2  # names and values that bury adds to the original's
PAIRS_KEPT_PLAIN = 3500
UNPACK = "return cmsgpack.unpack(ARGV[1])"


async def test_bury_keeps_the_event_and_says_why(race: Race, settler: Settler) -> None:
    """The record holds the original fields, and ours say what happened to it."""
    delivery = await race.delivered()

    assert await settler.settle(delivery, BURY) is Settled.OK

    (record,) = await race.dead()
    failed_at = record.pop(b"failed_at").decode()
    assert failed_at.endswith("+00:00")
    assert record == {
        b"data": delivery.fields[b"data"],
        b"failure_reason": b"invalid_answer",
        b"src": delivery.id.encode(),
        b"original_fields": b"1",
        b"redrives": b"0",
        b"failure_detail": b"no JSON",
        b"attempts": b"4",
        b"deliveries": b"1",
        b"errors": b'["a","b","c","d"]',
        b"consumer": delivery.owner.encode(),
    }
    assert await race.is_clean()
    assert await race.totals() == {"dead": 1, "dead:invalid_answer": 1}


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([b"data", b"\xff\xfe\x00{"], id="not UTF-8"),
        pytest.param([b"\xc3\x28", b"x", b"data", b""], id="a field name that is not UTF-8"),
        pytest.param([b"data", b"1", b"data", b"2", b"data", b"1"], id="duplicate field names"),
        pytest.param(
            [b"failure_reason", b"mine", b"src", b"9-9", b"original_fields", b"77"], id="fields named as ours"
        ),
        pytest.param([b"", b"", b"data", b"a\r\nb\x00"], id="empty names, line ends and NUL"),
        pytest.param([b"data", b"x" * (10 << 20)], id="ten megabytes"),
        pytest.param([part for n in range(PAIRS_KEPT_PLAIN) for part in (b"f%d" % n, b"v")], id="many fields"),
    ],
)
async def test_bury_keeps_the_original_fields_byte_for_byte(race: Race, settler: Settler, pairs: list[bytes]) -> None:
    """F48: the original's pairs stand first, in their order, and `original_fields` says how many they are."""
    await race.add_pairs(*pairs)
    (delivery,) = await race.deliver()

    assert await settler.settle(delivery, BURY) is Settled.OK

    (kept,) = await race.dead_pairs()
    original, ours = kept[: len(pairs)], kept[len(pairs) :]
    assert original == pairs
    assert len(ours) == OURS
    assert ours[4:6] == [b"original_fields", b"%d" % (len(pairs) // 2)]
    (record,) = await race.dead()
    assert record[b"failure_reason"] == b"invalid_answer"
    assert record[b"src"] == delivery.id.encode()


@pytest.mark.parametrize("pairs_count", [PAIRS_KEPT_PLAIN + 1, 5000])
async def test_bury_packs_an_event_with_more_fields_than_a_call_can_carry(
    race: Race, settler: Settler, pairs_count: int
) -> None:
    """F48: such an event is kept whole in one field."""
    pairs = [part for n in range(pairs_count) for part in (b"\xff%d" % n, b"v%d" % n)]
    await race.add_pairs(*pairs)
    (delivery,) = await race.deliver()

    assert await settler.settle(delivery, BURY) is Settled.OK

    (record,) = await race.dead()
    assert record[b"original_fields"] == b"%d" % pairs_count
    assert await race.redis.eval(UNPACK, 0, record[b"original_msgpack"]) == pairs
    assert await race.is_clean()


async def test_bury_sent_again_after_a_lost_reply_is_gone_and_writes_nothing(race: Race, settler: Settler) -> None:
    """F4: one dead letter, however often it is sent; nor can a late answer follow it."""
    delivery = await race.delivered()
    await settler.settle(delivery, BURY)

    assert await settler.settle(delivery, BURY) is Settled.GONE
    assert await settler.settle(delivery, DONE) is Settled.GONE
    assert len(await race.dead()) == 1
    assert await race.totals() == {"dead": 1, "dead:invalid_answer": 1}


@pytest.mark.parametrize(("owner", "count"), [("other:w1:a", 2), ("successor:w1:b", 1)])
async def test_bury_is_refused_to_whoever_holds_it_no_longer(
    race: Race, settler: Settler, owner: str, count: int
) -> None:
    """F6: a zombie's "it failed" does not overrule the living: owner and count must both match."""
    delivery = await race.delivered("other:w1:a")
    await race.steal(delivery.id, owner, count=count)

    assert await settler.settle(delivery, BURY) is Settled.LOST
    assert await race.dead() == []
    assert await race.held() == {delivery.id: (owner, count)}
    assert await race.totals() == {}


@pytest.mark.parametrize("verdict", [BURY, Retry(0.0, 1, ("a",)), Release()], ids=["bury", "retry", "release"])
async def test_entry_deleted_while_pending_ends_in_a_tombstone(
    race: Race, settler: Settler, verdict: Bury | Retry | Release
) -> None:
    """F38: whatever the verdict, the pending list is clean and a dead letter tells of the loss."""
    delivery = await race.delivered()
    await race.redis.xdel(race.keys.input, delivery.id)

    assert await settler.settle(delivery, verdict) is Settled.OK

    (record,) = await race.dead()
    assert record[b"src"] == delivery.id.encode()
    assert record[b"original_fields"] == b"0"
    assert record[b"failure_reason"] == (b"invalid_answer" if verdict is BURY else b"deleted")
    assert await race.is_clean()
    await race.totals()


async def test_trimmed_entry_that_nobody_holds_is_reported_and_stays_until_it_has_its_tombstone(
    race: Race, settler: Settler
) -> None:
    """F38: handing back a trimmed entry does not drop it from the pending list without a word."""
    delivery = await race.delivered()
    await race.redis.xtrim(race.keys.input, maxlen=0)

    assert await settler.hand_back(delivery) is Settled.DELETED
    assert await race.held() == {delivery.id: (delivery.owner, 1)}


async def test_dead_letter_holds_the_history_as_json(race: Race, settler: Settler) -> None:
    """Quotes and line ends in an error do not break the record."""
    delivery = await race.delivered()
    history = ('say "no"\n', "ü\u2028")

    await settler.settle(delivery, Bury(Reason.TIMEOUT, "x", 2, history))

    (record,) = await race.dead()
    assert json.loads(record[b"errors"]) == list(history)


async def test_bury_of_what_is_not_pending_is_gone(race: Race, settler: Settler) -> None:
    """An id that was never delivered leaves no record."""
    entry_id = await race.add()

    assert await settler.settle(Delivery(entry_id, {}, "other:w1:a", 1), BURY) is Settled.GONE
    assert await race.dead() == []
