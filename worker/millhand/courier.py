"""Round trips to Redis: script calls of the same moment travel together."""

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from redis import exceptions

from millhand.stream import RedisError, Script

if TYPE_CHECKING:
    from redis.asyncio import Redis

BATCH_MAX = 100  # calls a round trip: the server is held up by none of them for long


class _Call(NamedTuple):
    """One script call on its way, and who waits for its answer."""

    script: Script
    keys: list[str]
    args: list[Any]
    answer: "asyncio.Future[Any]"


class Courier:
    """Carries script calls, in the order in which they came; every one of them must be safe to send again.

    What comes up while a round trip is under way goes out together in the next one: a lone call waits for nothing, and
    a busy worker pays for one round trip where it had many calls to make.
    """

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._waiting: list[_Call] = []
        self._carrying: asyncio.Task[None] | None = None

    def script(self, name: str) -> Script:
        """Return a script of `lua/` to be sent."""
        return Script(self._redis, name)

    async def send(self, script: Script, keys: list[str], args: list[Any]) -> Any:
        """Return the script's answer. Raises RedisError where it is unknown whether it ran."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(script, keys, args, answer))
        if self._carrying is None or self._carrying.done():
            self._carrying = asyncio.create_task(self._carry())
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
                        call.answer.set_result(reply)
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
