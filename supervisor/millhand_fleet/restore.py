"""A consumer group that is not there: create it, or put it back so that nothing is lost and nothing done twice.

A group that never was begins at 0, since what stands in the stream is work. One that vanished (XGROUP DESTROY) is put
back by the records: nobody can settle anything while there is no group, so they say exactly what is still to be done.
"""

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from redis import exceptions

from millhand.event import DATA, is_merged_from
from millhand.keys import Keys
from millhand.stream import Script

if TYPE_CHECKING:
    from redis.asyncio import Redis

PAGE = 200
HOLES_MAX = 50_000  # ids in one call; behind the last of them all is read anew
BEGINNING = "0-0"

Fields = Mapping[bytes, bytes]


class Restored(msgspec.Struct, frozen=True):
    """A group that was created."""

    start: str  # its last delivered id
    kept: int = 0  # entries up to it that had no record yet
    vanished: bool = False  # there had been one before
    lost: int = 0  # parked events that somebody had deleted from the stream: the pending list alone knew of them


async def restore_group(redis: "Redis", keys: Keys) -> Restored | None:
    """Create the group if it is not there, and the stream; None if it is. Raises RedisError."""
    if await _exists(redis, keys):
        return None
    vanished = bool(await redis.hexists(keys.totals, f"group:{keys.group}"))
    start, holes = await _place(redis, keys) if vanished else (BEGINNING, [])
    lost = await _forget_deleted(redis, keys)
    answer = await Script(redis, "restore_group")(
        keys=[keys.input, keys.parked, keys.totals], args=[keys.group, start, *holes]
    )
    return Restored(start, len(holes), vanished, lost) if answer == b"ok" else None


async def _forget_deleted(redis: "Redis", keys: Keys) -> int:
    """Forget the attempts on what is deleted: nobody will ever settle it. Return how much of it was parked."""
    parked: Any = await redis.zrange(keys.parked, 0, -1)
    attempts: Any = await redis.hgetall(keys.attempts)
    ids = list({*parked, *attempts})
    async with redis.pipeline(transaction=False) as pipeline:
        for entry_id in ids:
            pipeline.xrange(keys.input, entry_id, entry_id)
        found = await pipeline.execute()
    deleted = [entry_id for entry_id, entry in zip(ids, found, strict=True) if not entry]
    if deleted:
        await redis.hdel(keys.attempts, *deleted)
    return len(set(parked).intersection(deleted))


async def _exists(redis: "Redis", keys: Keys) -> bool:
    try:
        groups = await redis.xinfo_groups(keys.input)
    except exceptions.ResponseError as error:
        if "no such key" in str(error):
            return False
        raise
    return any(group["name"] == keys.group.encode() for group in groups)


async def _place(redis: "Redis", keys: Keys) -> tuple[str, list[bytes]]:
    """Return the id up to which each entry of the input either has a record or is among the ids returned with it."""
    records = await _records(redis, keys)
    last_closed: Any = await redis.zrevrange(keys.closed, 0, 0)
    newest = max(map(_order, [*records, *last_closed]), default=(0, 0))
    start, holes = BEGINNING, list[bytes]()
    async for page in _pages(redis, keys.input):
        known = [entry for entry in page if _order(entry[0]) <= newest]
        done = await _are_done(redis, keys, known, records)
        for (entry_id, _), is_done in zip(known, done, strict=True):
            if len(holes) == HOLES_MAX:
                return start, holes
            start = entry_id.decode()
            if not is_done:
                holes.append(entry_id)
        if len(known) < len(page):
            break
    return start, holes


async def _records(redis: "Redis", keys: Keys) -> dict[bytes, tuple[str, bytes]]:
    """Return where the record of each source id stands."""
    found: dict[bytes, tuple[str, bytes]] = {}
    for stream in (keys.output, keys.dead_letter):
        async for page in _pages(redis, stream):
            found |= {fields[b"src"]: (stream, record_id) for record_id, fields in page if b"src" in fields}
    return found


async def _are_done(
    redis: "Redis", keys: Keys, entries: list[tuple[bytes, Fields]], records: Mapping[bytes, tuple[str, bytes]]
) -> list[bool]:
    """Return which entries have a record, or need none: repetitions, requeued and dropped dead letters."""
    if not entries:
        return []
    closed: Any = await redis.zmscore(keys.closed, [entry_id.decode() for entry_id, _ in entries])
    have_records = await _have_records(redis, entries, records)
    return [score is not None or has_record for score, has_record in zip(closed, have_records, strict=True)]


async def _have_records(
    redis: "Redis", entries: list[tuple[bytes, Fields]], records: Mapping[bytes, tuple[str, bytes]]
) -> list[bool]:
    """Return which entries' records are theirs: an id alone may be that of another stream's, or of an earlier life."""
    async with redis.pipeline(transaction=False) as pipeline:
        for entry_id, _ in entries:
            stream, record_id = records.get(entry_id, ("", b""))
            if stream:
                pipeline.xrange(stream, record_id, record_id)
        fetched = iter(await pipeline.execute())
    found = []
    for entry_id, fields in entries:
        record = next(fetched)[0][1] if entry_id in records else None
        found.append(record is not None and _is_record_of(record, fields))
    return found


def _is_record_of(record: Fields, fields: Fields) -> bool:
    if b"failure_reason" not in record:
        return is_merged_from(record.get(DATA, b""), fields.get(DATA, b""))
    return b"original_msgpack" in record or all(record.get(name) == fields[name] for name in fields.keys() & {DATA})


async def _pages(redis: "Redis", stream: str) -> AsyncIterator[list[tuple[bytes, Fields]]]:
    after = "-"
    while True:
        page: Any = await redis.xrange(stream, after, "+", PAGE)
        if not page:
            return
        yield page
        after = "(" + page[-1][0].decode()


def _order(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence)
