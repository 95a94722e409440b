"""Killing: of workers, of the supervisor, and what is left behind."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress

import psutil
import pytest
from tests.fleet.conftest import BIN, RunningFleet, Streams, gone
from tests.rig import RedisServer, eventually

from scripts.fake_ollama import FakeOllama

ORPHANS_GONE_S_MAX = 3.0


def test_killed_workers_lose_no_event_and_double_none(fleet: RunningFleet, streams: Streams, fake: FakeOllama) -> None:
    """F1, F2: kill -9 of a worker with events in hand, again and again."""
    fleet.up()
    streams.produce(200, "event {n} [[fake delay=0.1]]")
    for done in (20, 60, 100, 140):
        eventually(lambda done=done: len(streams.enriched()) >= done, 30)  # type: ignore[misc]
        name = f"worker-{1 + done // 20 % 2}"
        victim = fleet.pids()[name]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda name=name, victim=victim: fleet.pids().get(name, victim) != victim, 20)  # type: ignore[misc]
        eventually(fleet.is_ready, 20)
    eventually(lambda: streams.settled_once(200), 60)
    assert not streams.dead()
    assert len(fake.calls) > 200, "no event was in hand when its worker was killed: the test proves nothing"
    assert len(fleet.told("child.died")) == 4


@pytest.mark.alone
def test_a_killed_workers_events_are_handed_on_within_two_seconds(fleet: RunningFleet, streams: Streams) -> None:
    """Promise 6: the supervisor saw it die."""
    fleet.environment["MILLHAND_DELIVERY_LEASE_S"] = "60"
    fleet.up()
    streams.produce(4, "event {n} [[fake hold times=1]]")
    pending = eventually(lambda: _pending_of(streams, 2))
    (consumer, ids), *_ = pending.items()
    slot = consumer.split(":")[1].removeprefix("w")
    os.kill(fleet.pids()[f"worker-{slot}"], signal.SIGKILL)
    killed = time.monotonic()
    eventually(lambda: {record[b"src"] for record in streams.enriched()} >= ids, 5)
    assert time.monotonic() - killed < 2.0


def _pending_of(streams: Streams, each: int) -> dict[str, set[bytes]] | None:
    """Return the ids each consumer holds, once two consumers hold so many."""
    held: dict[str, set[bytes]] = {}
    for row in streams.client.xpending_range("{events}:raw", "enrichers", "-", "+", 100):
        held.setdefault(row["consumer"].decode(), set()).add(row["message_id"])
    return held if len(held) == 2 and all(len(ids) == each for ids in held.values()) else None


def test_a_killed_supervisor_leaves_no_process_and_the_next_one_goes_on(fleet: RunningFleet, streams: Streams) -> None:
    """F12."""
    fleet.up()
    streams.produce(150, "event {n} [[fake delay=0.1]]")
    eventually(lambda: len(streams.enriched()) >= 20)
    family = fleet.family()
    fleet.terminate(signal.SIGKILL)
    eventually(lambda: gone(family), ORPHANS_GONE_S_MAX)
    fleet.up()
    eventually(lambda: streams.settled_once(150), 60)
    assert not streams.dead()


def test_a_supervisor_killed_while_a_worker_drains_leaves_no_process(fleet: RunningFleet, streams: Streams) -> None:
    """F12: the long drain deadline of a scale-down must not outlive the supervisor."""
    fleet.up()
    streams.produce(4, "event {n} [[fake hold]]")
    eventually(lambda: _pending_of(streams, 2))
    fleet.ctl("scale", "1")
    eventually(lambda: fleet.told("worker.draining"))
    family = fleet.family()
    fleet.terminate(signal.SIGKILL)
    eventually(lambda: gone(family), ORPHANS_GONE_S_MAX)


def test_an_embedded_redis_keeps_what_it_has_when_the_supervisor_is_killed(
    fleet: RunningFleet, tmp_path: object
) -> None:
    """Its data survive, and the next supervisor's Valkey waits for the last one's to be gone."""
    del tmp_path
    fleet.environment["MILLHAND_REDIS_URL"] = "embedded"
    fleet.up()
    lines = b"".join(json.dumps({"text": f"event {n} [[fake delay=0.1]]"}).encode() + b"\n" for n in range(60))
    assert fleet.ctl("produce", stdin=lines).returncode == 0
    eventually(lambda: (fleet.status() or {})["streams"]["enriched"] >= 10)
    fleet.terminate(signal.SIGKILL)
    fleet.up(ready=False)
    eventually(lambda: (status := fleet.status()) and status["streams"]["enriched"] == 60, 30)
    status = fleet.status()
    assert status is not None
    assert status["redis"]["durability"] == "durable"
    assert status["streams"]["dead"] == 0


def test_a_worker_that_hangs_is_ended_and_its_events_go_on(fleet: RunningFleet, streams: Streams) -> None:
    """F6: SIGSTOP for longer than the lease; the successor and the zombie write one record."""
    fleet.environment["MILLHAND_DELIVERY_LEASE_S"] = "1"
    fleet.up()
    victim = fleet.pids()["worker-1"]
    streams.produce(4, "event {n} [[fake delay=0.5]]")
    eventually(lambda: _pending_of(streams, 2))
    os.kill(victim, signal.SIGSTOP)
    try:
        eventually(lambda: streams.settled_once(4), 20)
    finally:
        os.kill(victim, signal.SIGCONT)
    streams.produce(10)
    eventually(lambda: streams.settled_once(14), 20)
    assert not streams.dead()


def test_a_supervisor_that_fails_leaves_at_once_and_so_do_its_children(fleet: RunningFleet) -> None:
    """One that stayed, doing nothing, would look alive to supervisord and keep the lock."""
    code = (
        "from millhand_fleet import supervisor\n"
        "def fail(self): raise RuntimeError('broken')\n"
        "supervisor.Supervisor._on_ready = lambda self, name, child: fail(self)\n"
        "from millhand_fleet.ctl.up import up\n"
        "up(['--workers', '1'])\n"
    )
    answer = fleet.run("-c", code)
    assert answer.returncode == 70, answer.stderr
    assert b"supervisor.failed" in answer.stderr
    eventually(lambda: gone([one for one in psutil.process_iter() if _is_millhand_of(one, fleet)]), ORPHANS_GONE_S_MAX)


def _is_millhand_of(process: psutil.Process, fleet: RunningFleet) -> bool:
    with suppress(psutil.Error):
        return process.environ().get("MILLHAND_FLEET_STATE_DIR") == str(fleet.state_dir)
    return False


def test_a_fleet_whose_log_nobody_reads_any_more_goes_on(fleet: RunningFleet, streams: Streams) -> None:
    """F13: supervisord was killed, and with it the other end of the pipe."""
    reader, writer = os.pipe()
    fleet.process = subprocess.Popen(
        [BIN / "worker-ctl", "up"], env=fleet.environment, cwd=fleet.folder, stdout=writer, stderr=writer
    )
    os.close(writer)
    fleet.eventually_ready()
    os.close(reader)
    os.kill(fleet.pids()["worker-1"], signal.SIGKILL)
    streams.client.xadd("{events}:raw", {"data": "hopeless"})
    streams.produce(20)
    eventually(lambda: streams.settled_once(21), 20)
    eventually(fleet.is_ready, 20)
    assert fleet.terminate() == 0


def test_a_second_supervisor_refuses_to_start(fleet: RunningFleet, durable_redis: RedisServer) -> None:
    """F13."""
    del durable_redis
    fleet.up()
    second = fleet.ctl("up")
    assert second.returncode == 75
    assert b"already running" in second.stderr
    assert fleet.is_ready()
