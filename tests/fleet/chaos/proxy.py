"""A bad network before a good server: delays, losses, cuts and half-open connections, ordered at run time."""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

import uvloop
from tests.fleet.chaos.link import Link, Mode
from tests.fleet.chaos.trap import WAIT_S, Catch, Held, Trap
from tests.rig import HOST

if TYPE_CHECKING:
    from tests.fleet.chaos.end import End

CLOSE_S_MAX = 5.0


class FaultProxy:
    """Stands before a TCP server: `async with FaultProxy(port)`, or `with FaultProxy(port).in_thread()`.

    One mode holds at a time, for the connections that are there and for new ones; patterns to swallow or to hold may
    be armed beside it, several at once. Orders may be given from any thread, and are in force when the call returns.
    The counters prove what happened: `connections` accepted, `resets` of them by order, `bytes_up` (to the server) and
    `bytes_down` passed on, `bytes_lost` in a black hole, and replies `swallowed` by pattern.
    """

    def __init__(self, port: int) -> None:
        self.target_port = port
        self.connections = self.resets = self.bytes_up = self.bytes_down = self.bytes_lost = 0
        self.swallowed: Counter[bytes] = Counter()
        self.mode = Mode()
        self.traps: list[Trap] = []
        self.ends: set[End] = set()
        self._links: set[Link] = set()
        self._bugs: list[BaseException] = []

    async def __aenter__(self) -> Self:
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._server = await self._loop.create_server(lambda: Link(self).client, HOST, 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Vanish: connections are reset. Raises what went wrong in the proxy itself."""
        self._server.close()
        self.mode = Mode(refuses=True)
        links = list(self._links)
        for link in links:
            link.abort()
        async with asyncio.timeout(CLOSE_S_MAX):
            await asyncio.gather(*(link.task for link in links), return_exceptions=True)
            for end in list(self.ends):
                end.abort()
                await end.gone.wait()
            await self._server.wait_closed()
        for bug in self._bugs:
            raise bug

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[Self]:
        """Serve from a thread of its own; an event loop may run in the caller's."""
        ready: Future[asyncio.Event] = Future()

        async def serve() -> None:
            async with self:
                over = asyncio.Event()
                ready.set_result(over)
                await over.wait()

        def run() -> None:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve())

        with ThreadPoolExecutor(1, thread_name_prefix="fault-proxy") as thread:
            serving = thread.submit(run)
            over = ready.result(WAIT_S)
            try:
                yield self
            finally:
                self._loop.call_soon_threadsafe(over.set)
                serving.result(WAIT_S)

    @property
    def redis_url(self) -> str:
        """Where it listens, for a client of Redis."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def http_url(self) -> str:
        """Where it listens, for a client of the model."""
        return f"http://{HOST}:{self.port}"

    # -- modes --------------------------------------------------------------------------------------------------------

    def passing(self) -> None:
        """Pass everything on, as at the start. What is armed stays armed, and what is held stays held."""
        self._switch(Mode())

    def delaying(self, delay_s: float) -> None:
        """Pass on later, both ways and in order; much may be on its way at once."""
        self._switch(Mode(delay_s=delay_s))

    def black_hole(self) -> None:
        """Accept and swallow: nothing comes back, not even an end. The next mode resets who has lost something."""
        self._switch(Mode(swallows=True))

    def slicing(self, piece_bytes: int = 1) -> None:
        """Write in pieces of so many bytes."""
        self._switch(Mode(piece_bytes=piece_bytes))

    def half_closed(self) -> None:
        """End the way to the client, for good; requests still reach the server."""
        self._switch(Mode(half_closes=True))

    def refusing(self) -> None:
        """Reset new connections at once; those that are there pass."""
        self._switch(Mode(refuses=True))

    def reset(self) -> None:
        """Reset all connections that are there, once, in any mode."""
        self._do(self._reset)

    # -- single requests ----------------------------------------------------------------------------------------------

    def swallow(self, pattern: bytes, times: int = 1, probability: float = 1.0, seed: int = 0) -> None:
        """Let a request that holds these bytes reach the server, lose what comes after, and reset the connection.

        Strikes `times` connections, and with this probability each time the bytes come by.
        """
        self._arm(Trap(pattern, Catch.SWALLOW_REPLY, times, probability, seed))

    def hold(self, pattern: bytes) -> Held:
        """Stop the next request that holds these bytes where they begin: the server never has it whole."""
        return self._arm(Trap(pattern, Catch.HOLD_REQUEST))

    def hold_reply(self, pattern: bytes) -> Held:
        """Let the next request that holds these bytes reach the server, and stop what comes after."""
        return self._arm(Trap(pattern, Catch.HOLD_REPLY))

    def disarm(self, *patterns: bytes) -> None:
        """Wait for these patterns no longer; without any, for none."""
        self._do(lambda: self._keep([trap for trap in self.traps if patterns and trap.pattern not in patterns]))

    # -- within the loop ----------------------------------------------------------------------------------------------

    def admit(self, link: Link) -> None:
        """Begin with a new connection."""
        self.connections += 1
        if self.mode.refuses:
            self.resets += 1
            link.client.abort()
            return
        self._links.add(link)
        link.task = self._loop.create_task(link.run())
        link.task.add_done_callback(lambda task: self._dismiss(link, task))

    def _dismiss(self, link: Link, task: "asyncio.Task[None]") -> None:
        self._links.discard(link)
        if not task.cancelled() and (bug := task.exception()):
            self._bugs.append(bug)
            link.abort()

    def _reset(self) -> None:
        for link in list(self._links):
            link.reset()

    def _arm(self, trap: Trap) -> Held:
        self._do(lambda: self.traps.append(trap))
        return trap.held

    def _keep(self, traps: list[Trap]) -> None:
        self.traps = traps

    def _switch(self, mode: Mode) -> None:
        self._do(lambda: self._enter(mode))

    def _enter(self, mode: Mode) -> None:
        self.mode = mode
        for link in list(self._links):
            if link.is_spoiled and not mode.swallows:
                link.reset()
            elif mode.half_closes:
                link.half_close()

    def _do(self, act: Callable[[], object]) -> None:
        """Act in the proxy's own thread, and return when it is done."""

        async def acting() -> None:
            act()

        if threading.get_ident() == self._thread:
            act()
        else:
            asyncio.run_coroutine_threadsafe(acting(), self._loop).result(WAIT_S)
