"""worker-ctl trim: the janitor's trim, now and by another age; and that of the output."""

import asyncio
import json
import math
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from redis import exceptions
from rich.console import Console

from millhand.config import Config
from millhand.keys import Keys
from millhand.remedy import remedy_for
from millhand.stream import RedisError, connect
from millhand_fleet.ctl.selecting import age
from millhand_fleet.ctl.settings import EX_UNAVAILABLE, leave, load_config, redis_url
from millhand_fleet.trimming import foresee, foresee_output, trim_output
from millhand_fleet.trimming import trim as trim_input

if TYPE_CHECKING:
    from redis.asyncio import Redis


INPUT, ENRICHED = "input", "enriched"
WHAT = {INPUT: "finished events", ENRICHED: "enriched records"}


@click.command()
@click.option(
    "--stream", "which", type=click.Choice([INPUT, ENRICHED]), default=INPUT, show_default=True,
    help="Which stream. Of dead letters: `worker-ctl dead drop`.",
)  # fmt: skip
@click.option("--older-than", metavar="AGE", type=age, help="Older than 90s, 10m, 2h, 3d.  [default: input.keep_s]")
@click.option("--dry-run", is_flag=True, help="Only say how many would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON object.")
@click.pass_obj
def trim(
    file: Path | None, *, which: str, older_than: float | None, dry_run: bool, yes: bool, as_json: bool
) -> None:  # fmt: skip
    """Delete old finished events from the input, or old records from the output, after asking.

    Finished is what every group that reads the stream has acknowledged. What waits, is in hand or is parked stays, and
    so does all that came after it. The janitor does the same by itself, once a finished event is as old as
    input.keep_s. Of the output nothing is ever deleted by itself: trim it where nobody else does. A record stays while
    its event stands in the input, and until every group that reads the output, if any, has acknowledged it.

    Where Redis has the users of conf/users.acl, the fleet's own may trim the input, and the operator's the output.

    Exit code 0; 1 if the answer is no; 69 if Redis does not answer; 78 if it refuses.

    \b
    Examples: worker-ctl trim --older-than 1h --dry-run
              worker-ctl trim --stream enriched --older-than 30d --yes
    """  # noqa: D301 - click's own mark
    if not (yes or dry_run or sys.stdin.isatty()):
        raise click.UsageError("There is nobody to ask whether to trim: give --yes.")
    config = load_config(file)
    if which == ENRICHED and older_than is None:
        raise click.UsageError("Say how old a record must be: --older-than 30d.")
    keep_s = config.input.keep_s if older_than is None else older_than
    if math.isinf(keep_s):
        raise click.UsageError("input.keep_s keeps everything for ever: give --older-than.")
    keys = Keys.of(config)
    if dry_run or not yes:
        look = foresee if which == INPUT else foresee_output
        count = _with_redis(config, lambda redis: look(redis, keys, keep_s))
        if dry_run:
            click.echo(
                json.dumps({"would_trim": count}) if as_json else f"dry run, nothing is changed: {count} would go"
            )
            return
        if count:
            click.confirm(f"{count} {WHAT[which]} would go. Delete them?", abort=True, err=True)
    with Console(stderr=True, highlight=False).status("trimming") as progress:
        delete = trim_input if which == INPUT else trim_output
        trimmed = _with_redis(
            config, lambda redis: delete(redis, keys, keep_s, lambda so_far: progress.update(f"trimmed {so_far}"))
        )
    click.echo(json.dumps({"trimmed": trimmed}) if as_json else f"trimmed: {trimmed}")


def _with_redis(config: Config, work: Callable[["Redis"], Awaitable[int]]) -> int:
    """Do something with the input; leave where that cannot be done. What was trimmed until then is."""
    url = redis_url(config)

    async def life() -> int:
        redis = connect(url)
        try:
            return await work(redis)
        finally:
            await redis.aclose()

    try:
        return asyncio.run(life())
    except exceptions.ResponseError as error:
        leave(
            f"Redis refuses: {error}",
            "see the names of the streams in [redis], and what conf/users.acl gives to the user in redis.url",
        )
    except RedisError as error:
        leave(
            f"Redis does not answer: {error}", remedy_for(error), "then the same command goes on", code=EX_UNAVAILABLE
        )
