"""The faults of a chaos run: what each does, and when. Seeded, one after the other, each written down with its end."""

import contextlib
import hashlib
import itertools
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import redis as blocking_redis
from tests.fleet.chaos.actors import WORKER, Keeper, Producer, send
from tests.fleet.chaos.faults import BLOCK, POISON
from tests.fleet.chaos.history import Scribe
from tests.fleet.chaos.proxy import FaultProxy
from tests.rig import RedisServer

from millhand.keys import PARKED_CONSUMER, Keys
from millhand.stream import script_text
from scripts.fake_ollama import FakeOllama

FOUND_WITHIN_S = 5.0  # a process to hit: right after a kill there may be none
POLL_S = 0.02
GATES_LOST_MIN = 5
LONGER_THAN_A_DRAIN = "[[fake delay=4 times=1]]"
LOST_AGAIN_S = 0.2
FREEZE_PATIENCE_S = 1.5
TRIES_MAX = 6
PATIENCE_S = 20.0  # for a fault to strike somebody
BUSY_MS = 1500
REST_S = 4.0
BUSY = (
    "local s = redis.call('TIME') repeat local t = redis.call('TIME') "
    f"until (t[1] - s[1]) * 1000 + (t[2] - s[2]) / 1000 > {BUSY_MS}"
)
READS = [b"XREADGROUP\r\n", b"\r\nread\r\n"]  # by a command of its own, and in one step with the places
SWALLOWED_SCRIPTS = ("finish", "park", "bury", "release", "take_due", "renew")
JANITOR = "millhand-janito"
PROCESS_FAULTS = {
    "kill_worker", "kill_janitor", "kill_supervisor",
    "freeze_worker", "freeze_janitor", "poison", "block_worker", "scale", "rest",
}  # fmt: skip
CLOCK_BACK_S = -3600


class Stage:
    """What the faults are done to."""

    def __init__(
        self,
        *,
        keys: Keys,
        server: RedisServer,
        to_redis: FaultProxy,
        fake: FakeOllama,
        to_model: FaultProxy,
        keeper: Keeper,
        producer: Producer,
        clock: Path | None,
        lease_s: float,
        workers: int,
        order: Callable[[int], None],
    ) -> None:
        self.keys, self.server, self.to_redis = keys, server, to_redis
        self.fake, self.to_model = fake, to_model
        self.keeper, self.producer = keeper, producer
        self.clock, self.lease_s, self.workers, self.order = clock, lease_s, workers, order


def rage(stage: Stage, scribe: Scribe, faults: Sequence[str], duration_s: float, seed: int) -> None:
    """Deal faults for so long, in two lanes: processes in one; Redis, the network and the model in the other."""
    lanes = [[name for name in faults if (name in PROCESS_FAULTS) is processes] for processes in (True, False)]
    numbers = itertools.count(1)
    with ThreadPoolExecutor(len(lanes), thread_name_prefix="nemesis") as threads:
        ends = [
            threads.submit(Nemesis(stage, scribe, numbers, seed + lane).rage, names, duration_s)
            for lane, names in enumerate(lanes)
            if names
        ]
        for end in ends:
            end.result()


def heal(stage: Stage, scribe: Scribe) -> None:
    """End everything that may still last."""
    stage.to_redis.passing()
    stage.to_redis.disarm()
    stage.to_model.passing()
    stage.fake.script()
    stage.order(stage.workers)
    scribe.tell("healed")


