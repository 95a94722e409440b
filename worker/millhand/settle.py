"""Carrying a verdict out: the one way by which an event leaves the pending list."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from millhand.keys import Keys
from millhand.stream import RedisError, attempts_record, script
from millhand.verdict import Bury, Delivery, Done, Enriched, Reason, Release, Retry, Verdict

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from structlog.typing import FilteringBoundLogger

RESEND_PAUSE_MIN_S = 0.1
RESEND_PAUSE_MAX_S = 2.0


class Settled(StrEnum):
    """What came of settling."""

    OK = "ok"  # done as the verdict says
    GONE = "gone"  # no longer pending: somebody, or our own lost call, has settled it
    LOST = "lost"  # in other hands now, and theirs to settle
    DELETED = "deleted"  # pending, but deleted from the stream


class Settler:
    """Sends verdicts; every script it sends is safe to send again."""

    def __init__(self, redis: "Redis", keys: Keys) -> None:
        self._keys = keys
        self._finish = script(redis, "finish")
        self._bury = script(redis, "bury")
        self._park = script(redis, "park")

    async def settle(self, delivery: Delivery, verdict: Verdict) -> Settled:
        """Carry a verdict out, once. Raises RedisError where it is unknown whether that happened."""
        match verdict:
            case Done(enriched):
                return await self._write(delivery, enriched)
            case Retry():
                settled = await self._park_again(delivery, delivery.count, "retried", verdict)
            case Release():
                settled = await self._park_again(delivery, delivery.count, "released")
            case Bury():
                return await self._write_dead(delivery, verdict)
        if settled is Settled.DELETED:
            return await self._write_dead(delivery, deleted(delivery))
        return settled

    async def hand_back(self, delivery: Delivery) -> Settled:
        """Park a delivery that nobody holds, due at once, with one delivery spent."""
        return await self._park_again(delivery, delivery.count + 1, "handed_back")

    async def _write(self, delivery: Delivery, enriched: Enriched) -> Settled:
        keys = self._keys
        answer = await self._finish(
            keys=[keys.input, keys.output, keys.parked, keys.attempts, keys.totals],
            args=[keys.group, delivery.id, enriched.data, enriched.hash, *_flat(enriched.passed_on)],
        )
        return Settled(answer.decode())

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
        answer = await self._bury(
            keys=[keys.input, keys.dead_letter, keys.parked, keys.attempts, keys.totals],
            args=[keys.group, delivery.id, delivery.owner, delivery.count, bury.reason.value, *_flat(record)],
        )
        return Settled(answer.decode())

    async def _park_again(self, delivery: Delivery, count: int, total: str, retry: Retry | None = None) -> Settled:
        keys = self._keys
        delay_ms = round(retry.delay_s * 1000) if retry else 0
        attempts: int | str = retry.attempts if retry else ""
        record = attempts_record(retry.attempts, retry.history) if retry else b""
        answer = await self._park(
            keys=[keys.input, keys.parked, keys.attempts, keys.totals],
            args=[
                keys.group, delivery.id, delivery.owner, delivery.count,
                count, delay_ms, attempts, record, total,
            ],
        )  # fmt: skip
        return Settled(answer.decode())


def _flat(pairs: Mapping[Any, Any]) -> list[Any]:
    return [part for pair in pairs.items() for part in pair]


def deleted(delivery: Delivery) -> Bury:
    """Return the verdict on an entry that was deleted from the stream while it was pending."""
    detail = "the entry was deleted or trimmed from the input while it was pending"
    return Bury(Reason.DELETED, detail, delivery.attempts, delivery.history)


async def settle_surely(settler: Settler, delivery: Delivery, verdict: Verdict, log: "FilteringBoundLogger") -> Settled:
    """Settle, again and again until Redis answers. Cancelled, it leaves the delivery to the janitor."""
    pause_s = RESEND_PAUSE_MIN_S
    while True:
        try:
            return await settler.settle(delivery, verdict)
        except RedisError as error:
            say = log.warning if pause_s == RESEND_PAUSE_MIN_S else log.debug
            say("settle.resending", id=delivery.id, error=str(error), in_s=pause_s)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, RESEND_PAUSE_MAX_S)
