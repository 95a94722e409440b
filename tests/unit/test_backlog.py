"""Counting what waits, against a stream in memory that reports itself as Redis does."""

from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from millhand_fleet import backlog
from millhand_fleet.backlog import Backlog

if TYPE_CHECKING:
    from redis.asyncio import Redis

Id = tuple[int, int]


class MemoryStream:
    """A stream, its group's progress, and the one script that the backlog is counted with."""

    def __init__(self) -> None:
        self.entries: list[Id] = []
        self.added: Id = (0, 0)
        self.delivered: Id = (0, 0)
        self.deleted: Id = (0, 0)
        self.ever = 0
        self.counted = 0  # entries that the script has looked at

    async def evalsha(self, _: str, keys_count: int, key: str, *args: Any) -> list[Any]:
        assert (keys_count, key) == (1, "raw")
        after, until, size = _id(args[0]), args[1], int(args[2])
        page = [entry for entry in self.entries if entry > after and (until == "+" or entry <= _id(until))][:size]
        self.counted += len(page)
        return [len(page), _text(page[-1]).encode() if page else b""]

    @property
    def waiting(self) -> int:
        return sum(entry > self.delivered for entry in self.entries)

    def info(self) -> dict[str, Any]:
        first = self.entries[0] if self.entries else (0, 0)
        return {
            "length": len(self.entries),
            "entries-added": self.ever,
            "recorded-first-entry-id": _text(first).encode(),
            "max-deleted-entry-id": _text(self.deleted).encode(),
            "last-generated-id": _text(self.added).encode(),
        }

    def add(self, count: int = 1, *, later: bool = True) -> None:
        for _ in range(count):
            self.added = (self.added[0] + 1, 0) if later else (self.added[0], self.added[1] + 1)
            self.entries.append(self.added)
            self.ever += 1

    def deliver(self, count: int) -> None:
        waiting = [entry for entry in self.entries if entry > self.delivered]
        if waiting[:count]:
            self.delivered = waiting[:count][-1]

    def delete(self, entry: Id) -> None:
        """XDEL: the largest id that was ever deleted is remembered."""
        self.entries.remove(entry)
        self.deleted = max(self.deleted, entry)

    def trim(self, length: int) -> None:
        """XTRIM: the first entry moves, and nothing else is remembered."""
        self.entries = self.entries[len(self.entries) - length :] if length else []


def _id(text: str) -> Id:
    milliseconds, _, sequence = text.partition("-")
    return int(milliseconds), int(sequence)


def _text(entry: Id) -> str:
    return f"{entry[0]}-{entry[1]}"


class Counted:
    """A stream and the backlog that is kept of it."""

    def __init__(self) -> None:
        self.stream = MemoryStream()
        self.backlog = Backlog(cast("Redis", self.stream), "raw")

    async def count(self) -> int:
        return await self.backlog.count(_text(self.stream.delivered), self.stream.info())


@pytest.fixture
def counted() -> Counted:
    return Counted()


async def test_an_empty_stream_has_no_backlog(counted: Counted) -> None:
    assert await counted.count() == 0


async def test_what_was_delivered_does_not_wait(counted: Counted) -> None:
    counted.stream.add(5)
    assert await counted.count() == 5
    counted.stream.deliver(2)
    assert await counted.count() == 3


async def test_a_backlog_longer_than_a_page_is_counted_to_its_end(counted: Counted) -> None:
    counted.stream.add(2 * backlog.PAGE + 1)
    assert await counted.count() == 2 * backlog.PAGE + 1


async def test_what_came_and_went_between_two_counts_is_not_missed(counted: Counted) -> None:
    counted.stream.add(3)
    await counted.count()
    counted.stream.add(5)
    counted.stream.deliver(6)
    assert await counted.count() == 2


async def test_a_stream_that_began_anew_is_counted_anew(counted: Counted) -> None:
    counted.stream.add(9)
    counted.stream.deliver(9)
    await counted.count()
    fresh = counted.stream = MemoryStream()
    counted.backlog._count_after._redis = cast("Redis", fresh)
    fresh.add(4)
    assert await counted.count() == 4


async def test_each_entry_is_looked_at_twice_however_often_is_counted(counted: Counted) -> None:
    counted.stream.add()
    counted.stream.deliver(1)
    counted.stream.add(100)
    for _ in range(50):
        await counted.count()
        counted.stream.deliver(2)
    await counted.count()
    assert counted.stream.counted == 200


@pytest.mark.parametrize("victims", [(2,), (7,), (7, 8), (8, 7), (2, 7), (7, 2), (0, 9), (9, 4)])
async def test_a_deleted_entry_no_longer_waits(counted: Counted, victims: tuple[int, ...]) -> None:
    """Redis remembers only the largest id that was ever deleted, so a smaller one goes unseen if nobody looks."""
    counted.stream.add(10)
    counted.stream.deliver(5)
    ids = list(counted.stream.entries)
    for victim in victims:
        await counted.count()
        counted.stream.delete(ids[victim])
    assert await counted.count() == counted.stream.waiting


@pytest.mark.parametrize("length", [0, 1, 3, 5, 9])
async def test_a_trimmed_entry_no_longer_waits(counted: Counted, length: int) -> None:
    counted.stream.add(10)
    counted.stream.deliver(5)
    await counted.count()
    counted.stream.trim(length)
    assert await counted.count() == counted.stream.waiting


async def test_what_was_delivered_and_trimmed_between_two_counts_no_longer_waits(counted: Counted) -> None:
    """The ordinary life of an input whose settled entries are trimmed."""
    counted.stream.add(10)
    counted.stream.deliver(5)
    await counted.count()
    counted.stream.deliver(3)
    counted.stream.trim(3)
    assert await counted.count() == 2


async def test_a_stream_that_began_anew_before_anything_was_delivered_is_counted_anew(counted: Counted) -> None:
    counted.stream.add(5)
    await counted.count()
    fresh = counted.stream = MemoryStream()
    counted.backlog._count_after._redis = cast("Redis", fresh)
    fresh.added = (100, 0)  # ids are made of the time
    fresh.add(7)
    assert await counted.count() == 7


class History(RuleBasedStateMachine):
    """What may happen to a stream, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = Counted()

    @rule(count=st.integers(1, 4), later=st.booleans())
    def add(self, count: int, *, later: bool) -> None:
        self.counted.stream.add(count, later=later)

    @rule(count=st.integers(1, 4))
    def deliver(self, count: int) -> None:
        self.counted.stream.deliver(count)

    @rule(share=st.floats(0, 1, exclude_max=True))
    @precondition(lambda self: bool(self.counted.stream.entries))
    def delete(self, share: float) -> None:
        entries = self.counted.stream.entries
        self.counted.stream.delete(entries[int(share * len(entries))])

    @rule(share=st.floats(0, 1))
    def trim(self, share: float) -> None:
        self.counted.stream.trim(int(share * len(self.counted.stream.entries)))

    @rule()
    def count(self) -> None:
        """Count; as a rule of its own, so that several things happen between two counts."""
        counting = self.counted.count()
        with pytest.raises(StopIteration) as returned:
            counting.send(None)
        assert returned.value.value == self.counted.stream.waiting


def test_the_count_is_exact_whatever_happened_since_the_last() -> None:
    quiet = settings(deadline=None, database=None, max_examples=40, stateful_step_count=20)
    run_state_machine_as_test(History, settings=quiet)
