"""Who takes part in a chaos run beside the fleet and the faults: each in a thread of its own, and writes it down."""

import hashlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import psutil
import redis as blocking_redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.fleet.chaos.history import Scribe

JOIN_S = 20.0
RESTART_PAUSE_S = 0.2
SAMPLE_EVERY_S = 0.5
TAIL_BLOCK_MS = 200
TAIL_PAGE = 500
COMMAND_S = 2.0
MAXLEN_OF_THE_MUTANT = 30
WORKER = "millhand-worker"  # as the kernel cuts the names of worker processes


class Actor(threading.Thread):
    """A thread that works until told to stop; what it died of is raised by `end`."""

    def __init__(self) -> None:
        super().__init__(name=type(self).__name__, daemon=True)
        self.over = threading.Event()
        self._died_of: BaseException | None = None

    def run(self) -> None:
        """Work, and keep what went wrong."""
        try:
            self.work()
        except BaseException as error:  # noqa: BLE001 - raised again by `end`
            self._died_of = error

    def work(self) -> None:
        """Do the actor's work until `over` is set."""
        raise NotImplementedError

    def end(self) -> None:
        """Stop, wait, and raise what it died of."""
        self.over.set()
        self.join(JOIN_S)
        if self._died_of is not None:
            raise self._died_of
        if self.is_alive():
            raise RuntimeError(f"{self.name} did not end within {JOIN_S} s")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class Keeper(Actor):
    """Keeps a supervisor running, as supervisord does. Its children die with it, or are orphans that are watched."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        super().__init__()
        self._command, self._environment, self._log = list(command), dict(environment), log
        self.process: subprocess.Popen[bytes] | None = None

    def work(self) -> None:
        """Start it again whenever it ends."""
        while not self.over.is_set():
            with self._log.open("ab") as log:
                self.process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)
            while self.process.poll() is None and not self.over.is_set():
                self.over.wait(RESTART_PAUSE_S)
            self.over.wait(RESTART_PAUSE_S)

    def children(self, name: str) -> list[psutil.Process]:
        """Return the supervisor's children whose kernel name begins so, at this moment."""
        try:
            assert self.process is not None
            found = psutil.Process(self.process.pid).children(recursive=True)
            return [child for child in found if _name(child).startswith(name)]
        except psutil.Error:
            return []

    def stop(self, within_s: float) -> int:
        """Stop the fleet in good order; return the supervisor's exit code."""
        process = self._leave_alone()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        return process.wait(within_s)

    def kill(self) -> None:
        """End what is left, if anything is."""
        process = self._leave_alone()
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait(JOIN_S)
            psutil.wait_procs(family, timeout=JOIN_S)

    def _leave_alone(self) -> "subprocess.Popen[bytes]":
        """Start no other."""
        self.over.set()
        self.join(JOIN_S)
        assert self.process is not None
        return self.process


class Producer(Actor):
    """Adds events at a steady rate, with hard ones among them, and records what it knows of each.

    `texts` are mixed in: an event's text is "event <n> <one of them>". A lost reply is `info`: nothing is added again.
    """

    def __init__(
        self, url: str, stream: str, scribe: Scribe, *, per_s: float, seed: int, texts: Sequence[str], mistake: str = ""
    ) -> None:
        super().__init__()
        self._stream, self._scribe, self._pause_s, self._texts = stream, scribe, 1 / per_s, texts
        self._random = random.Random(seed)  # noqa: S311 - a run is repeated by its seed
        self._redis = blocking_redis.Redis.from_url(
            url,
            socket_timeout=COMMAND_S,
            socket_connect_timeout=COMMAND_S,
            retry=Retry(NoBackoff(), 10 if mistake == "retries" else 0),
            retry_on_error=[],
            protocol=2,
        )
        self._options: dict[str, Any] = (
            {"maxlen": MAXLEN_OF_THE_MUTANT, "approximate": False} if mistake == "maxlen" else {}
        )
        self._ordered: SimpleQueue[str] = SimpleQueue()
        self.produced = 0

    def order(self, text: str) -> None:
        """Let the next event that is surely added have this text."""
        self._ordered.put(text)

    def work(self) -> None:
        """Produce until told to stop."""
        due = time.monotonic()
        while not self.over.is_set():
            self.produced += 1
            self._produce(self.produced)
            due = max(due + self._pause_s, time.monotonic() - 1.0)
            self.over.wait(max(0.0, due - time.monotonic()))
        self._redis.close()

    def _produce(self, n: int) -> None:
        ordered = None if self._ordered.empty() else self._ordered.get()
        data = self._data(n, ordered)
        told: dict[str, Any] = {"n": n, "sha": hashlib.sha256(data).hexdigest()}
        try:
            entry_id: Any = self._redis.xadd(self._stream, {"data": data}, **self._options)
        except (blocking_redis.ConnectionError, blocking_redis.TimeoutError, OSError):
            self._scribe.tell("event.produced", outcome="info", **told)
        except blocking_redis.ResponseError:
            self._scribe.tell("event.produced", outcome="fail", **told)
        else:
            self._scribe.tell("event.produced", outcome="ok", id=entry_id.decode(), **told)
            return
        if ordered:
            self._ordered.put(ordered)

    def _data(self, n: int, ordered: str | None) -> bytes:
        text = ordered or self._random.choice(self._texts)
        if text == "not JSON":
            return b"\xff\xfe{event %d" % n
        return json.dumps({"n": n, "text": f"event {n} {text}"}).encode()


