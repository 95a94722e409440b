"""One picture of the fleet: health, metrics, status and web page all render this, so that they cannot disagree."""

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec
from redis import exceptions

from millhand.address import redis_address
from millhand.config import Config
from millhand.errors import Unusable
from millhand.keys import PARKED_CONSUMER, Keys
from millhand.stop import Stop
from millhand.stream import RedisError, connect, is_stale, require_streams
from millhand_fleet.backlog import Age, Backlog
from millhand_fleet.gate_view import GateView, look_at_gate
from millhand_fleet.history import SUCCESS_OVER_S, Counts, Flow, History, flow_of, past_of
from millhand_fleet.latency import LatencyView, Measured, Measurements
from millhand_fleet.recent import DeadRecord, EnrichedRecord, Recent

if TYPE_CHECKING:
    from redis.asyncio import Redis

REFRESH_EVERY_S = 1.0
HEALTH_TIMEOUT_S = 2.0
TOTALS = (
    "enriched", "dead", "retried", "handed_back", "released", "skipped",
    "requeued", "dropped", "trimmed", "retired", "lost", "cache_hits", "cache_joined", "cache_misses",
)  # fmt: skip


class RedisView(msgspec.Struct, frozen=True):
    """What the server says of itself."""

    reachable: bool = False
    error: str | None = None
    server: str = ""
    durability: str = "unknown"  # durable | weak: everysec | none | unknown
    database: int = 0
    eviction: str = "unknown"  # its maxmemory-policy; any but noeviction may throw events away


class StreamsView(msgspec.Struct, frozen=True):
    """What stands in the streams. All counts are events."""

    input_length: int = 0
    added: int = 0  # since the stream began
    backlog: int = 0  # not yet delivered to any worker
    pending: int = 0  # delivered, and not yet settled
    parked: int = 0  # of the pending: waiting for their retry
    enriched: int = 0
    dead: int = 0
    dead_by_reason: dict[str, int] = {}
    retried: int = 0
    handed_back: int = 0
    released: int = 0
    skipped: int = 0  # acknowledged as repetitions of an event_id
    requeued: int = 0  # dead letters given back to the input
    dropped: int = 0  # dead letters deleted for good
    trimmed: int = 0
    retired: int = 0  # consumers
    lost: int = 0  # events gone with a stream that somebody deleted
    cache_hits: int = 0  # answers that were kept from before
    cache_joined: int = 0  # answers that another event was just waiting for
    cache_misses: int = 0
    groups_recreated: int = 0
    enriched_per_s: float = 0.0
    in_per_s: float = 0.0
    dead_per_s: float = 0.0
    backlog_age_s: float | None = None  # of the oldest event that is not yet settled; None: there is none
    undelivered_age_s: float | None = None  # of the oldest that no worker has had yet
    drained_in_s: float | None = None  # until all are settled, at the rates of the last minute; None: unknown, or never
    success_rate_over: dict[str, float | None] = msgspec.field(default_factory=lambda: dict.fromkeys(SUCCESS_OVER_S))
    consumers: int = 0

    @property
    def success_rate(self) -> float | None:
        """Enriched events as a share of all settled ones, in [0, 1]; None before the first."""
        settled = self.enriched + self.dead
        return self.enriched / settled if settled else None


class Snapshot(msgspec.Struct, frozen=True):
    """The fleet at one moment."""

    fleet: str
    taken_at: float  # when Redis was last asked; this and the next in the desk's monotonic seconds
    model: str
    heard_at: float = 0.0  # when the supervisor last reported
    desired: int = 0
    supervisor_pid: int = 0
    paused: bool = False  # by an operator
    crash_loop: bool = False
    rolling: dict[str, Any] | None = None  # what is being done to one worker after another, and how many are left
    stop_wait_note: str | None = None
    more: dict[str, Any] = {}  # what else the supervisor says of the fleet
    children: tuple[dict[str, Any], ...] = ()
    redis: RedisView = RedisView()
    streams: StreamsView = StreamsView()
    gate: GateView = GateView()
    output_length: int = 0
    dead_letter_length: int = 0
    latency: LatencyView = LatencyView()
    measured: Measured = Measured()
    recent_dead: tuple[DeadRecord, ...] = ()
    recent_enriched: tuple[EnrichedRecord, ...] = ()
    keys: Keys | None = None
    seen: bool = False  # whether Redis has answered once; before, the numbers of streams and gate are none

    @property
    def workers(self) -> list[dict[str, Any]]:
        """The rows of the workers."""
        return [row for row in self.children if row["name"].startswith("worker-")]


