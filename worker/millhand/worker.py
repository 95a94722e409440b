"""The worker: read, ask, judge, settle, tell."""

import asyncio
import os
import random
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from millhand import event as events
from millhand.address import redis_address
from millhand.asking import Answered, Asker
from millhand.cache import Answers
from millhand.calling import Caller
from millhand.config import Config
from millhand.courier import Courier
from millhand.enriching import Enricher
from millhand.errors import Malformed, ModelAway
from millhand.gate import Gate, Places
from millhand.keys import Keys
from millhand.known import Known
from millhand.lease import Leases
from millhand.log import logger
from millhand.model.ollama import OllamaModel
from millhand.permit import Permit, end_of
from millhand.process import expect_batches, run_child
from millhand.pulse import PAUSED, Birth, Pulse
from millhand.remedy import remedy_for
from millhand.repetition import Repetitions
from millhand.settle import Finished, Settler, finish_surely, in_runs, settle_surely
from millhand.sharing import Party, attending
from millhand.stop import Stop
from millhand.stream import RedisError, Stream, connect, is_stale, require_streams
from millhand.tasks.catalogue import chosen_tasks
from millhand.tasks.task import Questions
from millhand.telling import Teller
from millhand.verdict import Delivery, Failed, Interrupted, Outcome, Policy, Release, Repeated, Retry, Verdict, judge

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

REDIS_PAUSE_MIN_S = 0.2
REDIS_PAUSE_MAX_S = 1.0
PROBE_TEXT = "This is a test."  # what a model that was away is asked, to see whether it is back
MEET_PAUSE_S = 0.5  # between two looks for a model that is not there
RELEASE_GRACE_S = 1.0  # after the drain deadline, for what was interrupted to be handed back


def work(config: Config, consumer: str, birth: Birth) -> None:
    """Be a worker process until told to stop."""
    expect_batches()

    async def life(stop: Stop, pulse: Pulse) -> None:
        worker = Worker(config, consumer, stop, logger())
        pulse.stats, pulse.hear = worker.stats, worker.hear
        await worker.run(pulse)

    run_child(birth, config, life)


