"""worker-ctl dead list, show, requeue, drop, export."""

import asyncio
import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import click
from rich.console import Console
from rich.text import Text

from millhand.keys import Keys
from millhand.stream import connect
from millhand_fleet.ctl import telling
from millhand_fleet.ctl.selecting import letter_id, selecting
from millhand_fleet.ctl.settings import EX_UNAVAILABLE, leave, load_config, redis_url
from millhand_fleet.deadletters import (
    WITHOUT_LIMIT,
    DeadLetter,
    DeadLetters,
    NoAnswer,
    Pace,
    Requeued,
    Selection,
    Stretch,
    foresee,
)

WIDTH_OFF_TERMINAL = 160
SOURCE_WIDTH_MIN = 110  # of a terminal that has room for the column src
REFUSALS_SHOWN_MAX = 20
DROP_BATCH = 200  # dead letters a round trip
RATE_MIN, RATE_MAX = 0.1, 10_000.0
EX_REFUSED = 1
EX_INTERRUPTED = 130  # as shells say it of Ctrl-C
DRY = "dry run, nothing is changed; it would be "
GO_ON = "to go on, give the same command again: what is done stands no longer among the dead letters"
ALL = click.option("--all", "everything", is_flag=True, help="All there are, where neither ids nor filters are given.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Only say what would be done.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="What came of it as one JSON object.")

T = TypeVar("T")


class Order(NamedTuple):
    """What is to be requeued, and how."""

    selection: Selection
    redrives_max: int
    rate_per_s: float
    dry_run: bool


@click.group()
def dead() -> None:
    """Look at dead letters; requeue, drop or export them."""


@dead.command("list")
@selecting
@click.option("--json", "as_lines", is_flag=True, help="One JSON object a line, as `export` writes it.")
@click.pass_obj
def list_(file: Path | None, *, selection: Selection, as_lines: bool) -> None:
    """Show dead letters, a line each, the oldest first: all, those of IDS, or those that pass the filters.

    The column a/d/r has the attempts, the deliveries, and how often the event has been requeued (redrives).

    \b
    Examples: worker-ctl dead list --reason timeout --newer-than 2h
              worker-ctl dead list --json | jq -r .src
    """  # noqa: D301 - click's own mark
    if as_lines:
        _read_each(file, selection, lambda letter, _: click.echo(telling.json_line(letter)))
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_OFF_TERMINAL)
    with_source = console.width >= SOURCE_WIDTH_MIN
    reasons: Counter[str] = Counter()

    def show_row(letter: DeadLetter, stretch: Stretch) -> None:
        if not reasons:
            console.print(Text(telling.head(with_source=with_source), "dim"), no_wrap=True, overflow="ellipsis")
        row = telling.row(letter, stretch.now_ms, with_source=with_source)
        console.print(Text(row), no_wrap=True, overflow="ellipsis")
        reasons[letter.reason] += 1

    _read_each(file, selection, show_row)
    click.echo(f"dead letters: {telling.by_reason(reasons)}")


@dead.command()
@click.argument("letter", metavar="ID", type=letter_id)
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON object.")
@click.pass_obj
def show(file: Path | None, letter: str, *, as_json: bool) -> None:
    """Show everything about the dead letter ID, the original fields last.

    Exit code 0; 1 if there is none; 69 if Redis does not answer.

    \b
    Example: worker-ctl dead show 1763892381190-0
    """  # noqa: D301 - click's own mark
    found: list[DeadLetter] = []
    _read_each(file, Selection((letter,)), lambda one, _: found.append(one))
    if not found:
        leave(
            f"there is no dead letter {letter}",
            "`worker-ctl dead list` shows the ids; the id that the log has of an event is in its column src",
            code=1,
        )
    for line in [telling.json_line(found[0])] if as_json else telling.details(found[0]):
        click.echo(line)


@dead.command()
@selecting
@ALL
@DRY_RUN
@click.option(
    "--rate", metavar="N/s", type=click.FloatRange(RATE_MIN, RATE_MAX), default=50, show_default=True,
    help="So many events a second at most.",
)  # fmt: skip
@click.option(
    "--redrives-max", type=click.IntRange(1), default=3, show_default=True,
    help="Refuse what has been requeued so often before.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Requeue it however often that was done before.")
