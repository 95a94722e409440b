"""Asking the desk of a running fleet, by its unix socket; and what to do where it does not answer."""

import time
from contextlib import suppress
from typing import Any

import httpx

from millhand.config import CONTROL_SOCKET, Config
from millhand_fleet.ctl.settings import EX_UNAVAILABLE, leave
from millhand_fleet.state import StateDir

ANSWER_TIMEOUT_S = 8.0
POLL_S = 0.1


def ask(config: Config, method: str, path: str, body: Any = None) -> Any:
    """Ask the desk; leave with what to do where it does not answer."""
    try:
        reply = request(config, method, path, body)
    except httpx.TransportError as error:
        leave(*remedy(config, error), code=EX_UNAVAILABLE)
    if reply.is_error:
        leave(reply.json().get("error", reply.text), code=1)
    return reply.json()


def await_ready(config: Config, wait_s: float) -> None:
    """Wait until the fleet is ready, or the time is over."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if request(config, "GET", "/readyz").is_success:
                return
        time.sleep(POLL_S)


def request(config: Config, method: str, path: str, body: Any = None) -> httpx.Response:
    """Send a request to the desk's unix socket."""
    transport = httpx.HTTPTransport(uds=str(config.state_dir / CONTROL_SOCKET))
    with httpx.Client(transport=transport, base_url="http://desk", timeout=ANSWER_TIMEOUT_S) as client:
        return client.request(method, path, json=body)


def remedy(config: Config, error: Exception) -> tuple[str, ...]:
    """Return why the desk does not answer, and what to do."""
    where = f"fleet {config.fleet.name!r} (state directory {config.state_dir})"
    try:
        running = StateDir(config.state_dir).held()
    except PermissionError:
        return (f"no permission to speak to {where}", "run worker-ctl as the user that runs the fleet")
    if running:
        return (f"{where} runs, but its desk does not answer: {error}", "try again; if that lasts, see its log")
    return (f"{where} is not running", "start it with `worker-ctl up`")
