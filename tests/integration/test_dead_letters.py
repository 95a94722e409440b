"""Dead letters on a real server: given back byte for byte and once, refused whole, chosen page by page, dropped."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import StartRedis
from tests.fleet.chaos.proxy import FaultProxy
from tests.integration.hands import working
from tests.integration.race import PAIRS_OF, Race
from tests.rig import HOST, RedisServer, config_for, free_port

from millhand.keys import Keys
from millhand.settle import Settler
from millhand.stream import Script, connect
from millhand.verdict import Bury, Reason
from millhand_fleet import deadletters
from millhand_fleet.deadletters import (
    FIELDS_MAX,
    FOREIGN,
    WITHOUT_LIMIT,
    DeadLetter,
    DeadLetters,
    NoAnswer,
    Requeued,
    Selection,
    foresee,
)
from scripts.fake_ollama import FakeOllama

if TYPE_CHECKING:
    from redis.asyncio import Redis

pytestmark = pytest.mark.every_server

ALL = Selection()
HOUR_MS = 3_600_000


class Mill:
    """A fleet's streams, and what an operator does with its dead letters."""

    def __init__(self, race: Race, redis: "Redis | None" = None) -> None:
        self.race = race
        self.news: list[str] = []
        self.letters = DeadLetters(redis or race.redis, race.keys, self.news.append)

    async def bury(self, *pairs: bytes, reason: Reason = Reason.TIMEOUT, detail: str = "no answer") -> DeadLetter:
        """Produce an event and bury it as a worker does."""
        await self.race.add_pairs(*pairs or (b"data", b'{"text":"a"}'))
        (delivery,) = await self.race.deliver()
        await Settler(self.race.redis, self.race.keys).settle(delivery, Bury(reason, detail, 4, ("a", "b")))
        return (await self.there())[-1]

    async def there(self, selection: Selection = ALL) -> list[DeadLetter]:
        """Return what is selected."""
        return [letter async for letter in self.letters.select(selection, await self.letters.stretch(selection))]

    async def requeue(self, letter: DeadLetter, redrives_max: int = 3) -> Requeued:
        """Requeue one, and hold it against what was foreseen."""
        answer = await self.letters.requeue(letter, redrives_max)
        assert answer in {foresee(letter, redrives_max), Requeued.GONE}
        return answer

    async def inputs(self) -> list[list[bytes]]:
        """Return the input's entries field by field."""
        return await self._pairs(self.race.keys.input)

    async def streams(self) -> tuple[Any, ...]:
        """Return everything that requeueing may change."""
        keys = self.race.keys
        hashes = [await self.race.redis.hgetall(key) for key in (keys.totals, keys.redrives)]
        return await self._pairs(keys.input), await self._pairs(keys.dead_letter), *hashes

    async def _pairs(self, key: str) -> list[list[bytes]]:
        found: list[list[bytes]] = await self.race.redis.eval(PAIRS_OF, 1, key)
        return found


@pytest.fixture
def mill(race: Race) -> Mill:
    """Work on the shared server."""
    return Mill(race)


@asynccontextmanager
async def mill_at(server: RedisServer) -> AsyncIterator[Mill]:
    """Work on a server of the test's own."""
    redis = connect(server.url)
    try:
        yield Mill(await Race(redis, Keys.of(config_for(server.url))).open())
    finally:
        await redis.aclose()


