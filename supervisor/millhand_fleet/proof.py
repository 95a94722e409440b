"""Proving the enrichment rate from the streams themselves: what they hold, and whether that is enough."""

from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from redis import exceptions

from millhand.event import DATA, ENRICHMENT
from millhand.tasks.task import META

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from millhand.keys import Keys

PAGE = 1000


class Report(msgspec.Struct):
    """What the streams hold. Events are counted by the id of their raw entry."""

    enriched_count: int  # events with a valid enrichment in the output
    dead_letter_count: int  # events among the dead letters
    input_count: int  # ever seen: in the input, or named by a record although trimmed from it; less the following
    superseded_count: int  # that repeat an event_id, or came back as new entries when their dead letter was requeued
    pending_count: int  # delivered, not settled
    undelivered_count: int  # neither settled nor delivered
    enrichment_rate: float  # enriched_count / input_count
    duplicates: int  # records beyond the first for one event, output and dead letters together
    invalid_records: int  # output entries without a readable enrichment
    dead_letter_reasons: dict[str, int]
    passed: bool = False
    reasons: list[str] = []


async def prove(redis: "Redis", keys: "Keys", min_rate: float) -> Report:
    """Read the streams and judge them. Raises RedisError."""
    inputs = {entry_id async for entry_id, _ in _entries(redis, keys.input)}
    written: Counter[str] = Counter()
    invalid = 0
    async for entry_id, fields in _entries(redis, keys.output):
        if is_enriched(fields):
            written[fields.get(b"src", entry_id.encode()).decode()] += 1
        else:
            invalid += 1
    buried: Counter[str] = Counter()
    why: Counter[str] = Counter()
    async for entry_id, fields in _entries(redis, keys.dead_letter):
        buried[fields.get(b"src", entry_id.encode()).decode()] += 1
        why[fields.get(b"failure_reason", b"none given").decode(errors="replace")] += 1
    pending = await _pending(redis, keys)
    totals: Any = await redis.hmget(keys.totals, ["skipped", "requeued"])
    superseded = sum(int(total or 0) for total in totals)
    return judge(
        inputs, written, buried,
        pending=pending, superseded=superseded, invalid=invalid, why=why, min_rate=min_rate,
    )  # fmt: skip


async def is_settled(redis: "Redis", keys: "Keys") -> bool:
    """Whether the group has been given every event, and has done with each. Raises RedisError."""
    info: Any = await redis.xinfo_stream(keys.input)
    groups: Any = await redis.xinfo_groups(keys.input)
    group = next((row for row in groups if row["name"] == keys.group.encode()), None)
    return group is not None and not group["pending"] and group["last-delivered-id"] == info["last-generated-id"]


def judge(
    inputs: Collection[str],
    written: Mapping[str, int],
    buried: Mapping[str, int],
    *,
    pending: int,
    superseded: int,
    invalid: int,
    why: Mapping[str, int],
    min_rate: float,
) -> Report:
    """Judge what the streams hold. Every event counts, settled or not, so that nothing hopeless can hide.

    `superseded` is how many entries have been acknowledged because another one stands for the same event; those that
    were trimmed meanwhile are no longer there to be left out.
    """
    known = set(inputs) | set(written) | set(buried)
    settled = set(written) | set(buried)
    unsettled = len(known) - len(settled) - pending
    superseded = min(superseded, max(0, unsettled))
    events = len(known) - superseded
    rate = len(written) / events if events else 0.0
    report = Report(
        enriched_count=len(written),
        dead_letter_count=len(buried),
        input_count=events,
        superseded_count=superseded,
        pending_count=pending,
        undelivered_count=max(0, unsettled - superseded),
        enrichment_rate=round(rate, 6),
        duplicates=sum(written.values()) + sum(buried.values()) - len(settled),
        invalid_records=invalid,
        dead_letter_reasons=dict(why),
    )
    if not report.enriched_count:
        report.reasons.append("no event was enriched" if events else "the streams are empty, or have other names")
    elif rate < min_rate:
        report.reasons.append(f"the enrichment rate {report.enrichment_rate:.4f} is below {min_rate:g}")
    if report.duplicates:
        report.reasons.append(f"{report.duplicates} records beyond one for each event")
    if report.invalid_records:
        report.reasons.append(f"{report.invalid_records} output entries hold no readable enrichment")
    report.passed = not report.reasons
    return report


def is_enriched(fields: Mapping[bytes, bytes]) -> bool:
    """Whether an output entry holds an object with at least one task's result in `ai_enrichment`."""
    try:
        enrichment = msgspec.json.decode(fields[DATA])[ENRICHMENT]
    except (KeyError, TypeError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(enrichment, dict) and bool(set(enrichment) - {META})


async def _entries(redis: Any, stream: str) -> AsyncIterator[tuple[str, dict[bytes, bytes]]]:
    """Yield a stream's entries, page by page."""
    start = "-"
    while page := await redis.xrange(stream, min=start, max="+", count=PAGE):
        for entry_id, fields in page:
            yield entry_id.decode(), fields
        start = "(" + page[-1][0].decode()


async def _pending(redis: Any, keys: "Keys") -> int:
    try:
        summary = await redis.xpending(keys.input, keys.group)
    except exceptions.ResponseError as error:
        if str(error).startswith("NOGROUP"):
            return 0
        raise
    return int(summary["pending"])
