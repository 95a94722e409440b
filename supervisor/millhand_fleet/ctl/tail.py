"""worker-ctl tail: enriched events, as they come."""

import asyncio
import re
import sys
from collections.abc import Callable
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
from millhand_fleet.ctl.records import Outputs, json_line, line
from millhand_fleet.ctl.selecting import UNITS_S, age
from millhand_fleet.ctl.settings import EX_UNAVAILABLE, leave, load_config, redis_url
from millhand_fleet.following import BEGINNING, Entry, ago, before, follow, newest

if TYPE_CHECKING:
    from redis.asyncio import Redis

START, NOW = "start", "now"
WIDTH_OFF_TERMINAL = 1000


class Order(msgspec.Struct, frozen=True):
    """What is to be followed: from where, how many entries, and whether dead letters too and for ever."""

    place: str
    count: int | None
    with_dead: bool
    ends: bool


def beginning(value: str) -> str:
    """Check that this may be where following begins."""
    if value in {START, NOW} or re.fullmatch(r"[0-9]{1,20}-[0-9]{1,20}", value):
        return value
    if re.fullmatch(rf"[0-9]+[{''.join(UNITS_S)}]", value):
        age(value)
        return value
    raise click.BadParameter(
        f"{value!r} is neither `start`, nor an id such as 1763892381190-0, nor an age such as 10m."
    )


@click.command()
@click.option(
    "--from", "place", type=beginning, default=NOW, show_default=True, metavar="start|ID|AGE",
    help="Begin with the first there is, with this entry, or with what is so young: 90s, 10m, 2h.",
)  # fmt: skip
@click.option("--count", type=click.IntRange(1), help="End after so many.")
@click.option("--dead", "with_dead", is_flag=True, help="Dead letters too.")
@click.option("--no-follow", "ends", is_flag=True, help="End where there is nothing more yet.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, the whole event in it.")
@click.pass_obj
def tail(
    file: Path | None, *, place: str, count: int | None, with_dead: bool, ends: bool, as_json: bool
) -> None:  # fmt: skip
    """Follow the enriched events.

    A line each: when, id, what each task said, and the event's text. A restart of Redis is waited for, and said on
    standard error.

    Exit code 0 at the end of --count or --no-follow; 69 if Redis does not answer at the start; 78 if it refuses; 130
    after Ctrl-C.

    \b
    Examples: worker-ctl tail --dead
              worker-ctl tail --from 10m --no-follow --json | jq .data.id
    """  # noqa: D301 - click's own mark
    config, order = load_config(file), Order(place, count, with_dead, ends)
    _, enriched, dead_letter = config.stream_names()
    outputs = Outputs(enriched, dead_letter, config.enrich.text_fields)
    if as_json:
        _run(config, order, lambda entry: click.echo(json_line(entry, outputs)))
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_OFF_TERMINAL)

    def show(entry: Entry) -> None:
        console.print(line(entry, outputs, console.width), no_wrap=True, overflow="ellipsis", crop=True)

    _run(config, order, show)


def _run(config: Config, order: Order, take: Callable[[Entry], None]) -> None:
    """Take each entry; leave where Redis refuses, or is not there."""
    url = redis_url(config)

    async def life() -> None:
        redis = connect(url)
        try:
            await _follow(redis, Keys.of(config), order, take)
        finally:
            await redis.aclose()

    try:
        asyncio.run(life())
    except exceptions.ResponseError as error:
        leave(f"Redis refuses: {error}", "see the names of the streams in [redis], and the rights of its user")
    except BrokenPipeError:
        raise
    except RedisError as error:
        leave(f"Redis does not answer: {error}", remedy_for(error), code=EX_UNAVAILABLE)


async def _follow(redis: "Redis", keys: Keys, order: Order, take: Callable[[Entry], None]) -> None:
    streams = [keys.output, keys.dead_letter] if order.with_dead else [keys.output]
    places = {stream: await _begin(redis, stream, order.place) for stream in streams}
    taken = 0
    async for entry in follow(redis, places, lambda news: click.echo(news, err=True), ends=order.ends):
        take(entry)
        taken += 1
        if taken == order.count:
            return


async def _begin(redis: "Redis", stream: str, where: str) -> str:
    if where == START:
        return BEGINNING
    if where == NOW:
        return await newest(redis, stream)
    return before(where) if "-" in where else await ago(redis, age(where))
