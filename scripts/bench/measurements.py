"""All that is measured of millhand beside its throughput: each kind by its name, as tables and as JSON.

python -m scripts.bench.measurements                     # all of them, some ten minutes
python -m scripts.bench.measurements start scale --short
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from scripts.bench import gate, gate_cost, latency, memory, recovery, scale, sizes, start
from scripts.bench.conditions import conditions, in_words
from scripts.bench.report import Report

WIDTH = 120  # where no terminal says
MEASUREMENTS: Mapping[str, Callable[..., Report]] = {
    "latency": latency.measure,
    "scale": scale.measure,
    "sizes": sizes.measure,
    "gate": gate.measure,
    "gate cost": gate_cost.measure,
    "recovery": recovery.measure,
    "start": start.measure,
    "memory": memory.measure,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(MEASUREMENTS)))
@click.option("--short", is_flag=True, help="Fewer events, fewer repetitions.")
@click.option("--json", "file", type=click.Path(path_type=Path, dir_okay=False), help="Put the figures in there, too.")
def main(names: tuple[str, ...], short: bool, file: Path | None) -> None:  # noqa: FBT001 - click's signature
    """Measure what is named, or everything."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    told = conditions(short=short)
    console.print(in_words(told), markup=False)
    for name, report in measured(names or tuple(MEASUREMENTS), short=short):
        console.print(report.table(name), report.about, "", sep="\n")
        if file:
            keep(file, name, report, told)


def measured(names: Iterable[str], *, short: bool) -> Iterator[tuple[str, Report]]:
    """Yield each report as soon as it is there."""
    for name in names:
        yield name, MEASUREMENTS[name](short=short)


def keep(file: Path, name: str, report: Report, told: Mapping[str, object]) -> None:
    """Put a report beside what a file of results holds already."""
    document: dict[str, Any] = msgspec.json.decode(file.read_bytes()) if file.exists() else {}
    document.setdefault("measurements", {})[name] = {**msgspec.to_builtins(report), "conditions": told}
    file.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")


if __name__ == "__main__":
    main()