# -- requeue ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([b"data", b'{"text":"a fine day"}'], id="plain"),
        pytest.param([b"data", b"\xff\xfe\x00{", b"\xc3\x28", b"x"], id="not UTF-8"),
        pytest.param([b"data", b"1", b"data", b"2", b"data", b"1"], id="duplicate field names"),
        pytest.param(
            [b"failure_reason", b"mine", b"original_fields", b"77", b"redrives", b"99"], id="fields named as ours"
        ),
        pytest.param([b"original_msgpack", b"\xff"], id="a field named as if it were packed"),
        pytest.param([b"", b"", b"data", b"a\r\nb\x00"], id="empty names, line ends and NUL"),
        pytest.param([b"data", b"x" * (10 << 20)], id="ten megabytes"),
        pytest.param([part for n in range(3500) for part in (b"f%d" % n, b"v")], id="as many fields as stay plain"),
        pytest.param([part for n in range(3501) for part in (b"f%d" % n, b"\xff")], id="as few as are packed"),
        pytest.param([part for n in range(5017) for part in (b"f", b"%d" % n)], id="more than Lua can unpack"),
        pytest.param([part for n in range(FIELDS_MAX) for part in (b"f", b"%d" % n)], id="as many as can be written"),
    ],
)
async def test_a_requeued_event_is_the_original_byte_for_byte(mill: Mill, pairs: list[bytes]) -> None:
    """F48: the new entry has the pairs of the old one in their order; the dead letter is gone."""
    letter = await mill.bury(*pairs)
    assert letter.fields == tuple(zip(pairs[::2], pairs[1::2], strict=True))

    assert await mill.requeue(letter) is Requeued.OK

    assert await mill.inputs() == [pairs, pairs]
    assert await mill.there() == []
    (delivery,) = await mill.race.deliver()
    assert await mill.race.redis.hgetall(mill.race.keys.redrives) == {delivery.id.encode(): b"1"}
    assert await mill.race.redis.hget(mill.race.keys.totals, "requeued") == b"1"


async def test_requeue_whose_reply_is_lost_is_sent_again_and_writes_once(mill: Mill, redis_server: RedisServer) -> None:
    """F4: the second call finds nothing to do, and says so."""
    first, second = await mill.bury(), await mill.bury()
    assert await mill.requeue(first) is Requeued.OK  # so that the server knows the script
    async with FaultProxy(redis_server.port) as proxy:
        redis = connect(proxy.redis_url)
        try:
            operator = Mill(mill.race, redis)
            sha = Script(redis, "requeue").sha.encode()
            proxy.swallow(sha)
            assert await operator.requeue(second) is Requeued.GONE
            assert proxy.swallowed[sha] == 1
        finally:
            await redis.aclose()

    assert len(await mill.inputs()) == 4
    assert await mill.there() == []
    assert await mill.race.redis.hget(mill.race.keys.totals, "requeued") == b"2"
    (news,) = operator.news
    assert "trying again for 15 s" in news


async def test_requeueing_a_dead_letter_twice_writes_once(mill: Mill) -> None:
    """Two operators, or one who repeats a command, do no harm."""
    letter = await mill.bury()

    assert [await mill.requeue(letter) for _ in range(3)] == [Requeued.OK, Requeued.GONE, Requeued.GONE]
    assert len(await mill.inputs()) == 2


@pytest.mark.parametrize("redrives_max", [1, 2])
async def test_redrives_are_counted_from_burial_to_burial_and_end(mill: Mill, redrives_max: int) -> None:
    """An event that is buried again and again does not go round for ever; nothing is changed by a refusal."""
    for n in range(redrives_max):
        letter = await mill.bury() if n == 0 else await bury_again(mill)
        assert letter.redrives == n
        assert await mill.requeue(letter, redrives_max) is Requeued.OK
    letter = await bury_again(mill)
    before = await mill.streams()

    assert letter.redrives == redrives_max
    assert await mill.requeue(letter, redrives_max) is Requeued.REFUSED
    assert await mill.streams() == before
    assert await mill.requeue(letter, WITHOUT_LIMIT) is Requeued.OK
    assert (await bury_again(mill)).redrives == redrives_max + 1


async def bury_again(mill: Mill) -> DeadLetter:
    """Bury what was requeued last."""
    (delivery,) = await mill.race.deliver()
    await Settler(mill.race.redis, mill.race.keys).settle(delivery, Bury(Reason.TIMEOUT, "again", 4, ()))
    (letter,) = await mill.there()
    return letter


