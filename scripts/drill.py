"""Put a fleet under load through all that supervision is for, and tell what happened, from its own log.

A worker is killed, stopped, made to hang; its successors cannot import; the supervisor cannot start a process, and is
killed; the fleet is scaled 8, 1, 8, 0, 4 with orders that race each other. Exit code 0 if no event was lost or doubled
and no process is left behind.

    python scripts/drill.py
    python scripts/drill.py --keep /tmp/drill      # keeps the fleet's log there
"""

import itertools
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

import click  # noqa: E402 - the project's root has to be found first
import psutil  # noqa: E402
from tests.fleet.conftest import INPUT, Streams, gone  # noqa: E402
from tests.fleet.prepared import PreparedFleet  # noqa: E402
from tests.rig import RedisServer, eventually  # noqa: E402

from scripts.fake_ollama import FakeOllama  # noqa: E402

EVENTS_PER_S = 30
WITHIN_S = 60.0
LEFT_S_MAX = 5.0  # for the interpreter's own helper of a supervisor to see that it is alone
SHOWN = {
    "child.died", "child.stacks", "child.killed", "child.not_started", "child.ready", "fleet.crash_loop",
    "fleet.crash_loop_over", "fleet.scaled", "fleet.paused", "fleet.resumed", "fleet.rolling", "fleet.rolled",
    "fleet.reloaded", "supervisor.started", "supervisor.stopped", "fleet.leftovers_killed",
}  # fmt: skip
FIELDS = (
    "name",
    "pid",
    "exit",
    "reason",
    "error",
    "restart_in_s",
    "again_in_s",
    "workers",
    "before",
    "what",
    "after_s",
)


class Drill:
    """A fleet, its load, and what is done to it."""

    def __init__(self, fleet: PreparedFleet, streams: Streams) -> None:
        self.fleet = fleet
        self.streams = streams
        self.produced = 0
        self._seen = 0
        self._began_s = time.monotonic()

    @contextmanager
    def load(self) -> Iterator[None]:
        """Produce events for the length of the block."""
        over = threading.Event()

        def produce() -> None:
            while not over.wait(1 / EVENTS_PER_S):
                self.streams.client.xadd(INPUT, {"data": f'{{"text": "event {self.produced} [[fake delay=0.1]]"}}'})
                self.produced += 1

        producer = threading.Thread(target=produce)
        producer.start()
        try:
            yield
        finally:
            over.set()
            producer.join()

    def step(self, what: str, act: Callable[[], object], until: Callable[[], object]) -> None:
        """Do something to the fleet, wait for what must come of it, and show what its log says meanwhile."""
        click.secho(f"\n{what}", bold=True)
        began_s = time.monotonic()
        act()
        eventually(until, WITHIN_S, what=f"{what}; the log: {self.fleet.log[-3000:]}")
        for record in self._news():
            told = "  ".join(f"{field}={record[field]}" for field in FIELDS if field in record)
            click.echo(f"  {record['timestamp'][11:23]}  {record['event']:22} {told}")
            for line in _where(record.get("stack", "")):
                click.echo(f"    {line}")
        click.echo(f"  {time.monotonic() - began_s:.1f} s; enriched {self.streams.client.xlen('{events}:enriched')}")

    def _news(self) -> Iterator[dict[str, Any]]:
        records = self.fleet.records()
        yield from (record for record in itertools.islice(records, self._seen, None) if record["event"] in SHOWN)
        self._seen = len(records)

    def pid(self, name: str) -> int:
        """Return the process of a child."""
        return self.fleet.pids("")[name]

    def at_work(self) -> int:
        """Return how many workers there are; -1 while one of them is not ready, or nobody tells."""
        status = self.fleet.status()
        if status is None:
            return -1
        rows = [row for row in status["children"] if row["name"].startswith("worker-")]
        return len(rows) if all(row["state"] == "ready" for row in rows) else -1

    def successor_of(self, name: str, pid: int) -> Callable[[], bool]:
        """Return whether another process than this one is ready in a slot."""
        return lambda: any(
            record["name"] == name and record["pid"] != pid and record["timestamp"] > self._last_death(name)
            for record in self.fleet.told("child.ready")
        )

    def _last_death(self, name: str) -> str:
        deaths = [record["timestamp"] for record in self.fleet.told("child.died") if record["name"] == name]
        return max(deaths, default="9")


def _where(stack: str) -> list[str]:
    """Return the innermost frames of the main thread, which stands last."""
    lines = stack.splitlines()
    heads = [number for number, line in enumerate(lines) if "(most recent call first)" in line]
    return lines[heads[-1] + 1 : heads[-1] + 3] if heads else []


def hurt_workers(drill: Drill) -> None:
    """Kill one, stop one, hang one, break one."""
    fleet = drill.fleet
    first = drill.pid("worker-1")
    drill.step("kill -9 of worker-1", lambda: os.kill(first, signal.SIGKILL), drill.successor_of("worker-1", first))
    second = drill.pid("worker-2")
    drill.step("SIGSTOP of worker-2", lambda: os.kill(second, signal.SIGSTOP), drill.successor_of("worker-2", second))
    hangs = lambda: drill.streams.client.xadd(INPUT, {"data": '{"text": "[[block]]"}'})  # noqa: E731
    buried = lambda: len(drill.streams.dead()) == 1  # noqa: E731
    drill.step("an event on which whoever has it hangs for ever", hangs, buried)
    drill.produced += 1

    def break_it() -> None:
        (fleet.folder / "broken").touch()
        for pid in fleet.pids().values():
            os.kill(pid, signal.SIGKILL)

    drill.step(
        "an import error in every new process, and all workers killed", break_it, lambda: fleet.told("fleet.crash_loop")
    )
    drill.step(
        "… and mended",
        (fleet.folder / "broken").unlink,
        lambda: drill.at_work() == 4,  # noqa: PLR2004
    )


