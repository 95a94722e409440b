"""The line before the model: as many calls run as there are slots, a bounded number waits, the rest is sent away."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import CancelledError

from millhand_fleet.embedded.engine import Ask, Engine
from millhand_fleet.embedded.errors import EngineBusy, EngineStopped
from millhand_fleet.embedded.listener import Finish

CANCEL_S_MAX = 5.0  # llama.cpp hears a cancel at its next token or prompt batch: ten times what was measured


class Line:
    """Hands out the engine's slots in order of arrival. `running` and `waiting` may be read from any thread."""

    def __init__(self, engine: Engine, *, waiting_max: int) -> None:
        self._engine = engine
        self._waiting_max = waiting_max
        self._slots = asyncio.Semaphore(engine.slots)
        self.running = 0
        self.waiting = 0

    async def generate(self, ask: Ask) -> AsyncGenerator[str | Finish, None]:
        """Yield the pieces of the reply as they come, and last its `Finish`.

        Closing or cancelling the generator ends the call and frees its place. Unread pieces are kept: at most one a
        token of the context. Raises what `errors.py` lists.
        """
        async with self._slot():
            said = _Said(asyncio.get_running_loop())
            generation = self._engine.submit(ask, said.put)
            generation.future.add_done_callback(lambda _: said.end())
            try:
                while (text := await said.piece()) is not None:
                    yield text
                yield generation.future.result()
            except CancelledError as error:
                raise EngineStopped("the model server is stopping") from error
            finally:
                generation.cancel()
                await said.ended_within(CANCEL_S_MAX)

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        if self._slots.locked() and self.waiting >= self._waiting_max:
            raise EngineBusy
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._slots.release()


class _Said:
    """Carries text from a thread of the engine into the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self._ended = asyncio.Event()

    def put(self, text: str) -> None:
        self._call(self._pieces.put_nowait, text)

    def end(self) -> None:
        self._call(self._pieces.put_nowait, None)
        self._call(self._ended.set)

    async def piece(self) -> str | None:
        return await self._pieces.get()

    async def ended_within(self, limit_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._ended.wait()

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(function, *arguments)
