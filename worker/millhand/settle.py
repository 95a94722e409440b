"""Carrying a verdict out: the one way by which an event leaves the pending list."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from redis import exceptions

from millhand.keys import Keys
from millhand.stream import RedisError, Script, attempts_record
from millhand.verdict import Bury, Delivery, Done, Enriched, Reason, Release, Retry, Skip, Verdict, word_of

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from structlog.typing import FilteringBoundLogger

RESEND_PAUSE_MIN_S = 0.1
RESEND_PAUSE_MAX_S = 2.0
BATCH_MAX = 100  # calls a round trip: the server is held up by none of them for long


class Settled(StrEnum):
    """What came of settling."""

    OK = "ok"  # done as the verdict says
    GONE = "gone"  # no longer pending: somebody, or our own lost call, has settled it
    LOST = "lost"  # in other hands now, and theirs to settle
    DELETED = "deleted"  # pending, but deleted from the stream


class _Call(NamedTuple):
    """One script call on its way, and who waits for its answer."""

    script: Script
    keys: list[str]
    args: list[Any]
    answer: "asyncio.Future[Settled]"


class Settler:
    """Sends verdicts; every script it sends is safe to send again.

    What comes up while a round trip is under way goes out together in the next one: a lone verdict waits for nothing,
    and a busy worker pays for one round trip where it had many to settle.
    """

    def __init__(self, redis: "Redis", keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._finish = Script(redis, "finish")
        self._bury = Script(redis, "bury")
        self._park = Script(redis, "park")
        self._release = Script(redis, "release")
        self._skip = Script(redis, "skip")
        self.resending: dict[str, str] = {}  # id -> why not yet, of the deliveries whose verdict is sent again
        self._waiting: list[_Call] = []
        self._courier: asyncio.Task[None] | None = None

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

    async def _write(self, delivery: Delivery, enriched: Enriched) -> Settled:
        keys = self._keys
        return await self._send(
            self._finish,
            [keys.input, keys.output, keys.parked, keys.attempts, keys.redrives, keys.totals],
            [keys.group, delivery.id, enriched.data, enriched.hash, *_flat(enriched.passed_on)],
        )

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

    # -- the round trips --------------------------------------------------------------------------------------------

    async def _send(self, call: Script, keys: list[str], args: list[Any]) -> Settled:
        answer: asyncio.Future[Settled] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(call, keys, args, answer))
        if self._courier is None or self._courier.done():
            self._courier = asyncio.create_task(self._carry())
        return await answer

    async def _carry(self) -> None:
        """Make round trips until nothing waits. However it ends, it leaves nobody waiting."""
        batch: list[_Call] = []
        try:
            while batch := self._next_batch():
                try:
                    replies = await self._round_trip(batch)
                except RedisError as error:
                    replies = [error] * len(batch)
                for call, reply in zip(batch, replies, strict=True):
                    if call.answer.done():
                        continue  # whoever waited has been cancelled
                    if isinstance(reply, Exception):
                        call.answer.set_exception(reply)
                    else:
                        call.answer.set_result(Settled(reply.decode()))
        finally:
            for call in (*batch, *self._waiting):
                call.answer.cancel()  # does nothing where there is an answer

    def _next_batch(self) -> list[_Call]:
        """Take what goes next, but nothing whose sender has been cancelled: a worker that stops must not begin anew."""
        waiting = [call for call in self._waiting if not call.answer.done()]
        batch, self._waiting = waiting[:BATCH_MAX], waiting[BATCH_MAX:]
        return batch

    async def _round_trip(self, batch: list[_Call]) -> list[Any]:
        """Send calls together. Return an answer or an error for each; raises RedisError if no reply came."""
        replies = await self._pipelined(batch)
        forgotten = [place for place, reply in enumerate(replies) if isinstance(reply, exceptions.NoScriptError)]
        if forgotten:
            again = await self._pipelined([batch[place] for place in forgotten], in_full=True)
            for place, reply in zip(forgotten, again, strict=True):
                replies[place] = reply
        if any(isinstance(reply, exceptions.ReadOnlyError) for reply in replies):
            await self._redis.connection_pool.disconnect()  # the address may lead to another server by now
        return replies

    async def _pipelined(self, batch: list[_Call], *, in_full: bool = False) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for call in batch:
                if in_full:
                    pipeline.eval(call.script.text, len(call.keys), *call.keys, *call.args)
                else:
                    pipeline.evalsha(call.script.sha, len(call.keys), *call.keys, *call.args)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
            return replies


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
    pause_s = RESEND_PAUSE_MIN_S
    token = {"id": delivery.id, "owner": delivery.owner, "count": delivery.count}
    try:
        while True:
            log.debug("settle.sent", verdict=word_of(verdict), **token)
            try:
                return await settler.settle(delivery, verdict)
            except RedisError as error:
                settler.resending[delivery.id] = str(error)
                say = log.warning if pause_s == RESEND_PAUSE_MIN_S else log.debug
                say("settle.resending", id=delivery.id, error=str(error), in_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RESEND_PAUSE_MAX_S)
    finally:
        settler.resending.pop(delivery.id, None)
