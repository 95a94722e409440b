"""Coverage, invariant 20: what a run must have shown to prove anything."""

from collections.abc import Callable, Iterator

from tests.fleet.chaos.acts import Act, token
from tests.fleet.chaos.faults import BLOCK, POISON, Effect, Fault
from tests.fleet.chaos.records import (
    Answered,
    ChildDied,
    Delivered,
    GatePaused,
    GroupRecreated,
    Record,
    RedisWaiting,
    Resending,
    Scaled,
    Settled,
    Swept,
)
from tests.fleet.chaos.safety_limits import baseline
from tests.fleet.chaos.timeline import Timeline, ours

UNDER_WAY_S = 0.2


def missing(run: Timeline) -> Iterator[str]:
    """20: each fault that was announced took place and had an effect; each answer and each sight was there.

    And the run was healed, and measured before and after.
    """
    for name in run.terms.expected_faults:
        faults = [fault for fault in run.faults if fault.name == name]
        if not faults:
            yield f"fault {name}: never began"
        elif name in PROOFS and not any(PROOFS[name](run, fault) for fault in faults):
            yield f"fault {name}: began {len(faults)} times, and no record shows an effect"
    answers = {f"{record.verdict}/{record.settled}" for record in run.all(Settled)}
    yield from (f"answer {answer}: never" for answer in run.terms.expected_answers if answer not in answers)
    yield from (f"sight {sight}: never" for sight in run.terms.expected_sights if not SIGHTS[sight](run))
    if run.healed_s is None:
        yield "the faults were never healed"
    if None in baseline(run):
        yield "the processes were not measured before the faults and after the drain"


# -- faults ------------------------------------------------------------------------------------------------------------

Proof = Callable[[Timeline, Fault], bool]


def _recorded(shows: Callable[[Record], bool]) -> Proof:
    """Return a proof: such a record was made while the fault lasted, or before the fleet had recovered."""

    def proof(run: Timeline, fault: Fault) -> bool:
        until_s = fault.ended_s + run.terms.recovery_s
        return any(fault.began_s <= record.mono <= until_s and shows(record) for record in run.history.records)

    return proof


def _died(record: Record, prefix: str) -> bool:
    return isinstance(record, ChildDied) and record.name.startswith(prefix)


def _all_gone_unseen(run: Timeline, fault: Fault) -> bool:
    return any(life.end == "unseen" and life.began_s <= fault.began_s < life.ended_s for life in run.lives)


def _still(run: Timeline, fault: Fault) -> bool:
    """Whether nothing was settled while it lasted; what was under way when it began may still have been."""
    return not any(fault.began_s + UNDER_WAY_S < record.mono < fault.ended_s for record in run.all(Settled))


def _felt(_: Timeline, fault: Fault) -> bool:
    """Whether the server, or the proxy before it, has counted that it struck."""
    return fault.felt > 0


REDIS_TROUBLE = _recorded(lambda record: isinstance(record, RedisWaiting | Resending))

# How a fault shows that it took effect; of a class that is not here the records tell nothing.
PROOFS: dict[str, Proof] = {
    "kill_worker": _recorded(lambda record: _died(record, "worker-")),
    "freeze_worker": _felt,
    "block_worker": lambda run, _: _is_buried(run, "crash_loop", BLOCK),
    "poison": lambda run, _: _is_buried(run, "crash_loop", POISON),
    "kill_janitor": _recorded(lambda record: _died(record, "janitor")),
    "kill_supervisor": _all_gone_unseen,
    "scale": _recorded(lambda record: isinstance(record, Scaled)),
    "kill_connections": _felt,
    "reset": _felt,
    "swallow": REDIS_TROUBLE,
    "black_hole": _felt,
    "kill_redis": _felt,
    "freeze_redis": REDIS_TROUBLE,
    "pause_redis": _still,
    "busy_script": _felt,
    "max_clients": _felt,
    "read_only": _felt,
    "out_of_memory": _felt,
    "disk_full": REDIS_TROUBLE,
    "revoke_permission": _felt,
    "delete_entries": lambda run, _: _is_buried(run, "deleted"),
    "lose_parked": _felt,
    "lose_gate": _felt,
    "destroy_group": _recorded(lambda record: isinstance(record, GroupRecreated)),
    "rollback": REDIS_TROUBLE,
    "flush": _recorded(lambda record: isinstance(record, GroupRecreated)),
    "model_down": _felt,
    "model_hangs": _felt,
    "model_throttles": _felt,
    "model_answers_badly": _recorded(lambda record: isinstance(record, Answered) and record.is_bad),
}


# -- sights ------------------------------------------------------------------------------------------------------------


def _is_buried(run: Timeline, reason: str, text: bytes = b"") -> bool:
    letters = (entry.fields for entries in run.dead.values() for entry in entries)
    return any(ours(one, "failure_reason") == reason and text in one.get(b"data", b"") for one in letters)


def _ghost(run: Timeline) -> bool:
    """Whether something was handed back from one who, by its own records, did not have it, or no longer."""
    return any(_is_of_a_ghost(run, act) for acts in run.acts.values() for act in acts)


def _is_of_a_ghost(run: Timeline, act: Act) -> bool:
    if (act.verdict, act.answer) != ("hand_back", "ok"):
        return False
    had = [one for one in run.story(act.id, Delivered) if token(one) == token(act) and one.mono < act.sent_s]
    let_go = [one for one in run.acts_on(act.id) if one.by_worker and token(one) == token(act) and one.answer == "ok"]
    return len(had) <= len([one for one in let_go if one.answered_s < act.sent_s])


def _zombie_refused(run: Timeline) -> bool:
    """Whether a worker was told that what it wanted to settle is in other hands, or was settled by others."""
    return any(
        act.by_worker and (act.answer == "lost" or (act.answer == "gone" and not _was_resent(run, act.id, act.process)))
        for acts in run.acts.values()
        for act in acts
    )


def _lost_reply(run: Timeline) -> bool:
    """Whether a settle that was sent again had been carried out before."""
    return any(
        act.answer == "gone" and _was_resent(run, act.id, act.process) for acts in run.acts.values() for act in acts
    )


def _was_resent(run: Timeline, entry_id: str, process: str) -> bool:
    return any(one.process == process for one in run.story(entry_id, Resending))


SIGHTS: dict[str, Callable[[Timeline], bool]] = {
    "reclaim": lambda run: any(one.verdict == "hand_back" and one.settled == "ok" for one in run.all(Settled)),
    "ghost": _ghost,
    "zombie_refused": _zombie_refused,
    "lost_reply": _lost_reply,
    "tombstone": lambda run: _is_buried(run, "deleted"),
    "crash_loop": lambda run: _is_buried(run, "crash_loop"),
    "pause": lambda run: any(True for _ in run.all(GatePaused)),
    "rehung": lambda run: any(one.rehung for one in run.all(Swept)),
    "retired": lambda run: any(one.retired for one in run.all(Swept)),
    "trimmed": lambda run: any(one.trimmed for one in run.all(Swept)),
    "rollback": lambda run: any(Effect.FORGETS in fault.effects for fault in run.faults),
}
