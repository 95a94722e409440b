"""Real supervisord with the configuration that ships, on the embedded defaults."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from tests.fleet.conftest import BIN, PROJECT, RunningFleet, Streams, gone
from tests.rig import eventually


class Supervisord:
    """supervisord in the foreground, in a project folder whose parts are links to the real one."""

    def __init__(self, folder: Path, environment: Mapping[str, str], stopwaitsecs: int = 45) -> None:
        conf = folder / "conf"
        conf.mkdir()
        for file in (PROJECT / "conf").iterdir():
            (conf / file.name).symlink_to(file)
        (conf / "supervisord.conf").unlink()
        shipped = (PROJECT / "conf" / "supervisord.conf").read_text(encoding="utf-8")
        assert "stopwaitsecs=45\n" in shipped
        (conf / "supervisord.conf").write_text(shipped.replace("stopwaitsecs=45\n", f"stopwaitsecs={stopwaitsecs}\n"))
        (folder / ".venv").mkdir()
        (folder / ".venv" / "bin").symlink_to(BIN)
        self.fleet = RunningFleet(folder, environment)
        self.folder = folder
        self.start()

    def start(self) -> None:
        with self.fleet.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [BIN / "supervisord", "-c", self.folder / "conf" / "supervisord.conf"],
                env=self.fleet.environment, cwd=self.folder, stdout=log, stderr=log,
            )  # fmt: skip

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def supervisor_pid(self) -> int | None:
        status = self.fleet.status()
        return status["supervisor_pid"] if status and status["health"]["status"] == "ok" else None

    def enriched(self) -> int:
        status = self.fleet.status()
        return status["streams"]["enriched"] if status else 0

    def end(self) -> None:
        family = self.family() if self.process.poll() is None else []
        self.process.terminate()
        try:
            self.process.wait(60)
        finally:
            for process in family:
                if process.is_running():
                    process.kill()


@pytest.fixture
def supervisord(tmp_path: Path) -> Iterator[Supervisord]:
    supervisord = Supervisord(tmp_path, {})
    yield supervisord
    supervisord.end()


@pytest.mark.alone
@pytest.mark.timeout(180)
def test_supervisord_runs_the_fleet_brings_it_back_and_stops_it_whole(supervisord: Supervisord) -> None:
    """F12, under supervisord: kill -9 of our supervisor brings one new fleet, and every event ends once."""
    first = eventually(supervisord.supervisor_pid, 60, what=supervisord.fleet.log)
    lines = [{"id": n, "text": f"I like number {n} a lot"} for n in range(20)]
    produced = supervisord.fleet.ctl("produce", stdin=b"\n".join(json.dumps(line).encode() for line in lines))
    assert produced.returncode == 0, produced.stderr
    eventually(lambda: supervisord.enriched() >= 3, 60)
    os.kill(first, signal.SIGKILL)
    second = eventually(lambda: (pid := supervisord.supervisor_pid()) != first and pid, 60)
    eventually(lambda: supervisord.enriched() == 20, 60)
    report = subprocess.run(
        [BIN / "python", PROJECT / "scripts" / "verify_enrichment.py"],
        env=supervisord.fleet.environment, capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert report.returncode == 0, report.stderr
    assert json.loads(report.stdout)["duplicates"] == 0

    family = supervisord.family()
    assert second in {process.pid for process in family}
    supervisord.process.terminate()
    assert supervisord.process.wait(60) == 0
    eventually(lambda: gone(family), 20)


@pytest.fixture
def hasty(fleet: RunningFleet) -> Iterator[Supervisord]:
    """Run a fleet under a supervisord that does not wait long enough for it."""
    environment = {key: value for key, value in fleet.environment.items() if key.startswith("MILLHAND_")}
    supervisord = Supervisord(fleet.folder, environment, stopwaitsecs=3)
    yield supervisord
    supervisord.end()


def test_a_fleet_whose_supervisord_was_killed_goes_on_and_makes_room_for_the_next_ones(
    hasty: Supervisord, streams: Streams
) -> None:
    """F13: kill -9 of supervisord; and it is told where supervisord would kill the fleet before it has drained."""
    first = eventually(hasty.supervisor_pid, 60)
    status = hasty.fleet.status()
    assert status is not None
    assert "stopwaitsecs in supervisord's configuration is 3 s" in status["stop_wait_note"]
    assert hasty.fleet.told("fleet.stop_wait_too_short")[0]["detail"] == status["stop_wait_note"]

    conf = str(hasty.folder / "conf" / "supervisord.conf")
    hangup = [str(BIN / "supervisorctl"), "-c", conf, "signal", "HUP", "millhand"]
    subprocess.run(hangup, capture_output=True, timeout=30, check=True)
    eventually(lambda: hasty.fleet.told("fleet.reloaded"), 30)

    streams.produce(100, "event {n} [[fake delay=0.2]]")
    hasty.process.kill()
    hasty.process.wait(10)
    family = psutil.Process(first).children(recursive=True)
    eventually(lambda: len(streams.enriched()) >= 20, 30)
    assert not gone(family)
    hasty.start()
    second = eventually(lambda: (pid := hasty.supervisor_pid()) != first and pid, 60)
    assert second in {process.pid for process in hasty.family()}
    assert [record["pid"] for record in hasty.fleet.told("fleet.taken_over")] == [first]
    assert gone(family)
    eventually(lambda: streams.settled_once(100), 60)
    assert not streams.dead()
