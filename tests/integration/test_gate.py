"""The gate's scripts on a real Redis, and what a worker makes of them. Time passes where a test moves it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import OutOfMemoryError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from tests.conftest import StartRedis
from tests.fleet.chaos.proxy import FaultProxy
from tests.integration.race import Race
from tests.rig import RedisServer, config_for, eventually_async

from millhand.config import Config
from millhand.courier import Courier
from millhand.errors import BadAnswer, Misconfigured, ModelAway, ModelBusy
from millhand.gate import READ_WITHIN_S, Gate, Places
from millhand.keys import Keys
from millhand.log import logger
from millhand.permit import UNUSED, VOID, End, Permit, end_of
from millhand.stop import Stop
from millhand.stream import Reading, Script, Stream, connect
from millhand.verdict import Delivery
from millhand_fleet.gate_view import GateView, look_at_gate

if TYPE_CHECKING:
    from redis.asyncio import Redis

pytestmark = pytest.mark.every_server

READER = "here:w1:a"
READING = Reading(READER, 1, 0)
OK = End("ok", 0.05)
LOST = end_of(ModelAway("model_unreachable", "reset", lost=True))
BUSY = ModelBusy("HTTP 503")
MISSING = Misconfigured("model_missing", "get it with: ollama pull tiny")
MakeGate = Callable[..., Gate]


class Doors:
    """Several workers' gates of one fleet, and the hands that move its clock."""

    def __init__(self, redis: "Redis", url: str) -> None:
        self.redis = redis
        self._url = url
        self.keys = Keys.of(config_for(url))
        self.stop = Stop(5)
        self.probes = 0
        self.model_says: Exception | None = None
        self._opened: list[tuple[Gate, Redis]] = []

    def config(self, **settings: Any) -> Config:
        return config_for(self._url, flags={name.replace("__", "."): value for name, value in settings.items()})

    def gate(self, consumer: str = "here:w1:a", **settings: Any) -> Gate:
        client = connect(self._url)
        gate = Gate(Courier(client), self.config(**settings), consumer, self.stop, logger())
        gate.probe = self._probe
        self._opened.append((gate, client))
        return gate

    async def _probe(self) -> None:
        self.probes += 1
        if self.model_says is not None:
            raise self.model_says

    async def close(self) -> None:
        for gate, client in self._opened:
            await gate.close()
            await client.aclose()

    async def view(self, **settings: Any) -> GateView:
        return await look_at_gate(self.redis, self.keys, self.config(**settings))

    async def pass_time(self, *fields: str, ms: int = 3_600_000) -> None:
        """Let so much time pass for moments that the gate remembers."""
        for field in fields:
            await self.redis.hincrby(self.keys.gate, field, -ms)

    async def permits(self) -> set[str]:
        members: Any = await self.redis.zrangebyscore(self.keys.permits, 1, "+inf")
        return {member.decode() for member in members}


@pytest.fixture
async def doors(redis: "Redis", redis_url: str) -> AsyncIterator[Doors]:
    doors = Doors(redis, redis_url)
    yield doors
    await doors.close()


@pytest.fixture
async def stream(redis_url: str, race: Race) -> AsyncIterator[Stream]:
    """Read as one consumer of the group."""
    stream = Stream(redis_url, race.keys, READER, 3)
    yield stream
    await stream.close()


