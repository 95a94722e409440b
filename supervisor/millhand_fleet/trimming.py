"""Trimming by hand: finished input, as the janitor does by itself, and records of the output that nobody needs."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from redis import exceptions

from millhand.stream import Script
from millhand_fleet.following import BEGINNING, SEQUENCE_MAX, before

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from millhand.keys import Keys

PIECE = 1000  # entries a call, so that the server is never held up for long
RECORDS = 100  # a call, each of which is looked at


async def trim(redis: "Redis", keys: "Keys", keep_s: float, tell: Callable[[int], None]) -> int:
    """Delete finished entries that are older; return how many. Tells after each piece. Raises RedisError."""
    script = Script(redis, "trim")
    trimmed = 0
    while piece := await script(keys=[keys.input, keys.totals, keys.closed], args=[keep_s * 1000, PIECE]):
        trimmed += piece
        tell(trimmed)
    return trimmed


async def foresee(redis: "Redis", keys: "Keys", keep_s: float) -> int:
    """Return how many entries `trim` would delete now. Raises RedisError."""
    first_kept = await _first_kept(redis, keys, keep_s)
    if first_kept is None:
        return 0
    script, after, total = Script(redis, "count_after"), BEGINNING, 0
    until = before(_spelled(first_kept))
    while True:
        count, last = await script(keys=[keys.input], args=[after, until, PIECE])
        if not count:
            return total
        total, after = total + count, last.decode()


async def trim_output(redis: "Redis", keys: "Keys", keep_s: float, tell: Callable[[int], None]) -> int:
    """Delete older records whose events have left the input, and that every group has acknowledged; likewise."""
    script, trimmed = Script(redis, "trim_output"), 0
    while piece := (await script(keys=[keys.output, keys.input], args=[keep_s * 1000, RECORDS, ""]))[0]:
        trimmed += piece
        tell(trimmed)
    return trimmed


async def foresee_output(redis: "Redis", keys: "Keys", keep_s: float) -> int:
    """Return how many records `trim_output` would delete now. Raises RedisError."""
    script, after, total = Script(redis, "trim_output"), BEGINNING, 0
    while True:
        count, last = await script(keys=[keys.output, keys.input], args=[keep_s * 1000, RECORDS, after])
        if not count:
            return total
        total, after = total + count, last.decode()


async def _first_kept(redis: "Redis", keys: "Keys", keep_s: float) -> tuple[int, int] | None:
    """Return the first id that trim.lua keeps; None where there is no stream, or no group reads it."""
    try:
        groups: Any = await redis.xinfo_groups(keys.input)
    except exceptions.ResponseError as error:
        if "no such key" in str(error):
            return None
        raise
    if not groups:
        return None
    clock: Any = await redis.time()
    kept = (max(0, int(clock[0] * 1000 + clock[1] // 1000 - keep_s * 1000)), 0)
    for group in groups:
        kept = min(kept, _after(_id(group["last-delivered-id"])))
        pending: Any = await redis.xpending(keys.input, group["name"])
        if pending["pending"]:
            kept = min(kept, _id(pending["min"]))
    return kept


def _id(spelled: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = spelled.decode().partition("-")
    return int(milliseconds), int(sequence)


def _after(entry_id: tuple[int, int]) -> tuple[int, int]:
    return (entry_id[0], entry_id[1] + 1) if entry_id[1] < SEQUENCE_MAX else (entry_id[0] + 1, 0)


def _spelled(entry_id: tuple[int, int]) -> str:
    return f"{entry_id[0]}-{entry_id[1]}"