class Observer:
    """Refreshes the snapshot in the background, so that whoever asks gets an answer at once, whatever Redis does."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._keys = Keys.of(config)
        self._redis: Redis = connect(redis_address(config.redis), timeout_s=HEALTH_TIMEOUT_S, connections_max=4)
        self._backlog = Backlog(self._redis, self._keys.input)
        self._measurements = Measurements()
        self._history = History(keep_s=max(SUCCESS_OVER_S.values()))
        self._recent = Recent(self._redis, self._keys, show_payloads=config.desk.show_payloads)
        self._config_is_forbidden = False  # asked again and again, it would fill the server's book of refusals
        self.heard = asyncio.Event()
        self.looked = asyncio.Event()  # Redis has answered, or refused, once
        self.snapshot = Snapshot(fleet=config.fleet.name, taken_at=0.0, model=config.model.name, keys=self._keys)

    def hear(self, message: dict[str, Any]) -> None:
        """Take in the supervisor's picture of its children, or what the workers have counted."""
        if "fleet" in message:
            heard_at = time.monotonic()
            self.snapshot = msgspec.structs.replace(self.snapshot, heard_at=heard_at, **_told(message["fleet"]))
            self.heard.set()
        elif "counts" in message:
            self._measurements.take(time.monotonic(), message["counts"])
            measured, latency = self._measurements.measured(), self._measurements.view()
            self.snapshot = msgspec.structs.replace(self.snapshot, measured=measured, latency=latency)

    def past(self) -> list[tuple[float, float, float]]:
        """Return what went in and out a second in the last minutes, as `history.past_of` does."""
        return past_of(self._history)

    async def run(self, stop: Stop) -> None:
        """Refresh until a stop is requested."""
        while not stop.requested:
            await stop.or_result(self._refresh())
            await stop.sleep(REFRESH_EVERY_S)
        await self._redis.aclose()

    async def _refresh(self) -> None:
        try:
            server = await require_streams(self._redis)
            await self._require_primary()
            durability, eviction = await self._promises()
            database = int(self._redis.connection_pool.connection_kwargs.get("db") or 0)
            redis = RedisView(
                reachable=True, server=server, durability=durability, database=database, eviction=eviction
            )
            seen: dict[str, Any] = {
                "streams": await self._streams(),
                "gate": await look_at_gate(self._redis, self._keys, self._config),
                **await self._outputs(),
                "seen": True,
            }
        except (*RedisError, KeyError, ValueError, OverflowError, Unusable) as error:  # or what it holds is no number
            redis, seen = RedisView(error=str(error) or type(error).__name__), {}  # the last numbers stay
            self._config_is_forbidden = False
            if is_stale(error):
                await self._redis.connection_pool.disconnect()
        self.snapshot = msgspec.structs.replace(self.snapshot, taken_at=time.monotonic(), redis=redis, **seen)
        self.looked.set()

    async def _require_primary(self) -> None:
        """Raise ReadOnlyError where the server has become a replica: it answers whoever reads, and is out of date."""
        if (await self._redis.info("replication"))["role"] != "master":
            raise exceptions.ReadOnlyError("READONLY the server is a replica and takes no writes")

    async def _streams(self) -> StreamsView:
        keys = self._keys
        groups = await self._redis.xinfo_groups(keys.input)
        info = await self._redis.xinfo_stream(keys.input)  # after the group: all that was delivered is in it
        group = next((row for row in groups if row["name"] == keys.group.encode()), None)
        if group is None:
            raise exceptions.ResponseError(f"NOGROUP the stream {keys.input} has no group {keys.group}")
        raw: dict[Any, Any] = await self._redis.hgetall(keys.totals)
        totals = {name.decode(): int(value) for name, value in raw.items()}
        delivered = group["last-delivered-id"].decode()
        backlog = await self._backlog.count(delivered, info)
        age, parked = await self._in_hand(delivered)
        flow = self._flow(info["entries-added"], totals, backlog + group["pending"])
        return StreamsView(
            input_length=info["length"],
            added=info["entries-added"],
            backlog=backlog,
            backlog_age_s=age.unsettled_s,
            undelivered_age_s=age.undelivered_s,
            pending=group["pending"],
            parked=parked,
            consumers=group["consumers"],
            dead_by_reason={name.removeprefix("dead:"): n for name, n in totals.items() if name.startswith("dead:")},
            groups_recreated=max(0, totals.get(f"group:{keys.group}", 1) - 1),
            **_totals(totals),
            **msgspec.structs.asdict(flow),
        )

    async def _outputs(self) -> dict[str, Any]:
        """Return what stands in the streams that we write; nothing where that may not be looked at, or is no stream."""
        try:
            return {
                "output_length": await self._redis.xlen(self._keys.output),
                "dead_letter_length": await self._redis.xlen(self._keys.dead_letter),
                "recent_dead": await self._recent.dead(),
                "recent_enriched": await self._recent.enriched(),
            }
        except exceptions.ResponseError:
            return {}  # the workers say what is wrong, if they cannot write either

    async def _in_hand(self, delivered: str) -> tuple[Age, int]:
        """Return the age of what is not settled, and how many of the pending are parked."""
        keys = self._keys
        seconds, microseconds = await self._redis.time()
        summary: dict[str, Any] = await self._redis.xpending(keys.input, keys.group)
        oldest = summary["min"].decode() if summary["min"] else None
        age = await self._backlog.age(delivered, oldest, seconds * 1000 + microseconds / 1000)
        rows = summary["consumers"]
        return age, sum(row["pending"] for row in rows if row["name"].decode() == PARKED_CONSUMER)

    def _flow(self, added: int, totals: dict[str, int], unsettled: int) -> Flow:
        counts = Counts(added, totals.get("enriched", 0), totals.get("dead", 0), totals.get("skipped", 0))
        self._history.note(time.monotonic(), counts)
        return flow_of(self._history, unsettled)

    async def _promises(self) -> tuple[str, str]:
        """Return what an acknowledged write survives, and the eviction policy. CONFIG may be forbidden, INFO is not."""
        eviction = str((await self._redis.info("memory")).get("maxmemory_policy", "unknown"))
        if not (await self._redis.info("persistence")).get("aof_enabled"):
            return "none", eviction
        try:
            fsync = None if self._config_is_forbidden else (await self._redis.config_get("appendfsync"))["appendfsync"]
        except exceptions.ResponseError:
            self._config_is_forbidden = True
        if self._config_is_forbidden:
            return "unknown", eviction
        return "durable" if fsync == "always" else f"weak: {fsync}", eviction


def _totals(totals: dict[str, int]) -> dict[str, Any]:
    return {name: totals.get(name, 0) for name in TOTALS}


def _told(fleet: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a snapshot that the supervisor's picture holds."""
    known = ("paused", "crash_loop", "rolling", "stop_wait_note")
    return {
        "desired": fleet["desired"],
        "supervisor_pid": fleet["pid"],
        "children": tuple(fleet["children"]),
        **{name: fleet[name] for name in known if name in fleet},
        "more": {name: value for name, value in fleet.items() if name not in {"desired", "pid", "children", *known}},
    }