def starve_supervisor(drill: Drill) -> None:
    """Let the supervisor start nothing for a while. Root is not held to RLIMIT_NPROC, so it is RLIMIT_NOFILE."""
    supervisor = psutil.Process(drill.fleet.supervisor_pid())
    limits = supervisor.rlimit(psutil.RLIMIT_NOFILE)
    worker = drill.pid("worker-3")

    def starve() -> None:
        supervisor.rlimit(psutil.RLIMIT_NOFILE, (3, limits[1]))
        os.kill(worker, signal.SIGKILL)

    def failed() -> bool:
        return len(drill.fleet.told("child.not_started")) > 1

    drill.step("no process can be started, and worker-3 killed", starve, failed)
    drill.step(
        "… and again one can",
        lambda: supervisor.rlimit(psutil.RLIMIT_NOFILE, limits),
        drill.successor_of("worker-3", worker),
    )


def scale(drill: Drill) -> None:
    """8, 1, 8, 0, 4 with orders that race each other, and a supervisor that is killed in the middle."""
    fleet = drill.fleet

    def orders(*commands: str) -> Callable[[], object]:
        def give() -> None:
            with ThreadPoolExecutor(len(commands)) as at_once:
                answers = list(at_once.map(lambda command: fleet.ctl(*command.split()), commands))
            for command, answer in zip(commands, answers, strict=True):
                click.echo(f"  worker-ctl {command}: {(answer.stdout or answer.stderr).decode().strip()}")

        return give

    drill.step("scale 8", orders("scale 8"), lambda: drill.at_work() == 8)  # noqa: PLR2004
    drill.step(
        "scale 1, with others", orders("scale 1", "status", "pause", "restart"), lambda: fleet.told("fleet.paused")
    )
    drill.step("resume, scale 1", orders("resume", "scale 1"), lambda: drill.at_work() == 1)
    drill.step("scale 8 again, by differences", orders(*["scale +1"] * 7), lambda: drill.at_work() == 8)  # noqa: PLR2004
    drill.step("scale 0", orders("scale 0"), lambda: drill.at_work() == 0)

    def killed() -> None:
        orders("scale 4")()
        fleet.terminate(signal.SIGKILL)
        fleet.up(ready=False)

    drill.step("scale 4, the supervisor killed, and started again", killed, lambda: drill.at_work() == 4)  # noqa: PLR2004


@click.command()
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep the fleet's log in this folder.")
def main(keep: Path | None) -> None:
    """Run the drill."""
    with tempfile.TemporaryDirectory(prefix="millhand-drill-") as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with (
            RedisServer({"appendonly": "yes", "appendfsync": "always"}) as redis,
            FakeOllama(slots=32).in_thread() as fake,
            redis.client() as client,
            PreparedFleet(folder, environment(redis, fake)) as fleet,
        ):
            sys.exit(0 if drilled(fleet, Streams(client)) else 1)


def environment(redis: RedisServer, fake: FakeOllama) -> dict[str, str]:
    """Return the fleet's settings."""
    return {
        "MILLHAND_REDIS_URL": redis.url,
        "MILLHAND_MODEL_URL": fake.url,
        "MILLHAND_MODEL_NAME": fake.model,
        "MILLHAND_MODEL_CONCURRENCY": "4",
        "MILLHAND_MODEL_IN_FLIGHT_MAX": "32",
        "MILLHAND_DELIVERY_LEASE_S": "5",
        "MILLHAND_DELIVERY_DELIVERIES_MAX": "2",
        "MILLHAND_FLEET_WORKERS": "4",
        "MILLHAND_FLEET_DRAIN_S": "5",
        "MILLHAND_JANITOR_EVERY_S": "0.5",
    }


def drilled(fleet: PreparedFleet, streams: Streams) -> bool:
    """Do all of it; return whether nothing was lost, doubled or left behind."""
    drill = Drill(fleet, streams)
    drill.step("worker-ctl up", fleet.up, lambda: drill.at_work() == 4)  # noqa: PLR2004
    everybody: list[psutil.Process] = []
    with drill.load():
        for act in (hurt_workers, starve_supervisor, scale):
            act(drill)
            everybody += fleet.family()
    eventually(lambda: streams.settled_once(drill.produced), WITHIN_S, what="every event is settled once")
    drill.step("SIGTERM, twice", lambda: os.kill(fleet.supervisor_pid(), signal.SIGTERM), fleet.terminated)
    with suppress(AssertionError):
        eventually(lambda: gone(everybody), LEFT_S_MAX)
    left = [process.pid for process in everybody if not gone([process])]
    enriched, dead = len(streams.enriched()), len(streams.dead())
    click.secho(
        f"\nevents {drill.produced}: enriched {enriched}, dead letters {dead}, none lost, none doubled", bold=True
    )
    click.secho(f"processes left behind: {left or 'none'}", bold=True)
    return not left and enriched + dead == drill.produced


if __name__ == "__main__":
    main()
