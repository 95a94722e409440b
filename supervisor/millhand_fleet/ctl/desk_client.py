"""Asking the desk of a running fleet, by its unix socket; and what to do where it does not answer.

By the standard library: httpx takes longer to import than `worker-ctl status` otherwise runs.
"""

import json
import socket
import time
from contextlib import closing, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from millhand.config import CONTROL_SOCKET, Config
from millhand_fleet.ctl.settings import EX_UNAVAILABLE, leave
from millhand_fleet.state import StateDir

ANSWER_TIMEOUT_S = 8.0
POLL_S = 0.1
LATE = "it may still obey: see `worker-ctl status` before you order it again"
NO_ANSWER = (OSError, HTTPException, ValueError)  # what `request` raises where nothing that makes sense comes back


class Reply(NamedTuple):
    """What the desk answered."""

    status: int
    document: Any

    @property
    def is_error(self) -> bool:
        """Whether the desk refused."""
        return self.status >= HTTPStatus.BAD_REQUEST


def ask(config: Config, method: str, path: str, body: Any = None) -> Any:
    """Ask the desk, and return its answer; leave with what to do where it refuses, or does not answer."""
    try:
        reply = request(config, method, path, body)
    except NO_ANSWER as error:
        # What lies before a desk that hangs is read by the next one: the socket is the supervisor's.
        late = [LATE] if method == "POST" and isinstance(error, TimeoutError) else []
        leave(*remedy(config, error), *late, code=EX_UNAVAILABLE)
    if reply.is_error:
        first, *rest = str(reply.document.get("error") or reply.document).splitlines() or [f"HTTP {reply.status}"]
        leave(first, *rest, code=EX_UNAVAILABLE if reply.status == HTTPStatus.SERVICE_UNAVAILABLE else 1)
    return reply.document


def await_ready(config: Config, wait_s: float) -> None:
    """Wait until the fleet is ready, or the time is over."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        with suppress(*NO_ANSWER):
            if not request(config, "GET", "/readyz").is_error:
                return
        time.sleep(POLL_S)


def request(config: Config, method: str, path: str, body: Any = None, timeout_s: float = ANSWER_TIMEOUT_S) -> Reply:
    """Send a request to the desk's unix socket. Raises what is in NO_ANSWER."""
    connection = UnixConnection(config.state_dir / CONTROL_SOCKET, timeout_s)
    with closing(connection):
        payload = None if body is None else json.dumps(body)
        connection.request(method, path, payload, {"Content-Type": "application/json"} if payload else {})
        reply = connection.getresponse()
        return Reply(reply.status, json.loads(reply.read()))


def remedy(config: Config, error: Exception) -> tuple[str, ...]:
    """Return why the desk does not answer, and what to do."""
    where = f"fleet {config.fleet.name!r} (state directory {config.state_dir})"
    try:
        running = StateDir(config.state_dir).held()
    except PermissionError:
        running = None
    if running is None or isinstance(error, PermissionError):
        return (f"no permission to speak to {where}", "run worker-ctl as the user that runs the fleet")
    if running:
        return (f"{where} runs, but its desk does not answer: {error}", "try again; if that lasts, see its log")
    return (f"{where} is not running", "start it with `worker-ctl up`")


class UnixConnection(HTTPConnection):
    """HTTP through a unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("desk", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
