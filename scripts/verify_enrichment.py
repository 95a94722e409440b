"""Prove the enrichment rate from the streams themselves.

Reads input, output and dead letters whole, and prints one JSON object. Exit code 0 if events were enriched, at the
rate asked for, and none of them twice; 1 with the reason otherwise; 69 if Redis does not answer.

    python scripts/verify_enrichment.py --redis-url redis://127.0.0.1:6379/0 --fleet events
"""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec
from redis import exceptions

from millhand.event import DATA, ENRICHMENT
from millhand.keys import Keys
from millhand.stream import RedisError, connect
from millhand.tasks.task import META
from millhand_fleet.ctl.settings import EX_UNAVAILABLE, leave, load_config, redis_url

PAGE = 1000


class Report(msgspec.Struct):
    """What the streams hold. Events are counted by the id of their raw entry."""

    enriched_count: int  # events with a valid enrichment in the output
    dead_letter_count: int  # events among the dead letters
    input_count: (
        int  # events ever seen: in the input, or named by a record although trimmed from it; less the following
    )
    superseded_count: (
        int  # entries that repeat an event_id, or came back as new entries when their dead letter was requeued
    )
    pending_count: int  # delivered, not settled
    undelivered_count: int  # neither settled nor delivered
    enrichment_rate: float  # enriched_count / input_count
    duplicates: int  # records beyond the first for one event, output and dead letters together
    invalid_records: int  # output entries without a readable enrichment
    dead_letter_reasons: dict[str, int]
    passed: bool = False
    reasons: list[str] = []


@click.command()
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False), envvar="MILLHAND_CONFIG")
@click.option("--redis-url", "url", help="Default: the configuration's; a running embedded one is found.")
@click.option("--fleet", help="The fleet's name, from which the streams are named.")
@click.option("--input", "input_stream", help="The input stream, if it has a name of its own.")
@click.option("--output", "output_stream", help="The output stream, likewise.")
@click.option("--dead-letter", "dead_letter_stream", help="The dead-letter stream, likewise.")
@click.option("--group", help="The consumer group, likewise.")
@click.option("--min-rate", type=click.FloatRange(0, 1), default=0.95, show_default=True)
def main(file: Path | None, url: str | None, min_rate: float, **names: str | None) -> None:
    """Prove the enrichment rate from the streams themselves."""
    fleet = names.pop("fleet")
    flags = {"fleet.name": fleet, **{f"redis.{name}": value for name, value in names.items()}}
    config = load_config(file, {**flags, "redis.url": url})
    try:
        report = asyncio.run(verify(redis_url(config), Keys.of(config), min_rate))
    except exceptions.ResponseError as error:
        leave(f"the streams cannot be read: {error}", "see --input, --output, --dead-letter and --group")
    except RedisError as error:
        leave(f"Redis does not answer: {error}", "see --redis-url", code=EX_UNAVAILABLE)
    click.echo(msgspec.json.encode(report).decode())
    if not report.passed:
        click.echo("not proven: " + "; ".join(report.reasons), err=True)
        sys.exit(1)


async def verify(url: str, keys: Keys, min_rate: float) -> Report:
    """Read the streams and judge them. Raises RedisError."""
    redis = connect(url)
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
    totals = await redis.hmget(keys.totals, ["skipped", "requeued"])
    await redis.aclose()
    superseded = sum(int(total or 0) for total in totals)
    return judge(
        inputs, written, buried,
        pending=pending, superseded=superseded, invalid=invalid, why=why, min_rate=min_rate,
    )  # fmt: skip


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


async def _pending(redis: Any, keys: Keys) -> int:
    try:
        summary = await redis.xpending(keys.input, keys.group)
    except exceptions.ResponseError as error:
        if str(error).startswith("NOGROUP"):
            return 0
        raise
    return int(summary["pending"])


if __name__ == "__main__":
    main()
