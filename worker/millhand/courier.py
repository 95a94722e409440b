"""Round trips to Redis: script calls of the same moment travel together."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from redis import exceptions

from millhand.line import Line
from millhand.stream import RedisError, Script

if TYPE_CHECKING:
    from redis.asyncio import Redis

BATCH_MAX = 100  # calls a round trip: the server is held up by none of them for long
RUN_BYTES_MAX = 1 << 20  # of parts that share a run, unless one alone has more

Part = tuple[Any, ...]


class _Call(NamedTuple):
    """One script call on its way, and who waits for its answer. Calls with `parts` may share a run of the script."""

    script: Script
    keys: list[str]
    args: list[Any]
    parts: Sequence[Part] | None
    answer: "asyncio.Future[Any]"


class _Run:
    """One run of a script on the server, and the calls that share it."""

    def __init__(self, call: _Call) -> None:
        self.script, self.keys = call.script, call.keys
        self.args = list(call.args)
        self.calls = list[_Call]()
        self._bytes = 0
        self._add(call)

    def takes(self, call: _Call) -> bool:
        """Whether a call shares this run; if so, it does from now on."""
        first = self.calls[0]
        if call.parts is None or (call.script, call.keys, call.args) != (first.script, first.keys, first.args):
            return False
        if self._bytes + _bytes_of(call.parts) > RUN_BYTES_MAX:
            return False
        self._add(call)
        return True

    def _add(self, call: _Call) -> None:
        self.calls.append(call)
        if call.parts is not None:
            self._bytes += _bytes_of(call.parts)
            for part in call.parts:
                self.args += part

    def command(self, *, in_full: bool) -> list[Any]:
        """Return it as a command: by the script's hash, or with its text where the server has forgotten it."""
        how = ("EVAL", self.script.text) if in_full else ("EVALSHA", self.script.sha)
        return [*how, len(self.keys), *self.keys, *self.args]

    def hand_out(self, reply: Any) -> None:
        """Give each call its answer out of the run's reply. Whoever waited may have been cancelled meanwhile."""
        place = 0
        for call in self.calls:
            answer = reply
            if call.parts is not None and not isinstance(reply, Exception):
                answer = reply[place : place + len(call.parts)]
                place += len(call.parts)
            if call.answer.done():
                continue
            if isinstance(answer, Exception):
                call.answer.set_exception(answer)
            else:
                call.answer.set_result(answer)


class Courier:
    """Carries script calls. It sends none again but what the server says it does not know.

    What comes up while a round trip is under way goes out together in the next one: a lone call waits for nothing, and
    a busy worker pays for one round trip where it had many calls to make. Runs are in the order of their first calls.
    """

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._line = Line(redis)
        self._waiting: list[_Call] = []
        self._carrying: asyncio.Task[None] | None = None

    def script(self, name: str, *, when_full: bool = True) -> Script:
        """Return a script of `lua/` to be sent; the server is to refuse it, or not, when its memory is full."""
        return Script(self._redis, name, when_full=when_full)

    async def send(self, script: Script, keys: list[str], args: list[Any]) -> Any:
        """Return the script's answer. Raises RedisError where it is unknown whether it ran."""
        return await self._send(script, keys, args, None)

    async def send_parts(self, script: Script, keys: list[str], args: list[Any], parts: Sequence[Part]) -> list[Any]:
        """Return the answers of a script that does the same with each of its parts, which follow `args`.

        Calls that differ in their parts alone share a run of it. Raises RedisError where it is unknown what was done.
        """
        answers: list[Any] = await self._send(script, keys, args, parts)
        return answers

    def _send(
        self, script: Script, keys: list[str], args: list[Any], parts: Sequence[Part] | None
    ) -> "asyncio.Future[Any]":
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(script, keys, args, parts, answer))
        if self._carrying is None or self._carrying.done():
            self._carrying = asyncio.create_task(self._carry())
        return answer

    async def _carry(self) -> None:
        """Make round trips until nothing waits. However it ends, it leaves nobody waiting."""
        batch: list[_Call] = []
        try:
            while batch := self._next_batch():
                runs = _runs(batch)
                try:
                    replies = await self._round_trip(runs)
                except RedisError as error:
                    replies = [error] * len(runs)
                for run, reply in zip(runs, replies, strict=True):
                    run.hand_out(reply)
        finally:
            for call in (*batch, *self._waiting):
                call.answer.cancel()  # does nothing where there is an answer

    def _next_batch(self) -> list[_Call]:
        """Take what goes next, but nothing whose sender has been cancelled: a worker that stops must not begin anew."""
        waiting = [call for call in self._waiting if not call.answer.done()]
        batch, self._waiting = waiting[:BATCH_MAX], waiting[BATCH_MAX:]
        return batch

    async def _round_trip(self, runs: list[_Run]) -> list[Any]:
        """Send runs together. Return an answer or an error for each; raises RedisError if no reply came."""
        replies = await self._pipelined(runs)
        forgotten = [place for place, reply in enumerate(replies) if isinstance(reply, exceptions.NoScriptError)]
        if forgotten:
            again = await self._pipelined([runs[place] for place in forgotten], in_full=True)
            for place, reply in zip(forgotten, again, strict=True):
                replies[place] = reply
        if any(isinstance(reply, exceptions.ReadOnlyError) for reply in replies):
            await self._redis.connection_pool.disconnect()  # the address may lead to another server by now
        return replies

    async def _pipelined(self, runs: list[_Run], *, in_full: bool = False) -> list[Any]:
        return await self._line.round_trip([run.command(in_full=in_full) for run in runs])


def _runs(batch: list[_Call]) -> list[_Run]:
    """Put calls together into runs: of those with parts, whatever is one script's."""
    runs: list[_Run] = []
    shared: dict[Script, _Run] = {}
    for call in batch:
        if call.script in shared and shared[call.script].takes(call):
            continue
        run = _Run(call)
        runs.append(run)
        if call.parts is not None:
            shared[call.script] = run
    return runs


def _bytes_of(parts: Sequence[Part]) -> int:
    return sum(len(value) for part in parts for value in part if isinstance(value, bytes))
