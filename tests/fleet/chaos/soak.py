"""One chaos run: a real fleet under a seeded storm, then healed, drained, read and judged."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from tests.fleet.chaos.actors import WORKER, Keeper, Producer, Sampler, Tail
from tests.fleet.chaos.history import Entry, Final, History, Scribe, Terms, save
from tests.fleet.chaos.mutants import MUTANTS
from tests.fleet.chaos.nemesis import Stage, heal, rage, worker_ctl_scale
from tests.fleet.chaos.proxy import FaultProxy
from tests.rig import RedisServer, eventually

from millhand.keys import Keys
from millhand.layers import load
from scripts.fake_ollama import FakeOllama

if TYPE_CHECKING:
    import redis as blocking_redis

LAUNCH = Path(__file__).with_name("launch.py")
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
READY_S_MAX = 60.0
WARM_CALLS = 100  # before the processes are measured
STOP_S_MAX = 30.0
PAGE = 1000
RETRIES = 3
BAD = "[[fake garbage times={}]]"
USUAL = (*[""] * 80, *["[[fake status=500 times=1]]"] * 4, BAD.format(1), BAD.format(2), BAD.format(RETRIES + 1))
HARD = ("[[fake wrong_schema times=1]]", "[[fake drop times=1]]", "[[fake length times=1]]", "not JSON")
SLOW = "[[fake delay={:g} times=1]]"  # for longer than a lease: its worker lives and beats

ALL_FAULTS = (
    *("kill_worker",) * 6,
    *("swallow",) * 2,
    "freeze_worker", "freeze_janitor", "kill_janitor", "kill_supervisor", "poison", "block_worker", "scale",
    "reset", "delay", "slice", "half_close", "black_hole", "kill_connections",
    "kill_redis", "freeze_redis", "pause_redis", "busy_script", "flush_scripts", "revoke_permission",
    "out_of_memory", "max_clients", "read_only", "destroy_group", "delete_entries", "lose_parked", "lose_gate",
    "model_down", "model_throttles", "model_hangs",
)  # fmt: skip
ANSWERS = (
    "done/ok", "done/gone", "retry/ok", "bury/ok", "release/ok", "hand_back/ok",
)  # fmt: skip


class Plan(msgspec.Struct, frozen=True):
    """What a run is."""

    seed: int
    duration_s: float
    mutant: str = ""
    faults: tuple[str, ...] = ()  # all, if none are named
    binary: Path | None = None  # of another server than the embedded Valkey
    workers: int = 3
    concurrency: int = 4
    lease_s: float = 2.0
    sweep_s: float = 0.5
    drain_s: float = 2.0
    events_per_s: float = 60.0
    calls_per_s: float = 200.0
    burst: int = 20
    settled_within_s: float = 60.0  # after the storm, and half as long again as it lasted: so much may wait by then

    @property
    def drained_s_max(self) -> float:
        """How long it may take after the storm until everything is settled."""
        return self.settled_within_s + self.duration_s / 2

    @property
    def deck(self) -> tuple[str, ...]:
        """The faults to deal."""
        mutant = MUTANTS.get(self.mutant)
        return self.faults or (mutant.faults if mutant else ALL_FAULTS)


def run(plan: Plan, folder: Path) -> History:
    """Carry a run out, and return its history; it is also kept in the folder."""
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        stage, scribes = _set(plan, folder, stack)
        _until_ready(stage)
        with (
            Sampler(stage.keeper, scribes["sampler"]) as sampler,
            Tail(stage.server.url, stage.keys.output, scribes["tail"]),
        ):
            with stage.producer:
                eventually(lambda: stage.fake.arrived > WARM_CALLS, READY_S_MAX, what="the fleet works")
                sampler.sample()
                rage(stage, scribes["nemesis"], plan.deck, plan.duration_s, plan.seed)
            heal(stage, scribes["nemesis"])
            if _drain(stage, plan.drained_s_max):
                scribes["nemesis"].tell("drained")
            sampler.sample()
        stage.keeper.stop(STOP_S_MAX)
        _write_calls(stage.fake, scribes["model"])
        final = _read(stage)
    files = [folder / "fleet.log", *sorted(folder.glob("*.jsonl"))]
    history = History.of(files, final, _terms(plan))
    save(history, folder / "history")
    return history


def _set(plan: Plan, folder: Path, stack: ExitStack) -> tuple[Stage, dict[str, Scribe]]:
    """Start everything but the storm."""
    mutant = MUTANTS.get(plan.mutant)
    clock = folder / "clock" if any(name.startswith("clock") for name in plan.deck) else None
    server = stack.enter_context(_server(plan, folder, clock))
    fake = stack.enter_context(FakeOllama(latency_s=0.02, slots=16).in_thread())
    to_redis = stack.enter_context(FaultProxy(server.port).in_thread())
    to_model = stack.enter_context(FaultProxy(fake.port).in_thread())
    environment = _environment(plan, folder, to_redis.redis_url, to_model.http_url, fake.model)
    keys = Keys.of(load(None, {name: value for name, value in environment.items() if name.startswith("MILLHAND_")}))
    keeper = Keeper([sys.executable, str(LAUNCH), "up"], environment, folder / "fleet.log")
    names = ("nemesis", "producer", "tail", "sampler", "model")
    scribes = {name: stack.enter_context(Scribe(folder / f"{name}.jsonl", name)) for name in names}
    texts = (*USUAL, *HARD, SLOW.format(1.5 * plan.lease_s), *(mutant.events if mutant else ()))
    producer = Producer(
        to_redis.redis_url, keys.input, scribes["producer"],
        per_s=plan.events_per_s, seed=plan.seed, texts=texts, mistake=mutant.producer if mutant else "",
    )  # fmt: skip
    keeper.start()
    stack.callback(keeper.kill)
    return Stage(
        keys=keys, server=server, to_redis=to_redis, fake=fake, to_model=to_model, keeper=keeper, producer=producer,
        clock=clock, lease_s=plan.lease_s, workers=plan.workers, order=worker_ctl_scale(environment),
    ), scribes  # fmt: skip


@contextmanager
def _server(plan: Plan, folder: Path, clock: Path | None) -> Iterator[RedisServer]:
    """Start a durable server, with a second user for the faults, on a clock that can be moved if that is needed."""
    options = {"appendonly": "yes", "appendfsync": "always", "enable-debug-command": "local"}
    users = folder / "users.acl"
    users.write_text("user default on nopass ~* &* +@all\nuser admin on >admin ~* &* +@all\n", encoding="ascii")
    options |= {"aclfile": str(users)}
    environment = None
    if clock is not None:
        clock.write_text("+0", encoding="ascii")
        environment = os.environ | {
            "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip
    with RedisServer(options, binary=plan.binary, environment=environment) as server:
        yield server


def _environment(plan: Plan, folder: Path, redis_url: str, model_url: str, model: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MILLHAND_", "CHAOS_"))}
    mutant = MUTANTS.get(plan.mutant)
    return inherited | {
        "MILLHAND_FLEET_STATE_DIR": str(folder / "state"),
        "MILLHAND_FLEET_WORKERS": str(plan.workers),
        "MILLHAND_FLEET_DRAIN_S": str(plan.drain_s),
        "MILLHAND_REDIS_URL": redis_url,
        "MILLHAND_MODEL_URL": model_url,
        "MILLHAND_MODEL_NAME": model,
        "MILLHAND_MODEL_CONCURRENCY": str(plan.concurrency),
        "MILLHAND_MODEL_TIMEOUT_S": "8",
        "MILLHAND_MODEL_IN_FLIGHT_MAX": str(plan.workers * plan.concurrency),
        "MILLHAND_MODEL_RATE_PER_S": str(plan.calls_per_s),
        "MILLHAND_MODEL_BURST": str(plan.burst),
        "MILLHAND_DELIVERY_LEASE_S": str(plan.lease_s),
        "MILLHAND_DELIVERY_RETRIES": str(RETRIES),
        "MILLHAND_DELIVERY_RETRY_BACKOFF_S": "0.3",
        "MILLHAND_JANITOR_EVERY_S": str(plan.sweep_s),
        "MILLHAND_DESK_PORT": "0",
        "MILLHAND_LOG_FORMAT": "json",
        "MILLHAND_LOG_LEVEL": "debug",
        "CHAOS_MUTANT": plan.mutant,
        **(mutant.settings if mutant else {}),
    }


def _terms(plan: Plan) -> Terms:
    mutant = MUTANTS.get(plan.mutant)
    settings = mutant.settings if mutant else {}
    whole = not plan.mutant and plan.deck == ALL_FAULTS
    return Terms(
        seed=plan.seed,
        workers=plan.workers,
        concurrency=plan.concurrency,
        lease_s=float(settings.get("MILLHAND_DELIVERY_LEASE_S", plan.lease_s)),
        sweep_s=plan.sweep_s,
        drain_s=plan.drain_s,
        retries=int(settings.get("MILLHAND_DELIVERY_RETRIES", RETRIES)),
        in_flight_max=plan.workers * plan.concurrency,
        rate_per_s=float(settings.get("MILLHAND_MODEL_RATE_PER_S", plan.calls_per_s)),
        burst=int(settings.get("MILLHAND_MODEL_BURST", plan.burst)),
        heal_to_drained_s_max=plan.drained_s_max,
        expected_faults=tuple(sorted(set(plan.deck))) if whole else (),
        expected_answers=ANSWERS if whole else (),
    )


def _until_ready(stage: Stage) -> None:
    """Wait for the first fleet: its janitor has made the group."""
    with stage.server.client() as client:
        eventually(lambda: client.exists(stage.keys.input), READY_S_MAX, what="the fleet has made its group")
    workers = lambda: len(stage.keeper.children(WORKER)) == stage.workers  # noqa: E731 - a condition
    eventually(workers, READY_S_MAX, what="all workers are there")


def _drain(stage: Stage, within_s: float) -> bool:
    """Wait until nothing is pending, waiting or parked. False if that took too long."""
    deadline = time.monotonic() + within_s
    with stage.server.client() as client:
        while time.monotonic() < deadline:
            pending, undelivered = _left(client, stage.keys)
            if not pending and not undelivered and not client.zcard(stage.keys.parked):
                return True
            time.sleep(0.1)
    return False


def _left(client: "blocking_redis.Redis", keys: Keys) -> tuple[list[str], list[str]]:
    """Return the ids that are pending, and those that no worker has been given."""
    group: Any = next(iter(client.xinfo_groups(keys.input)), None)
    if group is None:
        return [], [entry.id for entry in _entries(client, keys.input)]
    rows: Any = client.xpending_range(keys.input, keys.group, "-", "+", 100_000)
    after = "(" + group["last-delivered-id"].decode()
    undelivered: Any = client.xrange(keys.input, after, "+")
    return [row["message_id"].decode() for row in rows], [entry_id.decode() for entry_id, _ in undelivered]


def _read(stage: Stage) -> Final:
    keys = stage.keys
    with stage.server.client() as client:
        pending, undelivered = _left(client, keys)
        return Final(
            input=tuple(_entries(client, keys.input)),
            output=tuple(_entries(client, keys.output)),
            dead=tuple(_entries(client, keys.dead_letter)),
            pending=tuple(pending),
            undelivered=tuple(undelivered),
            parked=client.zcard(keys.parked),
            attempts=client.hlen(keys.attempts),
            consumers=tuple(row["name"].decode() for row in client.xinfo_consumers(keys.input, keys.group)),
        )


def _entries(client: "blocking_redis.Redis", stream: str) -> Iterator[Entry]:
    """Yield a stream's entries field by field: a dict would lose names that repeat."""
    read = client.register_script(
        "#!lua flags=no-writes\nreturn redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])"
    )
    after = "-"
    while page := read(keys=[stream], args=[after, PAGE]):
        yield from (Entry.of(entry_id.decode(), pairs) for entry_id, pairs in page)
        after = "(" + page[-1][0].decode()


def _write_calls(fake: FakeOllama, scribe: Scribe) -> None:
    """Write down what the model saw."""
    for call in list(fake.calls):
        words = call.text.split()
        n = int(words[1]) if len(words) > 1 and words[0] == "event" and words[1].isdigit() else None
        scribe.tell("model.arrived", arrival_s=call.arrival_s, end_s=call.end_s, status=call.status, n=n)
