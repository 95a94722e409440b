"""Stopping: first stop taking, then stop working, both under one monotonic deadline. Only this module knows signals."""

import asyncio
import contextlib
import faulthandler
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

DEATH_SIGNAL = signal.SIGTERM  # what the kernel sends a child whose supervisor died
ORPHAN_DRAIN_S = 1.0  # the supervisor is gone: hand back what is in hand and leave, within three seconds
ORPHAN_HANG_LIMIT_S = 2.0  # … and so must an orphan whose event loop is stuck


class Stop:
    """A request to stop, as an asyncio process sees it."""

    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self._requested = asyncio.Event()
        self._hastened = asyncio.Event()
        self._deadline: float | None = None
        self._takings = set[asyncio.Timeout]()  # around what ends with the request
        self._works = set[asyncio.Timeout]()  # around what ends at the deadline

    @property
    def requested(self) -> bool:
        """Whether no new work may be taken."""
        return self._requested.is_set()

    def request(self, within_s: float | None = None) -> None:
        """Ask to stop within so many seconds (the drain time if not given). The earliest deadline asked for holds."""
        deadline = time.monotonic() + (self._drain_s if within_s is None else min(within_s, self._drain_s))
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
        self._requested.set()
        self._hastened.set()
        self._bring_forward(self._takings, 0.0)
        self._bring_forward(self._works, self.remaining_s())

    def remaining_s(self) -> float:
        """Return the seconds until work must end: 0 past the deadline, infinite while nobody asked to stop."""
        return float("inf") if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    async def wait(self) -> None:
        """Return when a stop is requested."""
        await self._requested.wait()

    async def deadline(self) -> None:
        """Return at the deadline, also when an earlier one is asked for meanwhile."""
        await self._requested.wait()
        while (remaining_s := self.remaining_s()) > 0:
            self._hastened.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hastened.wait(), remaining_s)

    async def sleep(self, seconds: float) -> bool:
        """Sleep, but no longer than until a stop is requested. True if it is."""
        await self.or_result(asyncio.sleep(seconds))
        return self.requested

    async def or_result(self, work: Awaitable[T]) -> T | None:
        """Await work, which is cancelled as soon as a stop is requested; None then."""
        return await self._unless_late(work, self._takings, 0.0 if self.requested else None)

    async def by_deadline(self, work: Awaitable[T]) -> T | None:
        """Await work, which is cancelled at the deadline; None then."""
        return await self._unless_late(work, self._works, self.remaining_s() if self.requested else None)

    async def _unless_late(self, work: Awaitable[T], bounds: set[asyncio.Timeout], within_s: float | None) -> T | None:
        """Await work in this task, under a time limit among these. What can be had without waiting is never late."""
        bound = asyncio.timeout(within_s)
        bounds.add(bound)
        try:
            async with bound:
                return await work
        except TimeoutError:
            if bound.expired():
                return None
            raise
        finally:
            bounds.discard(bound)

    def _bring_forward(self, bounds: set[asyncio.Timeout], within_s: float) -> None:
        for bound in bounds:
            if not bound.expired():
                bound.reschedule(asyncio.get_running_loop().time() + within_s)

    def listen(self) -> None:
        """Request a stop on SIGTERM. SIGINT and SIGHUP are left to the supervisor: a terminal sends them to all.

        The handler is Python's own and not the loop's, so that it also runs while the loop is stuck: the watchdog of an
        orphan, which a loop that lives sets back with its next beat, has little patience left.
        """
        loop, supervisor_pid = asyncio.get_running_loop(), os.getppid()

        def terminate(*_: object) -> None:
            if os.getppid() != supervisor_pid:
                faulthandler.dump_traceback_later(ORPHAN_HANG_LIMIT_S, exit=True)
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the process is about to
                loop.call_soon_threadsafe(self.request)

        signal.signal(signal.SIGTERM, terminate)
        for number in (signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, lambda: None)


def on_stop_signals(raise_flag: Callable[[], None]) -> None:
    """Call `raise_flag` on SIGTERM and SIGINT, for a process without an event loop. It must only set a flag."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: raise_flag())


def on_hangup(raise_flag: Callable[[], None]) -> None:
    """Call `raise_flag` on SIGHUP; as `on_stop_signals`."""
    signal.signal(signal.SIGHUP, lambda *_: raise_flag())


def ask_to_stop(pid: int) -> None:
    """Send a process a SIGTERM. One that is gone is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def end_at_once(pid: int) -> None:
    """Kill a process, stopped or not. One that is gone is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
