"""The history checker: three verdicts on a chaos run, from nothing but what was recorded.

Each invariant is a function that yields what breaks it. It takes as certain only what the records prove, for a process
that is killed takes its last record with it, and one that is frozen writes its own late.
"""

import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fleet.chaos.acts import is_worker
from tests.fleet.chaos.coverage import missing
from tests.fleet.chaos.history import History, load
from tests.fleet.chaos.judgement import Invariant, Judgement, violations
from tests.fleet.chaos.liveness import drains_after_healing, handed_on, handover_delays_s, progress, stops_in_time
from tests.fleet.chaos.records import Asked, ChildDied, Delivered, Produced, Settled
from tests.fleet.chaos.safety_limits import limits_at_the_model, one_order_of_output, pause, resources, single_fleet
from tests.fleet.chaos.safety_order import attempts, crash_budget, strict_fence, terminal_is_terminal
from tests.fleet.chaos.safety_records import (
    acknowledged_by_settling,
    content,
    lost,
    no_duplicate,
    no_loss,
    nothing_from_nowhere,
    origins,
    rolled_back,
    settles_are_true,
)
from tests.fleet.chaos.timeline import Timeline, arrange, ours

SAFETY: dict[int, Invariant] = {
    1: no_loss,
    2: no_duplicate,
    3: nothing_from_nowhere,
    4: content,
    5: settles_are_true,
    6: terminal_is_terminal,
    7: acknowledged_by_settling,
    8: strict_fence,
    9: attempts,
    10: crash_budget,
    11: limits_at_the_model,
    12: pause,
    13: one_order_of_output,
    14: single_fleet,
    15: resources,
}
LIVENESS: dict[int, Invariant] = {16: progress, 17: drains_after_healing, 18: handed_on, 19: stops_in_time}


def judge(history: History | Path) -> Judgement:
    """Judge a run, or the folder that keeps one. Raises ValueError for what cannot be read, or is no known fault."""
    run = arrange(load(history) if isinstance(history, Path) else history)
    return Judgement(violations(SAFETY, run), violations(LIVENESS, run), list(missing(run)), numbers(run))


def numbers(run: Timeline) -> dict[str, Any]:
    """Return what happened, in figures."""
    records = Counter({entry_id: len(entries) for entry_id, entries in run.enriched.items()})
    records.update({entry_id: len(entries) for entry_id, entries in run.dead.items()})
    reasons = Counter(ours(entry.fields, "failure_reason") for entries in run.dead.values() for entry in entries)
    settles = Counter(f"{one.verdict}/{one.settled}" for one in run.all(Settled))
    deaths = Counter("workers" if is_worker(one.name) else one.name for one in run.all(ChildDied))
    faults = Counter(fault.name for fault in run.faults)
    delays_s = handover_delays_s(run)
    healed_s, drained_s = run.healed_s, run.drained_s
    return {
        "seed": run.terms.seed,
        "produced": dict(Counter(one.outcome for one in run.all(Produced))),
        "recovered": len(origins(run).recovered),
        "enriched": len(run.history.final.output),
        "dead": dict(reasons),
        "duplicates": sum(records.values()) - len(records),
        "missing": len(lost(run)),
        "rolled_back": len(rolled_back(run)),
        "kills": sum(count for name, count in faults.items() if name.startswith("kill_")),
        "faults": dict(faults),
        "deaths": dict(deaths),
        "deliveries": sum(1 for _ in run.all(Delivered)),
        "model_calls": len(run.history.calls) or sum(1 for _ in run.all(Asked)),
        "settles": dict(sorted(settles.items())),
        "handed_on": len(delays_s),
        "handover_median_s": round(statistics.median(delays_s), 3) if delays_s else None,
        "handover_worst_s": round(delays_s[-1], 3) if delays_s else None,
        "heal_to_drained_s": round(drained_s - healed_s, 3) if healed_s is not None and drained_s is not None else None,
        "torn_lines": run.history.reading.torn,
        "other_lines": run.history.reading.skipped,
    }
