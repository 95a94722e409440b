"""The fleet's state directory: its lock, the desired count of workers, and where its servers listen."""

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

LOCK = "supervisor.lock"
DESIRED = "desired.json"
PAUSE = "pause.json"
ENDPOINTS = "endpoints.json"
WORKERS_MAX = 256
ORPHANS_GONE_S = 5.0  # how long a killed supervisor's children may still hold their ports
POLL_S = 0.1
PORT_MAX = 65535
LOCK_WAIT_S = 1.0  # `held` takes the lock for a moment


class FleetRunningError(Exception):
    """Another supervisor holds this state directory: `holder`, which `parent` has started; 0 where not known."""

    def __init__(self, message: str, holder: int = 0, parent: int = 0) -> None:
        super().__init__(message)
        self.holder = holder
        self.parent = parent


class StateDir:
    """The directory, private to its owner. Held by one supervisor at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def hold(self) -> None:
        """Create the directory and lock it for as long as this process lives. Raises FleetRunningError."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _locked(descriptor):
            holder, parent = _two_numbers(os.read(descriptor, 32))
            os.close(descriptor)
            raise FleetRunningError(
                f"a fleet is already running here (process {holder}, state directory {self.path}): stop it with "
                "`worker-ctl stop`, or give this one another fleet.name or fleet.state_dir",
                holder,
                parent,
            )
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} {os.getppid()}\n".encode())
        self._lock = descriptor

    def held(self) -> bool:
        """Whether a supervisor holds the directory now. Raises PermissionError where that is not ours to ask."""
        try:
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def holder(self) -> int:
        """Return the process of the supervisor that holds the directory, or held it last; 0 where not known."""
        try:
            return _two_numbers((self.path / LOCK).read_bytes())[0]
        except OSError:
            return 0

    def read(self, name: str) -> dict[str, Any]:
        """Return a state file's object; empty if there is none, or none that can be read."""
        try:
            document = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    def write(self, name: str, document: dict[str, Any], *, is_lasting: bool = True) -> None:
        """Replace a state file; a reader sees the old one or the new one, never half.

        Waits for the disk, unless what is written means nothing after a power cut.
        """
        draft = self.path / f".{name}.draft"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(document, file)
            file.flush()
            if is_lasting:
                os.fsync(file.fileno())
        draft.rename(self.path / name)


class DesiredCount:
    """How many workers there should be: what an operator last scaled to, unless the configuration changed since."""

    def __init__(self, state: StateDir, configured: int) -> None:
        self._state = state
        self._configured = configured
        saved = state.read(DESIRED)
        scaled = saved.get("workers")
        kept = saved.get("configured") == configured and type(scaled) is int and 0 <= scaled <= WORKERS_MAX
        self.value: int = scaled if kept and scaled is not None else configured
        self._save(self.value)

    def set(self, workers: int) -> None:
        """Change the count, on disk first, so that it survives. Raises OSError, and keeps the old."""
        self._save(workers)
        self.value = workers

    def configure(self, workers: int) -> None:
        """Take over a count that was changed in the configuration. Raises OSError, and keeps the old."""
        if workers != self._configured:
            before, self._configured = self._configured, workers
            try:
                self.set(workers)
            except OSError:
                self._configured = before
                raise

    def _save(self, workers: int) -> None:
        self._state.write(DESIRED, {"workers": workers, "configured": self._configured})


class OperatorPause:
    """Whether an operator has told the fleet to read nothing, until told otherwise."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self.value = state.read(PAUSE).get("paused") is True

    def set(self, paused: bool) -> None:  # noqa: FBT001 - the value itself
        """Change it, on disk first, so that it survives. Raises OSError, and keeps the old."""
        self._state.write(PAUSE, {"paused": paused})
        self.value = paused


def _two_numbers(text: bytes) -> tuple[int, int]:
    numbers = [int(word) for word in text.split() if word.isdigit()]
    first, second, *_ = [*numbers, 0, 0]
    return first, second


def _locked(descriptor: int) -> bool:
    """Take the lock for good. False if somebody keeps it."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        else:
            return True


def kept_port(state: StateDir, name: str, wanted: int) -> int:
    """Return a port on loopback: the wanted one, 0 if it is taken; or, wanting none, the one before if free, or any."""
    file = f"{name}.port.json"
    if wanted:
        return _freed_port(wanted)
    port = _freed_port(state.read(file).get("port", 0)) or _free_port(0)
    state.write(file, {"port": port})
    return port


def _freed_port(port: Any) -> int:
    """Return the port if it is free, or is freed by a killed fleet's last process within seconds; otherwise 0."""
    if type(port) is not int or not 0 < port <= PORT_MAX:
        return 0
    deadline = time.monotonic() + ORPHANS_GONE_S
    while not _free_port(port):
        if time.monotonic() > deadline:
            return 0
        time.sleep(POLL_S)
    return port


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError, TypeError):
            return 0
        return int(probe.getsockname()[1])
