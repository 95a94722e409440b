"""The janitor: finds deliveries that nobody holds any more, and hands them back."""

import asyncio
import math
import socket
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from redis import exceptions

from millhand.config import Config
from millhand.keys import PARKED_CONSUMER, Keys
from millhand.log import logger
from millhand.process import run_child
from millhand.pulse import Birth, Pulse
from millhand.settle import Settled, Settler, deleted
from millhand.stop import Stop
from millhand.stream import RedisError, attempts_of, connect, ensure_group, require_streams, script
from millhand.verdict import Bury, Delivery, Reason

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from structlog.typing import FilteringBoundLogger

PAGE = 500
REDIS_PAUSE_S = 2.0
RETIRE_IDLE_S = 3600.0  # a consumer of another host that holds nothing for so long is history


def look_after(config: Config, living: tuple[str, ...], birth: Birth) -> None:
    """Be the janitor process until told to stop. `living` are the consumers of this fleet that are at work already."""

    async def life(stop: Stop, pulse: Pulse) -> None:
        redis = connect(config.redis.url)
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
    rehung: int = 0  # parked entries whose due time had been lost
    retired: int = 0


class Janitor:
    """Reconciles the pending list with the living."""

    def __init__(self, redis: "Redis", config: Config, living: Iterable[str], log: "FilteringBoundLogger") -> None:
        self._redis = redis
        self._config = config
        self._keys = Keys.of(config)
        self._settler = Settler(redis, self._keys)
        self._retire = script(redis, "retire_consumer")
        self._lease_ms = config.delivery.lease_s * 1000
        self._living = set(living)
        self._dead: set[str] = set()
        self._news = asyncio.Event()
        self._log = log
        self._waits_for: str | None = None
        self._redis_since = -math.inf

    def hear(self, message: dict[str, Any]) -> None:
        """Take in what the supervisor says: a worker was born, or died."""
        if born := message.get("born"):
            self._living.add(born)
            self._dead.discard(born)
        if died := message.get("died"):
            self._living.discard(died)
            self._dead.add(died)
            self._news.set()

    def stats(self) -> dict[str, Any]:
        """Return what the janitor says of itself with each heartbeat."""
        return {"waits_for": self._waits_for}

    async def run(self, stop: Stop, pulse: Pulse) -> None:
        """Sweep at start, whenever a worker died, and on the timer, until a stop is requested."""
        if not await self._open(stop):
            return
        ready = False
        while not stop.requested:
            self._news.clear()
            ready = await self._try_sweep(told=not ready) or ready
            if ready:
                pulse.send({"ready": True})
            await stop.or_result(self._until_due())

    async def _open(self, stop: Stop) -> bool:
        """Wait for Redis. False if a stop comes first."""
        while not stop.requested:
            try:
                server = await require_streams(self._redis)
                created = await ensure_group(self._redis, self._keys)
                self._dead |= await self._left_behind()
            except RedisError as error:
                if self._waits_for is None:
                    self._log.warning("redis.waiting", error=str(error), remedy="start it, or set redis.url")
                self._waits_for = f"redis: {error}"
                await stop.sleep(REDIS_PAUSE_S)
                continue
            self._waits_for = None
            self._log.info("redis.connected", server=server, group=self._keys.group, group_created=created)
            return True
        return False

    async def _until_due(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), self._config.janitor.every_s)

    def _trusts_idle_times(self) -> bool:
        """Whether Redis has been there for a lease: nobody could renew while it was not, and all is idle after it."""
        return time.monotonic() - self._redis_since >= self._config.delivery.lease_s

    async def _try_sweep(self, *, told: bool) -> bool:
        """Sweep once, and tell if there was anything to tell. False if Redis did not let us."""
        started = time.monotonic()
        try:
            sweep = await self.sweep()
        except RedisError as error:
            self._redis_since = time.monotonic()
            self._log.warning("redis.waiting", error=str(error))
            with suppress(*RedisError):
                if await ensure_group(self._redis, self._keys):
                    self._log.critical("group.recreated", group=self._keys.group)
            return False
        done = {name: count for name, count in msgspec.to_builtins(sweep).items() if count or told}
        if told or set(done) - {"examined"}:
            self._log.info("janitor.swept", seconds=round(time.monotonic() - started, 3), **done)
        return True

    async def sweep(self) -> Sweep:
        """Go once over the whole pending list. Raises RedisError; what was done until then holds."""
        sweep = Sweep()
        async for page in self._pending():
            sweep.examined += len(page)
            await self._rehang([entry_id for entry_id, owner, _, _ in page if owner == PARKED_CONSUMER], sweep)
            for entry_id, owner, idle_ms, count in page:
                idle = idle_ms >= self._lease_ms and self._trusts_idle_times()
                if owner != PARKED_CONSUMER and (owner in self._dead or idle):
                    await self._take_from(Delivery(entry_id, {}, owner, count), sweep)
        await self._retire_idle(sweep)
        return sweep

    async def _pending(self) -> AsyncIterator[list[tuple[str, str, int, int]]]:
        """Yield the pending list in pages of (id, owner, idle ms, delivery count)."""
        start = "-"
        while True:
            rows: list[dict[str, Any]] = await self._redis.xpending_range(
                self._keys.input, self._keys.group, min=start, max="+", count=PAGE
            )
            if not rows:
                return
            yield [
                (
                    row["message_id"].decode(),
                    row["consumer"].decode(),
                    row["time_since_delivered"],
                    row["times_delivered"],
                )
                for row in rows
            ]
            start = "(" + rows[-1]["message_id"].decode()

    async def _take_from(self, delivery: Delivery, sweep: Sweep) -> None:
        """Take a delivery from an owner that no longer works on it. One that Redis refuses does not stop the sweep."""
        try:
            await self._take(delivery, sweep)
        except exceptions.ResponseError as error:
            self._log.error("janitor.refused", id=delivery.id, error=str(error))

    async def _take(self, delivery: Delivery, sweep: Sweep) -> None:
        budget = self._config.delivery.deliveries_max
        if delivery.count >= budget:
            detail = f"delivered {delivery.count} times without an outcome (delivery.deliveries_max is {budget})"
            attempts, history = await attempts_of(self._redis, self._keys, delivery.id)
            settled = await self._settler.settle(delivery, Bury(Reason.CRASH_LOOP, detail, attempts, history))
            sweep.buried += settled is Settled.OK
            self._log.warning(
                "event.settled", id=delivery.id, verdict="bury", settled=settled.value, reason="crash_loop"
            )
            return
        settled = await self._settler.hand_back(delivery)
        if settled is Settled.DELETED:
            settled = await self._settler.settle(delivery, deleted(delivery))
            sweep.tombstoned += settled is Settled.OK
        else:
            sweep.handed_back += settled is Settled.OK

    async def _rehang(self, ids: list[str], sweep: Sweep) -> None:
        """Put parked entries that have lost their due time into the zset again, due now."""
        if not ids:
            return
        scores = await self._redis.zmscore(self._keys.parked, ids)
        lost: dict[Any, float] = {entry_id: 0.0 for entry_id, score in zip(ids, scores, strict=True) if score is None}
        if lost:
            await self._redis.zadd(self._keys.parked, lost, nx=True)
            sweep.rehung += len(lost)

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
            answer = await self._retire(keys=[self._keys.input], args=[self._keys.group, name])
            if answer == b"ok":
                self._dead.discard(name)
                sweep.retired += 1

    async def _consumers(self) -> list[tuple[str, int, int]]:
        rows = await self._redis.xinfo_consumers(self._keys.input, self._keys.group)
        return [(row["name"].decode(), row["pending"], row["idle"]) for row in rows]
