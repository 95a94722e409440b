"""What is written out: the event with the answer's results, and with how they came about."""

from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from millhand import event as events
from millhand.asking import Answered
from millhand.tasks.task import META, enrichment_hash
from millhand.verdict import Delivery, Enriched


class Enricher:
    """Puts answers into events, for one worker."""

    def __init__(self, model_name: str, worker: str, digest: Callable[[], str]) -> None:
        self._model_name = model_name
        self._worker = worker
        self._digest = digest

    @property
    def digest(self) -> str:
        """Which weights the model has, as it last said."""
        return self._digest()

    def enriched(self, delivery: Delivery, event: events.Event, answered: Answered, total_s: float) -> Enriched:
        """Return what is written out of one event, on which so much time was spent."""
        enrichment = self.enrichment(answered, total_s, now())
        return Enriched(
            events.merge(event, enrichment), enrichment_hash(answered.results), events.passed_on(delivery.fields)
        )

    def enrichment(self, answered: Answered, total_s: float, at: str) -> msgspec.Raw:
        """Return the results and their `meta` as JSON: the same for all events that have this answer at this time."""
        answer = answered.answer
        meta = {
            "model": self._model_name,
            "model_digest": self.digest,
            "prompt_hash": answered.prompt_hash,
            "attempts": answered.attempt,
            "tokens_in": answer.tokens_in,
            "tokens_out": answer.tokens_out,
            "model_s": round(answer.model_s, 6),
            "total_s": round(total_s, 6),
            "worker": self._worker,
            "at": at,
            **answered.marks,
        }
        return msgspec.Raw(msgspec.json.encode({**answered.results, META: meta}))


def now() -> str:
    """Return the time as `meta` has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
