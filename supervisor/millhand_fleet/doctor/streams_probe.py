"""Asks Redis about the fleet's keys. Reads only."""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from redis import exceptions

from millhand.keys import PARKED_CONSUMER, Keys
from millhand.stream import connect
from millhand_fleet.backlog import Backlog
from millhand_fleet.doctor.facts import Consumer, Pending, StreamFacts
from millhand_fleet.doctor.setup import Setup
from millhand_fleet.janitor import consumer_prefix

if TYPE_CHECKING:
    from redis.asyncio import Redis

COUNT_S = 4.0  # for counting the backlog
HOLDERS_ASKED_MAX = 50
ABANDONED_LEASES = 2
LENGTHS = {"stream": "XLEN", "hash": "HLEN", "zset": "ZCARD"}
TYPES = {
    "input": "stream", "output": "stream", "dead_letter": "stream", "parked": "zset", "attempts": "hash",
    "redrives": "hash", "closed": "zset", "totals": "hash", "gate": "hash", "permits": "zset", "answers": "hash",
    "answer_times": "zset",
}  # fmt: skip


async def ask_streams(setup: Setup) -> StreamFacts:
    """Return what stands in the fleet's keys. Raises RedisError."""
    keys, config = Keys.of(setup.config), setup.config
    redis = connect(setup.redis_url)
    try:
        facts = await _lengths(redis, keys, setup)
        wrong = {key for key, _ in facts.wrong_types}
        if facts.input_exists and keys.input not in wrong:
            facts = await _group(redis, keys, facts)
        if facts.group_exists and keys.input not in wrong:
            facts = await _pending(redis, keys, facts, config.delivery.lease_s)
        return facts
    finally:
        await redis.aclose()


async def _lengths(redis: "Redis", keys: Keys, setup: Setup) -> StreamFacts:
    lengths: dict[str, int | None] = {name: await _length(redis, getattr(keys, name), TYPES[name]) for name in TYPES}
    wrong = tuple((str(getattr(keys, name)), TYPES[name]) for name, length in lengths.items() if length is None)
    totals: dict[Any, Any] = await redis.hgetall(keys.totals) if lengths["totals"] else {}
    return StreamFacts(
        input=keys.input,
        output=keys.output,
        dead_letter=keys.dead_letter,
        group=keys.group,
        is_running=setup.is_running,
        lease_s=setup.config.delivery.lease_s,
        host_prefix=consumer_prefix(),
        wrong_types=wrong,
        input_exists=bool(await redis.exists(keys.input)),
        group_exists=False,
        totals={name.decode(): int(value) for name, value in totals.items()},
        output_length=lengths["output"] or 0,
        dead_length=lengths["dead_letter"] or 0,
    )


async def _length(redis: "Redis", key: str, kind: str) -> int | None:
    """Return a key's length, 0 where there is none, None where it is of another kind. TYPE needs a right of its own."""
    try:
        return int(await redis.execute_command(LENGTHS[kind], key))  # type: ignore[no-untyped-call]
    except exceptions.ResponseError as error:
        if str(error).startswith("WRONGTYPE"):
            return None
        raise


async def _group(redis: "Redis", keys: Keys, facts: StreamFacts) -> StreamFacts:
    info: dict[str, Any] = await redis.xinfo_stream(keys.input)
    groups: list[dict[str, Any]] = await redis.xinfo_groups(keys.input)
    own = next((row for row in groups if row["name"] == keys.group.encode()), None)
    delivered = own["last-delivered-id"].decode() if own else "0-0"
    backlog = None
    with suppress(TimeoutError):
        async with asyncio.timeout(COUNT_S):
            backlog = await Backlog(redis, keys.input).count(delivered, info)
    waiting: Any = await redis.xrange(keys.input, min=f"({delivered}", count=1)
    oldest_s = None
    if waiting:
        seconds, _ = await redis.time()
        oldest_s = max(0.0, seconds - int(waiting[0][0].partition(b"-")[0]) / 1000)
    return msgspec.structs.replace(
        facts,
        group_exists=own is not None,
        other_groups=tuple(row["name"].decode(errors="replace") for row in groups if row is not own),
        length=info["length"],
        last_delivered=delivered,
        max_deleted=_id(info.get("max-deleted-entry-id", "0-0")),
        backlog=backlog,
        oldest_waiting_s=oldest_s,
        pending=own["pending"] if own else 0,
    )


async def _pending(redis: "Redis", keys: Keys, facts: StreamFacts, lease_s: float) -> StreamFacts:
    rows: list[dict[str, Any]] = await redis.xinfo_consumers(keys.input, keys.group)
    consumers = tuple(
        Consumer(row["name"].decode(errors="replace"), row["pending"], row["idle"] / 1000) for row in rows
    )
    holders = [row["name"] for row in rows if row["pending"] and row["name"] != PARKED_CONSUMER.encode()]
    abandoned: list[Pending] = []
    for holder in holders[:HOLDERS_ASKED_MAX]:
        idle_ms = round(ABANDONED_LEASES * lease_s * 1000)
        abandoned += await _range(redis, keys, consumername=holder, idle=idle_ms)
    oldest = await _range(redis, keys)
    parked = sum(one.pending for one in consumers if one.name == PARKED_CONSUMER)
    return msgspec.structs.replace(
        facts,
        consumers=consumers,
        parked=parked,
        oldest_pending=oldest[0] if oldest else None,
        abandoned=tuple(abandoned),
    )


async def _range(redis: "Redis", keys: Keys, **choice: Any) -> list[Pending]:
    rows: list[dict[str, Any]] = await redis.xpending_range(keys.input, keys.group, min="-", max="+", count=1, **choice)
    return [
        Pending(
            row["message_id"].decode(),
            row["consumer"].decode(errors="replace"),
            row["time_since_delivered"] / 1000,
            row["times_delivered"],
        )
        for row in rows
    ]


def _id(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
