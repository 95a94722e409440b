"""worker-ctl compare: whether the same event gets the same answer again."""

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from msgspec import UNSET
from redis import exceptions
from rich.console import Console

from millhand.keys import Keys
from millhand.remedy import remedy_for
from millhand.stream import RedisError, connect
from millhand_fleet.comparison import Comparison, Difference, Runs, SameEvent
from millhand_fleet.ctl.settings import EX_UNAVAILABLE, leave, load_config, redis_url
from millhand_fleet.ctl.visible import visible
from millhand_fleet.outputs import OF_SOURCE, NotThere, Report, one_run, two_records, two_runs

if TYPE_CHECKING:
    from redis.asyncio import Redis

LISTED_MAX = 1000
DIFFERENCES_SHOWN_MAX = 20  # of one pair
VALUE_BYTES_MAX = 200
WRONG = ("WRONGTYPE", "Invalid stream ID")  # what Redis says to a name that is no stream's, or to an id of no entry's
EX_DIFFERENT = 1
EX_NOT_THERE = 2
EX_INTERRUPTED = 130  # as shells say it of Ctrl-C
ID = re.compile(rf"({OF_SOURCE})?[0-9]{{1,20}}-[0-9]{{1,20}}")

EVENT = {
    SameEvent.PAYLOAD: "the same, by its payload",
    SameEvent.EVENT_ID: "the same by its event_id, with another payload",
    SameEvent.NO: "not the same",
}
WHY = {
    "attempts": "a retry has another seed and a higher temperature",
    "model": "another model",
    "model_digest": "other weights",
    "prompt_hash": "another question",
    "truncated": "not the whole text was asked about",
    "cached": "an earlier answer that was kept",
}
UNEXPLAINED = "nothing in meta explains it; it does not have model.seed, temperature and num_ctx"

Found = Comparison | Report