async def soon(work: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(work, 10)


async def placed(gate: Gate, wanted: int) -> int:
    """Wait for places as a reader does; 0 if a stop comes first."""
    while not (places := await gate.places(wanted)).calls and not gate._stop.requested:
        await gate.refusal_over()
    return places.calls


async def meeting(gate: Gate) -> Gate:
    """Let a gate learn the server's time."""
    assert await soon(gate.is_passable())
    return gate


async def permits_for(gate: Gate, wanted: int) -> list[Permit]:
    """Take places, and permits for all of them."""
    return gate.take(await soon(placed(gate, wanted)), keep=False)


async def is_held_back(gate: Gate, permit: Permit | None = None) -> bool:
    """Whether a call is not let through at once."""
    admission = asyncio.create_task(gate.admit(permit or gate.permit()))
    done, _ = await asyncio.wait({admission}, timeout=0.15)
    admission.cancel()
    return not done


# -- permits ----------------------------------------------------------------------------------------------------------


async def test_places_that_are_left_are_kept_for_the_next_read_while_events_come(doors: Doors) -> None:
    """They are not asked for again; once a read has brought nothing, or none is to follow, others may have them."""
    gate = doors.gate(model__in_flight_max=20)
    assert await soon(placed(gate, 10)) == 10
    asked = await calls_of(doors, "evalsha")

    gate.take(1, keep=True)
    assert await soon(placed(gate, 4)) == 4
    assert await soon(placed(gate, 20)) == 9
    gate.take(2, keep=True)
    assert await calls_of(doors, "evalsha") == asked
    gate.take(0, keep=False)
    await eventually_async(lambda: permits_are(doors, 3))

    assert await soon(placed(gate, 6)) == 6
    gate.take(1, keep=True)
    gate.give_back_places()
    await eventually_async(lambda: permits_are(doors, 4))


@pytest.mark.parametrize(("each", "ahead"), [(1, 0), (2, 0), (1, 3)])
async def test_events_are_read_in_one_step_with_the_places_for_them(
    doors: Doors, race: Race, stream: Stream, each: int, ahead: int
) -> None:
    """As many as the places are for, and not as were wanted: eight permits are free, of which a reader gets half."""
    ids = [await race.add(str(n)) for n in range(10)]
    read = 4 * each + ahead
    gate = await meeting(doors.gate(model__in_flight_max=8))
    places = await soon(gate.places(8, Reading(READER, each, ahead)))
    assert places.calls == 4
    assert stream.deliveries(places.entries) == [
        Delivery(entry_id, {b"data": b'{"text": "%d"}' % n}, READER, 1) for n, entry_id in enumerate(ids[:read])
    ]
    assert await race.held() == dict.fromkeys(ids[:read], (READER, 1))
    assert len(await doors.permits()) == 4


async def test_nothing_is_read_where_there_is_no_place_or_no_event(doors: Doors, race: Race) -> None:
    gate = await meeting(doors.gate(model__in_flight_max=1))
    assert await soon(gate.places(1, READING)) == Places(1, [])
    (permit,) = gate.take(1, keep=False)
    await race.add()
    assert await soon(gate.places(1, Reading(READER, 1, 5))) == Places(0)
    assert await race.pending() == []
    gate.leave(permit, OK)
    await soon(gate.refusal_over())
    assert len((await soon(gate.places(1, Reading(READER, 1, 5)))).entries) == 1


async def test_a_read_that_comes_too_late_reads_nothing(doors: Doors, race: Race) -> None:
    """F22: a server that was frozen does what it was sent, and nobody waits for that any more."""
    gate = await meeting(doors.gate(model__in_flight_max=8))
    await race.add()
    assert gate._server_ahead_ms is not None
    gate._server_ahead_ms -= 1000 * READ_WITHIN_S + 1  # so that the time to read has passed when it is asked
    assert await soon(gate.places(8, READING)) == Places(0)
    assert await race.pending() == []
    assert await doors.permits() == set()
    await soon(gate.refusal_over())
    assert len((await soon(gate.places(8, READING))).entries) == 1


async def test_nothing_is_read_before_the_servers_time_is_known(doors: Doors, race: Race) -> None:
    await race.add()
    assert await soon(doors.gate(model__in_flight_max=8).places(8, READING)) == Places(4, [])
    assert await race.pending() == []


async def test_a_read_that_the_server_refuses_leaves_no_permit_behind(doors: Doors, race: Race) -> None:
    """F30, F32: it is full, or the group is gone."""
    gate = await meeting(doors.gate(model__in_flight_max=8))
    await race.add()
    await doors.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            await gate.places(8, READING)
    finally:
        await doors.redis.config_set("maxmemory", 0)
    assert await race.pending() == []
    await doors.redis.xgroup_destroy(doors.keys.input, doors.keys.group)
    with pytest.raises(ResponseError, match="NOGROUP"):
        await gate.places(8, READING)
    await eventually_async(lambda: permits_are(doors, 0))


async def test_no_place_is_kept_while_the_model_is_away_or_where_there_is_a_rate(doors: Doors) -> None:
    """A pause reaches everybody within a second, and what has no token yet is not read."""
    gate, rated = doors.gate(model__in_flight_max=20), doors.gate("here:w2:b", model__rate_per_s=100.0)
    await soon(placed(gate, 8))
    gate.away = "busy"
    gate.take(1, keep=True)
    await eventually_async(lambda: permits_are(doors, 1))

    await soon(placed(rated, 8))
    rated.take(1, keep=True)
    await eventually_async(lambda: permits_are(doors, 2))


async def permits_are(doors: Doors, count: int) -> bool:
    return len(await doors.permits()) == count


async def calls_of(doors: Doors, command: str) -> int:
    stats: Any = await doors.redis.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))


async def test_no_more_permits_are_given_out_than_there_may_be_calls_at_once(doors: Doors) -> None:
    """A reader gets half of what is free, so that others may read too."""
    first, second = doors.gate(model__in_flight_max=4), doors.gate("here:w2:b", model__in_flight_max=4)
    assert len(await permits_for(first, 3)) == 2
    assert len(await permits_for(second, 3)) == 1
    assert len(await permits_for(second, 3)) == 1
    assert len(await doors.permits()) == 4
    assert await is_held_back(second)


