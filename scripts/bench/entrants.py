"""Who is measured: how each is started, with its best settings, and how its queue is fed."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import psutil

from scripts.bench import venvs
from scripts.bench.cases import W0, W1, W2, W3, Case, Cell
from scripts.bench.rig import INPUT, OUTPUT, PROJECT, FastModel, fleet

READY, QUEUE, PEER_OUTPUT = "bench:ready", "bench:in", "bench:out"
START_S_MAX = 60.0
POLL_S = 0.02
LOG_CHARS_MAX = 3000

PACE = {W0: 2000, W1: 600, W2: 160, W3: 400}  # of most, in one process
Commands = Callable[[Cell, int], list[list[str]]]


class Stage(NamedTuple):
    """What an entrant works on."""

    redis_url: str
    client: Any
    model: FastModel


class NotStarted(Exception):
    """An entrant's workers do not take events; with the end of their log."""


@dataclass(frozen=True, eq=False)
class Entrant:
    """One product. `commands` start its workers, given the cell and the events in flight; None is millhand itself.

    `in_flight` is how many events it has in hand, by case, as tried out: all its processes together where the model has
    slots, up to `each_max` each, else each of them; cases that are not there are not run. `queues` are the keys of its
    backlog, `pace` what one process does in a second, by case: it sizes the first run, and no figure.
    """

    name: str
    label: str
    commands: Commands | None
    in_flight: Mapping[Case, int]
    queues: Sequence[str] = (QUEUE,)
    client_each: Sequence[Case] = (W1, W2, W3)
    pace: Mapping[Case, float] = field(default_factory=lambda: PACE)
    each_max: int = sys.maxsize
    pool: bool = False  # a process for each event in flight
    settings: Mapping[Case, Mapping[str, object]] = field(default_factory=dict)  # millhand's own

    @property
    def output(self) -> str:
        """The stream that it writes to."""
        return PEER_OUTPUT if self.commands else OUTPUT

    @contextmanager
    def at_work(self, cell: Cell, stage: Stage) -> Iterator[list[int]]:
        """Run its workers until the block ends; yield the pids of their first ancestors once they take events."""
        each = self.each(cell)
        if self.commands is None:
            settings = {"model.concurrency": each, **self.settings.get(cell.case, {})}
            with fleet(stage.redis_url, stage.model, workers=cell.processes, settings=settings) as running:
                assert running.process is not None  # noqa: S101 - for the type checker: it is up
                yield [running.process.pid]
            return
        programs = venvs.bin_of(self.name)
        expected = each * cell.processes if self.pool else cell.processes
        with (
            tempfile.TemporaryFile("w+") as log,
            running_all(
                [[str(programs / command[0]), *command[1:]] for command in self.commands(cell, each)],
                self._environment(cell.case, stage, 1 if self.pool else each),
                log,
            ) as pids,
        ):
            deadline = time.monotonic() + START_S_MAX
            while int(stage.client.get(READY) or 0) < expected:
                if time.monotonic() > deadline:
                    log.seek(0)
                    raise NotStarted(f"{self.label} did not start: {log.read()[-LOG_CHARS_MAX:]}")
                time.sleep(POLL_S)
            yield pids

    def each(self, cell: Cell) -> int:
        """Return how many events each of its processes has in hand."""
        in_flight = self.in_flight[cell.case]
        return min(self.each_max, -(-in_flight // cell.processes)) if cell.case.ideal_per_s else in_flight

    @property
    def settings_in_words(self) -> str:
        """Say what was chosen for it."""
        told = [f"{case.name} {count}{' in all' if case.ideal_per_s else ''}" for case, count in self.in_flight.items()]
        own = [f"{case.name} {key} = {of}" for case, keys in self.settings.items() for key, of in keys.items()]
        if self.each_max < sys.maxsize:
            own.append(f"of a number in all {self.each_max} each at most")
        if self.commands and any(case.asks for case in self.in_flight):
            own.append("an httpx client for each" if self.client_each else "one httpx client a process")
        return "; ".join([f"in flight in each process: {', '.join(told)}", *own])

    def feeder(self, stage: Stage, first: int, count: int, per_s: float | None = None) -> "subprocess.Popen[bytes]":
        """Start adding events as its users do: all at once, or evenly."""
        programs, module = (
            (venvs.bin_of(self.name), self.name) if self.commands else (Path(sys.executable).parent, "plain")
        )
        pace = [] if per_s is None else [str(per_s)]
        return subprocess.Popen(  # noqa: S603 - arguments of ours
            [programs / "python", "-m", f"scripts.bench.peers.{module}", str(first), str(count), *pace],
            env=self._environment(W0, stage, 1),
            cwd=PROJECT,
        )

    def _environment(self, case: Case, stage: Stage, in_flight: int) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(PROJECT),
            "BENCH_REDIS_URL": stage.redis_url,
            "BENCH_MODEL_URL": stage.model.url if case.asks else "",
            "BENCH_IN_FLIGHT": str(in_flight),
            "BENCH_CLIENT_EACH": str(int(case in self.client_each)),
            "BENCH_QUEUE": QUEUE if self.commands else INPUT,
            **({} if case.asks else {"dramatiq_queue_prefetch": "200"}),
        }


@contextmanager
def running_all(commands: Sequence[Sequence[str]], environment: Mapping[str, str], log: IO[str]) -> Iterator[list[int]]:
    """Run commands until the block ends; then they are killed with all their descendants."""
    processes = [
        subprocess.Popen(command, env=environment, cwd=PROJECT, stdout=log, stderr=log)  # noqa: S603 - of ours
        for command in commands
    ]
    try:
        yield [process.pid for process in processes]
    finally:
        family = [psutil.Process(one.pid) for one in processes if one.poll() is None]
        family += [child for one in family for child in one.children(recursive=True)]
        for one in family:
            one.kill()
        for process in processes:
            process.wait()
        psutil.wait_procs(family)


def _plain(cell: Cell, _each: int) -> list[list[str]]:
    return [["python", "-m", "scripts.bench.peers.plain"]] * cell.processes


def _bulk(cell: Cell, _each: int) -> list[list[str]]:
    return [["python", "-m", "scripts.bench.peers.bulk"]] * cell.processes


def _faststream(cell: Cell, _each: int) -> list[list[str]]:
    workers = ["--workers", str(cell.processes)] if cell.processes > 1 else []
    return [["faststream", "run", "scripts.bench.peers.faststream:app", *workers]]


def _taskiq(cell: Cell, each: int) -> list[list[str]]:
    options = ["--workers", str(cell.processes), "--max-async-tasks", str(each), "--max-prefetch", str(each)]
    return [["taskiq", "worker", "scripts.bench.peers.taskiq:broker", *options, "--no-parse", "--log-level", "WARNING"]]


def _dramatiq(cell: Cell, each: int) -> list[list[str]]:
    return [["dramatiq", "scripts.bench.peers.dramatiq", "--processes", str(cell.processes), "--threads", str(each)]]


def _arq(cell: Cell, _each: int) -> list[list[str]]:
    return [
        ["arq", "scripts.bench.peers.arq.Worker", "--custom-log-dict", "scripts.bench.peers.arq.LOG"]
    ] * cell.processes


def _celery(cell: Cell, each: int) -> list[list[str]]:
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
    return [
        ["celery", "-A", "scripts.bench.peers.celery", "worker", "--concurrency", str(each * cell.processes), *quiet]
    ]


def _streaq(cell: Cell, _each: int) -> list[list[str]]:
    return [["streaq", "run", "scripts.bench.peers.streaq:worker", "--workers", str(cell.processes)]]


MILLHAND = Entrant(
    "millhand",
    "millhand",
    None,
    {W0: 128, W1: 64, W2: 20, W3: 80},
    queues=(INPUT,),
    pace={W0: 30_000, W1: 4000, W2: 160, W3: 1280},
    settings={
        W0: {"cache.ttl_s": 3600},
        W1: {"model.in_flight_max": 128},  # of these, twice what the workers may have at once: no read is cut short
        W2: {"model.in_flight_max": 40},
        W3: {"model.in_flight_max": 160},
    },
)
AUTO = Entrant("auto", 'millhand, "auto"', None, {W1: 64, W2: 20, W3: 80}, queues=(INPUT,), pace=MILLHAND.pace)
PEERS = (
    Entrant(
        "plain",
        "hand-written loop",
        _plain,
        {W0: 100, W1: 8, W2: 20, W3: 72},
        client_each=(),
        each_max=32,  # beyond some 40, one client needs many times the CPU time
        pace={W0: 10_000, W1: 500, W2: 160, W3: 400},
    ),
    Entrant("plain", "hand-written, client per slot", _plain, {W1: 16, W2: 20, W3: 96}),
    Entrant("plain", "hand-written, in bulk", _bulk, {W0: 1}, pace={W0: 40_000}),
    Entrant("faststream", "FastStream", _faststream, {W0: 100, W1: 16, W2: 20, W3: 96}, pace=PACE | {W0: 4000}),
    Entrant("taskiq", "taskiq-redis", _taskiq, {W0: 32, W1: 8, W2: 20, W3: 96}, pace=PACE | {W0: 3000}),
    Entrant(
        "dramatiq",
        "Dramatiq",
        _dramatiq,
        {W0: 1, W1: 16, W2: 20, W3: 96},
        queues=("dramatiq:default",),
        pace=PACE | {W0: 6000},
    ),
    Entrant("arq", "arq", _arq, {W0: 100, W1: 8, W2: 20, W3: 72}),
    Entrant("celery", "Celery (prefork)", _celery, {W0: 1, W1: 1, W2: 16, W3: 64}, pace=PACE | {W0: 1000}, pool=True),
    Entrant("streaq", "streaq", _streaq, {W0: 64, W1: 8, W2: 20, W3: 72}, queues=("streaq:bench:in:queues:normal",)),
)