class Tail(Actor):
    """Reads the output while it grows, as a consumer of it would, past the faulty network."""

    def __init__(self, url: str, stream: str, scribe: Scribe) -> None:
        super().__init__()
        self._redis = blocking_redis.Redis.from_url(url, socket_timeout=COMMAND_S, retry=Retry(NoBackoff(), 0))
        self._stream, self._scribe, self._last = stream, scribe, "0-0"

    def work(self) -> None:
        """Read until told to stop and everything has been seen."""
        while True:
            last_round = self.over.is_set()
            try:
                reply: Any = self._redis.xread({self._stream: self._last}, count=TAIL_PAGE, block=TAIL_BLOCK_MS)
            except (blocking_redis.RedisError, OSError):
                self.over.wait(TAIL_BLOCK_MS / 1000)
                continue
            entries = [entry for _, found in reply for entry in found] if reply else []
            for entry_id, fields in entries:
                self._last = entry_id.decode()
                self._scribe.tell("output.seen", id=self._last, src=fields[b"src"].decode())
            if last_round and not entries:
                break
        self._redis.close()


class Sampler(Actor):
    """Looks at the fleet's processes: how many workers live, which are orphans, and what all of them use."""

    def __init__(self, keeper: Keeper, scribe: Scribe) -> None:
        super().__init__()
        self._keeper, self._scribe = keeper, scribe
        self._known: dict[int, psutil.Process] = {}
        self._orphaned_at: dict[int, float] = {}

    def work(self) -> None:
        """Sample until told to stop."""
        while not self.over.wait(SAMPLE_EVERY_S):
            self.sample()

    def sample(self) -> None:
        """Record one look."""
        now = time.monotonic()
        self._known |= {child.pid: child for child in self._keeper.children("millhand-")}
        self._known = {pid: child for pid, child in self._known.items() if _lives(child)}
        supervisor = self._keeper.process.pid if self._keeper.process else 0
        workers = [child for child in self._known.values() if _name(child).startswith(WORKER)]
        orphans = {child.pid for child in workers if _parent(child) != supervisor}
        self._orphaned_at = {pid: self._orphaned_at.get(pid, now) for pid in orphans}
        used = [_usage(child) for child in self._known.values()]
        self._scribe.tell(
            "fleet.sampled",
            workers=len(workers),
            orphans=len(orphans),
            oldest_orphan_s=max((now - since for since in self._orphaned_at.values()), default=0.0),
            rss_bytes=sum(rss for rss, _, _ in used),
            fds=sum(fds for _, fds, _ in used),
            threads=sum(threads for _, _, threads in used),
        )


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def _parent(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except psutil.Error:
        return 0


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _usage(process: psutil.Process) -> tuple[int, int, int]:
    try:
        return process.memory_info().rss, process.num_fds(), process.num_threads()
    except psutil.Error:
        return 0, 0, 0


def send(process: psutil.Process, number: signal.Signals) -> bool:
    """Send a signal to a process; False if it is gone."""
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True