async def test_a_permit_that_is_given_back_is_the_next_ones(doors: Doors) -> None:
    first, second = doors.gate(model__in_flight_max=1), doors.gate("here:w2:b", model__in_flight_max=1)
    (held,) = await permits_for(first, 1)
    waiting = asyncio.create_task(placed(second, 1))
    await eventually_async(lambda: doors.redis.exists(doors.keys.permits))
    assert not waiting.done()
    first.leave(held, OK)
    assert await soon(waiting) == 1
    (permit,) = second.take(1, keep=False)
    assert await doors.permits() == {permit.id}


async def test_a_permit_whose_holder_died_expires(doors: Doors) -> None:
    dead, living = doors.gate(model__in_flight_max=1), doors.gate("here:w2:b", model__in_flight_max=1)
    (permit,) = await permits_for(dead, 1)
    assert await is_held_back(living)
    await doors.redis.zadd(doors.keys.permits, {permit.id: 1}, xx=True)
    assert await soon(living.admit(living.permit()))


async def test_a_permit_outlives_the_longest_call(doors: Doors) -> None:
    gate = doors.gate(model__timeout_s=60.0)
    (permit,) = await permits_for(gate, 1)
    seconds, _ = await doors.redis.time()
    expires_ms = await doors.redis.zscore(doors.keys.permits, permit.id)
    assert expires_ms is not None
    assert expires_ms / 1000 - seconds > 60


async def test_lost_permits_are_not_given_out_again_before_their_holders_have_told_of_them(
    doors: Doors, race: Race
) -> None:
    """F47: somebody has events in hand, so calls may be under way that Redis knows nothing of any more."""
    await race.delivered("here:w1:a")
    holder, other = doors.gate(model__in_flight_max=1), doors.gate("here:w2:b", model__in_flight_max=1)
    (held,) = await permits_for(holder, 1)
    await doors.redis.delete(doors.keys.permits)
    assert await is_held_back(other)
    telling = asyncio.create_task(holder.run())
    await eventually_async(lambda: _is_held(doors, held))
    telling.cancel()
    await doors.redis.zadd(doors.keys.permits, {"@opened": -1})  # the time for it is over
    assert await is_held_back(other)
    holder.leave(held, OK)
    assert await permits_for(other, 1)


async def _is_held(doors: Doors, permit: Permit) -> bool:
    return permit.id in await doors.permits()


async def test_a_lone_worker_gets_no_permits_beside_those_that_were_lost(doors: Doors, race: Race) -> None:
    """F47."""
    await race.delivered("here:w1:a")
    gate = doors.gate(model__in_flight_max=2)
    await permits_for(gate, 2)
    await doors.redis.delete(doors.keys.permits)
    assert await is_held_back(gate)


async def test_a_first_start_waits_for_nobody(doors: Doors, race: Race) -> None:
    await race.add()
    assert not await is_held_back(doors.gate(model__in_flight_max=1))


async def test_what_a_worker_still_holds_goes_back_when_it_closes(doors: Doors) -> None:
    gate, other = doors.gate(), doors.gate("here:w2:b")
    await permits_for(gate, 3)
    (kept,) = await permits_for(other, 1)
    await gate.close()
    assert await doors.permits() == {kept.id}


async def test_a_call_goes_before_what_has_not_been_read(doors: Doors) -> None:
    gate = doors.gate(model__in_flight_max=1)
    (first,) = await permits_for(gate, 1)
    call, reading = asyncio.create_task(gate.admit(gate.permit())), asyncio.create_task(placed(gate, 1))
    await eventually_async(lambda: gate._queue)
    gate.leave(first, OK)
    assert await soon(call)
    assert not reading.done()
    reading.cancel()


async def test_a_call_in_hand_goes_before_the_readers_of_other_workers(doors: Doors) -> None:
    """Otherwise one that reads an idle stream, again and again, keeps the last permit for ever."""
    reader, caller = doors.gate(model__in_flight_max=1), doors.gate("here:w2:b", model__in_flight_max=1)

    async def read_again_and_again() -> None:
        while True:
            await placed(reader, 1)
            await asyncio.sleep(0)
            reader.take(0, keep=False)

    reading = asyncio.create_task(read_again_and_again())
    assert await soon(caller.admit(caller.permit()))
    reading.cancel()


async def test_whoever_only_looks_needs_no_permit(doors: Doors) -> None:
    """A worker that starts, while the others have all of them."""
    busy, starting = doors.gate(model__in_flight_max=1), doors.gate("here:w2:b", model__in_flight_max=1)
    await permits_for(busy, 1)
    assert await soon(starting.is_passable())
    assert len(await doors.permits()) == 1


async def test_without_redis_nobody_calls(start_redis: StartRedis) -> None:
    """And whoever waits goes on as soon as it is back, with what it held."""
    server = start_redis({"appendonly": "yes", "appendfsync": "always"})
    client = connect(server.url)
    doors = Doors(client, server.url)
    gate = doors.gate(model__rate_per_s=1000.0)
    assert await soon(gate.admit(gate.permit()))
    server.kill()
    waiting = asyncio.create_task(gate.admit(gate.permit()))
    assert await is_held_back(gate)
    server.start()
    assert await soon(waiting)
    await doors.close()
    await client.aclose()


