"""Carrying a verdict out: the one way by which an event leaves the pending list."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from millhand.courier import RUN_BYTES_MAX, Courier
from millhand.keys import Keys
from millhand.log import is_at_debug
from millhand.stream import RedisError, Script, attempts_record
from millhand.verdict import Bury, Delivery, Done, Enriched, Reason, Release, Retry, Skip, Verdict, word_of

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from structlog.typing import FilteringBoundLogger

T = TypeVar("T")
Finished = Sequence[tuple[Delivery, Enriched]]  # events that are ready to be written out

FINISHED_MAX = 500  # in one run of the script: the server is held up for a few milliseconds
RESEND_PAUSE_MIN_S = 0.1
RESEND_PAUSE_MAX_S = 2.0


class Settled(StrEnum):
    """What came of settling."""

    OK = "ok"  # done as the verdict says
    GONE = "gone"  # no longer pending: somebody, or our own lost call, has settled it
    LOST = "lost"  # in other hands now, and theirs to settle
    DELETED = "deleted"  # pending, but deleted from the stream


SETTLED = {settled.encode(): settled for settled in Settled}


class Settler:
    """Sends verdicts; every script it sends is safe to send again."""

    def __init__(self, redis: "Redis", keys: Keys, courier: Courier | None = None) -> None:
        self._redis = redis
        self._keys = keys
        self._courier = courier or Courier(redis)
        self._finish = Script(redis, "finish")
        self._finish_keys = [keys.input, keys.output, keys.parked, keys.attempts, keys.redrives, keys.totals]
        self._bury = Script(redis, "bury")
        self._park = Script(redis, "park")
        self._release = Script(redis, "release")
        self._skip = Script(redis, "skip")
        self.resending: dict[str, str] = {}  # id -> why not yet, of the deliveries whose verdict is sent again

    async def settle(self, delivery: Delivery, verdict: Verdict) -> Settled:
        """Carry a verdict out, once. Raises RedisError where it is unknown whether that happened."""
        match verdict:
            case Done(enriched):
                return await self._write(delivery, enriched)
            case Skip():
                return await self._acknowledge(delivery)
            case Retry():
                settled = await self._put_aside(delivery, verdict)
            case Release():
                settled = await self._let_go(delivery, delivery.count, "released")
            case Bury():
                return await self._write_dead(delivery, verdict)
        if settled is Settled.DELETED:
            return await self._write_dead(delivery, deleted(delivery))
        return settled

    async def hand_back(self, delivery: Delivery, *, spent: bool = True) -> Settled:
        """Let go of a delivery that nobody holds any more, with one delivery spent if the event was worked on."""
        return await self._let_go(delivery, delivery.count + spent, "handed_back")

    async def finish_all(self, finished: Finished) -> list[Settled]:
        """Write many out at once. Raises RedisError where it is unknown which of them that happened to."""
        parts = [
            (delivery.id, enriched.data, enriched.hash, 2 * len(enriched.passed_on), *_flat(enriched.passed_on))
            for delivery, enriched in finished
        ]
        answers = await self._courier.send_parts(self._finish, self._finish_keys, [self._keys.group], parts)
        return [SETTLED[answer] for answer in answers]

    async def _write(self, delivery: Delivery, enriched: Enriched) -> Settled:
        (settled,) = await self.finish_all([(delivery, enriched)])
        return settled

    async def _write_dead(self, delivery: Delivery, bury: Bury) -> Settled:
        keys = self._keys
        record = {
            "failure_detail": bury.detail,
            "attempts": bury.attempts,
            "deliveries": delivery.count,
            "errors": msgspec.json.encode(bury.history),
            "consumer": delivery.owner,
            "failed_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        return await self._send(
            self._bury,
            [keys.input, keys.dead_letter, keys.parked, keys.attempts, keys.redrives, keys.totals],
            [keys.group, delivery.id, delivery.owner, delivery.count, bury.reason.value, *_flat(record)],
        )

    async def _acknowledge(self, delivery: Delivery) -> Settled:
        keys = self._keys
        return await self._send(
            self._skip,
            [keys.input, keys.parked, keys.attempts, keys.redrives, keys.closed, keys.totals],
            [keys.group, delivery.id],
        )

    async def _put_aside(self, delivery: Delivery, retry: Retry) -> Settled:
        keys = self._keys
        record = attempts_record(retry.attempts, retry.history)
        return await self._send(
            self._park,
            [keys.input, keys.parked, keys.attempts, keys.totals],
            [keys.group, *_held(delivery), round(retry.delay_s * 1000), retry.attempts, record],
        )

    async def _let_go(self, delivery: Delivery, count: int, total: str) -> Settled:
        keys = self._keys
        return await self._send(
            self._release, [keys.input, keys.parked, keys.totals], [keys.group, *_held(delivery), count, total]
        )

    async def _send(self, script: Script, keys: list[str], args: list[Any]) -> Settled:
        answer: bytes = await self._courier.send(script, keys, args)
        return SETTLED[answer]


def _held(delivery: Delivery) -> tuple[str, str, int]:
    """Return a delivery's id and fencing token, as the strict scripts take them."""
    return delivery.id, delivery.owner, delivery.count


def _flat(pairs: Mapping[Any, Any]) -> list[Any]:
    return [part for pair in pairs.items() for part in pair]


def deleted(delivery: Delivery) -> Bury:
    """Return the verdict on an entry that was deleted from the stream while it was pending."""
    detail = "the entry was deleted or trimmed from the input while it was pending"
    return Bury(Reason.DELETED, detail, delivery.attempts, delivery.history)


async def settle_surely(settler: Settler, delivery: Delivery, verdict: Verdict, log: "FilteringBoundLogger") -> Settled:
    """Settle, again and again until Redis answers. Cancelled, it leaves the delivery to the janitor."""
    return await _surely(lambda: settler.settle(delivery, verdict), settler, [delivery], verdict, log)


def in_runs(finished: Finished) -> Iterator[Finished]:
    """Cut what is to be written out into what goes into one run of the script: neither too many nor too large."""
    first, size = 0, 0
    for place, (_, enriched) in enumerate(finished):
        size += len(enriched.data)
        if place > first and (place - first == FINISHED_MAX or size > RUN_BYTES_MAX):
            yield finished[first:place]
            first, size = place, len(enriched.data)
    yield finished[first:]


async def finish_surely(settler: Settler, finished: Finished, log: "FilteringBoundLogger") -> list[Settled]:
    """Write many out, as `settle_surely` does one."""
    deliveries = [delivery for delivery, _ in finished]
    return await _surely(lambda: settler.finish_all(finished), settler, deliveries, Done(finished[0][1]), log)


async def _surely(
    send: Callable[[], Awaitable[T]],
    settler: Settler,
    deliveries: Sequence[Delivery],
    verdict: Verdict,
    log: "FilteringBoundLogger",
) -> T:
    pause_s = RESEND_PAUSE_MIN_S
    tells_all = is_at_debug(log)
    try:
        while True:
            for delivery in deliveries if tells_all else ():
                log.debug("settle.sent", verdict=word_of(verdict), **delivery.labels())
            try:
                return await send()
            except RedisError as error:
                for place, delivery in enumerate(deliveries):
                    settler.resending[delivery.id] = str(error)
                    say = log.warning if pause_s == RESEND_PAUSE_MIN_S and not place else log.debug
                    say("settle.resending", error=str(error), in_s=pause_s, **delivery.labels())
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RESEND_PAUSE_MAX_S)
    finally:
        if settler.resending:
            for delivery in deliveries:
                settler.resending.pop(delivery.id, None)
