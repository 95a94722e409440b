"""Several events in one call: who takes part, how long they wait for one another, and what each gets out of it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from millhand.errors import Reasoned
from millhand.model.answer import Answer
from millhand.verdict import Delivery

LINGER_S = 0.05  # for the others, once one is ready: they were read together, so they are seldom later


class Guest(NamedTuple):
    """An event that takes part, and its text."""

    delivery: Delivery
    text: str


class Share(NamedTuple):
    """What one event gets out of a shared call: the call's answer, the results about it, and among how many."""

    answer: Answer
    results: dict[str, Any]
    among: int
    prompt_hash: str


Call = Callable[[list[Guest]], Awaitable[list[Share | None]]]


class Party:
    """Events that were read together, and are asked about in one `call` as soon as all have come or declined.

    Whoever comes too late, or gets nothing out of it, asks alone: a shared call that comes to nothing spends no attempt
    of anybody's. One guest is no party: `forgo` is then called instead, and where none came.
    """

    def __init__(self, size: int, call: Call, forgo: Callable[[], None]) -> None:
        self._missing = size
        self._call = call
        self._forgo = forgo
        self._guests: list[Guest] = []
        self._present = 0
        self._complete = asyncio.Event()
        self._calling: asyncio.Task[list[Share | None]] | None = None

    def expect_one_less(self) -> None:
        """Wait for one less: it has come, or does not take part."""
        self._missing -= 1
        if not self._missing:
            self._complete.set()
            if not self._guests:
                self._forgo()

    async def share(self, guest: Guest) -> Share | None:
        """Take part, and return what this event gets; None where it has to ask alone."""
        if self._complete.is_set() and self._calling:
            return None
        place = len(self._guests)
        self._guests.append(guest)
        self._present += 1
        self.expect_one_less()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    await self._complete.wait()
            shares = await self._shares()
            return shares[place] if place < len(shares) else None
        except Reasoned:
            return None
        finally:
            self._present -= 1
            if not self._present:
                self._forgo()  # does nothing where the permit is spent
                if self._calling is not None:
                    self._calling.cancel()  # for nobody any more; does nothing where it has ended

    async def _shares(self) -> list[Share | None]:
        """Return what the guests get; the first to ask for that has the call made."""
        if self._calling is None:
            self._complete.set()
            self._calling = asyncio.create_task(self._made(list(self._guests)))
        return await asyncio.shield(self._calling)

    async def _made(self, guests: list[Guest]) -> list[Share | None]:
        if len(guests) > 1:
            return await self._call(guests)
        self._forgo()
        return []


class Seat:
    """One event's place at a party."""

    def __init__(self, party: Party) -> None:
        self._party = party
        self._is_expected = True

    async def share(self, guest: Guest) -> Share | None:
        """Take part, as `Party.share`; None where this event has declined."""
        if not self._is_expected:
            return None
        self._is_expected = False
        return await self._party.share(guest)

    def decline(self) -> None:
        """Take no part, if that is still to be decided."""
        if self._is_expected:
            self._is_expected = False
            self._party.expect_one_less()


@contextmanager
def attending(party: Party | None) -> Iterator[Seat | None]:
    """Keep a seat for the length of the block; whoever leaves without having taken it is not waited for."""
    seat = Seat(party) if party else None
    try:
        yield seat
    finally:
        if seat:
            seat.decline()