async def test_a_dead_letter_of_a_version_that_did_not_count_redrives_has_none(mill: Mill) -> None:
    """A field of the original that is named so counts for nothing."""
    record = {"redrives": "99", "failure_reason": "timeout", "original_fields": "1"}
    await mill.race.redis.xadd(mill.race.keys.dead_letter, record)  # type: ignore[arg-type]
    (letter,) = await mill.there()

    assert letter.redrives == 0
    assert await mill.requeue(letter, 1) is Requeued.OK
    assert await mill.inputs() == [[b"redrives", b"99"]]


async def test_a_tombstone_has_nothing_to_requeue_and_is_refused_alone(mill: Mill) -> None:
    """F38: the event is gone; its neighbour goes back."""
    delivery = await mill.race.delivered()
    await mill.race.redis.xdel(mill.race.keys.input, delivery.id)
    await Settler(mill.race.redis, mill.race.keys).settle(delivery, Bury(Reason.DELETED, "deleted", 0, ()))
    neighbour = await mill.bury()
    tombstone, _ = await mill.there()

    assert await mill.requeue(tombstone, WITHOUT_LIMIT) is Requeued.EMPTY
    assert await mill.requeue(neighbour) is Requeued.OK
    assert await mill.there() == [tombstone]


async def test_an_event_with_more_fields_than_can_be_written_is_refused(mill: Mill) -> None:
    """F48: rather than holding the server up for long."""
    letter = await mill.bury(*(b"f",) * (2 * FIELDS_MAX + 2))
    before = len(await mill.inputs())

    assert await mill.requeue(letter) is Requeued.TOO_WIDE
    assert len(await mill.inputs()) == before


@pytest.mark.parametrize(
    "record",
    [
        {"junk": "1"},
        {"original_fields": "-1"},
        {"original_fields": "0"},
        {"a": "b", "original_fields": "1"},
        {"original_msgpack": b"\xc1", "failure_reason": "timeout", "original_fields": "4000"},
        {"original_msgpack": b"\x93\x01\x02", "failure_reason": "timeout", "original_fields": "4000"},
        {"original_msgpack": b"\x92\xa1a\xa1b", "failure_reason": "timeout", "original_fields": "4000"},
        {"original_msgpack": b"\x07", "failure_reason": "timeout", "original_fields": "4000"},
    ],
)
async def test_an_entry_of_somebody_elses_is_shown_and_never_requeued(mill: Mill, record: dict[Any, Any]) -> None:
    await mill.race.redis.xadd(mill.race.keys.dead_letter, record)
    before = await mill.streams()

    (letter,) = await mill.there()

    assert letter.reason == FOREIGN
    assert len(letter.fields) == len(record)
    assert await mill.requeue(letter, WITHOUT_LIMIT) is Requeued.FOREIGN
    assert await mill.streams() == before


async def test_a_requeued_event_takes_its_event_id_along(mill: Mill) -> None:
    """F49: it is not taken for a repetition of the entry that was buried; the window stays as long as it was."""
    seen = mill.race.keys.seen(b"order\xff")
    letter = await mill.bury(b"data", b"{", b"event_id", b"other", b"event_id", b"order\xff")
    await mill.race.redis.set(seen, letter.src, ex=1000)

    assert await mill.requeue(letter) is Requeued.OK

    (delivery,) = await mill.race.deliver()
    assert await mill.race.redis.get(seen) == delivery.id.encode()
    assert 900 < await mill.race.redis.ttl(seen) <= 1000


async def test_no_marker_is_made_where_there_was_none(mill: Mill) -> None:
    letter = await mill.bury(b"data", b"{", b"event_id", b"order")

    assert await mill.requeue(letter) is Requeued.OK
    assert await mill.race.redis.keys("*seen*") == []


@pytest.mark.parametrize("key", ["input", "redrives", "totals"])
async def test_requeue_that_meets_a_wrong_type_changes_nothing(mill: Mill, key: str) -> None:
    """F36: the dead letter stays, nothing is written, and the operator hears it at once."""
    letter = await mill.bury()
    name = getattr(mill.race.keys, key)
    await mill.race.redis.delete(name)
    await mill.race.redis.set(name, "x")
    before = await mill.race.redis.xlen(mill.race.keys.input) if key != "input" else 0

    with pytest.raises(NoAnswer, match=r"Redis refuses: .*WRONGTYPE"):
        await mill.letters.requeue(letter, 3)

    assert await mill.there() == [letter]
    assert key == "input" or await mill.race.redis.xlen(mill.race.keys.input) == before
    assert mill.news == []