@click.command()
@click.argument("names", metavar="[A B]", nargs=-1)
@click.option("--runs", "of_runs", is_flag=True, help="A and B are output streams: two runs of the same events.")
@click.option("--repeats", "of_repeats", is_flag=True, help="Events of the fleet's output that were enriched twice.")
@click.option("--by-payload", is_flag=True, help="With --runs: match by the payload alone, whatever the event_id.")
@click.option(
    "--limit", type=click.IntRange(0, LISTED_MAX), default=10, show_default=True, help="List so many differing events."
)
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON object.")
@click.pass_obj
def compare(
    file: Path | None, *, names: tuple[str, ...], of_runs: bool, of_repeats: bool, by_payload: bool, limit: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Show whether the same event got the same answer.

    In the records A and B, in two runs, or in one. A and B are ids of entries of the fleet's output, or src:ID for
    the record of the raw entry ID. With --runs they are streams, whose events are matched by event_id, or by
    payload where they have none. Equal hashes are the same answer; where they differ it shows each field, and what
    of meta may be the reason.

    Exit code 0 if all are the same; 1 if one differs, is missing on one side, or cannot be read; 2 if there is no such
    entry or stream; 69 if Redis does not answer.

    \b
    Examples: worker-ctl compare 1763892381190-0 src:1763892380007-3
              worker-ctl compare --runs '{monday}:enriched' '{tuesday}:enriched'
              worker-ctl compare --repeats --json | jq .different
    """  # noqa: D301 - click's own mark
    _require_form(names, of_runs=of_runs, of_repeats=of_repeats, by_payload=by_payload)
    with Console(stderr=True, highlight=False).status("reading") as progress:

        def tell(entries: int) -> None:
            progress.update(f"read {entries}")

        async def work(redis: "Redis", output: str) -> Found:
            if of_repeats:
                return await one_run(redis, output, limit, tell)
            two = (names[0], names[1])
            return await (
                two_runs(redis, two, limit, tell, by_payload=by_payload) if of_runs else two_records(redis, output, two)
            )

        found = _with_redis(file, work)
    if as_json:
        click.echo(json.dumps(_document(found)))
    else:
        for line in _lines(found):
            click.echo(line)
    if not found.is_equal:
        sys.exit(EX_DIFFERENT)


def _require_form(names: tuple[str, ...], *, of_runs: bool, of_repeats: bool, by_payload: bool) -> None:
    """Leave where it is not clear what is to be compared."""
    if (of_runs and of_repeats) or len(names) != (0 if of_repeats else 2):
        raise click.UsageError("Give two ids, or --runs and two streams, or --repeats alone.")
    if by_payload and not of_runs:
        raise click.UsageError("--by-payload goes with --runs.")
    for name in () if of_runs else names:
        if ID.fullmatch(name) is None:
            raise click.UsageError(f"{name!r} is no id such as 1763892381190-0 or {OF_SOURCE}1763892380007-3.")


def _with_redis(file: Path | None, work: Callable[["Redis", str], Awaitable[Found]]) -> Found:
    """Do something with the fleet's output; leave where that cannot be done."""
    config = load_config(file)
    url = redis_url(config)

    async def life() -> Found:
        redis = connect(url)
        try:
            return await work(redis, Keys.of(config).output)
        finally:
            await redis.aclose()

    try:
        return asyncio.run(life())
    except NotThere as error:
        leave(*error.args, code=EX_NOT_THERE)
    except exceptions.ResponseError as error:
        leave(f"Redis refuses: {error}", code=EX_NOT_THERE if str(error).startswith(WRONG) else EX_UNAVAILABLE)
    except RedisError as error:
        leave(f"Redis does not answer: {error}", remedy_for(error), code=EX_UNAVAILABLE)
    except KeyboardInterrupt:
        leave("interrupted", code=EX_INTERRUPTED)


def _document(found: Found) -> dict[str, Any]:
    """Return what was found for `--json`. Of a difference, what one side has not got is left out."""
    if isinstance(found, Comparison):
        return {"equal": found.is_equal, **msgspec.to_builtins(found)}
    counted: dict[str, Any] = msgspec.to_builtins(found.counted)
    del counted["pairs"]  # they are among the listed ones
    listed = [_document(comparison) for comparison in found.listed]
    return {"equal": found.is_equal, **counted, "unreadable": found.unreadable, "listed": listed}


def _lines(found: Found) -> Iterator[str]:
    """Yield what was found as lines that no event can make a terminal misbehave with."""
    if isinstance(found, Comparison):
        yield from _side_by_side(found)
        return
    for comparison in found.listed:
        yield from _side_by_side(comparison)
        yield ""
    counted = found.counted
    if isinstance(counted, Runs):
        parts = f"same: {counted.same}, different: {counted.different}"
        parts += f", only in A: {counted.only_in_a}, only in B: {counted.only_in_b}"
    else:
        parts = f"events: {counted.events}, enriched more than once: {counted.repeated}, different: {counted.different}"
    yield parts + (f", unreadable: {found.unreadable}" if found.unreadable else "")


def _side_by_side(comparison: Comparison) -> Iterator[str]:
    yield f"A {comparison.a}  src {visible(comparison.a_src.encode())}"
    yield f"B {comparison.b}  src {visible(comparison.b_src.encode())}"
    yield f"event  {EVENT[comparison.same_event]}"
    yield f"answer {'the same' if comparison.same_hash else 'different'}"
    for difference in comparison.results[:DIFFERENCES_SHOWN_MAX]:
        yield "  " + _difference(difference)
    if len(comparison.results) > DIFFERENCES_SHOWN_MAX:
        yield f"  … and {len(comparison.results) - DIFFERENCES_SHOWN_MAX} more; --json has them all"
    if not comparison.same_hash:
        for difference in comparison.meta[:DIFFERENCES_SHOWN_MAX]:
            why = WHY.get(difference.path)
            yield f"  meta.{_difference(difference)}" + (f"  ({why})" if why else "")
        if not comparison.meta:
            yield f"  {UNEXPLAINED}"


def _difference(difference: Difference) -> str:
    return f"{visible(difference.path.encode())}: {_value(difference.a)} -> {_value(difference.b)}"


def _value(value: Any) -> str:
    if value is UNSET:
        return "(absent)"
    text = msgspec.json.encode(value)
    return visible(text[:VALUE_BYTES_MAX]) + ("…" if len(text) > VALUE_BYTES_MAX else "")