class Worker:
    """One consumer of the group. Create it inside its process and event loop."""

    def __init__(self, config: Config, consumer: str, stop: Stop, log: "FilteringBoundLogger") -> None:
        keys = Keys.of(config)
        self._config = config
        self._consumer = consumer
        self._stop = stop
        self._log = log
        delivery = config.delivery
        self._policy = Policy(
            delivery.retries, delivery.retry_backoff_s, delivery.retry_backoff_max_s, delivery.age_max_s
        )
        address = redis_address(config.redis)
        self._redis = connect(address, connections_max=config.model.concurrency + 4)
        self._stream = Stream(address, keys, consumer, delivery.deliveries_max)
        self._repetitions = Repetitions(self._redis, keys, config.input.dedupe_event_id_s, log)
        courier = Courier(self._redis)
        self._settler = Settler(self._redis, keys, courier)
        self._leases = Leases(self._redis, keys, consumer, config.delivery.lease_s, log)
        self._model = OllamaModel(config.model)
        self._gate = Gate(courier, config, consumer, stop, log)
        questions = Questions(chosen_tasks(config))
        self._caller = Caller(self._model, self._gate, questions.prompt(PROBE_TEXT), log)
        answers = Answers(courier, keys, config, questions, log)
        self._enricher = Enricher(config.model.name, consumer, lambda: self._caller.digest)
        self._teller = Teller(self._stream.age_s, log)
        self._known = Known(config, answers, self._enricher, self._leases, stop)
        self._asker = Asker(config, questions, self._caller, answers, self._stream.age_s)
        self._slots = config.model.concurrency  # that are free: for what shares a call, until it has been asked about
        asked_about_max = config.model.concurrency * config.model.events_per_call
        self._in_hand_max = 2 * asked_about_max  # as many again may be on their way out
        self._slot_free = asyncio.Event()
        self._slot_free.set()
        self._walks: set[asyncio.Task[None]] = set()
        self._finishing: set[asyncio.Task[None]] = set()  # those of them that write out known events
        self._due_turn = False
        self._resumed = asyncio.Event()  # unset while an operator's pause lasts
        self._resumed.set()
        self._taking = False  # a read is under way, or what it brought is not in hand yet
        self._redis_away: str | None = None  # why nothing is read

    async def run(self, pulse: Pulse) -> None:
        """Work until a stop is requested, then drain."""
        self._log.info("worker.started", consumer=self._consumer, pid=os.getpid())
        renewing = asyncio.create_task(self._leases.run())
        holding = asyncio.create_task(self._gate.run())
        for upkeep in (renewing, holding):
            upkeep.add_done_callback(self._upkeep_ended)
        if await self._open():
            pulse.send({"ready": True})
            self._log.info("worker.ready", consumer=self._consumer, slots=self._config.model.concurrency)
        while not self._stop.requested:
            await self._until_resumed()
            await self._stop.or_result(self._slot_free.wait())
            await self._stop.or_result(self._few_in_hand())
            if self._slots and self._may_take():
                await self._take()
        await self._drain()
        renewing.cancel()
        holding.cancel()
        await self._close()
        self._log.info("worker.stopped", **self._teller.counts)

    def _upkeep_ended(self, upkeep: "asyncio.Task[None]") -> None:
        """Stop if it fails: leases and permits would run out while this worker reads on."""
        if not upkeep.cancelled() and (error := upkeep.exception()):
            self._log.critical("worker.upkeep_failed", exc_info=error)
            self._stop.request()

    def hear(self, message: dict[str, Any]) -> None:
        """Take in what the supervisor says."""
        if "pause" in message:
            self._resumed.clear() if message["pause"] else self._resumed.set()

    def stats(self) -> dict[str, Any]:
        """Return what the worker says of itself with each heartbeat."""
        waits_for = self._gate.away
        refusals = [self._redis_away, self._repetitions.refused, *self._settler.resending.values()]
        refused = next((error for error in refusals if error is not None), None)
        if refused is not None:
            waits_for = f"redis: {refused}"
        if not self._resumed.is_set() and not self._taking:
            waits_for = PAUSED  # from here on nothing more comes into its hands
        at_the_gate = {"at_the_gate": list(self._caller.waiting)} if self._caller.waiting else {}
        in_hand = max(len(self._leases), len(self._walks))  # a walk that has just begun has no lease yet
        return {
            "in_hand": in_hand,
            "oldest_s": round(self._leases.oldest_s, 1),
            "waits_for": waits_for,
            "asking": self._caller.asking,
            "counts": {
                "event_s": self._teller.ages.packed(),
                "model_s": self._caller.times.packed(),
                "tokens": self._caller.tokens,
            },
            **at_the_gate,
            **self._teller.counts,
        }

    async def _open(self) -> bool:
        """Wait for Redis and the model. False if a stop comes first."""
        while not self._stop.requested:
            try:
                await self._stop.or_result(require_streams(self._redis))
                break
            except RedisError as error:
                await self._wait_for_redis(error)
        while not self._stop.requested:
            try:
                if await self._gate.is_passable() and await self._stop.or_result(self._met_model()):
                    return True
            except RedisError as error:
                await self._wait_for_redis(error)
        return False

    async def _met_model(self) -> bool:
        """Learn the model's digest; tell the gate if it is not there."""
        try:
            await self._caller.meet_model()
        except ModelAway as away:
            await self._gate.tell(self._gate.permit(), end_of(away))
            await self._stop.sleep(MEET_PAUSE_S * random.random())  # noqa: S311 - jitter, no secret
            return False
        return True

    # -- read -------------------------------------------------------------------------------------------------------

    async def _until_resumed(self) -> None:
        """Wait while an operator's pause lasts, and leave the model to others meanwhile. Ends with a stop."""
        if not self._resumed.is_set():
            self._gate.give_back_places()
            await self._stop.or_result(self._resumed.wait())

    async def _few_in_hand(self) -> None:
        """Wait until little is on its way out: one batch of known events, of others as many as may be asked about.

        Where nothing can be written out, this is what ends reading.
        """
        while len(self._finishing) > 1 or len(self._walks) >= self._in_hand_max:
            await asyncio.wait(self._walks, return_when=asyncio.FIRST_COMPLETED)

    def _may_take(self) -> bool:
        return self._resumed.is_set() and not self._stop.requested

    async def _take(self) -> None:
        """Take events into hand, as many as the model may be asked about; or wait until it is time to ask again."""
        self._taking = True
        places, deliveries = await self._next(self._slots)
        known, others = await self._known.among(deliveries)
        calls = self._calls(others)
        calls, beyond = calls[:places], calls[places:]
        self._start_finishing(known)
        self._start_handing_back(beyond)
        await self._take_up(calls, self._gate.take(len(calls), keep=bool(known or others)))
        self._taking = False
        if not places and self._redis_away is None:
            await self._gate.refusal_over()

    async def _next(self, slots: int) -> tuple[int, list[Delivery]]:
        """Return how many calls may be made, up to so many, and deliveries for them.

        These are by turns what is due, if so, and what is new: neither starves. What is new comes in one step with the
        places where it is there already, and else is waited for.
        """
        due_turn = not self._due_turn and self._stream.may_take_due()
        each, ahead = self._config.model.events_per_call, self._known.ahead
        try:
            reading = None if due_turn else self._stream.reading(slots, each, ahead)
            places, entries = await self._stop.by_deadline(self._gate.places(slots, reading)) or Places(0)
            deliveries = self._stream.deliveries(entries)
            if places and not deliveries and self._may_take():
                awaited = self._stream.take_due(places) if due_turn else self._stream.read(places * each + ahead)
                deliveries = await self._stop.by_deadline(awaited) or []
        except RedisError as error:
            self._known.read_failed()
            self._stream.read_failed()
            await self._wait_for_redis(error)
            return 0, []
        if places:
            self._due_turn = due_turn
        if self._redis_away is not None and not self._stop.requested:
            self._redis_away = None
            self._log.info("redis.back")
        self._teller.delivered(deliveries)
        return places, deliveries

    async def _wait_for_redis(self, error: BaseException) -> None:
        """Tell why Redis does not do as asked, once, and give it a moment. The janitor puts a vanished group back."""
        if self._redis_away is None:
            self._log.warning("redis.waiting", error=str(error), remedy=remedy_for(error))
        self._redis_away = str(error)
        if is_stale(error):
            await self._stream.reconnect()
        await self._stop.sleep(random.uniform(REDIS_PAUSE_MIN_S, REDIS_PAUSE_MAX_S))  # noqa: S311 - jitter, no secret

    def _calls(self, deliveries: list[Delivery]) -> list[list[Delivery]]:
        """Put together what is to share a call: what was read together. A retry is asked about alone."""
        each = self._config.model.events_per_call
        alone = [[delivery] for delivery in deliveries if delivery.attempts]
        fresh = [delivery for delivery in deliveries if not delivery.attempts]
        return [*alone, *(fresh[first : first + each] for first in range(0, len(fresh), each))]

    async def _take_up(self, calls: list[list[Delivery]], permits: list[Permit]) -> None:
        """Start on deliveries. A suspect comes alone and is worked on alone.

        So if it kills this worker too, nothing else was in hand that could be buried for it.
        """
        deliveries = [delivery for call in calls for delivery in call]
        suspect = deliveries[0] if deliveries and self._stream.is_suspect(deliveries[0]) else None
        if suspect:
            self._gate.give_back(permits)  # what is in hand may need them
            self._gate.give_back_places()
            with self._leases.hold(suspect):
                await self._in_hand_ended()
        for call, permit in zip(calls, permits, strict=True):
            self._start(call, permit)
        if suspect:
            await self._in_hand_ended()
        elif calls:
            await asyncio.sleep(0)  # for them to be made before anything more is read

    async def _in_hand_ended(self) -> None:
        """Wait until nothing is in hand, or a stop is requested."""
        if self._walks:
            await self._stop.or_result(asyncio.wait(set(self._walks)))

    # -- walk -------------------------------------------------------------------------------------------------------

    def _start(self, deliveries: list[Delivery], permit: Permit) -> None:
        """Start on what shares a call, and a slot until the last of it has been asked about."""
        left = len(deliveries)
        self._slots -= 1
        if not self._slots:
            self._slot_free.clear()

        def asked() -> None:
            nonlocal left
            left -= 1
            if not left:
                self._gate.give_back([permit])
                self._slots += 1
                self._slot_free.set()

        party = self._asker.party(len(deliveries), permit) if len(deliveries) > 1 else None
        for delivery in deliveries:
            own = self._gate.permit() if party else permit
            self._begin(self._walk(delivery, own, party, asked), delivery)

    def _start_finishing(self, known: Finished) -> None:
        """Start on writing out what has a known answer; it needs no slot."""
        if known:
            finishing = self._begin(self._finish(known), known[0][0])
            self._finishing.add(finishing)
            finishing.add_done_callback(self._finishing.discard)

    def _start_handing_back(self, calls: list[list[Delivery]]) -> None:
        """Let others have what was read beyond the places and is not known. Nothing is spent."""
        for delivery in (delivery for call in calls for delivery in call):
            self._begin(self._hand_back(delivery), delivery)

    def _begin(self, walk: Coroutine[Any, Any, None], delivery: Delivery) -> "asyncio.Task[None]":
        """Begin a walk; `delivery` is the one to name should it fail."""
        task = asyncio.create_task(walk)
        self._walks.add(task)
        task.add_done_callback(partial(self._ended, delivery=delivery))
        return task

    def _ended(self, walk: asyncio.Task[None], delivery: Delivery) -> None:
        self._walks.discard(walk)
        if not walk.cancelled() and (error := walk.exception()):
            self._log.error("event.walk_failed", exc_info=error, **delivery.labels())

    async def _walk(self, delivery: Delivery, permit: Permit, party: Party | None, asked: Callable[[], None]) -> None:
        """Take one delivery from its fields to its verdict."""
        with self._leases.hold(delivery) as lease:
            try:
                outcome = await lease.unless_interrupted(self._attempt(delivery, permit, party))
            finally:
                self._gate.give_back([permit])
                asked()
            if outcome is None:
                if lease.lost:
                    return
                outcome = Interrupted()
            verdict = judge(delivery, outcome, self._policy, random.random())  # noqa: S311 - jitter, no secret
            await self._settle(delivery, verdict)

    async def _hand_back(self, delivery: Delivery) -> None:
        with self._leases.hold(delivery):
            await self._settle(delivery, Release())

    async def _settle(self, delivery: Delivery, verdict: Verdict) -> None:
        settled = await settle_surely(self._settler, delivery, verdict, self._log)
        if isinstance(verdict, Retry | Release):
            self._stream.expect_due(verdict.delay_s if isinstance(verdict, Retry) else 0.0)
        self._teller.settled(delivery, verdict, settled)

    async def _finish(self, known: Finished) -> None:
        with self._leases.hold_all([delivery for delivery, _ in known]):
            for together in in_runs(known):
                self._teller.finished(together, await finish_surely(self._settler, together, self._log))

    async def _attempt(self, delivery: Delivery, permit: Permit, party: Party | None) -> Outcome:
        """Decode, ask and check. Waits while the model is away; that spends no attempt."""
        started_s = time.monotonic()
        with attending(party) as seat:
            try:
                event = events.decode(delivery.fields, self._config.enrich)
            except Malformed as error:
                return Failed(error)
            others_may_go_on = partial(self._gate.give_back, [permit])
            if first := await self._repetitions.first(delivery, others_may_go_on):
                return Repeated(first)
            asked = await self._asker.ask(delivery, event.text, permit, seat)
        if isinstance(asked, Answered):
            return self._enricher.enriched(delivery, event, asked, time.monotonic() - started_s)
        return asked

    # -- stop -------------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Let what is in hand finish until the deadline; hand the rest back."""
        self._gate.give_back_places()
        self._log.info("worker.draining", in_hand=len(self._walks), within_s=round(self._stop.remaining_s(), 1))
        deadline = asyncio.create_task(self._stop.deadline())
        while self._walks and not deadline.done():
            await asyncio.wait({deadline, *self._walks}, return_when=asyncio.FIRST_COMPLETED)
        deadline.cancel()
        self._leases.interrupt_all()
        if self._walks:
            await asyncio.wait(self._walks, timeout=RELEASE_GRACE_S)
        for walk in self._walks:
            walk.cancel()

    async def _close(self) -> None:
        await self._gate.close()
        await self._model.close()
        await self._stream.close()
        await self._redis.aclose()