@pytest.mark.parametrize("command", ["xadd", "xdel", "hset", "hincrby", "zadd", "set"])
async def test_requeue_without_a_permission_changes_nothing(
    mill: Mill, redis_server: RedisServer, command: str
) -> None:
    """F36: what is forbidden after XADD would write the event once more with every call."""
    letter = await mill.bury(b"data", b"{", b"event_id", b"order")
    await mill.race.redis.set(mill.race.keys.seen(b"order"), letter.src, ex=1000)
    before = await mill.streams()
    with redis_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "operator", "on", ">pw", "~*", "+@all", f"-{command}")
        redis = connect(f"redis://operator:pw@{HOST}:{redis_server.port}/0")
        try:
            with pytest.raises(NoAnswer, match=r"this user may not|permissions|can't run"):
                await Mill(mill.race, redis).letters.requeue(letter, 3)
        finally:
            await redis.aclose()
            admin.execute_command("ACL", "DELUSER", "operator")

    assert await mill.streams() == before


async def test_a_full_server_refuses_a_requeue_whole_and_still_drops(start_redis: StartRedis) -> None:
    """F30: adding work is not what a full server needs; deleting is."""
    async with mill_at(start_redis({"maxmemory-policy": "noeviction"})) as mill:
        letter, other = await mill.bury(), await mill.bury()
        before = await mill.streams()
        await mill.race.redis.config_set("maxmemory", 1)

        with pytest.raises(NoAnswer, match=r"Redis refuses: .*maxmemory"):
            await mill.letters.requeue(letter, 3)

        assert await mill.streams() == before
        assert await mill.letters.drop([letter.id]) == 1
        await mill.race.redis.config_set("maxmemory", 0)
        assert await mill.requeue(other) is Requeued.OK


