"""Measure millhand beside what one would take instead: the same work, the same events, one machine, one run.

    python -m scripts.bench.run                # the short form: a few minutes
    python -m scripts.bench.run --full         # everybody, everything, and what `measurements` has
    python -m scripts.bench.run --only millhand --only plain --cell "W1 2p" --repeat 5

Each trial has a server and a model of its own, warm workers, and a check that every event came out exactly once. The
repetitions are interleaved, so that whatever else the machine does hits everybody. Results go to a JSON file.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
from rich.console import Console

from scripts.bench import report
from scripts.bench.backlog import NotOnce
from scripts.bench.cases import CELLS, Cell
from scripts.bench.conditions import conditions, in_words
from scripts.bench.entrants import AUTO, MILLHAND, PEERS, Entrant, NotStarted
from scripts.bench.limit import model_limit_per_s
from scripts.bench.measurements import measured
from scripts.bench.plot import picture
from scripts.bench.rig import DURABILITY, PROJECT
from scripts.bench.rows import Report
from scripts.bench.summary import Goal, Key, Summary, goals, summarise
from scripts.bench.trial import WARM, Result, trial
from scripts.bench.venvs import versions_of

RESULTS = PROJECT / ".bench" / "results"
SHORT_ENTRANTS = ("plain", "taskiq", "dramatiq")
SHORT_CELLS = ("W0 2p", "W1 2p", "W2 2p", "W2 2p at 80%", "W3 1p")
DURABLE_CELLS = ("W0 2p", "W1 2p", "W2 2p", "W3 2p")  # what millhand is also measured at on servers that keep all
SHORT_REPEAT, FULL_REPEAT = 2, 3
COUNT_MIN, COUNT_MAX = 200, 400_000
TABLE_WIDTH = 220
console = Console(highlight=False, soft_wrap=True)


class Lane(NamedTuple):
    """What is run again and again: one entrant at one cell, on one kind of server."""

    entrant: Entrant
    durability: str
    cell: Cell


class Told(msgspec.Struct):
    """The file of results."""

    conditions: Mapping[str, object]
    failed: list[str]
    goals: Sequence[Goal]
    measurements: Mapping[str, Report]
    summaries: list[Summary]
    results: list[Result]


@click.command()
@click.option("--full", is_flag=True, help="All entrants and all cells.")
@click.option("--only", multiple=True, help="Only this entrant; may be repeated.")
@click.option("--cell", "names", multiple=True, help='Only this cell, e.g. "W1 2p"; may be repeated.')
@click.option("--repeat", type=int, help="Runs of each; 2 of the short form, 3 of the full one.")
@click.option("--seconds", default=3.0, show_default=True, help="Of a run, about.")
@click.option("--durability", type=click.Choice(list(DURABILITY)), multiple=True, help="Of everybody's server.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Where results go.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Where the picture goes (SVG).")
def main(
    *,
    full: bool,
    only: tuple[str, ...],
    names: tuple[str, ...],
    repeat: int | None,
    seconds: float,
    durability: tuple[str, ...],
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Measure, and tell how the goals stand."""
    lanes = list(chosen(full=full, only=only, names=names, durability=durability))
    repeat = repeat or (FULL_REPEAT if full else SHORT_REPEAT)
    told = conditions(
        runs=f"{repeat} of about {seconds:g} s each, interleaved; backlogs: {WARM} events before the clock",
        model=f"fast fake on the same cores, answers {model_limit_per_s():,.0f} calls/s at most",
        settings={lane.entrant.label: lane.entrant.settings_in_words for lane in lanes},
        peers={lane.entrant.name: versions_of(lane.entrant.name) for lane in lanes if lane.entrant.commands},
    )
    console.print(in_words(told), markup=False)
    failed: list[str] = []
    results = measure(lanes, repeat, seconds, failed)
    found = summaries(results)
    stand = goals(found)
    cells = [cell for cell in CELLS if any(lane.cell == cell for lane in lanes)]
    wide = Console(width=TABLE_WIDTH, highlight=False)
    wide.print(report.figures_table(found, cells), report.LEGEND, report.goals_table(stand), sep="\n")
    more = dict(measured()) if full and not (only or names) else {}
    stand += [goal for measurement in more.values() for goal in measurement.goals]
    stem = RESULTS / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}"
    everything = [result for runs in results.values() for result in runs]
    write(
        json_file or stem.with_suffix(".json"),
        encoded(Told(told, failed, stand, more, list(found.values()), everything)),
    )
    title = f"millhand and what one would take instead ({told['date']}, {told['machine']})"
    write(plot_file or stem.with_suffix(".svg"), picture(found, title).encode())
    if failed:
        sys.exit("\n".join(["these runs failed:", *failed]))


