"""`worker-ctl top` on a real terminal, and `status`, against a desk that says what the test wants."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import socketserver
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self

import pytest
from tests.rig import eventually
from tests.unit.documents import document

WORKER_CTL = [sys.executable, "-m", "millhand_fleet.ctl.main"]
END_S_MAX = 30
ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
ALTERNATE_ON, ALTERNATE_OFF, CURSOR_ON = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"


class StubDesk(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers GET /status and /readyz with the test's document."""

    daemon_threads = True
    document: dict[str, Any]


class Answer(BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self) -> None:
        assert isinstance(self.server, StubDesk)
        whole = self.server.document
        body = json.dumps({"ready": whole["health"]["ready"]} if self.path == "/readyz" else whole).encode()
        self.send_response(200 if self.path == "/status" or whole["health"]["ready"] else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def desk(state: Path, whole: dict[str, Any]) -> Iterator[StubDesk]:
    """Listen where the fleet's desk would."""
    state.mkdir(exist_ok=True)
    path = state / "control.sock"
    path.unlink(missing_ok=True)
    with StubDesk(str(path), Answer) as server:
        server.document = whole
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Terminal:
    """A command under a pseudo-terminal of its own."""

    def __init__(self, environment: dict[str, str], *arguments: str, lines: int = 24, columns: int = 80) -> None:
        self._end, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            [*WORKER_CTL, *arguments], env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True,
        )  # fmt: skip
        self._theirs = theirs
        self.written = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(END_S_MAX)
        os.close(self._theirs)
        os.close(self._end)

    def shows(self, text: str) -> None:
        """Wait until this has been written since the last time."""

        def found() -> bool:
            while select.select([self._end], [], [], 0)[0]:
                self.written += os.read(self._end, 65_536)
            return text.encode() in b" ".join(ESCAPES.sub(b"", self.written).split())

        eventually(found, END_S_MAX, what=f"the screen shows {text!r}")
        self.written = b""

    def type(self, keys: bytes) -> None:
        os.write(self._end, keys)

    def ended(self) -> tuple[int, bytes]:
        """Wait for the end; return the exit code, and what was written until then."""
        code = self.process.wait(END_S_MAX)
        while select.select([self._end], [], [], 0)[0]:
            self.written += os.read(self._end, 65_536)
        return code, self.written

    @property
    def is_as_before(self) -> bool:
        """Whether the terminal echoes and waits for lines again."""
        return termios.tcgetattr(self._theirs) == self.before


@pytest.fixture
def environment(short_path: Path) -> dict[str, str]:
    """Name a fleet by its state directory, and a terminal."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MILLHAND_", "NO_COLOR"))}
    inherited = {name: value for name, value in inherited.items() if name not in {"COLUMNS", "LINES"}}
    return {**inherited, "MILLHAND_FLEET_STATE_DIR": str(short_path / "state"), "TERM": "xterm-256color"}


@pytest.mark.parametrize("leave", [b"q", b"\x04"])
def test_top_follows_the_desk_through_its_loss_and_leaves_the_terminal_as_it_was(
    environment: dict[str, str], short_path: Path, leave: bytes
) -> None:
    """The desk is restarted while somebody watches."""
    state = short_path / "state"
    with Terminal(environment, "top") as terminal:
        terminal.shows("is not running")
        with desk(state, document(3)) as server:
            terminal.shows("1,234 waiting, 16 in hand, 2 parked")
            server.document = document(3, streams={"backlog": 987})
            terminal.shows("987 waiting")
        terminal.shows("no answer since ")
        with desk(state, document(3, streams={"backlog": 55})):
            terminal.shows("55 waiting")
            terminal.type(leave)
            code, last = terminal.ended()
        assert code == 0
        assert ALTERNATE_OFF in last
        assert CURSOR_ON in last
        assert terminal.is_as_before


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_top_with_the_terminal_as_it_was(
    environment: dict[str, str], short_path: Path, how: signal.Signals
) -> None:
    with desk(short_path / "state", document(2)), Terminal(environment, "top", lines=20, columns=60) as terminal:
        terminal.shows("fleet events")
        terminal.process.send_signal(how)
        code, last = terminal.ended()
        assert code == 0
        assert ALTERNATE_OFF in last
        assert terminal.is_as_before


def test_one_screen_can_be_had_without_a_terminal(environment: dict[str, str], short_path: Path) -> None:
    with desk(short_path / "state", document(40)):
        once = subprocess.run(
            [*WORKER_CTL, "top", "--once"],
            env={**environment, "COLUMNS": "100"},
            capture_output=True,
            text=True,
            check=True,
        )
    assert once.stderr == ""
    assert "worker-40" in once.stdout
    assert "\x1b" not in once.stdout
    assert max(map(len, once.stdout.splitlines())) <= 100


def test_status_waits_for_the_fleet_and_says_what_it_is_in_both_forms(
    environment: dict[str, str], short_path: Path
) -> None:
    """Piped, a line is never wrapped: grep shall find it."""
    why = "redis: " + "a long reason " * 30
    waiting = document(2, health={"status": "down", "ready": False, "reasons": [why]})
    with desk(short_path / "state", waiting) as server:
        late = subprocess.run(
            [*WORKER_CTL, "status", "--wait", "0.3"], env=environment, capture_output=True, text=True, check=False
        )
        assert late.returncode == 1
        assert why.strip() in late.stdout
        server.document = document(2)
        ready = subprocess.run(
            [*WORKER_CTL, "status", "--wait", "9", "--json"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    assert json.loads(ready.stdout) == document(2)
    with suppress(FileNotFoundError):
        (short_path / "state" / "control.sock").unlink()
