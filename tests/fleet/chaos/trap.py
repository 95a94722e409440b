"""Traps for single requests: bytes that are waited for, and what is stopped when they come."""

import asyncio
import contextlib
import random
from concurrent.futures import Future, InvalidStateError
from enum import Enum

WAIT_S = 10.0
PATTERN_BYTES_MAX = 256


class Catch(Enum):
    """What a trap does to the request that holds its bytes."""

    SWALLOW_REPLY = "swallow the reply"
    HOLD_REPLY = "hold the reply"
    HOLD_REQUEST = "hold the request"


class Held:
    """A request, or a reply, that is stopped on its way. All methods may be called from any thread.

    What is decided before it comes is not stopped when it comes.
    """

    def __init__(self) -> None:
        self._caught: Future[None] = Future()
        self._passes: Future[bool] = Future()

    async def caught(self, timeout_s: float = WAIT_S) -> None:
        """Wait until it is stopped; TimeoutError if it does not come."""
        await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._caught)), timeout_s)

    def block_until_caught(self, timeout_s: float = WAIT_S) -> None:
        """Do as `caught`, outside an event loop."""
        self._caught.result(timeout_s)

    def release(self) -> None:
        """Let it go on, though its sender may be gone by now."""
        self._decide(passes=True)

    def drop(self) -> None:
        """Reset its connection: it never arrives."""
        self._decide(passes=False)

    async def stop(self) -> bool:
        """Tell that it is caught, and wait for the decision: whether it passes."""
        self._caught.set_result(None)
        return await asyncio.wrap_future(self._passes)

    def _decide(self, *, passes: bool) -> None:
        with contextlib.suppress(InvalidStateError):  # decided before, or its connection is gone
            self._passes.set_result(passes)


class Trap:
    """Bytes that are waited for in requests."""

    def __init__(self, pattern: bytes, catch: Catch, times: int = 1, probability: float = 1.0, seed: int = 0) -> None:
        if not 0 < len(pattern) <= PATTERN_BYTES_MAX:
            raise ValueError(f"a pattern has 1 to {PATTERN_BYTES_MAX} bytes, not {len(pattern)}")
        self.pattern, self.catch, self.held = pattern, catch, Held()
        self._times, self._probability = times, probability
        self._dice = random.Random(seed)  # noqa: S311 - chance that can be repeated is the purpose

    def springs(self) -> bool:
        """Whether it takes a request that holds the bytes."""
        takes = self._times > 0 and self._dice.random() < self._probability
        self._times -= takes
        return takes

    @property
    def is_spent(self) -> bool:
        """Whether it takes no more."""
        return self._times <= 0