def chosen(*, full: bool, only: Sequence[str], names: Sequence[str], durability: Sequence[str]) -> Iterator[Lane]:
    """Yield what is to be run, in its order."""
    cells = [cell for cell in CELLS if cell.name in (names or SHORT_CELLS) or (full and not names)]
    wanted = only or (None if full else (MILLHAND.name, *SHORT_ENTRANTS))
    entrants = [one for one in (MILLHAND, AUTO, *PEERS) if wanted is None or one.name in wanted]
    for cell in cells:
        for entrant in entrants:
            if cell.case in entrant.in_flight:
                yield from (Lane(entrant, kind, cell) for kind in durability or ("none",))
        if not durability and MILLHAND in entrants and cell.name in DURABLE_CELLS:
            yield from (Lane(MILLHAND, kind, cell) for kind in (("everysec", "always") if full else ("always",)))


def measure(lanes: Sequence[Lane], repeat: int, seconds: float, failed: list[str]) -> dict[Lane, list[Result]]:
    """Run all lanes in turn, again and again; a run is as long as the lane's last one makes expect.

    A run in which an event was lost, doubled or altered has no figures: it goes to `failed`.
    """
    results: dict[Lane, list[Result]] = defaultdict(list)
    for number in range(repeat):
        for lane in lanes:
            last = results[lane][-1].events_per_s if results[lane] else None
            count = count_for(lane, seconds, last)
            what = f"{number + 1}/{repeat} {lane.cell.name:12} {lane.entrant.label:28} {lane.durability:8}"
            try:
                result = trial(lane.entrant, lane.cell, lane.durability, count)
            except (NotOnce, NotStarted) as error:
                failed.append(f"{what}: {error}")
                console.print(what, "FAILED:", error, markup=False)
                continue
            results[lane].append(result)
            told = f"{result.events_per_s:9,.0f}/s {result.cpu_ms:6.3f} ms  {result.events} events"
            console.print(what, told, markup=False)
    return {lane: runs for lane, runs in results.items() if runs}


def count_for(lane: Lane, seconds: float, last_per_s: float | None) -> int:
    """Return how many events keep a lane busy for about so long; twice that where the rarest latencies count."""
    case = lane.cell.case
    expected_per_s = last_per_s or lane.entrant.pace[case] * lane.cell.processes
    if lane.cell.load:
        seconds *= 2
    if case.ideal_per_s:
        expected_per_s = min(expected_per_s, case.ideal_per_s * (lane.cell.load or 1.0))
    return max(COUNT_MIN, min(COUNT_MAX, round(expected_per_s * seconds)))


def summaries(results: Mapping[Lane, Sequence[Result]]) -> dict[Key, Summary]:
    """Put the runs of each lane together."""
    return {
        (lane.entrant.label, lane.durability, lane.cell.name): summarise(lane.entrant.label, lane.cell, runs)
        for lane, runs in results.items()
    }


def encoded(told: Told) -> bytes:
    """Return the file's bytes, for people too."""
    return msgspec.json.format(msgspec.json.encode(told)) + b"\n"


def write(file: Path, content: bytes) -> None:
    """Write a file and say where."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    console.print(f"written: {file}", markup=False)


if __name__ == "__main__":
    main()