class Nemesis:
    """Deals faults from a shuffled deck: each once before any comes twice."""

    def __init__(self, stage: Stage, scribe: Scribe, numbers: Iterator[int], seed: int) -> None:
        self._stage, self._scribe, self._numbers = stage, scribe, numbers
        self._random = random.Random(seed)  # noqa: S311 - a run is repeated by its seed

    def rage(self, faults: Sequence[str], duration_s: float) -> None:
        """Deal faults for so long, and until each has come once; the last one ends before this returns."""
        deck: list[str] = []
        missing = set(faults)
        over = time.monotonic() + duration_s
        while time.monotonic() < over or missing:
            deck = deck or self._random.sample(faults, len(faults))
            name = deck.pop()
            ACTIONS[name](self)
            missing.discard(name)
            _wait(self._random.uniform(0.05, 0.35))

    # -- processes ----------------------------------------------------------------------------------------------------

    def kill_worker(self) -> None:
        """F1, F2, F3: kill -9 at any moment."""
        self._kill("kill_worker", WORKER)

    def kill_janitor(self) -> None:
        """F10."""
        self._kill("kill_janitor", JANITOR)

    def kill_supervisor(self) -> None:
        """F12: the keeper starts the next one."""
        process = self._stage.keeper.process
        assert process is not None
        with self._fault("kill_supervisor"):
            process.kill()
            process.wait()
            self._until_there(WORKER)

    def freeze_worker(self) -> None:
        """F6: it stands still for longer than its lease, and does not know it."""
        totals = self._stage.keys.totals
        with self._admin() as admin:
            for _ in range(TRIES_MAX):  # one that has nothing in hand does not suffer
                count = lambda: int(admin.hget(totals, "handed_back") or 0)  # noqa: E731
                if self._freeze("freeze_worker", WORKER, 1.7 * self._stage.lease_s, count=count):
                    return

    def freeze_janitor(self) -> None:
        """Let time pass without it, which is no lease that ran out."""
        self._freeze("freeze_janitor", JANITOR, 1.5 * self._stage.lease_s)

    def poison(self) -> None:
        """F9: an event that kills every worker that has it in hand."""
        with self._fault("poison"):
            self._order_event(POISON.decode())

    def block_worker(self) -> None:
        """F7: an event on which a worker's loop hangs."""
        with self._fault("block_worker"):
            self._order_event(BLOCK.decode())

    def scale(self) -> None:
        """F16: fewer and more, in a row; some events in hand last longer than a drain."""
        with self._fault("scale"):
            for _ in range(2 * self._stage.workers):
                self._stage.producer.order(LONGER_THAN_A_DRAIN)
            _wait(0.5)
            self._until_delivered()
            for count in (1, self._random.randint(1, 5), self._stage.workers):
                self._stage.order(count)
                _wait(0.5)

    def rest(self) -> None:
        """Leave the fleet alone for as long as it may take to hand on."""
        _wait(REST_S)

    # -- the way to Redis ---------------------------------------------------------------------------------------------

    def swallow(self) -> None:
        """F3, F4, F5: scripts are carried out, and their replies arrive nowhere."""
        patterns = [_sha(name) for name in SWALLOWED_SCRIPTS] + [*READS, b"XADD", b"XACK"]
        self._swallow(patterns, surely=_sha("finish"))

    def swallow_read(self) -> None:
        """F5: entries are delivered in a reply that nobody gets."""
        self._swallow(READS)

    def swallow_acknowledge(self) -> None:
        """F4: who acknowledges by a command of its own does not hear that it has; no script of ours is that."""
        self._swallow([b"XACK"])

    def swallow_produce(self) -> None:
        """Leave the producer without knowing whether its event was added."""
        self._swallow([b"XADD"])

    def reset(self) -> None:
        """F25: every connection is cut, several times."""
        proxy = self._stage.to_redis

        def cut() -> bool:
            proxy.reset()
            return proxy.resets > before

        with self._fault("reset") as detail:
            before = proxy.resets
            _until(cut, PATIENCE_S)
            for _ in range(3):
                _wait(0.2)
                cut()
            detail["felt"] = proxy.resets - before

    def delay(self) -> None:
        """F25."""
        self._while("delay", lambda: self._stage.to_redis.delaying(0.5), 1.5, self._stage.to_redis.passing)

    def slice(self) -> None:
        """F25: one byte at a time."""
        self._while("slice", lambda: self._stage.to_redis.slicing(1), 1.0, self._stage.to_redis.passing)

    def half_close(self) -> None:
        """F25: requests arrive, replies do not."""
        self._while("half_close", self._stage.to_redis.half_closed, 0.8, self._stage.to_redis.passing)

    def black_hole(self) -> None:
        """F26."""
        proxy = self._stage.to_redis
        self._while("black_hole", proxy.black_hole, 2.5, proxy.passing, count=lambda: proxy.bytes_lost)

    def kill_connections(self) -> None:
        """F24: every tenth of a second."""
        with self._fault("kill_connections") as detail, self._admin() as admin:
            for _ in range(10):
                killed = admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")  # type: ignore[no-untyped-call]
                detail["felt"] = detail.get("felt", 0) + killed
                _wait(0.1)

    # -- Redis --------------------------------------------------------------------------------------------------------

    def kill_redis(self) -> None:
        """F20: kill -9, and back on the same files."""
        with self._fault("kill_redis") as detail:
            before = self._stage.server.pid
            self._stage.server.restart()
            detail["felt"] = int(self._stage.server.pid != before)

    def freeze_redis(self) -> None:
        """F22: what was sent meanwhile is carried out late."""
        self._while("freeze_redis", self._stage.server.pause, 4.5, self._stage.server.resume)

    def pause_redis(self) -> None:
        """F23."""
        with self._fault("pause_redis"):
            with self._admin() as admin:
                admin.execute_command("CLIENT", "PAUSE", 1500, "WRITE")  # type: ignore[no-untyped-call]
            _wait(1.5)

    def busy_script(self) -> None:
        """F37: BUSY to everybody else."""
        with self._refusal("busy_script", _errors("BUSY")) as admin:
            admin.config_set("busy-reply-threshold", 100)
            with contextlib.suppress(blocking_redis.RedisError):
                admin.eval(BUSY, 0)

    def flush_scripts(self) -> None:
        """F33."""
        with self._fault("flush_scripts"), self._admin() as admin:
            admin.script_flush()

    def revoke_permission(self) -> None:
        """F36: nobody may add any more."""
        with self._refusal("revoke_permission", _errors("NOPERM")) as admin:
            admin.execute_command("ACL", "SETUSER", "default", "-xadd")  # type: ignore[no-untyped-call]
            _wait(1.5)
            admin.execute_command("ACL", "SETUSER", "default", "+xadd")  # type: ignore[no-untyped-call]

    def out_of_memory(self) -> None:
        """F30."""
        with self._refusal("out_of_memory", _errors("OOM")) as admin:
            admin.config_set("maxmemory", 1)
            _wait(1.5)
            admin.config_set("maxmemory", 0)

    def max_clients(self) -> None:
        """F37: all places are taken, and whoever lost his finds none."""
        with self._refusal("max_clients", lambda admin: int(admin.info("stats")["rejected_connections"])) as admin:
            admin.config_set("maxclients", 1)
            self._stage.to_redis.reset()
            _wait(1.5)
            admin.config_set("maxclients", 10_000)

    def read_only(self) -> None:
        """F35: the server has become a replica, of one that is not there."""
        with self._refusal("read_only", _errors("READONLY")) as admin:
            admin.execute_command("REPLICAOF", "127.0.0.1", 9)  # type: ignore[no-untyped-call]
            _wait(1.5)
            admin.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]

    def destroy_group(self) -> None:
        """F32."""
        with self._fault("destroy_group"), self._admin() as admin:
            admin.xgroup_destroy(self._stage.keys.input, self._stage.keys.group)
            _until(lambda: bool(admin.xinfo_groups(self._stage.keys.input)), 10.0)

    def delete_entries(self) -> None:
        """F38: somebody deletes what is pending."""
        keys = self._stage.keys
        with self._fault("delete_entries"), self._admin() as admin:
            for owner in (PARKED_CONSUMER, None, None):  # what a worker has in hand it may still finish
                for row in self._pending_of(admin, owner):
                    admin.xdel(keys.input, row["message_id"])

    def _pending_of(self, admin: "blocking_redis.Redis", owner: str | None) -> list[Any]:
        """Return one or two pending entries of an owner, or of anybody, once there are some."""
        keys = self._stage.keys
        found: Any = []

        def look() -> bool:
            rows: Any = admin.xpending_range(keys.input, keys.group, "-", "+", 9, owner)
            found[:] = [row for row in rows if not self._is_a_fault(admin, row["message_id"])]
            return bool(found)

        _until(look, PATIENCE_S)
        return self._random.sample(found, min(2, len(found)))

    def _is_a_fault(self, admin: "blocking_redis.Redis", entry_id: Any) -> bool:
        """Whether an event is itself a fault, whose effect would never show if it were deleted before."""
        entries: Any = admin.xrange(self._stage.keys.input, entry_id, entry_id)
        return any(mark in fields.get(b"data", b"") for _, fields in entries for mark in (POISON, BLOCK))

    def lose_parked(self) -> None:
        """Lose the due times; who is parked is known from the pending list."""
        parked = self._stage.keys.parked
        with self._fault("lose_parked") as detail, self._admin() as admin:
            _until(lambda: admin.zcard(parked) > 0, PATIENCE_S)
            detail["felt"] = admin.zcard(parked)
            admin.delete(parked)

    def lose_gate(self) -> None:
        """F47: lose the bucket, again and again, and then who holds which permit."""
        keys, lost = self._stage.keys, 0
        with self._fault("lose_gate") as detail, self._admin() as admin:
            for _ in range(GATES_LOST_MIN):
                _until(lambda: admin.exists(keys.gate) > 0, PATIENCE_S)
                lost += admin.delete(keys.gate)
                _wait(LOST_AGAIN_S)
            lost += admin.delete(keys.permits)
            detail["felt"] = lost

    def clock_back(self) -> None:
        """F40: the server's clock is put back by an hour, and stays so."""
        self._jump(CLOCK_BACK_S)

    def clock_on(self) -> None:
        """F40: the server's clock is put on by an hour, and stays so."""
        self._jump(-CLOCK_BACK_S)

    # -- the model ----------------------------------------------------------------------------------------------------

    def model_down(self) -> None:
        """F46."""

        def cut() -> None:
            self._stage.to_model.refusing()
            self._stage.to_model.reset()

        proxy = self._stage.to_model
        self._while("model_down", cut, 1.5, proxy.passing, count=lambda: proxy.resets)

    def model_throttles(self) -> None:
        """F42: 503 to everybody."""
        fake = self._stage.fake
        self._while("model_throttles", lambda: fake.outage(503, 1), 1.5, fake.script, count=lambda: fake.refused)

    def model_hangs(self) -> None:
        """F44: requests go in, and nothing comes out."""
        proxy = self._stage.to_model
        self._while("model_hangs", proxy.black_hole, 1.5, proxy.passing, count=lambda: proxy.bytes_lost)

    # -- how ----------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _fault(self, name: str, **detail: Any) -> Iterator[dict[str, Any]]:
        """Write a fault down; what is put into the yielded detail is told at its end."""
        number = next(self._numbers)
        self._scribe.tell("fault.began", fault=name, number=number, detail=detail or None)
        try:
            yield detail
        finally:
            self._scribe.tell("fault.ended", fault=name, number=number, detail=detail or None)

    @contextlib.contextmanager
    def _refusal(self, name: str, count: "Callable[[blocking_redis.Redis], int]") -> Iterator["blocking_redis.Redis"]:
        """Write a fault down that the server itself counts."""
        with self._fault(name) as detail, self._admin() as admin:
            before = _patiently(lambda: count(admin))
            yield admin
            detail["felt"] = _patiently(lambda: count(admin)) - before

    def _while(
        self,
        name: str,
        begin: Callable[[], object],
        duration_s: float,
        end: Callable[[], object],
        *,
        count: Callable[[], int] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> int:
        """Let a fault last for so long; where it can be counted, until it has struck. Return how often it did."""
        with self._fault(name) as detail:
            before = _patiently(count) if count else 0
            begin()
            _wait(duration_s)
            if count:
                _until(lambda: count() > before, patience_s)
                detail["felt"] = _patiently(count) - before
            end()
        return int(detail.get("felt", 0))

    def _kill(self, name: str, prefix: str) -> None:
        victim = self._victim(prefix)
        if victim:
            with self._fault(name):
                send(victim, signal.SIGKILL)

    def _freeze(self, name: str, prefix: str, duration_s: float, *, count: Callable[[], int] | None = None) -> int:
        """Stop a process for so long; return how often that was felt."""
        victim = self._victim(prefix)
        if not victim:
            return 0
        return self._while(
            name,
            lambda: send(victim, signal.SIGSTOP),
            duration_s,
            lambda: send(victim, signal.SIGCONT),
            count=count,
            patience_s=FREEZE_PATIENCE_S,
        )

    def _victim(self, prefix: str) -> Any:
        self._until_there(prefix)
        found = self._stage.keeper.children(prefix)
        return self._random.choice(found) if found else None

    def _until_delivered(self) -> None:
        """Wait until all that stands in the stream now has been in a worker's hands: it may lag behind."""
        key = self._stage.keys.input
        last: list[bytes] = []

        def all_delivered() -> bool:
            if not last:
                last.append(admin.xinfo_stream(key)["last-generated-id"])
            return any(_id(group["last-delivered-id"]) >= _id(last[0]) for group in admin.xinfo_groups(key))

        with self._admin() as admin:
            _until(all_delivered, PATIENCE_S)

    def _until_there(self, prefix: str) -> None:
        _until(lambda: bool(self._stage.keeper.children(prefix)), FOUND_WITHIN_S)

    def _swallow(self, patterns: list[bytes], surely: bytes = b"") -> None:
        """Swallow replies for a second; of the commands with `surely`, wait until it has been two."""
        proxy = self._stage.to_redis
        enough = proxy.swallowed[surely] + 2
        with self._fault("swallow"):
            for pattern in patterns:
                proxy.swallow(pattern, times=4, probability=0.5, seed=self._random.randrange(1 << 30))
            _wait(1.0)
            _until(lambda: not surely or proxy.swallowed[surely] >= enough, PATIENCE_S)
            proxy.disarm(*patterns)

    def _jump(self, by_s: int) -> None:
        assert self._stage.clock is not None, "the server has no clock that can be moved"
        with self._fault("clock_jump", by_s=by_s):
            before = float(self._stage.clock.read_text(encoding="ascii"))
            self._stage.clock.write_text(f"{before + by_s:+.0f}", encoding="ascii")

    def _order_event(self, text: str) -> None:
        self._stage.producer.order(text)
        _wait(0.5)

    @contextlib.contextmanager
    def _admin(self) -> Iterator["blocking_redis.Redis"]:
        with self._stage.server.client(username="admin", password="admin", socket_timeout=10.0) as admin:  # noqa: S106
            yield admin


ACTIONS: dict[str, Callable[[Nemesis], None]] = {
    name: action
    for name, action in vars(Nemesis).items()
    if callable(action) and not name.startswith("_") and name != "rage"
}


def worker_ctl_scale(environment: dict[str, str]) -> Callable[[int], None]:
    """Return how to order a number of workers: by the real command, which may fail in the storm."""

    def order(count: int) -> None:
        command = [str(Path(sys.executable).with_name("worker-ctl")), "scale", str(count)]
        subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)

    return order


def _sha(name: str) -> bytes:
    return hashlib.sha1(script_text(name).encode(), usedforsecurity=False).hexdigest().encode()


def _errors(code: str) -> "Callable[[blocking_redis.Redis], int]":
    """Return how to ask the server how often it has replied with an error."""
    return lambda admin: int(admin.info("errorstats").get(f"errorstat_{code}", {"count": 0})["count"])


def _id(entry_id: bytes) -> tuple[int, int]:
    milliseconds, number = entry_id.split(b"-")
    return int(milliseconds), int(number)


def _patiently(count: Callable[[], int]) -> int:
    """Count once the server answers: the other lane may be at it."""
    found: list[int] = []
    _until(lambda: not found.append(count()), PATIENCE_S)  # type: ignore[func-returns-value]
    return found[0] if found else 0


def _wait(seconds: float) -> None:
    """Let a fault last: time is what it consists of."""
    threading.Event().wait(seconds)


def _until(condition: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with contextlib.suppress(blocking_redis.RedisError):
            if condition():
                return True
        _wait(POLL_S)
    return False
