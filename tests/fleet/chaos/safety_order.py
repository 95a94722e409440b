"""Safety, as it shows in the order of what happened to each event: invariants 6 and 8 to 10."""

import itertools
from collections import Counter
from collections.abc import Iterator

from tests.fleet.chaos.acts import STRICT, Act, token
from tests.fleet.chaos.faults import Effect
from tests.fleet.chaos.holdings import held_at_end
from tests.fleet.chaos.judgement import Finding
from tests.fleet.chaos.records import Answered, Asked, Delivered, Record, Sent, Settled
from tests.fleet.chaos.timeline import Life, Timeline, ours

BEATS_PER_LEASE = 3
GATE_SHUT_S_MAX = 15.0  # after one bad experience
LOST_CALLS_MAX = 5  # so many calls that are lost under one delivery count as one bad answer
AFTER_ALL_ATTEMPTS = {"invalid_answer", "answer_too_long", "model_error", "timeout"}

ANEW = (Effect.FORGETS, Effect.REGROUPS)
NOT_TOLD = (Effect.REDIS_AWAY, Effect.REDIS_SHAKY, Effect.FROZEN)  # a heartbeat may not arrive


def terminal_is_terminal(run: Timeline) -> Iterator[Finding]:
    """6: nobody takes up an event, or asks the model about it, later than one heartbeat after it was settled for good.

    For so long a worker whose lease is lost may not know it. Time in which it cannot be told does not count: while
    Redis is out of reach, or while the worker itself is frozen, and one heartbeat more; so an entry that a process took
    before it was frozen is excused, and no other. An event may begin again if Redis itself lost its record, or if the
    group began anew.
    """
    beat_s = run.terms.lease_s / BEATS_PER_LEASE
    for entry_id in run.stories:
        act = min((act for act in run.acts_on(entry_id) if act.ends_the_event), key=_answered_s, default=None)
        if act is None:
            continue
        for start in (*run.story(entry_id, Delivered), *run.story(entry_id, Asked)):
            calm = run.calm(act.answered_s, start.mono, NOT_TOLD, after_s=beat_s, process=start.process)
            late = sum(end_s - began_s for began_s, end_s in calm) > beat_s + run.terms.slack_s
            if late and run.is_calm(act.sent_s, start.mono, ANEW, after_s=run.terms.recovery_s):
                says = f"was taken up again {start.mono - act.answered_s:.3f} s after it was settled"
                yield Finding(says, (entry_id,), (*act.records, start))


def _answered_s(act: Act) -> float:
    return act.answered_s


def strict_fence(run: Timeline) -> Iterator[Finding]:
    """8: an event is retried, buried, released or handed back only by the (owner, count) that is current then.

    A settle is carried out somewhere between its sending and its answer, and a delivery happens before its record, so
    only what is certain counts: a worker has a record that it holds what it settles; nobody was recorded as a later
    holder before the sending; and one holding is let go of once. A delivery whose reply was lost has no record, which
    is why the janitor, who settles for others, needs none, and may do so after a worker has let go.
    """
    for entry_id, acts in run.acts.items():
        strict = [act for act in acts if act.verdict in STRICT and act.answer == "ok" and act.sent]
        deliveries = run.story(entry_id, Delivered)
        for act in strict:
            own = [one for one in deliveries if token(one) == token(act) and one.mono <= act.sent_s]
            if act.by_worker and not own:
                yield Finding("was let go of by a worker that did not hold it", (entry_id,), act.records)
            for later in _later_holders(run, act, own, deliveries):
                says = "was let go of by one that held it no longer"
                yield Finding(says, (entry_id,), (*own[-1:], later, *act.records))
        for first, second in itertools.combinations(strict, 2):
            if _is_same_holding(run, first, second, deliveries):
                yield Finding("was let go of twice", (entry_id,), (*first.records, *second.records))


def _later_holders(run: Timeline, act: Act, own: list[Delivered], deliveries: list[Delivered]) -> Iterator[Delivered]:
    """Yield the deliveries that surely came after the one that is settled, and before the settle was sent.

    A higher count is later. With the same count (a retry or a release keeps it) it is the order of the records, unless
    the janitor settles for one to whom the event may have come back since.
    """
    for other in deliveries:
        same_count = other.count == act.count and own and other.mono > own[-1].mono
        later = other.count > act.count or (same_count and (act.by_worker or not _may_have_let_go(run, other, act)))
        if (
            later
            and other.mono < act.sent_s
            and run.is_calm(other.mono, act.sent_s, ANEW, after_s=run.terms.recovery_s)
        ):
            yield other


def _may_have_let_go(run: Timeline, delivery: Delivered, before: Act) -> bool:
    """Whether a holder had sent anything to settle it when the other act was answered."""
    acts = (act for act in run.acts_on(delivery.id) if token(act) == token(delivery))
    return any(delivery.mono <= act.sent_s <= before.answered_s for act in acts)