async def test_a_permit_that_was_given_back_lets_nobody_through(doors: Doors) -> None:
    """However young it is."""
    first, second = doors.gate(model__in_flight_max=1), doors.gate("here:w2:b", model__in_flight_max=1)
    (permit,) = await permits_for(first, 1)
    assert await soon(first.admit(permit))
    await first.tell(permit, LOST)
    await permits_for(second, 1)
    assert await is_held_back(first, permit)


class LossyCourier(Courier):
    """Carries everything there, and loses what comes back when told to."""

    def __init__(self, redis: "Redis") -> None:
        super().__init__(redis)
        self.loses = False

    async def send(self, script: Script, keys: list[str], args: list[Any]) -> Any:
        answer = await super().send(script, keys, args)
        if self.loses:
            self.loses = False
            raise RedisTimeoutError("the reply is lost")
        return answer


@pytest.mark.parametrize("how", ["places", "call"])
async def test_what_was_granted_in_an_answer_that_was_lost_is_given_back(doors: Doors, how: str) -> None:
    """Otherwise it would stand under an id that nobody knows, until it expires."""
    gate = doors.gate(model__in_flight_max=4)
    courier = gate._courier = LossyCourier(doors.redis)
    courier.loses = True
    if how == "places":
        with pytest.raises(RedisTimeoutError):
            await placed(gate, 4)
        await eventually_async(lambda: _are_held(doors, 0))
    else:
        assert await soon(gate.admit(gate.permit()))
        await eventually_async(lambda: _are_held(doors, 1))


async def _are_held(doors: Doors, count: int) -> bool:
    return len(await doors.permits()) == count


async def test_an_ask_that_was_cancelled_leaves_no_permit_behind(doors: Doors) -> None:
    gate = doors.gate(model__in_flight_max=4)
    for ask in (placed(gate, 4), gate.admit(gate.permit())):
        asking = asyncio.create_task(ask)
        await asyncio.sleep(0)  # it has asked, and has no answer yet
        asking.cancel()
        await asyncio.wait({asking})
        await gate.tell(gate.permit(), UNUSED)
        assert await doors.permits() == set()


async def test_a_call_in_hand_takes_a_place_of_its_own_workers_reader(doors: Doors) -> None:
    """It need not wait until the read has ended; what comes in too much by then waits in its stead."""
    gate = doors.gate(model__in_flight_max=1)
    assert await soon(placed(gate, 1)) == 1
    in_hand = gate.permit()
    assert await soon(gate.admit(in_hand))
    (permit,) = gate.take(1, keep=True)
    assert await doors.permits() == {in_hand.id}
    assert await is_held_back(gate, permit)


# -- tokens -----------------------------------------------------------------------------------------------------------


async def admitted_within(gates: list[Gate], seconds: float) -> int:
    """Return how many calls are let through in a while, with as many callers as there are."""
    count = 0

    async def call(gate: Gate) -> None:
        nonlocal count
        while await gate.admit(gate.permit()):
            count += 1

    callers = [asyncio.create_task(call(gate)) for gate in gates for _ in range(4)]
    await asyncio.wait(callers, timeout=seconds)
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    return count


async def test_calls_of_all_workers_together_keep_to_the_rate(doors: Doors) -> None:
    rate = {"model__rate_per_s": 50.0, "model__burst": 5, "model__in_flight_max": 1000}
    gates = [doors.gate(f"here:w{n}:a", **rate) for n in range(3)]
    started_s = asyncio.get_running_loop().time()
    count = await admitted_within(gates, 1.0)
    lasted_s = asyncio.get_running_loop().time() - started_s
    assert 10 <= count <= 5 + 50 * lasted_s + 1


async def test_a_lost_bucket_begins_with_one_token(doors: Doors) -> None:
    """F47: otherwise whoever deletes the key lets a whole burst through."""
    gate = doors.gate(model__rate_per_s=0.01, model__burst=100)
    assert not await is_held_back(gate)
    assert await is_held_back(gate)
    await doors.redis.delete(doors.keys.gate)
    assert not await is_held_back(gate)
    assert await is_held_back(gate)


async def test_a_full_bucket_lets_a_burst_through_and_no_more(doors: Doors) -> None:
    """A little less than may arrive at once, for what is late arrives together with what comes after it."""
    gate = doors.gate(model__rate_per_s=0.01, model__burst=10)
    assert await soon(gate.admit(gate.permit()))
    await doors.pass_time("tat", ms=10**12)
    let_through = 0
    while not await is_held_back(gate):
        let_through += 1
    assert let_through == 9


