"""The janitor: finds deliveries that nobody holds any more, and hands them back."""

import asyncio
import math
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from redis import exceptions

from millhand.address import redis_address
from millhand.config import Config
from millhand.keys import PARKED_CONSUMER, Keys
from millhand.log import logger
from millhand.process import run_child
from millhand.pulse import Birth, Pulse
from millhand.remedy import remedy_for
from millhand.settle import Settled, Settler, deleted
from millhand.stop import Stop
from millhand.stream import RedisError, Script, attempts_of, connect, is_stale, require_streams
from millhand.verdict import Bury, Delivery, Reason, tell, word_of
from millhand_fleet.backlog import Backlog
from millhand_fleet.restore import Restored, restore_group
from millhand_fleet.watch import Pending, Watch

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from structlog.typing import FilteringBoundLogger

PAGE = 500
REDIS_PAUSE_S = 2.0
RETIRE_IDLE_S = 3600.0  # a consumer of another host that holds nothing for so long is history
KEEPS_ALL = "noeviction"
LATER_S = 0.005  # some milliseconds, in which the server counts them
TRIM_PIECE = 5_000  # entries a call, so that the server is never held up for long
TRIM_PIECES_MAX = 100  # calls a sweep, so that a sweep ends


def look_after(config: Config, living: tuple[str, ...], birth: Birth) -> None:
    """Be the janitor process until told to stop. `living` are the consumers of this fleet that are at work already."""

    async def life(stop: Stop, pulse: Pulse) -> None:
        redis = connect(redis_address(config.redis))
        janitor = Janitor(redis, config, living, logger())
        pulse.hear, pulse.stats = janitor.hear, janitor.stats
        await janitor.run(stop, pulse)
        await redis.aclose()

    run_child(birth, config, life)


def consumer_prefix() -> str:
    """Return what the names of this host's consumers begin with."""
    return f"{socket.gethostname()}:w"


class Sweep(msgspec.Struct):
    """What one pass over the pending list did."""

    examined: int = 0
    handed_back: int = 0
    buried: int = 0
    tombstoned: int = 0
    rehung: int = 0  # parked entries whose due time had been lost, or put off by a jump of the clock
    retired: int = 0
    trimmed: int = 0
    refused: int = 0  # entries with which Redis would not let us do what is due


