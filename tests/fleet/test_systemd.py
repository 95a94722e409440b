"""The unit that ships, by systemd's own tools; and a fleet that tells systemd how it is."""

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.fleet.conftest import BIN, PROJECT, RunningFleet, Streams
from tests.rig import RedisServer, eventually

from scripts.fake_ollama import FakeOllama

UNIT = PROJECT / "conf" / "millhand.service"
EXPOSURE_MAX = 20  # tenths, of 100: what `systemd-analyze security` calls OK


@pytest.fixture
def analyze() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Return systemd-analyze; skip where there is none, but CI installs it, so there it fails."""
    program = shutil.which("systemd-analyze")
    missing = "systemd-analyze is not installed: apt-get install systemd"
    if program is None:
        assert os.environ.get("CI") != "true", missing
        pytest.skip(missing)
    return lambda *arguments: subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Put the unit into a folder, with the programs where they are here: systemd wants to find them."""
    unit = tmp_path / "millhand.service"
    unit.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/millhand/.venv/bin", str(BIN)), encoding="utf-8")
    return unit


def test_systemd_finds_nothing_wrong_with_the_unit(
    analyze: Callable[..., "subprocess.CompletedProcess[str]"], installed: Path
) -> None:
    verified = analyze("verify", "--man=no", str(installed))
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_the_unit_gives_the_fleet_few_rights(
    analyze: Callable[..., "subprocess.CompletedProcess[str]"], installed: Path
) -> None:
    examined = analyze("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE_MAX}", str(installed))
    if "unrecognized option" in examined.stderr:
        pytest.skip("this systemd-analyze cannot examine a unit that does not run")
    assert examined.returncode == 0, examined.stdout[-600:] + examined.stderr


class Listening:
    """systemd's end of the notify socket. It reads all the time, as systemd does: the socket holds few messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._said: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        while said := self._socket.recv(4096).decode():
            self._said.append(said)

    def said(self) -> list[str]:
        """Return everything that was said so far."""
        return list(self._said)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(self.path))
        self._reading.join()
        self._socket.close()


@pytest.fixture
def systemd(short_path: Path) -> Iterator[Listening]:
    listening = Listening(short_path / "notify")
    yield listening
    listening.close()


def test_a_fleet_tells_systemd_that_it_is_up_how_it_is_and_that_it_stops(
    fleet: RunningFleet, streams: Streams, durable_redis: RedisServer, systemd: Listening, fake: FakeOllama
) -> None:
    """F15: a Redis that is not there is no failed start, and no reason to let the watchdog bark."""
    assert fake.url
    fleet.environment |= {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "2000000"}
    durable_redis.kill()
    fleet.up(ready=False)
    eventually(lambda: "STATUS=0 of 2 workers ready" in systemd.said(), 30)
    assert systemd.said()[0] == "READY=1"
    eventually(lambda: systemd.said().count("WATCHDOG=1") >= 3, 30)
    durable_redis.start()
    eventually(lambda: "STATUS=2 of 2 workers ready" in systemd.said(), 30)
    assert fleet.process is not None
    fleet.process.send_signal(signal.SIGHUP)
    eventually(lambda: fleet.told("fleet.reloaded"), 30)
    eventually(lambda: systemd.said().count("READY=1") == 2)
    reloading = next(number for number, said in enumerate(systemd.said()) if said.startswith("RELOADING=1\nMONOTONIC"))
    assert systemd.said()[reloading + 1] == "READY=1"
    streams.produce(2)
    eventually(lambda: streams.settled_once(2), 30)
    assert fleet.terminate() == 0
    eventually(lambda: systemd.said().count("STOPPING=1") == 1)
    assert "STATUS=2 of 2 workers ready" in systemd.said()