async def test_a_clock_that_was_put_back_freezes_no_token(doors: Doors) -> None:
    """F40: the bucket's time lies an hour ahead then."""
    gate = doors.gate(model__rate_per_s=10.0, model__burst=10)
    assert await soon(gate.admit(gate.permit()))
    await doors.pass_time("tat", ms=-3_600_000_000)
    assert not await is_held_back(gate)
    assert (await doors.view(model__rate_per_s=10.0, model__burst=10)).tokens is not None


async def test_a_slow_way_to_redis_slows_calls_down_and_does_not_end_them(
    doors: Doors, redis_server: RedisServer
) -> None:
    """F25: a round trip that is always long is no delay of this process's own."""
    async with FaultProxy(redis_server.port) as proxy:
        client = connect(proxy.redis_url)
        config = doors.config(model__rate_per_s=100.0, model__burst=5)
        gate = Gate(Courier(client), config, "here:w1:a", doors.stop, logger())
        proxy.delaying(0.08)
        for _ in range(3):
            assert await soon(gate.admit(gate.permit()))
        await gate.close()
        await client.aclose()


async def test_nobody_reads_far_ahead_of_the_tokens(doors: Doors) -> None:
    gate = doors.gate(model__rate_per_s=10.0, model__burst=3)
    await soon(gate.admit(gate.permit()))
    places = await permits_for(gate, 50)
    assert 1 <= len(places) <= 4


# -- the pause --------------------------------------------------------------------------------------------------------


async def test_one_refusal_stops_the_whole_fleet_for_as_long_as_it_says(doors: Doors) -> None:
    """F42: and what waits holds no permit meanwhile."""
    refused, other = doors.gate(), doors.gate("here:w2:b")
    (permit,) = await permits_for(refused, 1)
    assert await refused.tell(permit, end_of(ModelBusy("HTTP 429", 30.0))) == ("paused", "paused")
    assert await is_held_back(other)
    assert other.away == "model_busy: HTTP 429"
    view = await doors.view()
    assert (view.state, view.says, view.permits) == ("paused", "model_busy: HTTP 429", 0)
    assert 25 < view.until_s <= 30


async def test_after_a_pause_calls_begin_one_by_one(doors: Doors) -> None:
    gate = doors.gate()
    await gate.tell(gate.permit(), end_of(ModelBusy("HTTP 429", 30.0)))
    await doors.pass_time("pause_until")
    sizes = []
    for _ in range(4):
        allowed = 0
        while not await is_held_back(gate):
            allowed += 1
        sizes.append(allowed)
        first, *others = [Permit(permit_id) for permit_id in await doors.permits()]
        for permit in (first, *others):
            permit.generation = int(await doors.redis.hget(doors.keys.gate, "generation") or 0)
        await gate.tell(first, OK)
        for permit in others:
            await gate.tell(permit, UNUSED)
    assert sizes == [1, 2, 4, 8]


async def test_calls_from_before_a_pause_do_not_hasten_the_return(doors: Doors) -> None:
    gate = doors.gate()
    refused, *others = await permits_for(gate, 9)
    await gate.tell(refused, end_of(ModelBusy("HTTP 429", 30.0)))
    for permit in others:
        await gate.tell(permit, OK)
    await doors.pass_time("pause_until")
    assert len(await permits_for(gate, 50)) == 1


async def test_pauses_that_nobody_asked_for_grow_and_begin_anew_after_a_success(doors: Doors) -> None:
    gate = doors.gate(gate__probe_every_max_s=4.0)
    lengths = []
    for end in [end_of(BUSY)] * 5 + [OK, end_of(BUSY)]:
        await gate.tell(gate.permit(), end)
        lengths.append(round((await doors.view()).until_s, 1))
        await doors.pass_time("pause_until")
    assert lengths == pytest.approx([0.5, 1, 2, 4, 4, 0, 0.5], abs=0.2)


async def test_refusals_of_the_same_moment_are_one_pause(doors: Doors) -> None:
    gate = doors.gate()
    for _ in range(5):
        await gate.tell(gate.permit(), end_of(BUSY))
    assert (await doors.view()).until_s <= 0.5


async def test_a_clock_that_was_put_back_does_not_lengthen_a_pause(doors: Doors) -> None:
    """F40."""
    gate = doors.gate()
    await gate.tell(gate.permit(), end_of(ModelBusy("HTTP 429", 0.5)))
    await doors.pass_time("pause_until", ms=-3_600_000)
    assert await soon(gate.admit(gate.permit()))


async def test_throttling_without_a_success_stops_the_fleet_and_says_since_when(
    doors: Doors, told: list[MutableMapping[str, Any]]
) -> None:
    gate = doors.gate(gate__throttled_max_s=60.0)
    await gate.tell(gate.permit(), end_of(BUSY))
    await doors.pass_time("throttled_since", "pause_until", ms=61_000)
    assert await gate.tell(gate.permit(), end_of(BUSY)) == ("open", "open")
    view = await doors.view()
    assert (view.state, view.says) == ("throttled", "model_busy: HTTP 503")
    assert 60 < view.since_s < 70
    assert [row["event"] for row in told] == ["gate.paused", "model.away"]


