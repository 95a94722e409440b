"""Following output streams: every entry from a place on, as it is written, also past a restart of Redis."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from redis import exceptions

from millhand.stream import RedisError, is_stale

if TYPE_CHECKING:
    from redis.asyncio import Redis

BEGINNING = "0-0"
PAGE = 100  # entries of a stream a round trip
BLOCK_MS = 1000  # below the client's time-out
PAUSE_S = 0.5  # before Redis is asked again
SEQUENCE_MAX = 2**64 - 1


class Entry(NamedTuple):
    """An entry, and the stream that it stands in."""

    stream: str
    id: str
    fields: dict[bytes, bytes]


async def newest(redis: "Redis", stream: str) -> str:
    """Return the last id that a stream has given, so that following begins behind it. Raises RedisError."""
    try:
        info: Any = await redis.xinfo_stream(stream)
    except exceptions.ResponseError as error:
        if "no such key" in str(error):
            return BEGINNING
        raise
    return str(info["last-generated-id"].decode())


async def ago(redis: "Redis", age_s: float) -> str:
    """Return the place of so long ago, by Redis's clock. Raises RedisError."""
    clock: Any = await redis.time()
    return before(f"{max(0, clock[0] * 1000 + clock[1] // 1000 - round(age_s * 1000))}-0")


def before(entry_id: str) -> str:
    """Return the place from which an entry is the next: following begins behind an id."""
    milliseconds, sequence = (int(part) for part in entry_id.split("-"))
    if sequence:
        return f"{milliseconds}-{sequence - 1}"
    return f"{milliseconds - 1}-{SEQUENCE_MAX}" if milliseconds else BEGINNING


async def follow(
    redis: "Redis", places: Mapping[str, str], tell: Callable[[str], None], *, ends: bool = False
) -> AsyncGenerator[Entry, None]:
    """Yield the entries behind these places, for ever; with `ends` until there is none left.

    Tells when Redis goes away and when it is back. Raises RedisError where it refuses, or was never there.
    """
    behind: dict[Any, Any] = dict(places)
    met = away = False
    while True:
        _heed_cancelling()
        try:
            reply: Any = await redis.xread(behind, count=PAGE, block=None if ends else BLOCK_MS)
        except RedisError as error:
            if not met or ends or _is_refusal(error):
                raise
            if not away:
                tell(f"Redis does not answer, waiting for it: {error}")
            away = True
            if is_stale(error):
                await redis.connection_pool.disconnect()
            await asyncio.sleep(PAUSE_S)
            continue
        if away:
            tell("Redis is back")
        met, away = True, False
        if ends and not reply:
            return
        for entry in _in_order(reply or ()):
            behind[entry.stream] = entry.id
            yield entry


def _heed_cancelling() -> None:
    """Be cancelled, if that was asked for and lost: before Python 3.12, asyncio's wait_for under the client may."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _in_order(reply: Any) -> list[Entry]:
    """Return the entries by their ids, up to where each stream is known: behind a full page there may be more."""
    pages = [[Entry(key.decode(), name.decode(), fields) for name, fields in rows] for key, rows in reply]
    known = min((_order(page[-1].id) for page in pages if len(page) == PAGE), default=(SEQUENCE_MAX, SEQUENCE_MAX))
    entries = [entry for page in pages for entry in page if _order(entry.id) <= known]
    return sorted(entries, key=lambda entry: _order(entry.id))


def _is_refusal(error: BaseException) -> bool:
    """Whether waiting cures nothing: no right, no stream."""
    refused = isinstance(error, exceptions.ResponseError) and not isinstance(error, exceptions.ReadOnlyError)
    return refused or isinstance(error, exceptions.AuthenticationError)


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)
