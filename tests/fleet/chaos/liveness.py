"""Liveness: invariants 16 to 19, what had to happen in time."""

import math
from bisect import bisect_right
from collections.abc import Iterator

from tests.fleet.chaos.acts import is_worker
from tests.fleet.chaos.faults import Effect
from tests.fleet.chaos.holdings import held_at_end
from tests.fleet.chaos.judgement import Finding
from tests.fleet.chaos.records import ChildStarted, ChildStopping, Delivered, Draining, Record
from tests.fleet.chaos.timeline import Life, Timeline

STANDSTILL = (Effect.REDIS_AWAY, Effect.MODEL_AWAY, Effect.FLEET_AWAY)
NOT_IN_TIME = (*STANDSTILL, Effect.REDIS_SHAKY)


def progress(run: Timeline) -> Iterator[Finding]:
    """16: events are settled in every window in which Redis and the model can be reached and the fleet stands.

    Such a window begins when there has been time to recover from the last fault, or to start. Nothing is asked of one
    in which there was nothing to do, or nobody to do it: workers are killed as fast as they start, or stand still.
    """
    terms = run.terms
    ends_s = {entry_id: end_s for entry_id in run.produced if (end_s := _settled_s(run, entry_id)) is not None}
    settled_s, produced_s = sorted(ends_s.values()), sorted(run.produced[entry_id].mono for entry_id in ends_s)
    begun_s = (run.first_s(ChildStarted) or 0.0) + terms.recovery_s
    for free_s, busy_s in run.calm(begun_s, run.end_s, STANDSTILL, after_s=terms.recovery_s):
        for window in range(int((busy_s - free_s) // terms.progress_window_s)):
            start_s = free_s + window * terms.progress_window_s
            end_s = start_s + terms.progress_window_s
            before = bisect_right(settled_s, start_s)
            settled, waited = bisect_right(settled_s, end_s) - before, bisect_right(produced_s, start_s) - before
            if settled < min(terms.progress_records_min, waited) and _some_worker_works(run, start_s, end_s):
                yield Finding(f"{settled} of {waited} events were settled from {start_s:.3f} to {end_s:.3f}")


def _some_worker_works(run: Timeline, start_s: float, end_s: float) -> bool:
    """Whether a worker that had had time to start was there for a while."""
    for life in run.lives:
        began_s, ended_s = max(start_s, life.began_s + run.terms.recovery_s), min(end_s, life.ended_s)
        works = run.calm(began_s, ended_s, [Effect.FROZEN], after_s=run.terms.slack_s, process=life.name)
        if is_worker(life.name) and sum(until_s - since_s for since_s, until_s in works) > run.terms.slack_s:
            return True
    return False


def _settled_s(run: Timeline, entry_id: str) -> float | None:
    """Return when an event was settled, infinity if it waits; None where the answer died with its worker."""
    if entry_id in run.waiting:
        return math.inf
    return min((act.answered_s for act in run.acts_on(entry_id) if act.ends_the_event), default=None)


def drains_after_healing(run: Timeline) -> Iterator[Finding]:
    """17: once all faults are over, everything is settled within the bound."""
    if run.healed_s is None:
        return
    if run.drained_s is None:
        yield Finding(f"was not settled after all was healed; {len(run.waiting)} wait", tuple(sorted(run.waiting))[:8])
    elif (took_s := run.drained_s - run.healed_s) > run.terms.heal_to_drained_s_max:
        yield Finding(f"it took {took_s:.1f} s to drain, {run.terms.heal_to_drained_s_max:g} are allowed")


def handed_on(run: Timeline) -> Iterator[Finding]:
    """18: what a worker held when it ended is delivered again or settled at once; a hand-back is a settle, too.

    Within one lease and one sweep where nobody saw it end, because the supervisor had died too. Not while Redis, the
    model, the janitor or the supervisor are away, or have just come back.
    """
    terms = run.terms
    for life in run.lives:
        promised_s = terms.lease_s + terms.sweep_s if life.end == "unseen" else terms.handover_s_max
        deadline_s = life.ended_s + promised_s + terms.slack_s
        if deadline_s > run.end_s or not run.is_calm(life.ended_s, deadline_s, NOT_IN_TIME, after_s=terms.recovery_s):
            continue
        for delivery in held_at_end(run, life):
            later = _next_sign(run, delivery, life)
            if later is None or later.mono > deadline_s:
                ended = f"{life.name}, which held it, ended at {life.ended_s:.3f}"
                says = f"was not handed on by {deadline_s:.3f}; {ended}"
                yield Finding(says, (delivery.id,), [delivery, *([later] if later else [])])


def _next_sign(run: Timeline, delivery: Delivered, life: Life) -> Record | None:
    """Return the first record that shows that an event is in other hands, or settled."""
    settled = [act.answered for act in run.acts_on(delivery.id) if act.answered and act.answer in {"ok", "gone"}]
    signs: list[Record] = [*run.story(delivery.id, Delivered), *settled]
    return min((sign for sign in signs if sign.mono > life.ended_s), key=lambda sign: sign.mono, default=None)


def handover_delays_s(run: Timeline) -> list[float]:
    """Return how long after a worker had died each event that it held was in another's hands."""
    delays = []
    for life in run.lives:
        if life.end == "died":
            for delivery in held_at_end(run, life):
                later = [one.mono for one in run.story(delivery.id, Delivered) if one.mono > life.ended_s]
                delays += [later[0] - life.ended_s] if later else []
    return sorted(delays)


def stops_in_time(run: Timeline) -> Iterator[Finding]:
    """19: a worker that is told to stop has ended when its drain deadline and the supervisor's patience are over.

    Its supervisor says that it has told it, or it says itself that it drains. Without its supervisor, or with
    one that has just come back, nobody minds it.
    """
    terms = run.terms
    limit_s = terms.drain_s + terms.stop_grace_s + terms.slack_s
    for life in run.lives:
        order = _order_to_stop(run, life)
        if order is None or order.mono + limit_s > run.end_s:
            continue
        late = life.ended_s > order.mono + limit_s
        if late and run.is_calm(order.mono, order.mono + limit_s, [Effect.FLEET_AWAY], after_s=terms.recovery_s):
            says = f"{life.name} was told to stop and did not within {limit_s:g} s"
            yield Finding(says, (), [order])


def _order_to_stop(run: Timeline, life: Life) -> Record | None:
    if not is_worker(life.name):
        return None
    orders: list[Record] = [record for record in run.records_of(life) if isinstance(record, Draining)]
    told = (one for one in run.all(ChildStopping) if one.name == life.name)
    orders += [one for one in told if life.began_s <= one.mono <= life.ended_s]
    return min(orders, key=lambda order: order.mono, default=None)