# -- the breaker ------------------------------------------------------------------------------------------------------


async def opened(gate: Gate) -> None:
    """Let enough calls fail, one after the other."""
    states = [(await gate.tell(gate.permit(), LOST)).state for _ in range(3)]
    assert states == ["closed", "closed", "open"]


async def test_failures_in_a_row_of_the_whole_fleet_open_the_breaker(doors: Doors) -> None:
    """F46: nobody gets through then, nor reads."""
    gates = [doors.gate(f"here:w{n}:a", gate__failures_max=3) for n in range(3)]
    doors.model_says = LOST_MODEL
    assert [(await gate.tell(gate.permit(), LOST)).state for gate in gates] == ["closed", "closed", "open"]
    assert await is_held_back(gates[0])
    reading = asyncio.create_task(placed(gates[1], 5))
    await eventually_async(lambda: gates[1].away)
    assert not reading.done()
    reading.cancel()
    assert (await doors.view()).state == "away"


LOST_MODEL = ModelAway("model_unreachable", "refused")


async def test_a_reader_that_is_told_to_probe_does_so_while_it_waits(doors: Doors) -> None:
    """Until then it has nothing in hand, and may say so: a probe lasts as long as a call."""
    gate = doors.gate(gate__failures_max=1)
    await gate.tell(gate.permit(), LOST)
    await doors.pass_time("probe_at")
    assert await soon(gate.places(2)) == Places(0)
    assert doors.probes == 0
    await soon(gate.refusal_over())
    assert doors.probes == 1
    assert (await soon(gate.places(2))).calls == 1


async def test_a_success_in_between_keeps_the_breaker_closed(doors: Doors) -> None:
    gate = doors.gate(gate__failures_max=3)
    states = [(await gate.tell(gate.permit(), end)).state for end in (LOST, LOST, OK, LOST, LOST)]
    assert states == ["closed"] * 5


async def test_a_missing_model_opens_the_breaker_at_once_and_says_how_to_get_it(
    doors: Doors, told: list[MutableMapping[str, Any]]
) -> None:
    gate = doors.gate()
    assert await gate.tell(gate.permit(), end_of(MISSING)) == ("open", "open")
    view = await doors.view()
    assert (view.state, view.says) == ("misconfigured", "model_missing: get it with: ollama pull tiny")
    (alarm,) = [row for row in told if row["event"] == "model.away"]
    assert alarm["log_level"] == "error"
    assert (alarm["reason"], alarm["detail"]) == ("model_missing", "get it with: ollama pull tiny")


async def test_one_probe_at_a_time_finds_the_model_back(doors: Doors, told: list[MutableMapping[str, Any]]) -> None:
    """F46: half-open. All ask at once; one probes; and then they go one by one."""
    gates = [doors.gate(f"here:w{n}:a", gate__failures_max=3) for n in range(4)]
    await opened(gates[0])
    assert doors.probes == 0
    await doors.pass_time("probe_at")
    permits = [gate.permit() for gate in gates]
    calls = [asyncio.create_task(gate.admit(permit)) for gate, permit in zip(gates, permits, strict=True)]
    done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == 1
    while waiting:
        for call in done:
            number = calls.index(call)
            await gates[number].tell(permits[number], OK)
        done, waiting = await soon(asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED))
    assert doors.probes == 1
    assert (await doors.view()).state == "closed"
    assert [row["event"] for row in told if row["event"] != "gate.probing"] == ["model.away", "model.back"]


async def test_a_prober_that_the_answer_has_not_reached_makes_way(doors: Doors) -> None:
    gate = doors.gate(gate__failures_max=3)
    await opened(gate)
    await doors.pass_time("probe_at")
    courier = gate._courier = LossyCourier(doors.redis)
    courier.loses = True
    with pytest.raises(RedisTimeoutError):
        await gate.is_passable()
    assert await soon(gate.is_passable())
    assert doors.probes == 1


async def test_calls_from_before_a_pause_neither_pause_nor_open_again(doors: Doors) -> None:
    """They are as old news as what they tell of."""
    gate = doors.gate(gate__failures_max=1)
    refused, late, lost = gate.take(await soon(placed(gate, 6)), keep=False)[:3]
    await gate.tell(refused, end_of(ModelBusy("HTTP 429", 30.0)))
    await doors.pass_time("pause_until")
    for permit, end in ((late, end_of(BUSY)), (lost, LOST)):
        assert await gate.tell(permit, end) == ("closed", "")


