"""Reading records out of output streams, to compare them: two of them, two runs, or one run in itself."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from millhand_fleet.comparison import Comparison, Ledger, Record, Repeats, Runs, Side, compare, digest_of, parse

if TYPE_CHECKING:
    from redis.asyncio import Redis

PAGE = 100  # entries, each of which may have enrich.event_bytes_max
OF_SOURCE = "src:"  # before the id of a raw entry, where its record is meant

Page = list[tuple[bytes, dict[bytes, bytes]]]


class NotThere(Exception):
    """There is no such entry or stream; the second argument, if any, says what to do."""


class Report(msgspec.Struct, frozen=True):
    """What was counted, and the first differing pairs in full."""

    counted: Runs | Repeats
    unreadable: int  # entries that no fleet has written
    listed: list[Comparison]

    @property
    def is_equal(self) -> bool:
        """Whether every event is known to have got the same answer each time."""
        return self.counted.is_equal and not self.unreadable


async def two_records(redis: "Redis", stream: str, names: tuple[str, str]) -> Comparison:
    """Compare the records with two ids, or of two raw entries ("src:ID"). Raises NotThere, RedisError."""
    a, b = [await _record(redis, stream, name) for name in names]
    return compare(a, b)


async def two_runs(
    redis: "Redis", streams: tuple[str, str], limit: int, tell: Callable[[int], None], *, by_payload: bool
) -> Report:
    """Compare two streams as they are now, up to `limit` pairs in full; tells how many entries it has read.

    A page of each is read by turns, so that what agrees is soon forgotten. Raises NotThere, RedisError.
    """
    of_side = zip(Side, streams, strict=True)
    reading = {side: _pages(redis, stream, await _newest(redis, stream)) for side, stream in of_side}
    ledger = Ledger()
    unreadable = await _enter(ledger, reading, tell, by_payload=by_payload)
    counted = ledger.runs(limit)
    return Report(counted, unreadable, await _in_full(redis, streams, counted.pairs))


async def one_run(redis: "Redis", stream: str, limit: int, tell: Callable[[int], None]) -> Report:
    """Do likewise with the records of each event that has several in one stream, which may be empty."""
    ledger = Ledger()
    unreadable = await _enter(ledger, {Side.A: _pages(redis, stream)}, tell, by_payload=True)
    counted = ledger.repeats(limit)
    return Report(counted, unreadable, await _in_full(redis, (stream, stream), counted.pairs))


async def _enter(
    ledger: Ledger, reading: dict[Side, AsyncIterator[Page]], tell: Callable[[int], None], *, by_payload: bool
) -> int:
    """Read to the end, by turns a page of each; return how many entries were no records."""
    unreadable = entries = 0
    while reading:
        for side in list(reading):
            page: Page = await anext(reading[side], [])
            if not page:
                del reading[side]
            for record in _records(page):
                if record:
                    ledger.add(side, digest_of(record, by_payload=by_payload), record)
                unreadable += record is None
            entries += len(page)
            tell(entries)
    return unreadable


async def _in_full(redis: "Redis", streams: tuple[str, str], pairs: list[tuple[str, str]]) -> list[Comparison]:
    """Read pairs once more, and compare them; those that were trimmed meanwhile are left out."""
    found = []
    for a_id, b_id in pairs:
        a, b = await _at(redis, streams[0], a_id), await _at(redis, streams[1], b_id)
        if a and b:
            found.append(compare(a, b))
    return found


async def _record(redis: "Redis", stream: str, name: str) -> Record:
    if name.startswith(OF_SOURCE):
        return await _record_of(redis, stream, name.removeprefix(OF_SOURCE))
    if record := await _at(redis, stream, name):
        return record
    raise NotThere(f"there is no record {name} in {stream}", f"for that of a raw entry, give {OF_SOURCE}{name}")


async def _record_of(redis: "Redis", stream: str, source: str) -> Record:
    """Look for the record of a raw entry: it is younger, unless Redis's clock was put back, so the older come last."""
    for start, end in ((source, "+"), ("-", f"({source}")):
        async for page in _pages(redis, stream, end, start):
            for entry_id, fields in page:
                if fields.get(b"src") == source.encode() and (record := parse(entry_id.decode(), fields)):
                    return record
    raise NotThere(f"there is no record of {source} in {stream}", "`worker-ctl dead list` shows what was buried")


async def _at(redis: "Redis", stream: str, entry_id: str) -> Record | None:
    return next(_records(await _range(redis, stream, entry_id, entry_id)), None)


async def _newest(redis: "Redis", stream: str) -> str:
    """Return a stream's last id, so that one that is still written to has an end."""
    newest: Any = await redis.xrevrange(stream, count=1)
    if not newest:
        raise NotThere(f"there is no stream {stream}, or nothing in it")
    return str(newest[0][0].decode())


async def _pages(redis: "Redis", stream: str, end: str = "+", start: str = "-") -> AsyncIterator[Page]:
    while page := await _range(redis, stream, start, end):
        yield page
        start = "(" + page[-1][0].decode()


async def _range(redis: "Redis", stream: str, start: str, end: str) -> Page:
    page: Any = await redis.xrange(stream, min=start, max=end, count=PAGE)
    return list(page)


def _records(page: Page) -> Iterator[Record | None]:
    return (parse(entry_id.decode(), fields) for entry_id, fields in page)
