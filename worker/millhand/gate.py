"""The gate: the one door to the model, for the whole fleet. It is Redis that decides: see lua/admit.lua, lua/leave.lua.

A permit stands for one call. A worker takes permits before it reads events, or in one step with that, so that what it
cannot work on stays in the stream, and gives each back as soon as its call has ended. Without Redis there is no permit,
and no call.
"""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from millhand.config import Config, Model
from millhand.courier import Courier
from millhand.errors import Reasoned
from millhand.keys import Keys
from millhand.permit import UNUSED, VOID, End, Permit, end_of
from millhand.stop import Stop
from millhand.stream import BLOCK_MS, Reading, RedisError

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

HOLD_EVERY_S = 1.0
HOLD_GRACE_S = 15.0  # past a call's own deadline; the model may have to be met before it
LIMIT_UNTRIED = 4  # of "auto", before any call has been measured
TOKEN_GOOD_S = 0.05  # after its time; a call that begins later takes another, for it would arrive with those after it
FRESH_S = 0.5  # a place so young is admission enough where no token is needed; a pause reaches everybody within 1 s
READ_WITHIN_S = 2.0  # of being asked to; half of what is waited for a reply
POLL_MIN_S = 0.02  # for a permit; one that this worker gives back itself is seen at once
POLL_MAX_S = 0.25
PAUSE_FIRST_S = 0.5
REDIS_PAUSE_MIN_S = 0.2
REDIS_PAUSE_MAX_S = 1.0
CLOSE_S_MAX = 1.0
LEAVES_MAX = 100  # told in one call


def burst_let_through(model: Model) -> int:
    """Return how many calls are let go at once: fewer than may arrive, by those that may be late and come with them."""
    late = math.ceil(model.rate_per_s * TOKEN_GOOD_S) if math.isfinite(model.rate_per_s) else 0
    return max(1, model.burst - late)


class _Reply(NamedTuple):
    """What admit.lua answers."""

    granted: int
    wait_ms: int
    why: bytes
    generation: int
    spread_ms: int
    says: bytes
    now_ms: int
    read: Sequence[Any] = ()

    @property
    def wait_s(self) -> float:
        """How long to wait, spread where many wait for the same moment."""
        return (self.wait_ms + random.random() * self.spread_ms) / 1000  # noqa: S311 - jitter, no secret


class Places(NamedTuple):
    """For how many calls there are permits, and the entries that were read for them, as the server gives them."""

    calls: int
    entries: Sequence[Any] = ()


class Standing(NamedTuple):
    """How the gate stands: closed as a circuit is, paused, or open; and what of that has just come about."""

    state: str
    came_about: str


class _Leaving(NamedTuple):
    permit_id: str
    generation: int
    end: End
    told: "asyncio.Future[Standing] | None" = None  # of whoever waits to hear how the gate stands


