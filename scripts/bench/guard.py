"""What an event costs now, against what was recorded: for CI to print and a person to read. It never fails for speed.

The pure parts are measured in turns with a fixed piece of work, whole walks with a plain redis-py and httpx loop that
does the same: only such ratios mean anything on another machine. Bytecodes (of the same Python) and machine
instructions are counted, and depend on no load; those are shown where `perf` or `valgrind` can count them.

    python -m scripts.bench.guard            # some 30 s
    python -m scripts.bench.guard --record   # what is seen becomes guard.json
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import click
import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from scripts.bench.parts import parts, yardstick
from scripts.bench.walks import walk_ratios

PROJECT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).with_suffix(".json")
TURNS = 9  # the best counts: what disturbs only ever adds
TURN_S = 0.02
RATIO_NOTABLE = 0.25  # what differs by less is the machine's noise
COUNT_NOTABLE = 0.1  # of a small part: counts are differences of two runs of a whole process
COUNTED_CALLS = 1000
NO_TOOL = ""
TOOLS: Mapping[str, tuple[list[str], str]] = {  # how they are called, and how they tell what they counted
    NO_TOOL: ([], "(?!)"),
    "perf": (["perf", "stat", "-x,", "-e", "instructions:u", "--"], r"^(\d+),.*instructions"),
    "valgrind": (["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"], r"Collected : (\d+)"),
}


class Seen(msgspec.Struct, frozen=True):
    """What was measured: by part or walk, times as ratios; counts are of one call."""

    python: str
    ratios: dict[str, float]
    bytecodes: dict[str, int]
    instructions: dict[str, int] = {}
    counted_by: str = ""


@click.command()
@click.option("--record", is_flag=True, help="Keep what is seen as what later runs are compared with.")
def main(record: bool) -> None:  # noqa: FBT001 - click's signature
    """Measure, and print beside what was recorded."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    known = parts()
    tool, instructions = counted_instructions([*known])
    seen = Seen(
        python="{}.{}".format(*sys.version_info),
        ratios={**part_ratios(known), **uvloop.run(walk_ratios())},
        bytecodes={name: bytecodes_of(part) for name, part in known.items()},
        instructions=instructions,
        counted_by=tool,
    )
    before = msgspec.json.decode(RECORD.read_bytes(), type=Seen) if RECORD.exists() else seen
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {seen.python} "
        f"(recorded with {before.python}); instructions: {tool or 'not offered here'}"
    )
    console.print(table_of(seen, before))
    console.print("Parts: times the yardstick. Walks: times a plain loop that does the same. Recorded in brackets.")
    if record:
        RECORD.write_bytes(msgspec.json.format(msgspec.json.encode(seen)) + b"\n")


def table_of(seen: Seen, before: Seen) -> Table:
    """Return what is seen beside what was recorded; counts are compared where the same was counted."""
    same_python, same_tool = seen.python == before.python, seen.counted_by == before.counted_by
    bytecodes = before.bytecodes if same_python else {}
    instructions = before.instructions if same_python and same_tool else {}
    table = Table("", "time", "", "bytecodes", "", "instructions", "")
    for name, ratio in seen.ratios.items():
        table.add_row(
            name,
            *beside(ratio, before.ratios.get(name), RATIO_NOTABLE, ("faster", "slower"), "{:.2f}"),
            *beside(seen.bytecodes.get(name), bytecodes.get(name), COUNT_NOTABLE, ("fewer", "more"), "{:.0f}"),
            *beside(seen.instructions.get(name), instructions.get(name), COUNT_NOTABLE, ("fewer", "more"), "{:.0f}"),
        )
    return table


def beside(
    value: float | None, recorded: float | None, notable: float, words: tuple[str, str], form: str
) -> tuple[str, str]:
    """Return a value with what was recorded, and a word where they differ by a notable share."""
    if value is None:
        return "", ""
    if recorded is None:
        return form.format(value), "new"
    less, more = words
    word = more if value > recorded * (1 + notable) else less if value < recorded / (1 + notable) else ""
    return f"{form.format(value)} ({form.format(recorded)})", word


def part_ratios(known: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return what a call of each part takes, measured in the yardstick's time; all take turns."""
    every = {"": yardstick, **known}
    calls = {name: calls_in(TURN_S, part) for name, part in every.items()}
    best = dict.fromkeys(every, float("inf"))
    for _ in range(TURNS):
        for name, part in every.items():
            best[name] = min(best[name], seconds_of(part, calls[name]) / calls[name])
    return {name: round(best[name] / best[""], 3) for name in known}


def calls_in(seconds: float, part: Callable[[], object]) -> int:
    """Return how many calls take about so long."""
    calls = 1
    while (took_s := seconds_of(part, calls)) < seconds / 4:
        calls *= 4
    return max(1, round(calls * seconds / took_s))


def seconds_of(part: Callable[[], object], calls: int) -> float:
    """Return the CPU time of so many calls."""
    began_s = time.process_time()
    for _ in range(calls):
        part()
    return time.process_time() - began_s


def bytecodes_of(part: Callable[[], object]) -> int:
    """Return how many of Python's own instructions one call carries out."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    part()  # whatever happens only once
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        part()
    finally:
        sys.settrace(before)
    return count


def counted_instructions(names: Sequence[str]) -> tuple[str, dict[str, int]]:
    """Return the machine instructions of one call of each part, and what counted them; "" where nothing can."""
    with tempfile.TemporaryDirectory(prefix="millhand-guard-") as compiled, ThreadPoolExecutor(os.cpu_count()) as pool:
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPYCACHEPREFIX": compiled}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def count(tool: str, part: str, calls: int) -> int:
            return counted(tool, [part, str(calls)], environment)

        count(NO_TOOL, names[0], 0)  # compiles what is imported: under a tool, that would take long
        tool = next((tool for tool in TOOLS if shutil.which(tool) and count(tool, names[0], 0)), NO_TOOL)
        if tool == NO_TOOL:
            return "", {}
        base = pool.submit(count, tool, names[0], 0)
        runs = {name: pool.submit(count, tool, name, COUNTED_CALLS) for name in names}
        return tool, {name: (run.result() - base.result()) // COUNTED_CALLS for name, run in runs.items()}


def counted(tool: str, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Return the instructions of a process that calls a part; 0 where the tool does not tell. Equal runs are equal."""
    command, told = TOOLS[tool]
    run = subprocess.run(  # noqa: S603 - a tool of this machine on a module of ours
        [*command, sys.executable, "-m", "scripts.bench.parts", *arguments],
        cwd=PROJECT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    match = re.search(told, run.stderr, re.MULTILINE)
    return int(match[1]) if match else 0


if __name__ == "__main__":
    main()
