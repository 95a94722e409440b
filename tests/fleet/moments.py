"""A fleet of real processes that can be watched from one step to the next, and hit between two."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
from tests.fleet.conftest import INPUT, STOP_S_MAX, RunningFleet, Streams
from tests.rig import eventually

from millhand.stream import script_text
from scripts.fake_ollama import FakeOllama

T = TypeVar("T")

LAUNCH = Path(__file__).parent / "chaos" / "launch.py"
GROUP, PARKED = "enrichers", "@parked"
SCRIPTS = ("finish", "park", "bury", "release", "renew", "take_due")
WITHIN_S = 40.0  # for what takes a moment where the machine is idle
LOG_CHARS_MAX = 6000


class WatchedFleet(RunningFleet):
    """A fleet that tells of every delivery. Its lease is longer than any test, unless a test says otherwise."""

    def __init__(
        self, folder: Path, redis_url: str, fake: FakeOllama, environment: Mapping[str, str] | None = None
    ) -> None:
        own = {
            "MILLHAND_REDIS_URL": redis_url,
            "MILLHAND_MODEL_URL": fake.url,
            "MILLHAND_MODEL_NAME": fake.model,
            "MILLHAND_MODEL_CONCURRENCY": "2",  # so that four events keep two workers busy
            "MILLHAND_MODEL_IN_FLIGHT_MAX": "64",  # room for every call
            "MILLHAND_DELIVERY_LEASE_S": "60",
            "MILLHAND_DELIVERY_RETRY_BACKOFF_S": "0",
            "MILLHAND_FLEET_DRAIN_S": "5",
            "MILLHAND_JANITOR_EVERY_S": "0.5",
            "MILLHAND_LOG_LEVEL": "debug",
        }
        super().__init__(folder, {**own, **(environment or {})})

    def __exit__(self, *_: object) -> None:
        """End it at once: nobody is left to be asked whether the fleet takes leave properly."""
        if self.process is not None and self.process.poll() is None:
            family = self.family()
            self.process.kill()
            self.process.wait(STOP_S_MAX)
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=10)

    def start(self, workers: int = 2) -> None:
        """Start the supervisor; wait until the workers are at work. It does as `up` does, and asks nobody."""
        before = len(self.told("worker.ready"))
        self.up(ready=False)
        self.until(lambda: len(self.told("worker.ready")) >= before + workers, "the workers are ready")

    def until(self, condition: Callable[[], T | None], what: str = "", within_s: float = WITHIN_S) -> T:
        """Wait for a fact; show the end of the log if it does not come."""
        try:
            return eventually(condition, within_s, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}; the log: {self.log[-LOG_CHARS_MAX:]}") from None

    def until_told(self, event: str, times: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """Wait until the log has so many records of an event with these fields."""

        def found() -> list[dict[str, Any]]:
            return [one for one in self.told(event) if one | fields == one]

        self.until(lambda: len(found()) >= times, f"{event} {fields}, {times} times")
        return found()

    def pid_of(self, name: str) -> int:
        """Return the process of a consumer, or of the newest child of that name."""
        lives = {record["consumer"]: record["pid"] for record in self.told("worker.started")}
        newest = {record["name"]: record["pid"] for record in self.told("child.started")}
        return int(lives.get(name) or newest[name])

    def kill(self, name: str) -> None:
        """Kill -9 a consumer's process, or the newest child of that name."""
        os.kill(self.pid_of(name), signal.SIGKILL)

    def deaths(self) -> list[str]:
        """Return how each worker ended that was not told to stop."""
        return [record["exit"] for record in self.told("child.died") if record["name"].startswith("worker-")]

    def deliveries(self) -> set[tuple[str, int]]:
        """Return the (id, delivery count) of all that was in a worker's hands; fails if the same attempt came twice."""
        told = [(record["id"], record["count"], record["attempts"]) for record in self.told("event.delivered")]
        assert len(told) == len(set(told)), told
        return {(entry_id, count) for entry_id, count, _ in told}


class HookedFleet(WatchedFleet):
    """A fleet with shorter hang limits, whose workers an event can kill or hang."""

    def up(self, *options: str, ready: bool = True) -> None:
        """Start the supervisor, prepared."""
        assert not ready, "wait with `start`"
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, LAUNCH, "up", *options], env=self.environment, cwd=self.folder, stdout=log, stderr=log
            )


class WatchedStreams(Streams):
    """The streams, and who holds what. The server knows the scripts already: each call of one is one request."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        for script in SCRIPTS:
            client.script_load(script_text(script))

    def add(self, *texts: str) -> list[str]:
        """Produce events in one go, so that one idle worker gets as many of them as it has free slots."""
        with self.client.pipeline(transaction=True) as pipeline:
            for text in texts:
                pipeline.xadd(INPUT, {"data": json.dumps({"text": text})})
            return [entry_id.decode() for entry_id in pipeline.execute()]

    def held(self) -> dict[str, tuple[str, int]]:
        """Return the owner and delivery count of each pending id."""
        rows: Any = self.client.xpending_range(INPUT, GROUP, "-", "+", 1000)
        return {row["message_id"].decode(): (row["consumer"].decode(), row["times_delivered"]) for row in rows}

    def holders(self) -> dict[str, set[str]]:
        """Return what each consumer holds."""
        holders: dict[str, set[str]] = {}
        for entry_id, (owner, _) in self.held().items():
            holders.setdefault(owner, set()).add(entry_id)
        return holders

    def consumers(self) -> set[str]:
        """Return the group's consumers that are, or were, processes."""
        return {row["name"].decode() for row in self.client.xinfo_consumers(INPUT, GROUP)} - {PARKED}

    def total(self, name: str) -> int:
        """Return one of the counters that the scripts raise."""
        return int(self.client.hget("{events}:totals", name) or 0)

    def readers_wait(self, count: int) -> bool:
        """Whether so many workers wait in their reads."""
        return bool(self.client.info("clients")["blocked_clients"] == count)

    def enriched_by(self) -> dict[str, dict[str, Any]]:
        """Return the `meta` of each enriched event by the id of its source. Fails if one was enriched twice."""
        records = self.enriched()
        found = {record[b"src"].decode(): json.loads(record[b"data"])["ai_enrichment"]["meta"] for record in records}
        assert len(found) == len(records), "an event was enriched twice"
        return found


def sha(script: str) -> bytes:
    """Return the bytes by which a request that runs a script is known."""
    return hashlib.sha1(script_text(script).encode(), usedforsecurity=False).hexdigest().encode()