async def test_the_end_of_throttling_is_told_by_the_first_success_after_it(
    doors: Doors, told: list[MutableMapping[str, Any]]
) -> None:
    gate = doors.gate()
    refused, before, *others = gate.take(await soon(placed(gate, 4)), keep=False)
    gate.give_back(others)
    await gate.tell(refused, end_of(ModelBusy("HTTP 429", 30.0)))
    await gate.tell(before, OK)
    assert (await doors.view()).state == "paused"
    await doors.pass_time("pause_until")
    (after,) = await permits_for(gate, 1)
    await gate.tell(after, OK)
    assert [row["event"] for row in told] == ["gate.paused", "gate.resumed"]


async def test_a_probe_that_fails_puts_the_next_one_off_for_ever_longer(doors: Doors) -> None:
    gate = doors.gate(gate__failures_max=3, gate__probe_every_max_s=4.0)
    await opened(gate)
    doors.model_says = LOST_MODEL
    waits = []
    for probe in range(1, 6):
        await doors.pass_time("probe_at")
        waiting = asyncio.create_task(gate.admit(gate.permit()))
        await eventually_async(lambda probe=probe: doors.probes == probe)  # type: ignore[misc]
        await eventually_async(lambda: _is_without_prober(doors))
        waiting.cancel()
        waits.append(round((await doors.view()).until_s, 1))
    assert waits == pytest.approx([1, 2, 4, 4, 4], abs=0.3)


async def _is_without_prober(doors: Doors) -> bool:
    return not await doors.redis.hexists(doors.keys.gate, "prober")


@pytest.mark.parametrize("way", ["by its lease", "by the janitor"])
async def test_a_prober_that_died_makes_way_for_another(doors: Doors, way: str) -> None:
    dead, living = doors.gate(gate__failures_max=3), doors.gate("here:w2:b", gate__failures_max=3)
    await opened(dead)
    await doors.pass_time("probe_at")
    dead.probe = asyncio.Event().wait  # type: ignore[assignment]
    stuck = asyncio.create_task(dead.admit(dead.permit()))
    await eventually_async(lambda: doors.redis.hexists(doors.keys.gate, "prober"))
    assert await is_held_back(living)
    await (_expired(doors) if way == "by its lease" else _evicted(doors))
    assert await soon(living.admit(living.permit()))
    assert doors.probes == 1
    stuck.cancel()
    await asyncio.wait({stuck})


async def _expired(doors: Doors) -> None:
    await doors.pass_time("prober_until")
    for permit_id in await doors.permits():
        await doors.redis.zadd(doors.keys.permits, {permit_id: 1}, xx=True)


async def _evicted(doors: Doors) -> None:
    evict = Courier(doors.redis).script("evict")
    assert await evict(keys=[doors.keys.gate, doors.keys.permits], args=["here:w1:a"]) == 1


async def test_a_stop_wakes_whoever_waits_at_the_gate(doors: Doors) -> None:
    gate = doors.gate()
    await gate.tell(gate.permit(), end_of(ModelBusy("HTTP 429", 300.0)))
    waiting = [asyncio.create_task(gate.admit(gate.permit())), asyncio.create_task(placed(gate, 3))]
    await eventually_async(lambda: gate.away)
    doors.stop.request()
    assert await soon(asyncio.gather(*waiting)) == [False, 0]


async def test_a_call_that_was_ended_by_us_says_nothing_about_the_model(doors: Doors) -> None:
    gate = doors.gate(gate__failures_max=1)
    for end in (VOID, UNUSED, end_of(BadAnswer("invalid_answer", "no JSON"))):
        assert (await gate.tell(gate.permit(), end)).state == "closed"
    assert (await doors.view()).calls["ok"] == 1


# -- the limit --------------------------------------------------------------------------------------------------------


class Model:
    """A model that works on so many calls at once, a second on each, as calls see it that keep it at its limit.

    Of the work it leaves a share out of what it accounts for.
    """

    def __init__(self, doors: Doors, slots: int, unaccounted: float = 0.0) -> None:
        self._doors = doors
        self._slots = slots
        self.unaccounted = unaccounted
        self._gate = doors.gate(model__in_flight_max="auto", model__concurrency=64)
        self.limits: list[int] = []

    async def round(self) -> None:
        """Make as many calls at once as may be, and note the limit."""
        limit = (await self._doors.view(model__in_flight_max="auto")).permits_max
        self.limits.append(limit)
        places: list[Permit] = []
        while len(places) < limit:
            places += await permits_for(self._gate, limit)
        await self._let_them_take_their_time()
        wall_s = max(1.0, limit / self._slots)
        for permit in places:
            self._gate.leave(permit, End("ok", wall_s, wall_s - 1.0 + self.unaccounted))
        await self._gate.tell(self._gate.permit(), UNUSED)

    async def _let_them_take_their_time(self) -> None:
        """Let the last calls before have ended long ago, as they would, had these been made one after the other."""
        await self._doors.redis.hdel(self._doors.keys.gate, "left_us")


