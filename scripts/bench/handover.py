"""How long after `kill -9` of a worker its events are in another worker's hands.

Once with a supervisor that sees it die, and once with a frozen one, so that nobody sees it and a lease has to run out.
A real fleet on a durable Valkey; the fake model holds every first call, so that the victim has its hands full.
"""

import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

import click  # noqa: E402 - the project's root has to be found first
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from tests.fleet.moments import PARKED, HookedFleet, WatchedStreams  # noqa: E402
from tests.rig import RedisServer  # noqa: E402

from scripts.fake_ollama import FakeOllama  # noqa: E402

WORKERS, EVENTS = 4, 4  # one of four workers holds four events
SEEN_S_MAX = 2.0  # the promise where the supervisor sees it
POLL_S = 0.002


class Handover(NamedTuple):
    """What became of one event of a killed worker, in seconds after the kill."""

    held_s: float  # until another worker had it
    asked_s: float  # until the model was asked about it again


@click.command()
@click.option("--kills", default=20, show_default=True, help="Of each kind.")
@click.option("--lease", "lease_s", default=5.0, show_default=True, help="Seconds.")
@click.option("--sweep", "sweep_s", default=0.5, show_default=True, help="Seconds between the janitor's sweeps.")
def main(kills: int, lease_s: float, sweep_s: float) -> None:
    """Measure the handover, kill by kill."""
    console = Console(highlight=False)
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}, Valkey with appendfsync always; {WORKERS} workers, {EVENTS} events in "
        f"the victim's hands, lease {lease_s:g} s, sweep {sweep_s:g} s; {kills} kills of each kind"
    )
    table = Table("the death", "until", "median s", "worst s", "promised s")
    promises = {"seen": SEEN_S_MAX, "unseen": lease_s + sweep_s}
    for name, promise_s in promises.items():
        with running(lease_s, sweep_s) as (fleet, streams, fake):
            found = [killed(fleet, streams, fake, unseen=name == "unseen") for _ in range(kills)]
        last_held = [max(one.held_s for one in handovers) for handovers in found]
        last_asked = [max(one.asked_s for one in handovers) for handovers in found]
        table.add_row(name, "all in other hands", *summary(last_held), f"{promise_s:g}")
        table.add_row("", "all asked about again", *summary(last_asked), "-")
    console.print(table)


def summary(seconds: list[float]) -> tuple[str, str]:
    """Return median and worst, readable."""
    return f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}"


@contextmanager
def running(lease_s: float, sweep_s: float) -> Iterator[tuple[HookedFleet, WatchedStreams, FakeOllama]]:
    """Run a fleet that restarts who was killed without much back-off, since we kill more than nature does."""
    settings = {
        "MILLHAND_FLEET_WORKERS": str(WORKERS),
        "MILLHAND_MODEL_CONCURRENCY": str(EVENTS),
        "MILLHAND_DELIVERY_LEASE_S": str(lease_s),
        "MILLHAND_JANITOR_EVERY_S": str(sweep_s),
    }
    with (
        tempfile.TemporaryDirectory(prefix="millhand-bench-") as folder,
        RedisServer({"appendonly": "yes", "appendfsync": "always"}) as server,
        FakeOllama(slots=64).in_thread() as fake,
        HookedFleet(Path(folder), server.url, fake, settings) as fleet,
        server.client() as client,
    ):
        streams = WatchedStreams(client)
        fleet.start(WORKERS)
        yield fleet, streams, fake


def killed(fleet: HookedFleet, streams: WatchedStreams, fake: FakeOllama, *, unseen: bool) -> list[Handover]:
    """Give a worker events, kill it, and time what becomes of them."""
    fleet.until(lambda: streams.readers_wait(WORKERS), "all workers are idle")
    first = fake.arrived
    events = streams.add(*(f"event {first + n} [[fake hold times=1]]" for n in range(EVENTS)))
    fake.block_until(lambda: fake.held == EVENTS)
    victim, _ = streams.held()[events[0]]
    orphans = streams.holders()[victim]
    supervisor = fleet.process.pid if fleet.process else 0
    if unseen:
        os.kill(supervisor, signal.SIGSTOP)
    fleet.kill(victim)
    began_s = time.monotonic()
    held_s = until_in_other_hands(streams, victim, orphans)
    fake.release()  # what others hold, if the events went to several
    fleet.until(lambda: not streams.held(), "all are settled")
    if unseen:
        os.kill(supervisor, signal.SIGCONT)
    asked_s = {call.text: call.arrival_s for call in list(fake.calls)[first:]}  # the last time counts
    texts = {event: f"event {first + n} [[fake hold times=1]]" for n, event in enumerate(events)}
    return [Handover(held_s[event] - began_s, asked_s[texts[event]] - began_s) for event in orphans]


def until_in_other_hands(streams: WatchedStreams, victim: str, orphans: set[str]) -> dict[str, float]:
    """Return when each event was first seen in another worker's hands, or settled."""
    found: dict[str, float] = {}
    while len(found) < len(orphans):
        held = streams.held()
        for event in orphans - found.keys():
            owner, _ = held.get(event, ("settled", 0))
            if owner not in {victim, PARKED}:
                found[event] = time.monotonic()
        time.sleep(POLL_S)
    return found


if __name__ == "__main__":
    main()
