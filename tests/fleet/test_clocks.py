"""Clocks that jump and drift under load: the server's, and the fleet's own."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.fleet.conftest import INPUT
from tests.fleet.moments import GROUP, WatchedFleet, WatchedStreams
from tests.rig import RedisServer

from scripts.fake_ollama import FakeOllama

HOUR_S = 3600
LEASE_S, SWEEP_S, SLOW_S = 2.0, 0.3, 4.0
SLACK_S = 8.0  # for a machine that has much else to do
FAILED, SLOW = "failed {} [[fake length times=1]]", f"slow {{}} [[fake delay={SLOW_S}]]"

MakeClock = Callable[[str], "Clock"]


class Clock:
    """A wall clock for the processes that are started in its environment. Their monotonic clock is left alone."""

    def __init__(self, library: Path, file: Path, says: str) -> None:
        self._file = file
        self.set(says)
        self.environment = os.environ | {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, says: str) -> None:
        """Set it, in libfaketime's words: "+3600", or "+0 x2" for one that is twice as fast from the beginning."""
        draft = self._file.with_suffix(".draft")
        draft.write_text(says, encoding="ascii")
        draft.rename(self._file)


@pytest.fixture
def make_clock(tmp_path: Path) -> MakeClock:
    """Make clocks. Without libfaketime the test is skipped; but CI installs it, so there it fails."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        assert os.environ.get("CI") != "true", "libfaketime is not installed"
        pytest.skip("libfaketime is not installed")
    return lambda says: Clock(library, tmp_path / "clock", says)


class Load(NamedTuple):
    """Events of each kind to which a clock could do harm."""

    failed: list[str]  # parked after a first attempt
    slow: list[str]  # in hand for longer than a lease
    ghosts: list[str]  # of a living worker that has never seen them
    since_s: float  # when the ghosts came to be


class Shift:
    """A fleet and its server, with work of every kind under way."""

    def __init__(self, fleet: WatchedFleet, streams: WatchedStreams, fake: FakeOllama) -> None:
        self.fleet, self.streams, self._fake = fleet, streams, fake

    def begin(self) -> Load:
        """Start the fleet; return when retries are parked, slow events in hand, and ghosts have just come to be."""
        self.fleet.start()
        failed = self.streams.add(*(FAILED.format(n) for n in range(2)))
        self.fleet.until_told("event.settled", 2, verdict="retry")
        slow = self.streams.add(*(SLOW.format(n) for n in range(4)))
        self._fake.block_until(lambda: self._fake.running == len(slow), 30)
        owner, _ = self.streams.held()[slow[0]]
        return Load(failed, slow, self._haunt(owner), time.monotonic())

    def _haunt(self, owner: str) -> list[str]:
        """Deliver new entries to a living worker in a reply that does not reach it."""
        with self.streams.client.pipeline(transaction=True) as pipeline:
            for n in range(3):
                pipeline.xadd(INPUT, {"data": f'{{"text": "ghost {n}"}}'})
            pipeline.xreadgroup(GROUP, owner, {INPUT: ">"}, count=3)
            *_, ((_, delivered),) = pipeline.execute()
        return [entry_id.decode() for entry_id, _ in delivered]

    def end(self, load: Load) -> None:
        """Produce some more, wait until all is settled, and judge what was done."""
        more = self.streams.add(*(f"quick {n}" for n in range(30)))
        count = len(load.failed) + len(load.slow) + len(load.ghosts) + len(more)
        self.fleet.until(lambda: self.streams.settled_once(count))
        assert not self.streams.dead()
        assert not self.fleet.deaths()
        taken = {entry_id for entry_id, deliveries in self.fleet.deliveries() if deliveries > 1}
        assert taken == set(load.ghosts), "ghosts come back, and nothing is taken from the living"
        calls = Counter(call.text for call in self._fake.calls)
        assert {text for text, times in calls.items() if times > 1} == {FAILED.format(n) for n in range(2)}
        for handed_back in self.fleet.until_told("event.settled", len(load.ghosts), verdict="hand_back"):
            assert handed_back["mono"] - load.since_s < LEASE_S + 2 * SWEEP_S + SLACK_S


@pytest.fixture
def make_shift(tmp_path: Path, fake: FakeOllama) -> Iterator[Callable[..., Shift]]:
    """Make the shift, on a durable server; both are ended after the test."""
    with ExitStack() as stack:

        def make(server_clock: Clock | None = None, **settings: str) -> Shift:
            environment = server_clock.environment if server_clock else None
            durable = {"appendonly": "yes", "appendfsync": "always"}
            server = stack.enter_context(RedisServer(durable, environment=environment))
            own = {
                "MILLHAND_DELIVERY_LEASE_S": str(LEASE_S),
                "MILLHAND_JANITOR_EVERY_S": str(SWEEP_S),
                "MILLHAND_MODEL_CONCURRENCY": "4",
            }
            fleet = stack.enter_context(WatchedFleet(tmp_path, server.url, fake, own | settings))
            return Shift(fleet, WatchedStreams(stack.enter_context(server.client())), fake)

        yield make


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
def test_a_jump_of_the_servers_clock_neither_steals_nor_freezes(
    make_clock: MakeClock, make_shift: Callable[..., Shift], jump_s: int
) -> None:
    """F40: by an hour, while slow events are in hand, ghosts grow idle, and retries wait for their time."""
    clock = make_clock("+0")
    shift = make_shift(clock, MILLHAND_DELIVERY_RETRY_BACKOFF_S="600", MILLHAND_DELIVERY_RETRY_BACKOFF_MAX_S="600")
    load = shift.begin()
    assert shift.streams.client.zcard("{events}:parked") == len(load.failed)
    clock.set(f"{jump_s:+d}")
    shift.fleet.until(lambda: abs(shift.streams.client.time()[0] - time.time() - jump_s) < 5)
    shift.end(load)


@pytest.mark.parametrize("speed", [4.0, 0.15])
def test_a_servers_clock_that_drifts_neither_steals_nor_freezes(
    make_clock: MakeClock, make_shift: Callable[..., Shift], speed: float
) -> None:
    """F40: leases are judged by the janitor's clock, not by the server's."""
    shift = make_shift(make_clock(f"+0 x{speed}"))
    began_s = time.time()
    shift.end(shift.begin())
    assert abs(shift.streams.client.time()[0] - time.time()) > (time.time() - began_s) / 2, "the clock did not drift"


def test_jumps_of_the_fleets_own_wall_clock_change_nothing(
    make_clock: MakeClock, make_shift: Callable[..., Shift]
) -> None:
    """F41: leases and waits go by the monotonic clock, retries and ages by the server's."""
    clock = make_clock("+0")
    ages = {"MILLHAND_DELIVERY_AGE_MAX_S": str(HOUR_S / 2)}
    shift = make_shift(**clock.environment, **ages, MILLHAND_DELIVERY_RETRY_BACKOFF_S="4")
    load = shift.begin()
    for offset_s in (HOUR_S, -HOUR_S):
        clock.set(f"{offset_s:+d}")
        heartbeats = len(shift.fleet.told("lease.renewed"))
        shift.fleet.until_told("lease.renewed", heartbeats + 1)
        (meanwhile,) = shift.streams.add(f"at {offset_s:+d}")
        shift.fleet.until(lambda: meanwhile in shift.streams.enriched_by())  # noqa: B023 - over before the next
        load.slow.append(meanwhile)
    shift.end(load)

    told = shift.fleet.told("lease.renewed")
    clocks = [datetime.fromisoformat(one["timestamp"]).timestamp() for one in told]
    assert max(clocks) - min(clocks) > 1.9 * HOUR_S, "the clock did not jump"
    again = {one["id"]: one["mono"] for one in shift.fleet.told("event.delivered")}
    for parked in shift.fleet.told("event.settled"):
        if parked["verdict"] == "retry":
            assert 0 <= again[parked["id"]] - parked["mono"] - parked["in_s"] + 0.1 < SLACK_S
