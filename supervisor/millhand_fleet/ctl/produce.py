"""worker-ctl produce: JSON Lines into the input stream."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from millhand.config import Config
from millhand.errors import Malformed
from millhand.event import DATA, decode_payload
from millhand.keys import Keys
from millhand.stream import RedisError, connect
from millhand_fleet.ctl.settings import EX_UNAVAILABLE, leave, load_config, redis_url

SPACE_BYTES = 1024  # around the object in a line
BATCH = 200  # lines a round trip
REFUSALS_SHOWN_MAX = 20
EX_REFUSED = 1


class Line(msgspec.Struct, frozen=True):
    """A line of the input, and why it is refused if it is."""

    number: int
    data: bytes
    refusal: str | None


@click.command()
@click.argument("source", type=click.File("rb"), default="-")
@click.option("--stream", help="The stream to write to. Default: the fleet's input.")
@click.option("--from-line", type=click.IntRange(1), default=1, show_default=True, help="Skip the lines before this.")
@click.option("--json", "as_json", is_flag=True, help="What came of it as one JSON object.")
@click.pass_obj
def produce(
    file: Path | None, source: IO[bytes], *, stream: str | None, from_line: int, as_json: bool
) -> None:  # fmt: skip
    """Write events to the input stream: the JSON objects of SOURCE, a JSON Lines file or - for standard input.

    A line that is no JSON object, or too large, is refused and named by its number; the others are written. Exit code:
    0 if all lines were written, 1 if some were refused, 69 if Redis failed on the way.

    \b
    Example: worker-ctl produce reviews.jsonl
    """  # noqa: D301 - click's own mark
    config = load_config(file)
    lines = (line for line in _lines(source, config) if line.number >= from_line)
    console = Console(stderr=True, highlight=False)
    with _progress(console) as progress:
        written, refused = asyncio.run(
            _produce(lines, redis_url(config), stream or Keys.of(config).input, progress, console)
        )
    done = {"written": written, "refused": refused}
    click.echo(json.dumps(done) if as_json else f"written: {written}, refused: {refused}")
    if refused:
        sys.exit(EX_REFUSED)


async def _produce(
    lines: Iterator[Line], url: str, stream: str, progress: Progress, console: Console
) -> tuple[int, int]:
    """Write the good lines batch by batch, tell of the bad ones. Return how many of each there were."""
    bar = progress.add_task(f"to {stream}", total=None)
    redis = connect(url)
    written = refused = 0
    for batch in _batches(lines):
        for line in batch:
            if line.refusal:
                refused += 1
                if refused <= REFUSALS_SHOWN_MAX:
                    console.print(f"line {line.number}: refused: {line.refusal}", markup=False, soft_wrap=True)
        good = [line for line in batch if not line.refusal]
        try:
            async with redis.pipeline(transaction=False) as pipeline:
                for line in good:
                    pipeline.xadd(stream, {DATA: line.data})
                await pipeline.execute()
        except RedisError as error:
            progress.stop()
            leave(
                f"Redis failed while lines {batch[0].number} to {batch[-1].number} were being written: {error}",
                f"{written} events were written before; of these lines, perhaps some",
                f"go on with --from-line {batch[0].number} (may write some twice) or {batch[-1].number + 1} (may skip)",
                code=EX_UNAVAILABLE,
            )
        written += len(good)
        progress.update(bar, completed=written)
    progress.update(bar, total=written)
    if refused > REFUSALS_SHOWN_MAX:
        console.print(f"… and {refused - REFUSALS_SHOWN_MAX} more refused lines")
    await redis.aclose()
    return written, refused


def _lines(source: IO[bytes], config: Config) -> Iterator[Line]:
    """Yield the lines that hold something; of one that is far too long only the beginning is ever in memory."""
    bytes_max = config.enrich.event_bytes_max
    number = 0
    while raw := source.readline(bytes_max + SPACE_BYTES):
        number += 1
        whole = raw.endswith(b"\n") or len(raw) < bytes_max + SPACE_BYTES
        if not whole:
            while (rest := source.readline(bytes_max)) and not rest.endswith(b"\n"):
                pass
        data = raw.strip()
        if not whole:
            yield Line(number, b"", f"over {bytes_max} bytes (enrich.event_bytes_max)")
        elif data:
            yield Line(number, data, _refusal(data, config))


def _refusal(data: bytes, config: Config) -> str | None:
    try:
        decode_payload(data, config.enrich)
    except Malformed as error:
        return error.detail.replace("`data`", "the line")
    return None


def _batches(lines: Iterator[Line]) -> Iterator[list[Line]]:
    batch: list[Line] = []
    for line in lines:
        batch.append(line)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
