"""What systemd is told."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from millhand_fleet.notify import Notify


class Systemd:
    """The socket at which systemd would listen."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def heard(self) -> list[str]:
        messages = []
        try:
            while True:
                messages.append(self._socket.recv(4096).decode())
        except BlockingIOError:
            return messages

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, short_path: Path) -> Iterator[Systemd]:
    path = str(short_path / "notify")
    systemd = Systemd(path if request.param == "path" else "@" + path)
    yield systemd
    systemd.close()


def test_what_happens_is_told_in_systemds_words(systemd: Systemd) -> None:
    told = Notify({"NOTIFY_SOCKET": systemd.address})
    told.ready()
    told.status("2 of 2 workers ready")
    told.status("2 of 2 workers ready")
    told.reloading()
    told.ready()
    told.stopping()
    told.stopping()
    ready, status, reloading, again, stopping = systemd.heard()
    assert (ready, status, again, stopping) == ("READY=1", "STATUS=2 of 2 workers ready", "READY=1", "STOPPING=1")
    first, second = reloading.split("\n")
    assert first == "RELOADING=1"
    assert int(second.removeprefix("MONOTONIC_USEC=")) > 0


def test_the_watchdog_gets_a_sign_of_life_twice_in_its_time(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("millhand_fleet.notify.time.monotonic", lambda: now[0])
    told = Notify({"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid())})
    for _ in range(41):
        told.beat()
        now[0] += 0.25
    assert systemd.heard() == ["WATCHDOG=1"] * 6


@pytest.mark.parametrize(
    "environment", [{}, {"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}], ids=str
)
def test_a_watchdog_that_is_not_ours_gets_none(systemd: Systemd, environment: dict[str, str]) -> None:
    Notify({"NOTIFY_SOCKET": systemd.address, **environment}).beat()
    assert systemd.heard() == []


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nowhere/at/all"}], ids=str)
def test_without_systemd_nothing_happens(environment: dict[str, str]) -> None:
    told = Notify(environment)
    told.ready()
    told.beat()
    told.status("fine")


def test_a_systemd_that_does_not_read_is_not_waited_for(systemd: Systemd) -> None:
    told = Notify({"NOTIFY_SOCKET": systemd.address})
    for number in range(1000):
        told.status(f"{number} {'x' * 1000}")
    assert systemd.heard()
