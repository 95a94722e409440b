"""Safety of the fleet as a whole: invariants 11 to 15, its limits at the model, its output, its size."""

import itertools
from collections.abc import Iterator

from tests.fleet.chaos.faults import Effect
from tests.fleet.chaos.judgement import Finding
from tests.fleet.chaos.records import GatePaused, ModelCall, Sampled, Seen
from tests.fleet.chaos.timeline import Timeline

from scripts.fake.arrivals import Limit

PARKED = "@parked"
HERD_SHARE = 0.01  # of the time over which those who waited are to be spread
SPREAD_SHARE = 0.1  # of a pause: how long its end is spread over
HERDS_MIN = 3  # pauses; one may look like that by chance


def limits_at_the_model(run: Timeline) -> Iterator[Finding]:
    """11: calls arrive at the model within the rate and its burst, and no more are open than all slots and permits.

    Every window is judged, and the worst one told. How many are open at once is measured at the
    model, which notices late that a caller was killed, or gave up: such a call counts until that long before. While the
    way to the model is cut, or a supervisor has just died, the model's view says nothing of ours.
    """
    yield from _over_rate(run)
    yield from _over_slots(run)


def _over_rate(run: Timeline) -> Iterator[Finding]:
    rate_per_s = run.terms.rate_per_s
    if rate_per_s is None:
        return
    spare = rate_per_s * run.terms.slack_s  # what was granted apart may arrive together
    worst = Limit(rate_per_s, run.terms.burst + spare).worst_excess(run.history.calls)
    if worst.calls > 0:
        calls = [call for call in run.history.calls if worst.begin_s <= call.arrival_s <= worst.end_s]
        says = f"{len(calls)} calls arrived within {worst.end_s - worst.begin_s:.3f} s"
        yield Finding(f"{says}, {rate_per_s:g} a second and {run.terms.burst} at once are allowed", (), calls)


def _over_slots(run: Timeline) -> Iterator[Finding]:
    terms = run.terms
    moments = list[tuple[float, int, ModelCall]]()
    for call in run.history.calls:
        end_s = run.end_s if call.end_s is None else call.end_s
        left_s = end_s if isinstance(call.status, int) else end_s - terms.slack_s
        if left_s > call.arrival_s and run.is_calm(call.arrival_s, end_s, [Effect.MODEL_AWAY]):
            moments += [(call.arrival_s, 1, call), (left_s, -1, call)]
    open_calls = dict[int, ModelCall]()
    for moment_s, change, call in sorted(moments, key=lambda moment: moment[:2]):
        if change < 0:
            del open_calls[id(call)]
            continue
        open_calls[id(call)] = call
        stopping_s = terms.drain_s + terms.stop_grace_s  # those that are to stop still finish
        slots = run.desired_max(moment_s - stopping_s, moment_s) * terms.concurrency
        slots = min(slots, terms.in_flight_max or slots)
        if len(open_calls) > slots and run.is_calm(moment_s, moment_s, [Effect.FLEET_AWAY], after_s=terms.recovery_s):
            yield Finding(
                f"{len(open_calls)} calls were open at the model, there are {slots} slots", (), open_calls.values()
            )
            return


def pause(run: Timeline) -> Iterator[Finding]:
    """12: a pause is known to every worker within a second, and kept; those who waited do not come back as a herd."""
    pauses = list(run.all(GatePaused))
    for one in pauses:
        known_s = one.mono + run.terms.pause_known_s_max
        if early := [call for call in run.history.calls if known_s < call.arrival_s < one.until_mono]:
            yield Finding(f"{len(early)} calls arrived during a pause", (), (one, *early))
    last = {one.until_mono: one for one in pauses}.values()  # of the records of one pause, for every worker makes one
    ends = [one for one in last if not any(other.mono < one.until_mono < other.until_mono for other in last)]
    spreads = [spread for one in ends if (spread := _spread_after(run, one)) is not None]
    if len(spreads) >= HERDS_MIN and max(spreads) < HERD_SHARE:
        yield Finding("after none of the pauses the first calls were spread", (), ends)


