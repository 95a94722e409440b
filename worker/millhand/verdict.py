"""From an outcome to a verdict: pure, so that every branch is a unit test."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from millhand.errors import Malformed, Reasoned
from millhand.trace import traceparent_of

DOUBLINGS_MAX = 100  # as many retries as can be configured, and far from what a float can hold
HISTORY_ERRORS_MAX = 8  # of an event's attempts, as they stand in the dead letter


class Reason(StrEnum):
    """Why an event was buried: the fixed list of `failure_reason`."""

    MALFORMED = "malformed"  # no `data`, not JSON, not an object
    TOO_LARGE = "too_large"  # more bytes than enrich.event_bytes_max
    NO_TEXT = "no_text"  # nothing for the model to read
    TOO_LONG = "too_long"  # more tokens than model.num_ctx has room for
    REJECTED = "rejected"  # the model refuses this prompt
    INVALID_ANSWER = "invalid_answer"  # after all attempts: the answer breaks the schema
    ANSWER_TOO_LONG = "answer_too_long"  # after all attempts: cut off
    MODEL_ERROR = "model_error"  # after all attempts: the model server fails on this event
    TIMEOUT = "timeout"  # after all attempts: no answer in time
    CRASH_LOOP = "crash_loop"  # delivered delivery.deliveries_max times, and never settled
    EXPIRED = "expired"  # older than delivery.age_max_s before there was a record of it
    DELETED = "deleted"  # somebody deleted or trimmed it while it was pending


class Delivery(msgspec.Struct, frozen=True):
    """An event in our hands. (owner, count) is the fencing token; `history` holds the last attempts' errors."""

    id: str
    fields: Mapping[bytes, bytes]
    owner: str
    count: int
    attempts: int = 0
    history: tuple[str, ...] = ()

    @property
    def attempt(self) -> int:
        """The number of the attempt that comes next, from 1."""
        return self.attempts + 1

    @property
    def added_ms(self) -> int:
        """When the entry was added, by Redis's clock, in ms since the epoch."""
        return int(self.id.partition("-")[0])

    def labels(self, attempt: int | None = None) -> dict[str, Any]:
        """Return what every log record about it carries; `attempt` where it is not the one that comes next."""
        labels = {"id": self.id, "owner": self.owner, "count": self.count, "attempt": attempt or self.attempt}
        traceparent = traceparent_of(self.fields)
        return labels if traceparent is None else {**labels, "traceparent": traceparent}


class Enriched(msgspec.Struct, frozen=True):
    """Outcome: a valid enrichment, ready for the output stream."""

    data: bytes
    hash: str
    passed_on: Mapping[bytes, bytes] = {}


class Failed(msgspec.Struct, frozen=True):
    """Outcome: the event or the answer was no good. `spent` are the attempts before it in the same hands."""

    error: Reasoned
    spent: tuple[Reasoned, ...] = ()


class Interrupted(msgspec.Struct, frozen=True):
    """Outcome: stopped before there was one."""


class Expired(msgspec.Struct, frozen=True):
    """Outcome: too old to be asked about."""

    age_s: float


class Repeated(msgspec.Struct, frozen=True):
    """Outcome: another entry has the same event_id."""

    first: str


Outcome = Enriched | Failed | Interrupted | Expired | Repeated


class Done(msgspec.Struct, frozen=True):
    """Verdict: write it out and acknowledge."""

    enriched: Enriched


class Retry(msgspec.Struct, frozen=True):
    """Verdict: park it; one attempt more is spent."""

    delay_s: float
    attempts: int
    history: tuple[str, ...]


class Bury(msgspec.Struct, frozen=True):
    """Verdict: to the dead letters."""

    reason: Reason
    detail: str
    attempts: int = 0
    history: tuple[str, ...] = ()


class Release(msgspec.Struct, frozen=True):
    """Verdict: hand it back, nothing spent."""


class Skip(msgspec.Struct, frozen=True):
    """Verdict: acknowledge it; the record of the entry it repeats is its own."""

    first: str


Verdict = Done | Retry | Bury | Release | Skip


class Policy(msgspec.Struct, frozen=True):
    """How often an event is tried, and how far apart."""

    retries: int
    backoff_s: float
    backoff_max_s: float
    age_max_s: float


def judge(delivery: Delivery, outcome: Outcome, policy: Policy, jitter: float) -> Verdict:
    """Decide what becomes of a delivery. `jitter` in [0, 1) spreads the retries."""
    match outcome:
        case Enriched():
            return Done(outcome)
        case Interrupted():
            return Release()
        case Repeated(first):
            return Skip(first)
        case Expired(age_s):
            detail = f"{age_s:.0f} s old, delivery.age_max_s is {policy.age_max_s:g}"
            return Bury(Reason.EXPIRED, detail, delivery.attempts, delivery.history)
        case Failed():
            return _judge_failure(delivery, outcome, policy, jitter)


def _judge_failure(delivery: Delivery, failed: Failed, policy: Policy, jitter: float) -> Verdict:
    error = failed.error
    spent = failed.spent if isinstance(error, Malformed) else (*failed.spent, error)
    attempts = delivery.attempts + len(spent)
    history = (*delivery.history, *map(str, spent))[-HISTORY_ERRORS_MAX:]
    if isinstance(error, Malformed) or attempts > policy.retries:
        return Bury(Reason(error.reason), error.detail, attempts, history)
    return Retry(backoff_s(attempts, policy, jitter), attempts, history)


def backoff_s(attempt: int, policy: Policy, jitter: float) -> float:
    """Return the wait after a failed attempt: exponential, with full jitter.

    After M. Brooker, "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015).
    """
    ceiling_s = min(policy.backoff_s * 2.0 ** min(attempt - 1, DOUBLINGS_MAX), policy.backoff_max_s)
    return ceiling_s * jitter


def word_of(verdict: Verdict) -> str:
    """Return the one word for a verdict, as it stands in the log."""
    return type(verdict).__name__.lower()


def tell(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict's fields for the log. The detail may quote the event or the answer: it stays in Redis."""
    match verdict:
        case Retry():
            return {
                "in_s": round(verdict.delay_s, 3),
                "attempts": verdict.attempts,
                "reason": verdict.history[-1].partition(":")[0],
            }
        case Bury():
            return {"reason": verdict.reason.value, "attempts": verdict.attempts}
        case Skip():
            return {"repeats": verdict.first}
        case _:
            return {}