class Gate:
    """This worker's way to the gate. `probe` asks the model something harmless; it raises what a call would."""

    def __init__(
        self, courier: Courier, config: Config, consumer: str, stop: Stop, log: "FilteringBoundLogger"
    ) -> None:
        self._courier = courier
        self._keys = Keys.of(config)
        self._consumer = consumer
        self._stop = stop
        self._log = log
        model, gate = config.model, config.gate
        self._interval_us = 0 if math.isinf(model.rate_per_s) else max(1, round(1e6 / model.rate_per_s))
        self._hold_s = model.timeout_s + BLOCK_MS / 1000 + HOLD_GRACE_S
        at_once = str(model.in_flight_max)
        self._admit_keys = [self._keys.gate, self._keys.permits, self._keys.input]
        self._admit_terms = [
            self._keys.group, at_once, LIMIT_UNTRIED, self._interval_us, burst_let_through(model),
            round(self._hold_s * 1000),
        ]  # fmt: skip
        self._leave_keys = [self._keys.gate, self._keys.permits]
        self._leave_terms = [
            at_once, LIMIT_UNTRIED, gate.failures_max, round(gate.throttled_max_s * 1000),
            round(PAUSE_FIRST_S * 1000), round(gate.probe_every_max_s * 1000),
        ]  # fmt: skip
        self._admit, self._leave, self._hold, self._evict = (
            courier.script(name) for name in ("admit", "leave", "hold", "evict")
        )
        self._admit_readers = courier.script("admit", when_full=False)
        self._numbered = 0  # permits so far
        self._held: dict[str, float] = {}  # permit -> when it expires
        self._leaving: list[_Leaving] = []
        self._telling: asyncio.Task[None] | None = None
        self._given_back = asyncio.Event()
        self._idle: list[Permit] = []  # held while events are read for them
        self._refusal: tuple[Permit, _Reply] | None = None  # of places; None: until a permit is given back …
        self._poll_s = POLL_MIN_S  # … or for so long
        self._server_ahead_ms: float | None = None  # its clock before our monotonic one, as last heard
        self._round_trip_s = 0.0  # of an admission, as short as it has been lately …
        self._grown_s = -math.inf  # … and when that was last found to be longer
        self._generation = 0  # of the limit, as last heard
        self._queue = 0  # calls of ours that wait, and go before what is not yet read
        self.probe: Callable[[], Awaitable[None]]
        self.away: str | None = None  # what is wrong with the model, for as long as nobody is let through
        self.absences = 0  # how often it has been so

    def permit(self) -> Permit:
        """Return a permit that is not held yet: `admit` gets it."""
        return Permit(self._next_id(), self._generation)

    def _next_id(self) -> str:
        self._numbered += 1
        return f"{self._consumer}/{self._numbered}"

    def _after(self, permit: Permit, count: int) -> list[Permit]:
        """Return so many permits that are numbered after this one."""
        number = int(permit.id.rpartition("/")[2])
        return [Permit(f"{self._consumer}/{number + more}") for more in range(1, count + 1)]

    # -- in ---------------------------------------------------------------------------------------------------------

    async def places(self, wanted: int, reading: Reading | None = None) -> Places:
        """Return for how many calls, up to so many, there are permits. Where it is none, wait for `refusal_over`.

        `take` hands the permits out. What it has kept is not asked for again; else new entries are read in the same
        step, if it is said how. Raises RedisError.
        """
        if self._idle and self._may_keep(self._idle) and not self._queue:
            return Places(min(wanted, len(self._idle)))
        self.give_back_places()
        self._refusal = None
        if self._queue:
            return Places(0)
        first = self.permit()
        self._numbered += wanted - 1
        how_to_read = self._how_to_read(reading)
        reply = await self._ask("read" if how_to_read else "places", first, wanted, how_to_read)
        if reply.granted:
            self._poll_s = POLL_MIN_S
        elif reply.wait_ms or reply.why == b"probe":
            self._refusal = (first, reply)
        return Places(reply.granted, reply.read)

    async def refusal_over(self) -> None:
        """Wait until it is time to ask for places again, or a stop comes. It may be for us to probe meanwhile."""
        if self._refusal is None:
            self._poll_s = await self._until_given_back(self._poll_s)
            return
        first, reply = self._refusal
        if reply.why == b"probe":
            await self._find_out(first)
        else:
            await self._stop.sleep(reply.wait_s)

    def take(self, calls: int, *, keep: bool) -> list[Permit]:
        """Return a permit for each call that events have come for. `keep` the rest where the next read is near.

        Else it is given back. A call in hand may have taken one of the places meanwhile: then the last permits are not
        held yet.
        """
        taken, self._idle = self._idle[:calls], self._idle[calls:]
        if not keep or not self._may_keep(self._idle):
            self.give_back_places()
        return [*taken, *(self.permit() for _ in range(calls - len(taken)))]

    def give_back_places(self) -> None:
        """Give back what has been kept: nothing is read for a while."""
        left, self._idle = self._idle, []
        self.give_back(left)

    def _may_keep(self, idle: list[Permit]) -> bool:
        """Whether a read that begins now ends while these are fresh. Where there is a rate, they follow its tokens."""
        ends_s = time.monotonic() + BLOCK_MS / 1000
        return self.away is None and not self._interval_us and all(ends_s < permit.fresh_until_s for permit in idle)

    async def is_passable(self) -> bool:
        """Wait until the gate is not shut. False if a stop comes first. Raises RedisError."""
        while not self._stop.requested:
            reply = await self._ask("look", self.permit())
            if reply.granted:
                return True
            await self._stop.sleep(reply.wait_s)
        return False

    async def admit(self, permit: Permit) -> bool:
        """Wait until a call may begin. False if a stop is requested first."""
        if self._is_fresh(permit):
            permit.fresh_until_s = -math.inf
            return not self._stop.requested
        if permit.id not in self._held:  # and not under its old id, which a late leave would free
            permit.id = self._idle.pop().id if self._idle else self._next_id()
        self._queue += 1
        poll_s = POLL_MIN_S
        try:
            while not self._stop.requested:
                asked_s = time.monotonic()
                try:
                    reply = await self._ask("call", permit)
                except RedisError:
                    await self._stop.sleep(random.uniform(REDIS_PAUSE_MIN_S, REDIS_PAUSE_MAX_S))  # noqa: S311 - jitter
                    continue
                if reply.granted:
                    if await self._in_time(asked_s, reply):
                        return not self._stop.requested
                elif reply.wait_ms:
                    await self._stop.sleep(reply.wait_s)
                else:
                    poll_s = await self._until_given_back(poll_s)
        finally:
            self._queue -= 1
        return False

    async def _in_time(self, asked_s: float, reply: "_Reply") -> bool:
        """Wait for a token's time, from when it was given. False if it has been missed: this process was held up.

        A round trip no longer than the last ones is no delay; one that stays longer is taken for the usual after a few.
        """
        if not self._interval_us:
            return True
        now_s = time.monotonic()
        if now_s - asked_s <= self._round_trip_s:
            self._round_trip_s = now_s - asked_s
        elif asked_s > self._grown_s:  # once a round trip, however many calls were in it
            self._round_trip_s = min(now_s - asked_s, 2 * self._round_trip_s + TOKEN_GOOD_S / 10)
            self._grown_s = now_s
        due_s = asked_s + self._round_trip_s + reply.wait_ms / 1000
        if (wait_s := due_s - time.monotonic()) > 0:
            await self._stop.sleep(wait_s)
        return time.monotonic() < due_s + TOKEN_GOOD_S

    def _is_fresh(self, permit: Permit) -> bool:
        is_held = permit.id in self._held and self.away is None
        return is_held and not self._interval_us and time.monotonic() < permit.fresh_until_s

    async def _until_given_back(self, poll_s: float) -> float:
        """Wait until this worker gives a permit back, or for a while; return the next while."""
        self._given_back.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(poll_s * random.uniform(0.5, 1.5)):  # noqa: S311 - jitter, no secret
                await self._stop.or_result(self._given_back.wait())
                return POLL_MIN_S
        return min(2 * poll_s, POLL_MAX_S)

    async def _ask(self, how: str, first: Permit, wanted: int = 1, how_to_read: Sequence[Any] = ()) -> _Reply:
        """Ask for this permit and those numbered after it. Told to probe, find out whether the model is back.

        A server that is full refuses places: nothing more is read. What is in hand may still be asked about. A reader
        that is told to probe does so when it waits.
        """
        self._held.pop(first.id, None)  # until the answer is here: `run` must not tell of what is being refused
        for_reading = how in {"places", "read"}
        terms = [how, *self._admit_terms, first.id, wanted, *how_to_read]
        try:
            answer = await self._courier.send(
                self._admit_readers if for_reading else self._admit, self._admit_keys, terms
            )
        except (asyncio.CancelledError, *RedisError):
            self._give_up([first, *self._after(first, wanted - 1)])
            raise
        reply = _Reply(*answer)
        self._generation = reply.generation
        self._server_ahead_ms = reply.now_ms - time.monotonic() * 1000
        if reply.why == b"probe" and not for_reading:
            await self._find_out(first)
            return reply._replace(wait_ms=1)
        if reply.granted and how != "look":
            self._take_note([first, *self._after(first, reply.granted - 1)], reply, how)
        self._see(reply.says.decode(errors="replace") if reply.why in {b"paused", b"open", b"probe"} else None)
        return reply

    def _how_to_read(self, reading: Reading | None) -> list[Any]:
        """Return what admit.lua takes to read; nothing where the server's time is not known yet.

        A server that is frozen may run it when nobody waits for the reply any more: so it is told until when to read.
        """
        if reading is None or self._server_ahead_ms is None:
            return []
        return [*reading, round(self._server_ahead_ms + (time.monotonic() + READ_WITHIN_S) * 1000)]

    def _see(self, away: str | None) -> None:
        self.absences += self.away is None and away is not None
        self.away = away

    def _take_note(self, granted: list[Permit], reply: _Reply, how: str) -> None:
        now_s = time.monotonic()
        for permit in granted:
            permit.generation = reply.generation
            permit.fresh_until_s = -math.inf if how == "call" else now_s + FRESH_S
            self._held[permit.id] = now_s + self._hold_s + reply.wait_ms / 1000
        if how != "call":
            self._idle = granted

    async def _find_out(self, permit: Permit) -> None:
        """Probe, and tell what came of it."""
        end = VOID
        started_s = time.monotonic()
        try:
            self._log.debug("gate.probing")
            await self._stop.or_result(self.probe())
            end = VOID if self._stop.requested else End("ok", time.monotonic() - started_s)
        except Reasoned as error:
            end = end_of(error, time.monotonic() - started_s)
        finally:
            self.leave(permit, end)
        await self._stop.or_result(self._told())

    # -- out --------------------------------------------------------------------------------------------------------

    def leave(self, permit: Permit, end: End) -> None:
        """Give a permit back and tell how its call ended, without waiting for the answer."""
        self._enqueue(_Leaving(permit.id, permit.generation, end))

    async def tell(self, permit: Permit, end: End) -> Standing:
        """Do as `leave`, and return how the gate stands then, and whether that has just come about."""
        told: asyncio.Future[Standing] = asyncio.get_running_loop().create_future()
        self._enqueue(_Leaving(permit.id, permit.generation, end, told))
        return await self._stop.by_deadline(told) or Standing("closed", "")

    def give_back(self, permits: Iterable[Permit]) -> None:
        """Give those permits back that are still held, for which there was no call."""
        for permit in permits:
            if permit.id in self._held:
                self.leave(permit, UNUSED)

    def _give_up(self, permits: Iterable[Permit]) -> None:
        """Give permits back of which it is unknown whether they are held, and never use them again."""
        for permit in permits:
            self.leave(permit, UNUSED)
            permit.id = self._next_id()

    def _enqueue(self, leaving: _Leaving) -> None:
        self._held.pop(leaving.permit_id, None)
        self._leaving.append(leaving)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell_all())

    async def _told(self) -> None:
        """Wait until all that was left has been told."""
        if self._telling is not None:
            await asyncio.wait({self._telling})

    async def _tell_all(self) -> None:
        """Tell what has been left until nothing is; again and again while Redis does not answer."""
        while self._leaving:
            leaving, self._leaving = self._leaving[:LEAVES_MAX], self._leaving[LEAVES_MAX:]
            try:
                state, came_about, wait_ms, self._generation = await self._courier.send(
                    self._leave,
                    self._leave_keys,
                    [*self._leave_terms, *(part for one in leaving for part in _told_of(one))],
                )
            except RedisError:
                self._leaving = [*leaving, *self._leaving]
                await asyncio.sleep(random.uniform(REDIS_PAUSE_MIN_S, REDIS_PAUSE_MAX_S))  # noqa: S311 - jitter
                continue
            self._given_back.set()
            says = next((one.end.says for one in leaving if one.end.says), "")
            standing = Standing(state.decode(), came_about.decode())
            self._tell_of(standing, wait_ms / 1000, says)
            for one in leaving:
                if one.told is not None and not one.told.done():
                    one.told.set_result(standing)

    def _tell_of(self, standing: Standing, wait_s: float, says: str) -> None:
        """Tell what this worker's calls have brought about for the whole fleet."""
        if standing.state != "closed" and says:
            self._see(says)
        match standing.came_about:
            case "paused":
                until_s = time.monotonic() + wait_s
                self._log.warning(
                    "gate.paused", for_s=round(wait_s, 3), until_mono=round(until_s, 6), **_told_why(says)
                )
            case "open":
                self._log.error("model.away", next_probe_in_s=round(wait_s, 3), **_told_why(says))
            case "resumed":
                self._log.info("gate.resumed")
            case "closed":
                self._see(None)
                self._log.info("model.back")

    # -- beside ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Tell again and again which permits are held, so that they are known where Redis has lost them."""
        while True:
            await asyncio.sleep(HOLD_EVERY_S)
            now_s = time.monotonic()
            held = {permit_id: until_s - now_s for permit_id, until_s in self._held.items() if until_s > now_s}
            if held:
                args = [part for permit_id, left_s in held.items() for part in (permit_id, round(left_s * 1000))]
                with suppress(*RedisError):
                    await self._courier.send(self._hold, [self._keys.permits], args)

    async def close(self) -> None:
        """Give back whatever is still held, if Redis answers soon."""
        if self._telling is not None:
            self._telling.cancel()
        with suppress(TimeoutError, *RedisError):
            async with asyncio.timeout(CLOSE_S_MAX):
                await self._courier.send(self._evict, self._leave_keys, [self._consumer])


def _told_why(says: str) -> dict[str, str]:
    reason, _, detail = says.partition(": ")
    return {"reason": reason, "detail": detail}


def _told_of(one: _Leaving) -> list[Any]:
    """Return a call's fields as leave.lua takes them."""
    end = one.end
    asked_ms = -1 if end.asked_s is None else round(end.asked_s * 1000)
    times = [round(end.wall_s * 1e6), round(end.queue_s * 1e6)]
    return [one.permit_id, end.how, *times, one.generation, asked_ms, end.says]