@pytest.mark.parametrize("slots", [1, 4, 16, 64])
async def test_the_limit_settles_where_a_few_calls_wait_and_stays_there(doors: Doors, race: Race, slots: int) -> None:
    """One for a model of few slots; more for one of many, which would stand idle between one batch and the next."""
    await race.add()  # and nobody reads it: there is always more to do
    model = Model(doors, slots)
    for _ in range(60):
        await model.round()
    settled = model.limits[30:]
    assert min(settled) >= slots
    assert max(settled) <= 1.25 * slots + 1
    assert max(settled) - min(settled) <= 1


@pytest.mark.parametrize("unaccounted", [0.12, 0.2, 0.4])
@pytest.mark.parametrize("slots", [1, 4, 16, 64])
async def test_work_that_the_model_does_not_account_for_is_not_waiting(
    doors: Doors, race: Race, slots: int, unaccounted: float
) -> None:
    """The limit still reaches the slots, and a real queue on top still stops it."""
    await race.add()
    model = Model(doors, slots, unaccounted)
    for _ in range(60):
        await model.round()
    settled = model.limits[30:]
    assert min(settled) >= slots
    assert max(settled) <= 1.25 * slots + 1
    assert max(settled) - min(settled) <= 1


async def test_a_model_is_given_less_but_rarely_to_find_what_it_does_not_account_for(doors: Doors, race: Race) -> None:
    await race.add()
    model = Model(doors, 16, 0.2)
    for _ in range(300):
        await model.round()
    less = sum(16 - limit for limit in model.limits[30:] if limit < 16)
    assert 0 < less <= 0.02 * 16 * 270


async def test_a_model_that_begins_to_account_for_less_gets_its_calls_back(doors: Doors, race: Race) -> None:
    """What it accounted for before was learnt as all there is; that is measured anew after a while."""
    await race.add()
    model = Model(doors, 16)
    for _ in range(40):
        await model.round()
    model.unaccounted = 0.3
    for _ in range(360):
        await model.round()
    assert min(model.limits[40:200]) < 16
    assert sorted(model.limits[300:])[len(model.limits[300:]) // 10] >= 16
    assert max(model.limits[200:]) <= 21


async def test_a_refusal_while_the_base_is_measured_cuts_the_whole_limit(doors: Doors) -> None:
    gate = doors.gate(model__in_flight_max="auto")
    await doors.redis.hset(doors.keys.gate, mapping={"limit": 4, "whole": 16, "generation": 0})
    (permit,) = await permits_for(gate, 1)
    await gate.tell(permit, end_of(BUSY))
    assert (await doors.view(model__in_flight_max="auto")).permits_max == 12


async def test_a_model_that_answers_at_once_gets_as_many_calls_as_the_workers_can_make(
    doors: Doors, race: Race
) -> None:
    """Permits are held far longer than such a call lasts, so that the calls never seem to be many."""
    await race.add()
    gate = doors.gate(model__in_flight_max="auto")
    for _ in range(200):
        places = await permits_for(gate, 20)
        await asyncio.gather(*(gate.tell(permit, End("ok", 0.0001, 0.0)) for permit in places))
    assert 40 <= (await doors.view(model__in_flight_max="auto")).permits_max <= 80


async def test_idle_readers_who_want_more_raise_no_limit(doors: Doors, race: Race) -> None:
    """Some are refused all the time where there are more of them than permits."""
    await race.delivered("other:w1:a")
    await doors.redis.zadd(doors.keys.permits, {"@opened": -1})
    reader, other = doors.gate(model__in_flight_max="auto"), doors.gate("here:w2:b", model__in_flight_max="auto")
    refused = asyncio.create_task(placed(other, 8))
    for _ in range(40):
        places = [*await permits_for(reader, 8), *await permits_for(reader, 8)]
        await asyncio.gather(*(reader.tell(permit, OK) for permit in places))
    refused.cancel()
    assert (await doors.view(model__in_flight_max="auto")).permits_max == 4


@pytest.mark.parametrize("error", [BUSY, BadAnswer("timeout", "no answer", strikes=True)], ids=["busy", "late"])
async def test_a_refusal_or_a_time_out_cuts_the_limit_once(doors: Doors, error: Any) -> None:
    gate = doors.gate(model__in_flight_max="auto")
    await doors.redis.hset(doors.keys.gate, mapping={"limit": 16, "generation": 0})
    places = await permits_for(gate, 4)
    for permit in places:
        await gate.tell(permit, end_of(error))
    assert (await doors.view(model__in_flight_max="auto")).permits_max == 12


async def test_an_idle_fleet_does_not_raise_its_limit(doors: Doors) -> None:
    gate = doors.gate(model__in_flight_max="auto")
    for _ in range(40):
        (permit, *others) = await permits_for(gate, 4)
        gate.give_back(others)
        await gate.tell(permit, End("ok", 0.0001, 0.0))
    assert (await doors.view(model__in_flight_max="auto")).permits_max == 4
