"""The fast lane: events whose answers are known leave together, without a call and without a walk of their own."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from millhand import event as events
from millhand.asking import Answered
from millhand.cache import Answers
from millhand.config import Config
from millhand.enriching import Enricher, now
from millhand.errors import Malformed
from millhand.lease import Leases
from millhand.settle import Finished
from millhand.stop import Stop
from millhand.tasks.task import enrichment_hash
from millhand.verdict import Delivery, Enriched

READ_AHEAD_MAX = 512  # events read beyond the places: the server is held up by a run of so many for some 2 ms
READ_AHEAD_BYTES_MAX = 2 << 20  # … of them, by the mean size of those found last
IN_HAND_MAX = 1024  # beyond which nothing is read ahead
REMEMBERED_MAX = 1000  # answers that are not read anew each time they are found


class Fresh(NamedTuple):
    """An event that nobody has asked about yet."""

    delivery: Delivery
    event: events.Event


class Remembered(NamedTuple):
    """An answer as it was kept, read once, and the hash of its results."""

    answered: Answered
    hash: str


class Known:
    """Finds the events whose answers are kept, many at a time."""

    def __init__(self, config: Config, answers: Answers, enricher: Enricher, leases: Leases, stop: Stop) -> None:
        self._config = config
        self._answers = answers
        self._enricher = enricher
        self._leases = leases
        self._stop = stop
        self._remembered: dict[bytes, Remembered] = {}
        may_return = config.delivery.deliveries_max > 1  # else all that is in the hands of a worker that dies is buried
        self._ahead_max = READ_AHEAD_MAX if may_return else 0
        self._likely = 0

    @property
    def ahead(self) -> int:
        """How many events may be read beyond those that there are places for.

        What is read there and not known has to be handed back. So it is twice as many as were last known without an
        exception, and none after any exception.
        """
        return max(0, min(self._likely, IN_HAND_MAX - len(self._leases)))

    def read_failed(self) -> None:
        """Read nothing ahead next time: the reply may have been too much, and what was in it is in nobody's hands."""
        self._likely = 0

    async def among(self, deliveries: list[Delivery]) -> tuple[Finished, list[Delivery]]:
        """Return what has a known answer, ready to be written out, and the rest in its order.

        What is not fresh and sound, or may repeat another's event_id, is left to its walk; so is everything where Redis
        does not say what is kept, or a stop allows no more. Of the rest, what was lost to other hands is left out.
        """
        if not deliveries or not self._answers.are_kept:
            return (), deliveries
        started_s = time.monotonic()
        with self._leases.hold_all(deliveries) as bundle:
            fresh = [one for one in map(self._fresh, deliveries) if one]
            texts = [one.event.text for one in fresh]
            stored = await self._stop.by_deadline(self._answers.find_all(texts, self._enricher.digest))
        known = self._enriched(fresh, stored, started_s) if stored else []
        settled = {delivery.id for delivery, _ in known}
        rest = [one for one in deliveries if one.id not in settled and one.id not in bundle.lost]
        self._learn(known, rest)
        return known, rest

    def _fresh(self, delivery: Delivery) -> Fresh | None:
        if delivery.attempts or delivery.count > 1:
            return None
        if self._config.input.dedupe_event_id_s and events.EVENT_ID in delivery.fields:
            return None
        try:
            return Fresh(delivery, events.decode(delivery.fields, self._config.enrich))
        except Malformed:
            return None

    def _enriched(self, fresh: Sequence[Fresh], stored: Sequence[bytes | None], started_s: float) -> Finished:
        """Put the answers that were found into their events. What is equal in all that share an answer is made once."""
        total_s, at = time.monotonic() - started_s, now()
        made: dict[bytes, tuple[msgspec.Raw, str] | None] = {}
        known = []
        for (delivery, event), answer in zip(fresh, stored, strict=True):
            if answer is None:
                continue
            if answer not in made:
                made[answer] = self._made(answer, total_s, at)
            if one := made[answer]:
                enriched = Enriched(events.merge(event, one[0]), one[1], events.passed_on(delivery.fields))
                known.append((delivery, enriched))
        return known

    def _made(self, stored: bytes, total_s: float, at: str) -> tuple[msgspec.Raw, str] | None:
        remembered = self._remembered.get(stored) or self._read(stored)
        if remembered is None:
            return None
        return self._enricher.enrichment(remembered.answered, total_s, at), remembered.hash

    def _read(self, stored: bytes) -> Remembered | None:
        valid = self._answers.valid(stored)
        if valid is None:
            return None
        answer, results = valid
        answered = Answered(results, answer, 1, self._answers.prompt_hash, {"cached": True})
        if len(self._remembered) >= REMEMBERED_MAX:
            self._remembered.clear()
        self._remembered[stored] = remembered = Remembered(answered, enrichment_hash(results))
        return remembered

    def _learn(self, known: Finished, rest: Sequence[Delivery]) -> None:
        if any(not delivery.attempts for delivery in rest):
            self._likely = 0
        elif known:
            bytes_mean = sum(len(enriched.data) for _, enriched in known) // len(known)
            self._likely = min(2 * len(known), self._ahead_max, READ_AHEAD_BYTES_MAX // max(1, bytes_mean))