def _is_same_holding(run: Timeline, first: Act, second: Act, deliveries: list[Delivered]) -> bool:
    """Whether two acts let go of the same (owner, count), and it was not delivered to it again in between."""
    if token(first) != token(second):
        return False
    if first.by_worker and not second.by_worker:
        return False  # delivered again in a reply that was lost
    again = any(token(one) == token(first) and first.sent_s <= one.mono <= second.sent_s for one in deliveries)
    return not again and run.is_calm(first.sent_s, second.sent_s, ANEW, after_s=run.terms.recovery_s)


def attempts(run: Timeline) -> Iterator[Finding]:
    """9: an event gets 1 + retries attempts, each spent by a bad answer of the model and by nothing else.

    A bad answer is spent when its settle was carried out; one that was lost with its worker, or its lease, is not. So
    at any time the attempts that the fleet counts are at most the bad answers recorded until then. A dead letter that
    blames the model was buried after the last attempt, for a reason that its last worker was given.
    """
    allowed = run.terms.retries + 1
    for entry_id, story in run.stories.items():
        spent = _spent(story)
        if spent > allowed and not _began_anew(run, story):
            yield Finding(f"spent {spent} attempts, {allowed} are allowed", (entry_id,), _asking(story))
        for asked in run.story(entry_id, Asked):
            before = _bad_until(story, asked.mono)
            if not 0 <= asked.attempt - 1 <= min(before, allowed - 1):
                says = f"was asked about as attempt {asked.attempt} after {before} bad answers"
                yield Finding(says, (entry_id,), _asking(story))
        for entry in run.dead.get(entry_id, ()):
            if wrong := _wrong_account(run, story, entry.fields):
                yield Finding(wrong, (entry_id,), _asking(story))


def _spent(story: list[Record]) -> int:
    """Count the bad answers after which the same process carried out a settle."""
    bad, spent = set[str](), 0
    for record in story:
        match record:
            case Answered(process=process):
                bad = bad | {process} if record.is_bad else bad - {process}
            case Delivered(process=process):
                bad -= {process}
            case Settled(process=process, settled="ok") if process in bad:
                bad, spent = bad - {process}, spent + 1
    return spent


def _bad_until(story: list[Record], until_s: float) -> int:
    """Return the attempts that can have been spent: bad answers, and calls that were lost again and again."""
    answers = [record for record in story if isinstance(record, Answered) and record.mono <= until_s]
    bad, away = sum(answer.is_bad for answer in answers), sum(answer.is_away for answer in answers)
    return bad + away // LOST_CALLS_MAX


def _wrong_account(run: Timeline, story: list[Record], fields: dict[bytes, bytes]) -> str:
    reason, counted = ours(fields, "failure_reason"), int(ours(fields, "attempts") or 0)
    if counted > (bad := _bad_until(story, run.end_s)):
        return f"was buried with {counted} attempts after {bad} bad answers"
    if reason not in AFTER_ALL_ATTEMPTS:
        return ""
    if counted != run.terms.retries + 1:
        return f"was buried as {reason} with {counted} attempts, {run.terms.retries + 1} are promised"
    senders = {record.process for record in story if isinstance(record, Sent) and record.verdict == "bury"}
    answers = [record for record in story if isinstance(record, Answered) and record.process in senders]
    reasons = {"model_error" if answer.is_away else answer.reason for answer in answers}
    return "" if reason in reasons else f"was buried as {reason}, which is not what its worker was answered"


def _asking(story: list[Record]) -> list[Record]:
    return [record for record in story if isinstance(record, Asked | Answered | Settled)]


def _began_anew(run: Timeline, story: list[Record]) -> bool:
    return not run.is_calm(story[0].mono, story[-1].mono, ANEW)


def crash_budget(run: Timeline) -> Iterator[Finding]:
    """10: an event is delivered deliveries_max times at most, and no more workers die of it.

    A worker may have died of anything that it had in hand, but for what waited at the gate to the model. No record says
    what did, so it counts only if the model had not been found away for longer than a gate stays shut.
    """
    budget = run.terms.deliveries_max
    died = Counter(
        delivery.id
        for life in run.lives
        for delivery in held_at_end(run, life)
        if not _may_have_waited(run, delivery, life)
    )
    for entry_id, story in run.stories.items():
        over = [one for one in story if isinstance(one, Delivered) and one.count > budget]
        if over:
            yield Finding(f"was delivered {over[-1].count} times, {budget} are allowed", (entry_id,), over)
        elif died[entry_id] > budget and not _began_anew(run, story):
            yield Finding(f"was in hand when {died[entry_id]} workers died", (entry_id,), story)


def _may_have_waited(run: Timeline, delivery: Delivered, life: Life) -> bool:
    """Whether a gate may have been shut while a worker had an event in hand."""
    away = (one for one in run.records_of(life) if isinstance(one, Answered) and one.is_away)
    since_s = delivery.mono - GATE_SHUT_S_MAX
    return any(one.mono >= since_s for one in away) or not run.is_calm(since_s, life.ended_s, [Effect.MODEL_AWAY])
