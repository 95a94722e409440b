"""How long after `kill -9` of a worker its events are in another worker's hands.

Once with a supervisor that sees it die, and once with a frozen one, so that nobody sees it and a lease has to run out.
A real fleet on a durable Valkey; the fake model holds every first call, so that the victim has its hands full.
"""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.fleet.moments import PARKED, HookedFleet, WatchedStreams
from tests.rig import RedisServer

from scripts.bench.rows import Report, Row
from scripts.fake_ollama import FakeOllama

WORKERS, EVENTS = 4, 4  # one of four workers holds four events
LEASE_S, SWEEP_S = 5.0, 0.5
SEEN_S_MAX = 2.0  # the promise where the supervisor sees it
POLL_S = 0.002


class Handover(NamedTuple):
    """What became of one event of a killed worker, in seconds after the kill."""

    held_s: float  # until another worker had it
    asked_s: float  # until the model was asked about it again


def measure(*, short: bool = False) -> Report:
    """Measure the handover, kill by kill."""
    kills = 3 if short else 10
    rows: list[Row] = []
    for death, promised_s in {"seen": SEEN_S_MAX, "unseen": LEASE_S + SWEEP_S}.items():
        with running() as (fleet, streams, fake):
            found = [killed(fleet, streams, fake, unseen=death == "unseen") for _ in range(kills)]
        held_s = [max(one.held_s for one in handovers) for handovers in found]
        asked_s = [max(one.asked_s for one in handovers) for handovers in found]
        rows.append(
            {
                "the_death": death,
                "held_median_s": median(held_s),
                "held_worst_s": max(held_s),
                "promised_s": promised_s,
                "asked_again_median_s": median(asked_s),
                "asked_again_worst_s": max(asked_s),
            }
        )
    return Report(
        f"{WORKERS} workers, {EVENTS} events in the victim's hands, lease {LEASE_S:g} s, sweep {SWEEP_S:g} s, "
        f"{kills} kills of each kind, appendfsync always; until all are in other hands, and asked about again",
        rows,
    )


@contextmanager
def running() -> Iterator[tuple[HookedFleet, WatchedStreams, FakeOllama]]:
    """Run a fleet that restarts who was killed without much back-off, since we kill more than nature does."""
    settings = {
        "MILLHAND_FLEET_WORKERS": str(WORKERS),
        "MILLHAND_MODEL_CONCURRENCY": str(EVENTS),
        "MILLHAND_DELIVERY_LEASE_S": str(LEASE_S),
        "MILLHAND_JANITOR_EVERY_S": str(SWEEP_S),
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
