"""What every measurement stands on: a real server, the fast model, a fleet as users run it, and their CPU time."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx
import psutil
from tests.fleet.conftest import INPUT, OUTPUT, RunningFleet
from tests.rig import RedisServer

__all__ = ["DURABILITY", "INPUT", "OUTPUT", "FastModel", "RunningFleet", "cpu_s", "fast_model", "fleet", "server"]

PROJECT = Path(__file__).resolve().parents[2]
CLIENT_TIMEOUT_S = 60.0  # a backlog is copied in one command
DURABILITY: Mapping[str, Mapping[str, str]] = {
    "none": {},
    "everysec": {"appendonly": "yes", "appendfsync": "everysec"},
    "always": {"appendonly": "yes", "appendfsync": "always"},
}


class FastModel(NamedTuple):
    """A fast model that runs."""

    url: str
    name: str
    pid: int

    def reset(self) -> None:
        """Let it forget what it saw."""
        httpx.post(f"{self.url}/fast/reset").raise_for_status()

    def stats(self) -> dict[str, Any]:
        """Return `calls`, `in_flight_max` and `own_ms`: p50 and p99 of its own time a call."""
        told: dict[str, Any] = httpx.get(f"{self.url}/fast/stats").raise_for_status().json()
        return told


@contextmanager
def server(durability: str) -> Iterator[tuple[RedisServer, Any]]:
    """Run a Valkey that keeps what it is told as one of `DURABILITY` says; yield it and a client of it."""
    with (
        RedisServer(DURABILITY[durability]) as running,
        running.client(socket_timeout=CLIENT_TIMEOUT_S) as client,
    ):
        yield running, client


@contextmanager
def fast_model(slots: int, latency_ms: float) -> Iterator[FastModel]:
    """Run the fast model."""
    command = [sys.executable, str(PROJECT / "scripts" / "fake" / "fast.py")]
    options = ["--slots", str(slots), "--latency-ms", str(latency_ms)]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE) as process:  # noqa: S603 - our own script
        try:
            assert process.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
            told = json.loads(process.stdout.readline())
            yield FastModel(told["url"], told["model"], process.pid)
        finally:
            process.terminate()


@contextmanager
def fleet(redis_url: str, model: FastModel, *, workers: int, settings: Mapping[str, object]) -> Iterator[RunningFleet]:
    """Run `worker-ctl up` and wait until its workers are ready; settings are spelled `section.key`."""
    environment = environment_of(redis_url, model, workers=workers, settings=settings)
    with (
        tempfile.TemporaryDirectory(prefix="millhand-bench-") as folder,
        RunningFleet(Path(folder), environment) as running,
    ):
        running.up()
        yield running
        running.terminate()


def environment_of(
    redis_url: str, model: FastModel, *, workers: int, settings: Mapping[str, object] = MappingProxyType({})
) -> dict[str, str]:
    """Return the environment that tells a fleet where it works, and these settings."""
    chosen = {
        "redis.url": redis_url,
        "model.url": model.url,
        "model.name": model.name,
        "fleet.workers": workers,
        "log.level": "warning",
        **settings,
    }
    return {f"MILLHAND_{key.replace('.', '_').upper()}": str(value) for key, value in chosen.items()}


def cpu_s(*pids: int) -> float:
    """Return the CPU time that these processes and their descendants, those alive, have spent."""
    roots = [psutil.Process(pid) for pid in pids]
    everybody = [one for root in roots for one in (root, *root.children(recursive=True))]
    times = [one.cpu_times() for one in everybody]
    return sum(spent.user + spent.system for spent in times)
