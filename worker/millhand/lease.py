"""Leases: our claim on what we have in hand, renewed by heartbeats and lost when they stop."""

import asyncio
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from millhand.keys import Keys
from millhand.log import is_at_debug
from millhand.stream import RedisError, Script, is_stale
from millhand.verdict import Delivery

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from structlog.typing import FilteringBoundLogger

T = TypeVar("T")

AGAIN_AFTER_S = 0.5  # a beat that failed
BEATS_PER_LEASE = 3  # so that two may be missed


class Lease:
    """One delivery in hand, and the work on it that ends if the lease is lost."""

    __slots__ = ("_interrupted", "_worker", "delivery", "lost", "taken_s")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.taken_s = time.monotonic()
        self.lost = False
        self._worker: asyncio.Task[Any] | None = None  # while the work can be ended
        self._interrupted = False

    async def unless_interrupted(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Await the work in this task; None where it has been ended before there was a result."""
        worker = self._worker = asyncio.current_task()
        try:
            return await work
        except asyncio.CancelledError:
            if not self._interrupted or worker is None or worker.uncancel():
                raise  # it is the task that was to end
            return None
        finally:
            self._worker = None

    @property
    def is_worked_on(self) -> bool:
        """Whether there is work that ends if the lease is lost."""
        return self._worker is not None

    def lose(self) -> None:
        """Somebody else has it: end the work, whose result is of no use."""
        self.lost = True
        self.interrupt()

    def interrupt(self) -> None:
        """End the work."""
        if self._worker is not None and not self._interrupted:
            self._interrupted = True
            self._worker.cancel()


class Bundle:
    """Deliveries in hand together, and the ids of those that were lost. They wait for Redis alone: no work is ended."""

    __slots__ = ("deliveries", "lost", "taken_s")

    def __init__(self, deliveries: Sequence[Delivery]) -> None:
        self.deliveries = deliveries
        self.taken_s = time.monotonic()
        self.lost = set[str]()


class Leases:
    """What this process has in hand. Only these ids are renewed, never "all under my name".

    An entry that was delivered in a reply that never arrived stands under our name too, and must grow idle to be found.
    """

    def __init__(self, redis: "Redis", keys: Keys, consumer: str, lease_s: float, log: "FilteringBoundLogger") -> None:
        self._redis = redis
        self._keys = keys
        self._consumer = consumer
        self._lease_s = lease_s
        self._renew = Script(redis, "renew")
        self._held: dict[str, Lease] = {}
        self._bundles = set[Bundle]()
        self._log = log

    def __len__(self) -> int:
        return len(self._held) + sum(len(bundle.deliveries) for bundle in self._bundles)

    @property
    def oldest_s(self) -> float:
        """For how long what has been in hand longest has been so; 0 where nothing is."""
        now_s = time.monotonic()
        in_hand: list[Lease | Bundle] = [*self._held.values(), *self._bundles]
        return now_s - min((one.taken_s for one in in_hand), default=now_s)

    @contextmanager
    def hold(self, delivery: Delivery) -> Iterator[Lease]:
        """Keep a delivery's lease for the length of the block."""
        lease = self._held[delivery.id] = Lease(delivery)
        try:
            yield lease
        finally:
            if self._held.get(delivery.id) is lease:
                del self._held[delivery.id]

    @contextmanager
    def hold_all(self, deliveries: Sequence[Delivery]) -> Iterator[Bundle]:
        """Keep the leases of many for the length of the block."""
        bundle = Bundle(deliveries)
        self._bundles.add(bundle)
        try:
            yield bundle
        finally:
            self._bundles.discard(bundle)

    def interrupt_all(self) -> None:
        """End the work on everything in hand."""
        for lease in list(self._held.values()):
            lease.interrupt()

    async def run(self) -> None:
        """Renew until cancelled. A beat that fails is soon followed by another; the lease outlasts three."""
        every_s = self._lease_s / BEATS_PER_LEASE
        while True:
            started, pause_s = time.monotonic(), every_s
            try:
                await self.renew()
            except RedisError as error:
                pause_s = min(every_s / 10, AGAIN_AFTER_S)
                self._log.debug("lease.not_renewed", held=len(self), error=str(error))
                if is_stale(error):
                    await self._redis.connection_pool.disconnect()
            await asyncio.sleep(max(pause_s - (time.monotonic() - started), every_s / 10))

    async def renew(self) -> None:
        """Renew every lease once; end the work on those that are lost."""
        leases, bundles = list(self._held.values()), list(self._bundles)
        in_hand = [lease.delivery for lease in leases]
        in_hand += (delivery for bundle in bundles for delivery in bundle.deliveries)
        held = [delivery for delivery in in_hand if delivery.owner == self._consumer]
        if not held:
            return
        token = [part for delivery in held for part in (delivery.id, delivery.count)]
        answer = await self._renew(keys=[self._keys.input], args=[self._keys.group, self._consumer, *token])
        lost = {id_bytes.decode() for id_bytes in answer}
        if is_at_debug(self._log):
            kept = [delivery.id for delivery in held if delivery.id not in lost]
            self._log.debug("lease.renewed", kept=kept, lost=sorted(lost))
        for bundle in bundles:
            bundle.lost |= lost
        for lease in leases:
            if lease.delivery.id in lost and self._held.get(lease.delivery.id) is lease:
                if lease.is_worked_on:  # else it is on its way out, and may be gone by our own hand
                    self._log.info("lease.lost", **lease.delivery.labels())
                lease.lose()