class Janitor:
    """Reconciles the pending list with the living."""

    def __init__(self, redis: "Redis", config: Config, living: Iterable[str], log: "FilteringBoundLogger") -> None:
        self._redis = redis
        self._config = config
        self._keys = Keys.of(config)
        self._settler = Settler(redis, self._keys)
        self._retire = Script(redis, "retire_consumer")
        self._trim = Script(redis, "trim")
        self._evict = Script(redis, "evict")
        self._watch = Watch(config.delivery.lease_s)
        self._now = time.monotonic
        self._living = set(living)
        self._dead: set[str] = set()
        self._blameless: set[str] = set()  # what the dead had in hand without working on it
        self._news = asyncio.Event()
        self._log = log
        self._waits_for: str | None = None
        self._refused: str | None = None  # for as long as a sweep leaves an entry that it may not touch
        self._backlog = Backlog(redis, self._keys.input)
        self._unsettled = 0  # events without a record, at the last sweep
        self._sweeps = 0
        self._last: dict[str, float] = {}

    def hear(self, message: dict[str, Any]) -> None:
        """Take in what the supervisor says: a worker was born, or died with this at its gate."""
        if born := message.get("born"):
            self._living.add(born)
            self._dead.discard(born)
        if died := message.get("died"):
            self._living.discard(died)
            self._dead.add(died)
            self._blameless |= set(message.get("at_the_gate", ()))
            self._news.set()

    def stats(self) -> dict[str, Any]:
        """Return what the janitor says of itself with each heartbeat; `sweep` is the last one."""
        return {"waits_for": self._waits_for or self._refused, "sweeps": self._sweeps, "sweep": self._last}

    async def run(self, stop: Stop, pulse: Pulse) -> None:
        """Sweep at start, whenever a worker died, and on the timer, until a stop is requested."""
        if not await self._open(stop):
            return
        ready = False
        while not stop.requested:
            self._news.clear()
            ready = await stop.or_result(self._try_sweep(told=not ready)) or ready
            if ready:
                pulse.send({"ready": True})
            await stop.or_result(self._until_due())

    async def _open(self, stop: Stop) -> bool:
        """Wait for Redis. False if a stop comes first."""
        while not stop.requested:
            try:
                if await stop.or_result(self._meet_redis()):
                    return True
            except RedisError as error:
                await self._stand_back(error)
                await stop.sleep(REDIS_PAUSE_S)
        return False

    async def _meet_redis(self) -> bool:
        """Find everything in its place, or put it there. Raises RedisError."""
        server = await require_streams(self._redis)
        created = await self._restore() is not None
        self._dead |= await self._left_behind()
        self._waits_for = None
        self._log.info("redis.connected", server=server, group=self._keys.group, group_created=created)
        await self._warn_of_eviction()
        return True

    def _away(self, error: BaseException) -> None:
        """Tell that Redis does not let us, once. Nobody can renew meanwhile, so all that was seen counts no more."""
        if self._waits_for is None:
            self._log.warning("redis.waiting", error=str(error), remedy=remedy_for(error))
        self._waits_for = f"redis: {error}"
        self._watch.forget()

    async def _stand_back(self, error: BaseException) -> None:
        """Leave Redis alone for now; find out anew where the address leads, if it took no writes."""
        self._away(error)
        if is_stale(error):
            await self._redis.connection_pool.disconnect()

    async def _warn_of_eviction(self) -> None:
        """Say at the start that the server may throw events away. INFO knows it too, and needs no right to CONFIG."""
        with suppress(*RedisError):
            policy = (await self._redis.info("memory")).get("maxmemory_policy", KEEPS_ALL)
            if policy != KEEPS_ALL:
                self._log.warning("redis.may_evict", policy=policy, remedy=f"set maxmemory-policy {KEEPS_ALL}")

    async def _restore(self) -> Restored | None:
        """Put a missing group in its place. One that had been there before did not go by itself, so that is shouted."""
        restored = await restore_group(self._redis, self._keys)
        if restored and (restored.vanished or self._sweeps):
            lost = max(restored.lost, self._unsettled - await self._waiting() - restored.kept)
            self._log.critical(
                "group.recreated", group=self._keys.group, start=restored.start, kept=restored.kept, lost=lost
            )
            await self._redis.hincrby(self._keys.totals, "lost", lost)
        return restored

    async def _waiting(self) -> int:
        """Return how many events no worker has been given yet."""
        groups = await self._redis.xinfo_groups(self._keys.input)  # before the stream: it is never behind its group
        info = await self._redis.xinfo_stream(self._keys.input)
        delivered = next((row["last-delivered-id"] for row in groups if row["name"] == self._keys.group.encode()), None)
        if delivered is None:
            raise exceptions.ResponseError(
                f"NOGROUP the stream {self._keys.input} has lost its group {self._keys.group}"
            )
        return await self._backlog.count(delivered.decode(), info)

    async def _until_due(self) -> None:
        """Wait for the timer, for a worker's death, or for the moment when a lease runs out."""
        now_s = self._now()
        pause_s = min(self._config.janitor.every_s, self._watch.next_s(now_s) - now_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), pause_s)

    async def _try_sweep(self, *, told: bool) -> bool:
        """Sweep once, and tell if there was anything to tell. False if Redis did not let us."""
        started = time.monotonic()
        try:
            await self._restore()
            sweep = await self.sweep()
        except RedisError as error:
            await self._stand_back(error)
            return False
        if self._waits_for is not None:
            self._waits_for = None
            self._log.info("redis.back")
        if not sweep.refused:
            self._refused = None
        self._sweeps += 1
        self._last = {**msgspec.to_builtins(sweep), "seconds": round(time.monotonic() - started, 3)}
        if told or sweep != Sweep(sweep.examined):
            self._log.info("janitor.swept", **{name: count for name, count in self._last.items() if count})
        return True

    async def sweep(self) -> Sweep:
        """Go once over the whole pending list. Raises RedisError; what was done until then holds."""
        sweep = Sweep()
        await self._keep_up(self._free_permits, sweep, exceptions.ResponseError)
        asked_s, blameless = self._now(), set(self._blameless)
        rows = await self._pending()
        now_s = self._now()
        sweep.examined = len(rows)
        await self._rehang([row.id for row in rows if row.owner == PARKED_CONSUMER], sweep)
        held = [row for row in rows if row.owner != PARKED_CONSUMER]
        abandoned = self._watch.abandoned(held, asked_s=asked_s, now_s=now_s)
        taken = [row for row in held if row.owner in self._dead or row.id in abandoned]
        for start in range(0, len(taken), PAGE):
            await self._take_all(taken[start : start + PAGE], sweep)
        self._blameless -= blameless - {row.id for row in rows if row.owner in self._dead}
        for upkeep in (self._retire_idle, self._trim_finished):
            await self._keep_up(upkeep, sweep)
        self._unsettled = len(rows) + await self._waiting()
        return sweep

    async def _keep_up(
        self,
        upkeep: Callable[[Sweep], Awaitable[None]],
        sweep: Sweep,
        refusal: type[exceptions.ResponseError] = exceptions.NoPermissionError,
    ) -> None:
        """Do what is due beside the pending list. Where it is refused, the leases run out all the same."""
        try:
            await upkeep(sweep)
        except refusal as error:
            self._leave(None, error, sweep)

    async def _free_permits(self, _: Sweep) -> None:
        """Take the permits of the dead, and of whoever on this host is none of the living: their calls have ended."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.zrange(self._keys.permits, 0, -1)
            pipeline.hget(self._keys.gate, "prober")
            permits, prober = await pipeline.execute()
        holders = {permit.decode().rpartition("/")[0] for permit in (*permits, prober or b"")}
        strangers = {name for name in holders if name.startswith(consumer_prefix())} - self._living
        if gone := holders & self._dead | strangers:
            await self._evict(keys=[self._keys.gate, self._keys.permits], args=sorted(gone))

    async def _pending(self) -> list[Pending]:
        """Return the pending list.

        What was delivered in this very millisecond is looked at twice, so that it is told from what the server takes to
        be delivered in the future.
        """
        rows = [row async for row in self._pages()]
        if all(row.delivered_ms for row in rows):
            return rows
        await asyncio.sleep(LATER_S)
        later = {row.id: row async for row in self._pages()}
        return [row if row.delivered_ms else later.get(row.id, row) for row in rows]

    async def _pages(self) -> AsyncIterator[Pending]:
        """Yield the rows of the pending list, a page a round trip. Without MULTI, which Redis 7.0 refuses when full."""
        start = "-"
        while True:
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.time()  # beside it, not in a MULTI: Redis 7.0 refuses each command of one when it is full
                pipeline.xpending_range(self._keys.input, self._keys.group, min=start, max="+", count=PAGE)
                (seconds, microseconds), rows = await pipeline.execute()
            now_ms = seconds * 1000 + microseconds // 1000
            for row in rows:
                idle_ms = row["time_since_delivered"]
                yield Pending(
                    row["message_id"].decode(),
                    row["consumer"].decode(),
                    row["times_delivered"],
                    now_ms - idle_ms if idle_ms > 0 else None,
                    idle_ms / 1000,
                )
            if not rows:
                return
            start = "(" + rows[-1]["message_id"].decode()

    async def _take_all(self, rows: list[Pending], sweep: Sweep) -> None:
        """Take deliveries from their owners, in a few round trips. Raises the first error, after all have ended."""
        spent = await attempts_of(self._redis, self._keys, [row.id for row in rows])
        deliveries = [Delivery(row.id, {}, row.owner, row.count, *spent[row.id]) for row in rows]
        ends = await asyncio.gather(*(self._take(one, sweep) for one in deliveries), return_exceptions=True)
        for error in filter(None, ends):
            raise error

    async def _take(self, delivery: Delivery, sweep: Sweep) -> None:
        """Take a delivery from an owner that no longer works on it. One that Redis refuses does not stop the sweep."""
        budget = self._config.delivery.deliveries_max
        blameless = delivery.owner in self._dead and delivery.id in self._blameless
        try:
            if delivery.count >= budget and not blameless:
                detail = f"delivered {delivery.count} times without an outcome (delivery.deliveries_max is {budget})"
                bury = Bury(Reason.CRASH_LOOP, detail, delivery.attempts, delivery.history)
                settled = await self._settle(delivery, bury)
                sweep.buried += settled is Settled.OK
                return
            settled = await self._settle(delivery, None, spent=not blameless)
            sweep.handed_back += settled is Settled.OK
            if settled is Settled.DELETED:
                settled = await self._settle(delivery, deleted(delivery))
                sweep.tombstoned += settled is Settled.OK
        except exceptions.ResponseError as error:
            self._leave(delivery.id, error, sweep)

    def _leave(self, entry_id: str | None, error: exceptions.ResponseError, sweep: Sweep) -> None:
        """Note what Redis would not let us do, and tell of the first of a sweep."""
        if not sweep.refused:
            self._refused = f"redis: {error}"
            self._log.error("janitor.refused", id=entry_id, error=str(error))
        sweep.refused += 1

    async def _settle(self, delivery: Delivery, bury: Bury | None, *, spent: bool = True) -> Settled:
        """Bury a delivery, or hand it back. Hand-backs are told in sum, by the sweep."""
        told = {"verdict": word_of(bury) if bury else "hand_back", **delivery.labels()}
        self._log.debug("settle.sent", **told)
        try:
            settling = self._settler.settle(delivery, bury) if bury else self._settler.hand_back(delivery, spent=spent)
            settled = await settling
        except RedisError as error:
            self._log.debug("settle.resending", error=str(error), **delivery.labels())
            raise
        say = self._log.warning if bury else self._log.debug
        say("event.settled", settled=settled.value, **told, **(tell(bury) if bury else {}))
        return settled

    async def _trim_finished(self, sweep: Sweep) -> None:
        """Delete finished input that has been kept for long enough, a piece at a time."""
        keep_ms = self._config.input.keep_s * 1000
        if math.isinf(keep_ms):
            return
        for _ in range(TRIM_PIECES_MAX):
            keys = [self._keys.input, self._keys.totals, self._keys.closed]
            trimmed = await self._trim(keys=keys, args=[keep_ms, TRIM_PIECE])
            sweep.trimmed += trimmed
            if not trimmed:
                return

    async def _rehang(self, ids: list[str], sweep: Sweep) -> None:
        """Make due now what is parked and has no due time, or one later than any retry's: the clock was put back."""
        if not ids:
            return
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.time()
            pipeline.zmscore(self._keys.parked, ids)
            (seconds, _), scores = await pipeline.execute()
        latest_ms = (seconds + 1 + self._config.delivery.retry_backoff_max_s) * 1000
        due: list[tuple[str, float | None]] = list(zip(ids, scores, strict=True))
        lost: dict[Any, float] = {entry_id: 0.0 for entry_id, due_ms in due if due_ms is None}
        late: dict[Any, float] = {
            entry_id: 0.0 for entry_id, due_ms in due if due_ms is not None and due_ms > latest_ms
        }
        try:
            if lost:
                await self._redis.zadd(self._keys.parked, lost, nx=True)
            if late:
                await self._redis.zadd(self._keys.parked, late, xx=True)
            sweep.rehung += len(lost) + len(late)
        except exceptions.ResponseError as error:  # memory is full, say: the sweep is what may make room
            self._leave(next(iter(lost | late)), error, sweep)

    async def _left_behind(self) -> set[str]:
        """Return this host's consumers of earlier lives: its one supervisor knows which live."""
        names = {name for name, _, _ in await self._consumers()}
        return {name for name in names if name.startswith(consumer_prefix())} - self._living

    async def _retire_idle(self, sweep: Sweep) -> None:
        consumers = await self._consumers()
        self._dead &= {name for name, _, _ in consumers}  # one that never read anything left nothing behind
        for name, pending, idle_ms in consumers:
            history = name in self._dead or (idle_ms > RETIRE_IDLE_S * 1000 and name not in self._living)
            if name == PARKED_CONSUMER or pending or not history:
                continue
            answer = await self._retire(keys=[self._keys.input, self._keys.totals], args=[self._keys.group, name])
            if answer != b"lost":
                self._dead.discard(name)
                sweep.retired += answer == b"ok"

    async def _consumers(self) -> list[tuple[str, int, int]]:
        rows = await self._redis.xinfo_consumers(self._keys.input, self._keys.group)
        return [(row["name"].decode(), row["pending"], row["idle"]) for row in rows]
