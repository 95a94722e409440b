"""A fleet of real processes, as `worker-ctl up` makes it."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from tests.rig import RedisServer, eventually

from millhand_fleet.ctl.desk_client import ANSWER_TIMEOUT_S
from millhand_fleet.state import ENDPOINTS, StateDir
from scripts.fake_ollama import FakeOllama

PROJECT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
STOP_S_MAX = 30.0
START_S_MAX = 30.0

INPUT, OUTPUT, DEAD = "{events}:raw", "{events}:enriched", "{events}:dead_letter"


class RunningFleet:
    """One fleet: a state directory, an environment, and the supervisor that runs in it now."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.state_dir = folder / "my state"  # a space, as in a home folder of somebody's
        self.log_file = folder / "fleet.log"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("MILLHAND_")}
        own = {
            "MILLHAND_FLEET_STATE_DIR": str(self.state_dir),
            "MILLHAND_DESK_PORT": "0",
            "MILLHAND_LOG_FORMAT": "json",
        }
        self.environment = {**inherited, **own, **environment}
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            family = self.family()
            self.process.kill()
            self.process.wait(STOP_S_MAX)
            psutil.wait_procs(family, timeout=10)

    def up(self, *options: str, ready: bool = True) -> None:
        """Start the supervisor; wait until the workers are at work."""
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [BIN / "worker-ctl", "up", *options], env=self.environment, cwd=self.folder, stdout=log, stderr=log
            )
        if ready:
            self.eventually_ready()

    def eventually_ready(self) -> None:
        try:
            eventually(self.is_ready, START_S_MAX, what="the fleet is ready")
        except AssertionError as never:
            raise AssertionError(f"{never}; its log: {self.log[-3000:]}") from None

    def is_ready(self) -> bool:
        """Ask the desk from here: a process for each look, as `status` starts one, would slow the fleet down."""
        desk = StateDir(self.state_dir).read(ENDPOINTS).get("desk_url")
        if desk is None or self.process is None:
            return False
        connection = HTTPConnection(desk.removeprefix("http://"), timeout=ANSWER_TIMEOUT_S)
        with closing(connection), suppress(OSError, HTTPException):
            connection.request("GET", "/status")
            reply = connection.getresponse()
            status: dict[str, Any] = json.load(reply) if reply.status == HTTPStatus.OK else {"supervisor_pid": None}
            if status["supervisor_pid"] == self.process.pid:  # another fleet may have the port that this one had before
                return bool(status["health"]["status"] == "ok")
        return False

    def ctl(self, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [BIN / "worker-ctl", *arguments],
            env=self.environment, cwd=self.folder, input=stdin, capture_output=True, timeout=60, check=False,
        )  # fmt: skip

    def run(self, *command: str) -> "subprocess.CompletedProcess[bytes]":
        """Run a script of the project in the fleet's environment."""
        return subprocess.run(
            [BIN / "python", *command],
            env=self.environment, cwd=PROJECT, capture_output=True, timeout=60, check=False,
        )  # fmt: skip

    def status(self) -> dict[str, Any] | None:
        answer = self.ctl("status", "--json")
        return json.loads(answer.stdout) if answer.returncode == 0 else None

    def pids(self, prefix: str = "worker-") -> dict[str, int]:
        status = self.status()
        assert status is not None, self.log
        return {
            row["name"]: row["pid"] for row in status["children"] if row["name"].startswith(prefix) and "pid" in row
        }

    def family(self) -> list[psutil.Process]:
        """Return the supervisor's descendants that live now."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def terminate(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send the supervisor a signal, and wait for its exit code."""
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(STOP_S_MAX)

    @property
    def log(self) -> str:
        """Return what has been told, in whole lines: the last one may be only half written."""
        said = self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""
        return said[: said.rfind("\n") + 1]

    def told(self, event: str) -> list[dict[str, Any]]:
        """Return the log's records of one event."""
        records = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [record for record in records if record["event"] == event]


def gone(processes: list[psutil.Process]) -> bool:
    """Whether none of them runs. An orphan that has ended is a zombie until init takes notice."""
    return not [one for one in processes if one.is_running() and _state(one) != psutil.STATUS_ZOMBIE]


def _state(process: psutil.Process) -> str:
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return str(psutil.STATUS_ZOMBIE)


class Streams:
    """What a user sees with redis-cli."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def produce(self, count: int, text: str = "event {n}") -> None:
        with self.client.pipeline(transaction=False) as pipeline:
            for n in range(count):
                pipeline.xadd(INPUT, {"data": json.dumps({"n": n, "text": text.format(n=n)})})
            pipeline.execute()

    def enriched(self) -> list[dict[bytes, bytes]]:
        return [fields for _, fields in self.client.xrange(OUTPUT)]

    def dead(self) -> list[dict[bytes, bytes]]:
        return [fields for _, fields in self.client.xrange(DEAD)]

    def settled_once(self, count: int) -> bool:
        """Whether every event ended in a record; fails at once if one has two."""
        sources = Counter(fields[b"src"] for fields in self.enriched() + self.dead())
        twice = {source for source, times in sources.items() if times > 1}
        assert not twice, f"settled more than once: {twice}"
        return len(sources) == count


@pytest.fixture
def fake() -> Iterator[FakeOllama]:
    """Run the fake model in a thread."""
    with FakeOllama(slots=8).in_thread() as fake:
        yield fake


@pytest.fixture
def durable_redis(start_redis: Callable[[Mapping[str, str]], RedisServer]) -> RedisServer:
    """Start a server as production needs it."""
    return start_redis({"appendonly": "yes", "appendfsync": "always"})


@pytest.fixture
def streams(durable_redis: RedisServer) -> Iterator[Streams]:
    """Look into the durable server's streams."""
    with durable_redis.client() as client:
        yield Streams(client)


@pytest.fixture
def make_fleet(tmp_path: Path) -> Iterator[Callable[..., RunningFleet]]:
    """Make fleets that are ended after the test."""
    with ExitStack() as stack:
        yield lambda **environment: stack.enter_context(RunningFleet(tmp_path, environment))


@pytest.fixture
def fleet(make_fleet: Callable[..., RunningFleet], durable_redis: RedisServer, fake: FakeOllama) -> RunningFleet:
    """Make a fleet on the durable server and the fake model; not yet up."""
    return make_fleet(
        MILLHAND_REDIS_URL=durable_redis.url,
        MILLHAND_MODEL_URL=fake.url,
        MILLHAND_MODEL_NAME=fake.model,
        MILLHAND_MODEL_CONCURRENCY="2",  # so that four events keep two workers busy
        MILLHAND_MODEL_IN_FLIGHT_MAX="64",  # room for every call
        MILLHAND_DELIVERY_LEASE_S="5",
        MILLHAND_FLEET_DRAIN_S="5",
        MILLHAND_JANITOR_EVERY_S="0.5",
    )
