"""All that is measured of millhand beside its throughput: each kind by its name, as tables and as JSON.

    python -m scripts.bench.measurements                     # all of them: a quarter of an hour
    python -m scripts.bench.measurements start scale --short

`run --full` makes them too, and keeps them in its own file of results.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import click
import msgspec
from rich.console import Console

from scripts.bench import batches, gate, gate_cost, latency, memory, recovery, scale, sizes, start
from scripts.bench.conditions import conditions, in_words
from scripts.bench.rows import Report

WIDTH = 120  # where no terminal says
MEASUREMENTS: Mapping[str, Callable[..., Report]] = {
    "latency": latency.measure,
    "scale": scale.measure,
    "sizes": sizes.measure,
    "gate": gate.measure,
    "gate cost": gate_cost.measure,
    "recovery": recovery.measure,
    "start": start.measure,
    "micro-batches": batches.measure,
    "memory": memory.measure,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(MEASUREMENTS)))
@click.option("--short", is_flag=True, help="Fewer events, fewer repetitions.")
@click.option("--json", "file", type=click.Path(path_type=Path, dir_okay=False), help="Put the figures in there, too.")
def main(names: tuple[str, ...], short: bool, file: Path | None) -> None:  # noqa: FBT001 - click's signature
    """Measure what is named, or everything."""
    told = conditions(short=short)
    print(in_words(told))
    reports = dict(measured(names or tuple(MEASUREMENTS), short=short))
    if file:
        file.write_bytes(
            msgspec.json.format(msgspec.json.encode({"conditions": told, "measurements": reports})) + b"\n"
        )


def measured(names: Iterable[str] = tuple(MEASUREMENTS), *, short: bool = False) -> Iterator[tuple[str, Report]]:
    """Measure, print each report as soon as it is there, and yield it."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    for name in names:
        report = MEASUREMENTS[name](short=short)
        console.print(*report.shown(name), "", sep="\n", markup=False)
        yield name, report


if __name__ == "__main__":
    main()
