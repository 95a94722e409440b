"""What an operator does to a running fleet: pause, drain, restart and reload it; and what it survives meanwhile."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tests.fleet.conftest import RunningFleet, Streams, gone
from tests.fleet.prepared import PreparedFleet
from tests.rig import eventually

from millhand_fleet.ctl.desk_client import ANSWER_TIMEOUT_S
from millhand_fleet.state import ENDPOINTS, StateDir
from scripts.fake_ollama import FakeOllama

LEAK_LIMIT_MIB = 200
PAUSED = "paused by worker-ctl pause"


@pytest.fixture
def prepared(fleet: RunningFleet) -> Iterator[PreparedFleet]:
    with PreparedFleet(fleet.folder, {key: v for key, v in fleet.environment.items() if key.startswith("MILL")}) as one:
        yield one


def told_by(fleet: RunningFleet, *command: str) -> dict[str, Any]:
    """Give an order; return its answer."""
    answer = fleet.ctl(*command, "--json")
    assert answer.returncode == 0, (answer, fleet.log[-3000:])
    document: dict[str, Any] = json.loads(answer.stdout)
    return document


def look(fleet: RunningFleet) -> dict[str, Any] | None:
    """Ask the desk from here: a process for each look, as `status` starts one, would slow the fleet down."""
    desk = StateDir(fleet.state_dir).read(ENDPOINTS).get("desk_url")
    with suppress(httpx.TransportError):
        status: dict[str, Any] = httpx.get(f"{desk}/status", timeout=ANSWER_TIMEOUT_S).json()
        if fleet.process and status["supervisor_pid"] == fleet.process.pid:  # a killed one's desk answers for a moment
            return status
    return None


def pids(fleet: RunningFleet) -> dict[str, int]:
    return {row["name"]: row["pid"] for row in eventually(lambda: look(fleet))["children"] if "pid" in row}


def rows(fleet: RunningFleet) -> list[dict[str, Any]]:
    status = look(fleet)
    return [row for row in status["children"] if row["name"].startswith("worker-")] if status else []


def worker_that(fleet: RunningFleet, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    return next((row for row in rows(fleet) if holds(row)), None)


# -- pause and drain ---------------------------------------------------------------------------------------------------


def test_a_paused_fleet_finishes_what_it_has_and_reads_nothing_until_it_is_resumed(
    fleet: RunningFleet, streams: Streams, fake: FakeOllama
) -> None:
    """Also after the supervisor was killed, and by workers that are started meanwhile."""
    fleet.up()
    streams.produce(4, "event {n} [[fake hold times=1]]")
    fake.block_until(lambda: fake.held == 4, 30)
    eventually(lambda: sum(row["stats"]["in_hand"] for row in rows(fleet)) == 4)
    assert told_by(fleet, "pause") == {"paused": True, "before": False}
    streams.produce(6)
    patience = fleet.ctl("drain", "--timeout", "0")
    assert patience.returncode == 1
    assert b"in hand" in patience.stderr
    fake.release()
    assert told_by(fleet, "drain")["in_hand"] == 0
    assert streams.settled_once(4)
    assert {row["stats"]["waits_for"] for row in rows(fleet)} == {PAUSED}

    fleet.terminate(signal.SIGKILL)
    fleet.up(ready=False)
    eventually(lambda: len([row for row in rows(fleet) if row.get("stats", {}).get("waits_for") == PAUSED]) == 2, 30)
    assert told_by(fleet, "scale", "+1") == {"workers": 3, "before": 2}
    eventually(lambda: len([row for row in rows(fleet) if row["state"] == "ready"]) == 3, 30)
    assert streams.settled_once(4), "nobody has read anything"
    assert told_by(fleet, "resume") == {"paused": False, "before": True}
    eventually(lambda: streams.settled_once(10), 30)


# -- restart and reload ------------------------------------------------------------------------------------------------


def test_a_rolling_restart_under_load_replaces_everybody_and_loses_nothing(
    fleet: RunningFleet, streams: Streams
) -> None:
    fleet.up()
    before = {*pids(fleet).values()}
    streams.produce(150, "event {n} [[fake delay=0.1]]")
    assert told_by(fleet, "restart", "--wait")["finished"] is True
    assert not before & {*pids(fleet).values()}
    eventually(lambda: streams.settled_once(150), 60)
    assert not streams.dead()
    assert not fleet.told("child.died")
    ready_at = [record["timestamp"] for record in fleet.told("child.ready") if record["name"].startswith("worker-")]
    sent_at = [record["timestamp"] for record in fleet.told("child.stopping") if record["name"].startswith("worker-")]
    assert ready_at[2] < sent_at[0] < ready_at[3] < sent_at[1], "each successor before its predecessor goes"


def test_a_reload_takes_a_good_file_and_leaves_a_bad_one(
    fleet: RunningFleet, streams: Streams, fake: FakeOllama, tmp_path: Path
) -> None:
    """By worker-ctl and by SIGHUP."""
    file = tmp_path / "my.toml"
    file.write_text("[enrich]\ntasks = ['sentiment']\n")
    fleet.environment["MILLHAND_CONFIG"] = str(file)
    fleet.up()
    before = pids(fleet)

    file.write_text("[enrich]\ntasks = ['sentimnt']\n")
    refused = fleet.ctl("reload")
    assert refused.returncode != 0
    assert b"did you mean sentiment" in refused.stderr
    file.write_text("[fleet]\nworkrs = 2\n[model]\nnme = 'x'\n")
    assert fleet.process is not None
    fleet.process.send_signal(signal.SIGHUP)
    (problems,) = eventually(lambda: [one for one in fleet.told("fleet.reload_refused") if len(one["problems"]) == 3])
    assert "workrs" in problems["problems"][1]
    assert "nme" in problems["problems"][2]
    file.write_text("[enrich]\ntasks = ['sentiment']\n")
    assert pids(fleet) == before

    file.write_text("[enrich]\ntasks = ['sentiment', 'spam']\n")
    answer = told_by(fleet, "reload", "--wait")
    assert (answer["changed"], answer["workers"]) == (["enrich.tasks"], 2)
    assert not {*before.values()} & {*pids(fleet).values()}
    streams.produce(1)
    (record,) = eventually(streams.enriched)
    assert set(json.loads(record[b"data"])["ai_enrichment"]) == {"sentiment", "spam", "meta"}
    assert fake.calls


def test_a_worker_that_grows_is_replaced_under_load_one_at_a_time(prepared: PreparedFleet, streams: Streams) -> None:
    """F18: a leak of two mebibytes an event, and a limit on memory."""
    prepared.environment["MILLHAND_FLEET_RECYCLE_MIB"] = str(LEAK_LIMIT_MIB)
    (prepared.folder / "leaks").touch()
    prepared.up()
    assert all(10 < row["rss_mib"] < LEAK_LIMIT_MIB / 2 for row in rows(prepared)), "as they begin"
    before = {*pids(prepared).values()}
    streams.produce(250, "event {n} [[fake delay=0.05]]")
    eventually(lambda: streams.settled_once(250), 60)
    recycled = [record for record in prepared.told("child.stopping") if record["why"].startswith("recycle: ")]
    assert {record["pid"] for record in recycled} & before
    assert not streams.dead()
    assert not prepared.told("child.died")
    eventually(lambda: len(rows(prepared)) == 2, 30)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_stopped_worker_is_killed_and_replaced_and_the_log_says_so(prepared: PreparedFleet, streams: Streams) -> None:
    """F6, F7: SIGSTOP; it cannot show its stacks."""
    prepared.up()
    victim = pids(prepared)["worker-1"]
    os.kill(victim, signal.SIGSTOP)
    (killed,) = eventually(lambda: prepared.told("child.killed"), 30)
    assert (killed["name"], killed["pid"]) == ("worker-1", victim)
    assert "it was stopped (SIGSTOP)" in killed["reason"]
    eventually(lambda: pids(prepared).get("worker-1", victim) != victim, 30)
    streams.produce(4)
    eventually(lambda: streams.settled_once(4), 30)


def test_a_fleet_whose_children_cannot_start_says_so_and_recovers(prepared: PreparedFleet, streams: Streams) -> None:
    """F17: an import error after an upgrade that went wrong; no storm, and no exit."""
    prepared.up()
    (prepared.folder / "broken").touch()
    for name, pid in pids(prepared).items():
        if name.startswith("worker-"):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: prepared.told("fleet.crash_loop"), 60)
    status = eventually(lambda: (status := look(prepared)) and status["crash_loop"] and status)
    assert status["health"]["status"] != "ok"
    assert min(row["failures"] for row in rows(prepared)) >= 3
    assert "no module named abacus" in prepared.log
    (prepared.folder / "broken").unlink()
    streams.produce(4)
    eventually(lambda: streams.settled_once(4), 60)
    assert prepared.terminate() == 0


def test_a_worker_without_a_free_descriptor_waits_and_recovers(fleet: RunningFleet, streams: Streams) -> None:
    """F19: no event pays for it."""
    fleet.environment["MILLHAND_FLEET_WORKERS"] = "1"
    fleet.up()
    worker = psutil.Process(pids(fleet)["worker-1"])
    limits = worker.rlimit(psutil.RLIMIT_NOFILE)
    worker.rlimit(psutil.RLIMIT_NOFILE, (3, limits[1]))
    streams.client.client_kill_filter(_type="normal", skipme=True)  # every connection has to be opened anew
    streams.produce(4)
    eventually(lambda: worker_that(fleet, lambda row: "Too many open files" in str(row["stats"].get("waits_for"))), 30)
    health = eventually(lambda: (status := look(fleet)) and status["health"])
    assert health["status"] != "ok"
    worker.rlimit(psutil.RLIMIT_NOFILE, limits)
    eventually(lambda: streams.settled_once(4), 60)
    assert not streams.dead()
    assert worker.is_running()
    assert not fleet.told("child.died")


def test_what_a_killed_supervisors_stopped_children_hold_is_free_for_the_next_one(
    fleet: RunningFleet, streams: Streams
) -> None:
    """F12: the desk's port among it; a stopped process hears neither end-of-file nor the kernel's signal."""
    fleet.up()
    stopped = [psutil.Process(pids(fleet)[name]) for name in ("desk", "worker-1")]
    family = [one for one in fleet.family() if one.name().startswith("millhand")]
    for process in stopped:
        process.suspend()
    fleet.terminate(signal.SIGKILL)
    eventually(lambda: gone([one for one in family if one not in stopped]), 10)
    assert all(one.is_running() for one in stopped)
    fleet.up()
    assert gone(family)
    (killed,) = fleet.told("fleet.leftovers_killed")
    assert sorted(killed["pids"]) == sorted(one.pid for one in stopped)
    streams.produce(4)
    eventually(lambda: streams.settled_once(4), 30)


def test_a_supervisor_that_may_open_nothing_more_starts_its_worker_as_soon_as_it_may(
    fleet: RunningFleet, streams: Streams
) -> None:
    """F17: a spawn that fails is told, and tried again ever later."""
    fleet.up()
    assert fleet.process is not None
    supervisor = psutil.Process(fleet.process.pid)
    limits = supervisor.rlimit(psutil.RLIMIT_NOFILE)
    supervisor.rlimit(psutil.RLIMIT_NOFILE, (3, limits[1]))
    os.kill(pids(fleet)["worker-1"], signal.SIGKILL)
    eventually(lambda: len(fleet.told("child.not_started")) >= 2, 30)
    assert "Too many open files" in fleet.told("child.not_started")[0]["error"]
    streams.produce(4)
    eventually(lambda: streams.settled_once(4), 30)
    supervisor.rlimit(psutil.RLIMIT_NOFILE, limits)
    eventually(lambda: len([row for row in rows(fleet) if row["state"] == "ready"]) == 2, 40)


def test_children_that_are_just_being_born_do_not_outlive_their_supervisor(fleet: RunningFleet) -> None:
    """F12: killed before they have imported anything, let alone asked for the kernel's signal."""
    fleet.up(ready=False)
    eventually(lambda: len(fleet.family()) >= 3, 30)
    family = fleet.family()
    fleet.terminate(signal.SIGKILL)
    eventually(lambda: gone(family), 20)