def _spread_after(run: Timeline, one: GatePaused) -> float | None:
    """Return over which share of the time meant for it the first calls were spread; None where nobody waited."""
    within_s = (one.until_mono - one.mono) * SPREAD_SHARE
    first = [call.arrival_s for call in run.history.calls if 0 <= call.arrival_s - one.until_mono <= within_s]
    first = first[: run.terms.workers]
    return (first[-1] - first[0]) / within_s if len(first) > 1 else None


def one_order_of_output(run: Timeline) -> Iterator[Finding]:
    """13: the ids of the output rise, and a reader that followed it saw what stands there in the end, in this order.

    What Redis itself lost afterwards, the reader may have seen beyond.
    """
    final = [entry.id for entry in run.history.final.output]
    for before, after in itertools.pairwise(final):
        if place(before) >= place(after):
            yield Finding("stands in the output after a later id", (after,))
    seen = list(run.all(Seen))
    if any(Effect.FORGETS in fault.effects for fault in run.faults):
        left = set(final)
        seen = [record for record in seen if record.id in left]
    for position, (expected, record) in enumerate(itertools.zip_longest(final, seen)):
        if record is None or record.id != expected:
            says = f"is number {position + 1} of the output; the reader saw {record.id if record else 'nothing'} there"
            yield Finding(says, (expected,) if expected else (), seen[max(0, position - 1) : position + 2])
            return


def place(entry_id: str) -> tuple[int, int]:
    """Return what orders the ids of a stream."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)


def single_fleet(run: Timeline) -> Iterator[Finding]:
    """14: there are never more workers than wanted, and none lives on for long without its supervisor.

    One that is told to stop may still drain; one whose supervisor died is no worker of the next.
    """
    terms = run.terms
    for sample in run.all(Sampled):
        since_s = sample.mono - terms.drain_s - terms.stop_grace_s - terms.slack_s
        allowed = run.desired_max(since_s, sample.mono) + terms.workers_spare
        if sample.workers - sample.orphans > allowed:
            yield Finding(f"{sample.workers - sample.orphans} workers lived, {allowed} are allowed", (), [sample])
        if sample.oldest_orphan_s > terms.orphan_s_max + terms.slack_s:
            yield Finding(f"a worker outlived its supervisor by {sample.oldest_orphan_s:.1f} s", (), [sample])


def resources(run: Timeline) -> Iterator[Finding]:
    """15: after the drain nothing is left over, and the processes are no larger than before the faults.

    More workers may take more. A run that never drained is judged by its liveness alone.
    """
    final, terms = run.history.final, run.terms
    if run.drained_s is None:
        return
    left = {"unsettled": len(run.waiting), "parked": final.parked, "attempts": final.attempts}
    if any(left.values()):
        yield Finding(f"was left after the drain: {left}", tuple(sorted(run.waiting))[:8])
    workers = run.desired_max(run.drained_s, run.end_s)
    consumers = [name for name in final.consumers if name != PARKED]
    if len(consumers) > workers + terms.consumers_spare:
        yield Finding(f"{len(consumers)} consumers are left of {workers} workers: {', '.join(consumers[:8])}")
    before, after = baseline(run)
    if before and after:
        factor = terms.growth_factor_max * max(1.0, after.workers / max(1, before.workers))
        for name, spare in (
            ("rss_bytes", terms.rss_spare_bytes),
            ("fds", terms.fds_spare),
            ("threads", terms.threads_spare),
        ):
            if getattr(after, name) > getattr(before, name) * factor + spare:
                yield Finding(f"{name} grew beyond {factor:g} times what they were, and {spare}", (), (before, after))


def baseline(run: Timeline) -> tuple[Sampled | None, Sampled | None]:
    """Return the first sample of all workers, if it is from before the faults, and the last from after the drain."""
    samples = list(run.all(Sampled))
    first_fault_s = run.faults[0].began_s if run.faults else run.end_s
    whole = (one for one in samples if one.workers >= run.terms.workers and one.mono <= first_fault_s)
    before = next(whole, None)
    after = samples[-1] if samples and run.drained_s is not None and samples[-1].mono >= run.drained_s else None
    return before, after
