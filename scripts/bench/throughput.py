"""How many events a fleet enriches in a second, with all guarantees on, against the fake model.

The model's own pace bounds every row: `slots / latency` is the ideal. Server, fake model, workers and producer share
this machine, so only the share of the ideal compares with another machine's.
"""

import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import psutil
from rich.console import Console
from rich.table import Table

from millhand.event import DATA
from millhand.keys import Keys
from millhand.stream import connect
from millhand_fleet.ctl.settings import load_config
from millhand_fleet.state import ENDPOINTS, StateDir

PROJECT = Path(__file__).resolve().parents[2]
WORKER_CTL = str(Path(sys.executable).with_name("worker-ctl"))
BATCH = 500
POLL_S = 0.05
WITHIN_S = 300.0
TEXT = "The kettle boils quickly but its lid opens at every second pour, and the handle gets hot. " * 3


class Case(NamedTuple):
    """One row: a pace of the model, and a fleet for it."""

    name: str
    latency_ms: float
    slots: int
    workers: int
    concurrency: int
    events: int

    @property
    def ideal_per_s(self) -> float | None:
        """What the model could answer in a second; None if it answers at once."""
        return self.slots / self.latency_ms * 1000 if self.latency_ms else None


CASES = (
    Case("model answers at once", 0.0, 64, 2, 16, 2000),
    Case("50 ms, 16 slots", 50.0, 16, 2, 10, 3000),
    Case("50 ms, 64 slots", 50.0, 64, 2, 36, 4000),
)


@click.command()
@click.option("--repeat", default=3, show_default=True, help="Runs of each row; the median counts.")
def main(repeat: int) -> None:
    """Measure throughput, row by row, the repetitions interleaved."""
    console = Console(highlight=False)
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"embedded Valkey with appendfsync always, fake model; {repeat} runs each, median"
    )
    runs: dict[Case, list[tuple[float, float]]] = {case: [] for case in CASES}
    for _ in range(repeat):
        for case in CASES:
            runs[case].append(asyncio.run(measure(case)))
    table = Table("model", "workers x calls", "events/s", "share of the ideal", "CPU ms an event", "spread")
    for case, results in runs.items():
        rates = sorted(rate for rate, _ in results)
        rate, cpu_ms = rates[len(rates) // 2], sorted(cpu for _, cpu in results)[len(results) // 2]
        share = f"{rate / case.ideal_per_s:.3f}" if case.ideal_per_s else "-"
        fleet = f"{case.workers} x {case.concurrency}"
        table.add_row(case.name, fleet, f"{rate:.0f}", share, f"{cpu_ms:.2f}", f"{rates[0]:.0f}-{rates[-1]:.0f}")
    console.print(table)


async def measure(case: Case) -> tuple[float, float]:
    """Run one case; return events a second, and the workers' CPU milliseconds an event."""
    with tempfile.TemporaryDirectory(prefix="millhand-bench-") as folder, fake_model(case) as model_url:
        state = StateDir(Path(folder) / "state")
        environment = {
            **os.environ,
            "MILLHAND_FLEET_STATE_DIR": str(state.path),
            "MILLHAND_FLEET_WORKERS": str(case.workers),
            "MILLHAND_MODEL_URL": model_url,
            "MILLHAND_MODEL_NAME": "fake:1b",
            "MILLHAND_MODEL_CONCURRENCY": str(case.concurrency),
            "MILLHAND_DESK_PORT": "0",
            "MILLHAND_LOG_LEVEL": "warning",
        }
        fleet = await asyncio.create_subprocess_exec(WORKER_CTL, "up", env=environment, stderr=subprocess.DEVNULL)
        try:
            redis_url = await found(lambda: state.read(ENDPOINTS).get("redis_url"))
            await found(lambda: workers_ready(environment) == case.workers)
            return await timed(redis_url, case, fleet.pid)
        finally:
            fleet.terminate()
            await fleet.wait()


async def timed(redis_url: str, case: Case, supervisor_pid: int) -> tuple[float, float]:
    """Produce a case's events and time how long they take until the last one is written."""
    redis: Any = connect(redis_url)
    keys = Keys.of(load_config(None))
    started, cpu_s = time.monotonic(), cpu_of(supervisor_pid)
    for first in range(0, case.events, BATCH):
        async with redis.pipeline(transaction=False) as pipeline:
            for number in range(first, min(first + BATCH, case.events)):
                pipeline.xadd(keys.input, {DATA: json.dumps({"id": number, "text": TEXT})})
            await pipeline.execute()
    while await redis.xlen(keys.output) < case.events:
        if time.monotonic() - started > WITHIN_S:
            sys.exit(f"{case.name}: not done within {WITHIN_S:g} s")
        await asyncio.sleep(POLL_S)
    seconds, cpu_s = time.monotonic() - started, cpu_of(supervisor_pid) - cpu_s
    await redis.aclose()
    return case.events / seconds, cpu_s / case.events * 1000


@contextmanager
def fake_model(case: Case) -> Iterator[str]:
    """Run the fake model for the length of the block; yield its address."""
    command = [sys.executable, str(PROJECT / "scripts" / "fake_ollama.py")]
    options = ["--latency-ms", str(case.latency_ms), "--slots", str(case.slots)]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE)  # noqa: S603 - our own script
    try:
        assert process.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait()


def workers_ready(environment: dict[str, str]) -> int:
    """Return how many workers the fleet says are ready."""
    command = [WORKER_CTL, "status", "--json"]
    answer = subprocess.run(command, env=environment, capture_output=True, check=False)  # noqa: S603 - our own command
    return json.loads(answer.stdout)["health"]["workers_ready"] if answer.returncode == 0 else 0


def cpu_of(supervisor_pid: int) -> float:
    """Return the CPU seconds that the fleet's processes have spent, the server's left out."""
    children = psutil.Process(supervisor_pid).children()
    times = [child.cpu_times() for child in children if not child.name().startswith("valkey")]
    return sum(spent.user + spent.system for spent in times)


async def found(look: Any) -> Any:
    """Wait until a look finds something, and return that."""
    deadline = time.monotonic() + WITHIN_S
    while not (value := look()):
        if time.monotonic() > deadline:
            sys.exit("the fleet did not start")
        await asyncio.sleep(POLL_S)
    return value


if __name__ == "__main__":
    main()
