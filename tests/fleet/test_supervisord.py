"""Real supervisord with the configuration that ships, on the embedded defaults."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.fleet.conftest import BIN, PROJECT, RunningFleet, gone
from tests.rig import eventually


class Supervisord:
    """supervisord in the foreground, in a project folder whose parts are links to the real one."""

    def __init__(self, folder: Path) -> None:
        conf = folder / "conf"
        conf.mkdir()
        for file in (PROJECT / "conf").iterdir():
            (conf / file.name).symlink_to(file)
        (conf / "supervisord.conf").unlink()
        (conf / "supervisord.conf").write_bytes((PROJECT / "conf" / "supervisord.conf").read_bytes())
        (folder / ".venv").mkdir()
        (folder / ".venv" / "bin").symlink_to(BIN)
        self.fleet = RunningFleet(folder, {})
        self.folder = folder
        with self.fleet.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [BIN / "supervisord", "-c", conf / "supervisord.conf"],
                env=self.fleet.environment, cwd=folder, stdout=log, stderr=log,
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
    supervisord = Supervisord(tmp_path)
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
    eventually(lambda: gone(family), 3)
