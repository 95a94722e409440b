"""worker-ctl verify: whether the events were enriched, proven from the streams themselves."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from redis import exceptions
from rich.console import Console

from millhand.config import Config
from millhand.keys import Keys
from millhand.remedy import remedy_for
from millhand.stream import RedisError, connect
from millhand_fleet.ctl.settings import EX_UNAVAILABLE, leave, load_config, redis_url
from millhand_fleet.ctl.visible import visible
from millhand_fleet.proof import Report, is_settled, prove

if TYPE_CHECKING:
    from redis.asyncio import Redis

POLL_S = 0.2
MIN_RATE = click.option(
    "--min-rate", type=click.FloatRange(0, 1), default=0.95, show_default=True, help="The share that must be enriched."
)
EX_NOT_PROVEN = 1


@click.command()
@MIN_RATE
@click.option(
    "--wait", "wait_s", type=click.FloatRange(0, 86_400), default=0, metavar="SECONDS",
    help="First wait until every event is settled, for so long at most.",
)  # fmt: skip
@click.option("--json", is_flag=True, help="The same as one JSON object.")
@click.pass_obj
def verify(file: Path | None, *, min_rate: float, wait_s: float, json: bool) -> None:
    """Prove the enrichment rate from the streams.

    Input, output and dead letters are read whole, and each event is counted once.

    Exit code 0 if events were enriched, at the rate asked for, and none of them twice; 1 with the reason otherwise; 69
    if Redis does not answer; 78 if the streams cannot be read.

    \b
    Examples: worker-ctl verify --min-rate 0.95
              worker-ctl verify --wait 60 --json | jq .enrichment_rate
    """  # noqa: D301 - click's own mark
    report = proven(load_config(file), min_rate, wait_s)
    for line in [as_json(report)] if json else lines(report):
        click.echo(line)
    if not report.passed:
        sys.exit(EX_NOT_PROVEN)


def proven(config: Config, min_rate: float, wait_s: float = 0.0) -> Report:
    """Read the streams and judge them; leave where they cannot be read."""

    async def work(redis: "Redis") -> Report:
        keys = Keys.of(config)
        if wait_s:
            with Console(stderr=True, highlight=False).status("waiting until every event is settled"):
                await _until_settled(lambda: is_settled(redis, keys), wait_s)
        return await prove(redis, keys, min_rate)

    async def life() -> Report:
        redis = connect(redis_url(config))
        try:
            return await work(redis)
        finally:
            await redis.aclose()

    try:
        return asyncio.run(life())
    except exceptions.ResponseError as error:
        leave(f"the streams cannot be read: {error}", "see the names of the streams in [redis], and redis.group")
    except RedisError as error:
        leave(f"Redis does not answer: {error}", remedy_for(error), code=EX_UNAVAILABLE)


def as_json(report: Report) -> str:
    """Return a report as one JSON object."""
    return msgspec.json.encode(report).decode()


def lines(report: Report) -> Iterator[str]:
    """Yield a report as lines for a person."""
    yield f"events        {report.input_count}"
    yield f"enriched      {report.enriched_count} ({report.enrichment_rate:.2%})"
    why = ", ".join(f"{visible(name.encode())} {count}" for name, count in report.dead_letter_reasons.items())
    yield f"dead letters  {report.dead_letter_count}" + (f" ({why})" if why else "")
    waiting = report.pending_count + report.undelivered_count
    if waiting:
        yield f"waiting       {waiting} ({report.pending_count} delivered, {report.undelivered_count} not yet)"
    if report.superseded_count:
        yield f"superseded    {report.superseded_count} (repetitions, and what was requeued)"
    yield f"doubled       {report.duplicates}"
    yield "proven" if report.passed else "not proven: " + "; ".join(report.reasons)


async def _until_settled(so: Callable[[], Awaitable[bool]], wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline and not await so():  # noqa: ASYNC110 - Redis has no event for it
        await asyncio.sleep(POLL_S)