async def test_a_redis_that_stays_away_ends_a_persons_patience(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    """F20: bounded, and told once that it is being tried."""
    letter = await mill.bury()
    monkeypatch.setattr(deadletters, "PATIENCE_S", 0.25)
    redis = connect(f"redis://{HOST}:{free_port()}/0")
    operator = Mill(mill.race, redis)

    with pytest.raises(NoAnswer, match="Redis does not answer"):
        await operator.letters.requeue(letter, 3)

    await redis.aclose()
    assert len(operator.news) == 1
    assert await mill.there() == [letter]


# -- with workers -----------------------------------------------------------------------------------------------------


async def test_a_requeued_event_is_enriched_though_its_event_id_was_seen(
    mill: Mill, redis_url: str, fake: FakeOllama
) -> None:
    """F49: buried because the model refused it once, enriched when it is requeued; a repetition is still skipped."""
    config = config_for(redis_url, fake.url, {"input.dedupe_event_id_s": 600})
    text = "the mill [[fake status=400 times=1]]"
    await mill.race.add(text, event_id=b"order")
    async with working(config):
        await mill.race.until_buried()
        (letter,) = await mill.there()
        assert await mill.requeue(letter) is Requeued.OK
        (source,) = await mill.race.until_enriched(1)
        await mill.race.add(text, event_id=b"order")
        await mill.race.add("another")
        await mill.race.until_enriched(2)

    assert await mill.race.redis.get(mill.race.keys.seen(b"order")) == source.encode()
    assert await mill.there() == []
    assert await mill.race.redis.exists(mill.race.keys.redrives) == 0


async def test_an_event_that_always_fails_goes_round_as_often_as_is_allowed(
    mill: Mill, redis_url: str, fake: FakeOllama
) -> None:
    """No ping-pong: three redrives, and the fourth is refused."""
    await mill.race.add_data(b"{ no JSON")
    async with working(config_for(redis_url, fake.url)):
        for redrives in range(3):
            await mill.race.until_buried()
            (letter,) = await mill.there()
            assert letter.redrives == redrives
            assert await mill.requeue(letter, 3) is Requeued.OK
        await mill.race.until_buried()
        (letter,) = await mill.there()
        assert await mill.requeue(letter, 3) is Requeued.REFUSED

    assert len(await mill.inputs()) == 4


# -- choosing and dropping --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "value", "page"), [("PAGE", 3, 3), ("PAGE_BYTES", 1, 1), ("PAGE_BYTES", 500, 3)])
async def test_dead_letters_are_read_page_by_page_each_once(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, page: int
) -> None:
    """A page ends after so many entries, or so many bytes; the next one goes on behind it."""
    monkeypatch.setattr(deadletters, limit, value)
    buried = [await mill.bury(b"n", b"%d" % n) for n in range(10)]

    assert await mill.letters._page("-", "+") == buried[:page]
    assert await mill.there() == buried
    assert await mill.there(Selection(limit=4)) == buried[:4]
    assert await mill.there(Selection(ids=(buried[7].id, "1-1", buried[2].id))) == [buried[7], buried[2]]


async def test_filters_choose_by_reason_text_and_age(mill: Mill) -> None:
    """Ages count by the server's clock, on which the ids were made."""
    now_ms = int(await mill.race.server_ms())
    for hours, reason in ((5, "timeout"), (3, "malformed"), (1, "timeout")):
        record = {"data": f"{reason} {hours}", "failure_reason": reason, "original_fields": "1"}
        await mill.race.redis.xadd(mill.race.keys.dead_letter, record, id=f"{now_ms - hours * HOUR_MS}-0")  # type: ignore[arg-type]

    async def chosen(selection: Selection) -> list[bytes]:
        return [letter.fields[0][1] for letter in await mill.there(selection)]

    assert await chosen(Selection(reasons=frozenset({"timeout"}))) == [b"timeout 5", b"timeout 1"]
    assert await chosen(Selection(text=b"malf")) == [b"malformed 3"]
    assert await chosen(Selection(older_than_s=2 * 3600)) == [b"timeout 5", b"malformed 3"]
    assert await chosen(Selection(newer_than_s=4 * 3600)) == [b"malformed 3", b"timeout 1"]
    assert await chosen(Selection(newer_than_s=4 * 3600, older_than_s=2 * 3600)) == [b"malformed 3"]
    assert await chosen(Selection(newer_than_s=2 * 3600, older_than_s=4 * 3600)) == []
    assert await chosen(Selection(newer_than_s=1e15)) == [b"timeout 5", b"malformed 3", b"timeout 1"]
    assert await chosen(Selection(older_than_s=1e15)) == []


async def test_what_is_buried_while_a_selection_is_worked_through_is_not_in_it(mill: Mill) -> None:
    """Else requeueing everything would meet its own events again, buried anew."""
    buried = [await mill.bury() for _ in range(3)]
    stretch = await mill.letters.stretch(ALL)
    found = []
    async for letter in mill.letters.select(ALL, stretch):
        found.append(letter)
        await mill.bury()

    assert found == buried


async def test_a_stream_that_is_not_there_holds_no_dead_letters(mill: Mill) -> None:
    """F32: no stream, no error."""
    assert await mill.there() == []
    assert await mill.there(Selection(ids=("1-1",))) == []
    assert await mill.letters.drop(["1-1"]) == 0


async def test_dropped_dead_letters_are_gone_and_counted_once(mill: Mill) -> None:
    """F4: sent again after a lost reply, the drop finds nothing, and counts nothing."""
    first, second, third = [await mill.bury() for _ in range(3)]

    assert await mill.letters.drop([first.id, third.id]) == 2
    assert await mill.letters.drop([first.id, third.id]) == 0
    assert await mill.requeue(first) is Requeued.GONE

    assert await mill.there() == [second]
    totals: Any = await mill.race.redis.hgetall(mill.race.keys.totals)
    assert totals[b"dropped"] == b"2"
    assert b"requeued" not in totals