@AS_JSON
@click.pass_obj
def requeue(
    file: Path | None, *, selection: Selection, everything: bool, dry_run: bool, rate: float, redrives_max: int,
    force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Give the events of dead letters to the workers again, each as a new entry of the input with the same bytes.

    Exit code 0; 1 if some were refused; 69 if Redis failed on the way; 130 after Ctrl-C. Whatever happened, the same
    command again goes on where this one stopped, and requeues nothing twice. What is gone was requeued or dropped in
    the meantime, or by this command itself where Redis's answer was lost.

    \b
    Examples: worker-ctl dead requeue --reason timeout --newer-than 2h --dry-run
              worker-ctl dead requeue 1763892381190-0 --force
    """  # noqa: D301 - click's own mark
    _require_choice(selection, everything=everything)
    order = Order(selection, WITHOUT_LIMIT if force else redrives_max, rate, dry_run)
    tally: Counter[Requeued] = Counter()
    console = Console(stderr=True, highlight=False)

    async def work(letters: DeadLetters) -> None:
        with console.status("looking") as progress:
            async for letter, answer in _requeue_each(letters, order):
                tally[answer] += 1
                why = telling.refusal(letter, answer)
                if why and telling.refused(tally) <= REFUSALS_SHOWN_MAX:
                    console.print(why, markup=False, soft_wrap=True)
                progress.update(telling.requeued(tally))
        tally[Requeued.GONE] += max(0, len(selection.ids) - tally.total())

    _with_dead_letters(file, work, lambda: (telling.requeued(tally), GO_ON))
    if as_json:
        click.echo(json.dumps({**telling.requeued_counts(tally), "dry_run": dry_run}))
    else:
        click.echo((DRY if dry_run else "") + telling.requeued(tally))
    if telling.refused(tally):
        sys.exit(EX_REFUSED)


@dead.command()
@selecting
@ALL
@DRY_RUN
@click.option("--yes", is_flag=True, help="Do not ask.")
@AS_JSON
@click.pass_obj
def drop(
    file: Path | None, *, selection: Selection, everything: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:  # fmt: skip
    """Delete dead letters for good, after asking. `worker-ctl dead export` keeps a copy.

    Exit code 0; 1 if the answer is no; 69 if Redis failed on the way; 130 after Ctrl-C.

    \b
    Examples: worker-ctl dead drop --reason deleted
              worker-ctl dead drop --older-than 30d --yes
    """  # noqa: D301 - click's own mark
    _require_choice(selection, everything=everything)
    if not (yes or dry_run or sys.stdin.isatty()):
        raise click.UsageError("There is nobody to ask whether to drop them: give --yes.")
    reasons: Counter[str] = Counter()
    stretch = _read_each(file, selection, lambda letter, _: reasons.update([letter.reason]))
    if dry_run:
        would = {"dropped": reasons.total(), "by_reason": reasons, "dry_run": True}
        click.echo(json.dumps(would) if as_json else f"{DRY}dropped: {telling.by_reason(reasons)}")
        return
    if reasons and not yes:
        click.confirm(f"dead letters: {telling.by_reason(reasons)}. Drop them for good?", abort=True, err=as_json)
    dropped: list[int] = []

    async def work(letters: DeadLetters) -> None:
        batch: list[str] = []
        async for letter in letters.select(selection, stretch):
            batch.append(letter.id)
            if len(batch) == DROP_BATCH:
                dropped.append(await letters.drop(batch))
                batch.clear()
        if batch:
            dropped.append(await letters.drop(batch))

    _with_dead_letters(file, work, lambda: (f"dropped: {sum(dropped)}", GO_ON))
    done = {"dropped": sum(dropped), "by_reason": reasons, "dry_run": False}
    click.echo(json.dumps(done) if as_json else f"dropped: {sum(dropped)}")


@dead.command()
@selecting
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="A new file. Default: standard output.")
@click.pass_obj
def export(file: Path | None, *, selection: Selection, output: Path | None) -> None:
    """Write dead letters as JSON Lines, with everything that is needed to restore them; they stay where they are.

    A field is a pair of name and value. Bytes that are no UTF-8 are written as {"base64": "..."}.

    \b
    Example: worker-ctl dead export --older-than 30d --output dead.jsonl
    """  # noqa: D301 - click's own mark
    exported: Counter[str] = Counter()

    def done() -> tuple[str, ...]:
        return (f"exported: {telling.by_reason(exported)} until then, so {output or 'the output'} is incomplete",)

    try:
        with output.open("x", encoding="ascii") if output else contextlib.nullcontext(sys.stdout) as lines:

            def write(letter: DeadLetter, _: Stretch) -> None:
                click.echo(telling.json_line(letter), file=lines)
                exported[letter.reason] += 1

            _read_each(file, selection, write, done)
            if output:
                os.fsync(lines.fileno())  # they may be dropped next
    except FileExistsError:
        raise click.UsageError(f"{output} exists already: name a new file.") from None
    except OSError as error:
        if output is None:
            raise
        leave(f"cannot write {output}: {error.strerror}", *done(), code=1)
    click.echo(f"exported: {telling.by_reason(exported)}", err=output is None)


async def _requeue_each(letters: DeadLetters, order: Order) -> AsyncIterator[tuple[DeadLetter, Requeued]]:
    """Requeue what is selected, or only foresee what would come of it; yield it with the answer."""
    pace = Pace(order.rate_per_s)
    async for letter in letters.select(order.selection, await letters.stretch(order.selection)):
        answer = foresee(letter, order.redrives_max)
        if not order.dry_run:
            if answer is Requeued.OK:
                await pace.turn()
            answer = await letters.requeue(letter, order.redrives_max)
        yield letter, answer


def _require_choice(selection: Selection, *, everything: bool) -> None:
    """Leave where a command would mean every dead letter without having been told so."""
    chosen = bool(selection.ids) or selection.is_filtered
    if chosen == everything:
        raise click.UsageError("Give either ids, or filters, or --all.")


def _read_each(
    file: Path | None,
    selection: Selection,
    take: Callable[[DeadLetter, Stretch], object],
    done: Callable[[], tuple[str, ...]] = tuple,
) -> Stretch:
    """Take each dead letter that is selected; return the stretch of the stream that they were taken from."""

    async def work(letters: DeadLetters) -> Stretch:
        stretch = await letters.stretch(selection)
        async for letter in letters.select(selection, stretch):
            take(letter, stretch)
        return stretch

    return _with_dead_letters(file, work, done)


def _with_dead_letters(
    file: Path | None, work: Callable[[DeadLetters], Awaitable[T]], done: Callable[[], tuple[str, ...]]
) -> T:
    """Do something with the fleet's dead letters; where that ends early, leave with what had been done."""
    config = load_config(file)
    url = redis_url(config)

    async def life() -> T:
        redis = connect(url)
        try:
            return await work(DeadLetters(redis, Keys.of(config), lambda news: click.echo(news, err=True)))
        finally:
            await redis.aclose()

    try:
        return asyncio.run(life())
    except NoAnswer as error:
        leave(str(error), *done(), code=EX_UNAVAILABLE)
    except KeyboardInterrupt:
        leave("interrupted", *done(), code=EX_INTERRUPTED)
