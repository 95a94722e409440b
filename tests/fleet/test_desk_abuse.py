"""The control socket of a real fleet, at the mercy of whoever is on this host."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain

from tests.fleet.conftest import RunningFleet, Streams
from tests.rig import eventually

from millhand.config import CONTROL_SOCKET

NOBODY_UID = 65_534
AT_ONCE, ROUNDS = 40, 8
ANSWER_S_MAX = 30.0
HEAD = b"POST /%b HTTP/1.1\r\nhost: desk\r\nconnection: close\r\n"


def abuses() -> Iterator[bytes]:
    """Yield what no client of ours sends."""
    for body in (b'{"workers": -1}', b'{"workers": 1000000000}', b'{"workers": 1e9}', b"[" * 4000, b"\xff" * 4000):
        yield HEAD % b"scale" + b"content-length: %d\r\n\r\n%b" % (len(body), body)
    yield HEAD % b"scale" + b"content-length: 99999999999\r\n\r\n" + b"9" * 1_000_000
    yield HEAD % b"scale" + b"transfer-encoding: chunked\r\n\r\n" + b"fffff\r\n" + b"9" * 0xFFFFF + b"\r\n0\r\n\r\n"
    yield HEAD % (b"scale" * 10_000) + b"\r\n"
    yield b'{"scale": 0}\n' * 1000
    yield b"\x00" * 100_000


def sent(fleet: RunningFleet, request: bytes) -> bytes:
    """Send something to the control socket; return the first line of what it says before it hangs up."""
    said = b""
    with socket.socket(socket.AF_UNIX) as desk, suppress(OSError):
        desk.settimeout(ANSWER_S_MAX)
        desk.connect(str(fleet.state_dir / CONTROL_SOCKET))
        with suppress(OSError):  # it may hang up before it has read all
            desk.sendall(request)
        while b"\r\n" not in said and (more := desk.recv(4096)):
            said += more
    return said.partition(b"\r\n")[0]


def test_abuse_of_the_control_socket_is_refused_and_moves_nothing(fleet: RunningFleet, streams: Streams) -> None:
    """F51: another user, garbage, senseless numbers, huge bodies, a flood of them all: the fleet goes on working."""
    fleet.up()
    _reach_as_another_user(fleet)
    before = fleet.pids("")
    abuse = list(abuses())
    for request in abuse:
        assert sent(fleet, request)[:12] in {b"HTTP/1.1 400", b"HTTP/1.1 404", b"HTTP/1.1 413", b""}
    with ThreadPoolExecutor(AT_ONCE) as crowd:
        list(crowd.map(lambda request: sent(fleet, request), chain.from_iterable([abuse] * ROUNDS)))
    assert fleet.process is not None
    assert fleet.process.poll() is None
    assert fleet.pids("") == before
    streams.produce(10)
    eventually(lambda: streams.settled_once(10), 30)
    assert fleet.ctl("scale", "1").stdout == b"workers: 2 -> 1\n"


def _reach_as_another_user(fleet: RunningFleet) -> None:
    """Only root can be somebody else; to others the modes must be enough."""
    control = fleet.state_dir / CONTROL_SOCKET
    assert stat.S_IMODE(fleet.state_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE(control.stat().st_mode) == 0o600
    if os.getuid() == 0:
        reach = f"import os, socket, sys; os.setgid({NOBODY_UID}); os.setuid({NOBODY_UID})\n"
        reach += "socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        command = [sys.executable, "-S", "-c", reach, str(control)]
        tried = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert "PermissionError" in tried.stderr
