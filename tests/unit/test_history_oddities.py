"""What only looks odd is no violation, and what a run did not show makes it prove nothing."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from tests.fleet.chaos.coverage import SIGHTS
from tests.fleet.chaos.faults import Effect
from tests.fleet.chaos.history import Entry
from tests.fleet.chaos.records import (
    Asked,
    ChildDied,
    ChildStarted,
    ChildStopped,
    ChildStopping,
    Draining,
    FaultBegan,
    GatePaused,
    GroupRecreated,
    Healed,
    ModelCall,
    Produced,
    Record,
    Renewed,
    Resending,
    Sampled,
    Scaled,
    Seen,
    Sent,
    Settled,
)
from tests.fleet.chaos.tape import GOOD, RETRIED, TICK_S, Tape, green, owner_of
from tests.fleet.chaos.timeline import arrange


def _zombie_comes_too_late(run: Tape) -> None:
    """F6: a worker that was frozen for longer than its lease goes on until it is told."""
    run.deliver(run.produce(50))
    with run.fault("freeze_worker", process="worker-1"):
        run.settle("1050-0", "hand_back", by="janitor")
        run.enrich("1050-0", 2, count=2)
        run.now += 5.0
    run.ask("1050-0")
    run.settle("1050-0", "bury", answer="lost")
    run.settle("1050-0", "done", answer="gone")


def _ghost_is_handed_back(run: Tape) -> None:
    """F5: the reply of a delivery was lost, so that nobody has a record of it."""
    run.produce(50)
    run.fail("1050-0", attempt=1)
    run.fail("1050-0", 2, attempt=2)
    run.settle("1050-0", "hand_back", 1, by="janitor")
    run.enrich("1050-0", 2, count=2, attempt=3)


def _ghost_is_handed_back_to_its_first_owner(run: Tape) -> None:
    """F5: released by a worker, and delivered to the same again in a reply that was lost."""
    run.produce(50)
    run.fail("1050-0", attempt=1)
    run.settle("1050-0", "hand_back", 1, by="janitor")
    run.enrich("1050-0", 1, count=2, attempt=2)


def _ghost(run: Tape) -> None:
    """F5: nobody has a record of the first delivery."""
    run.produce(50)
    run.settle("1050-0", "hand_back", by="janitor")
    run.enrich("1050-0", 1, count=2)


def _zombie_records_its_delivery_late(run: Tape) -> None:
    """F6: it was frozen between the two, and others had the event since."""
    run.produce(50)
    run.settle("1050-0", "hand_back", 1, by="janitor")
    run.deliver("1050-0", 2, count=2)
    run.deliver("1050-0", 1)
    run.settle("1050-0", "release", 2, count=2)
    run.enrich("1050-0", 2, count=2)


def _zombie_is_told_within_a_heartbeat(run: Tape) -> None:
    run.deliver(run.produce(50))
    run.settle("1050-0", "hand_back", by="janitor")
    run.enrich("1050-0", 2, count=2)
    run.now += 1.5
    run.ask("1050-0")
    run.tell(Renewed, "worker-1", lost=("1050-0",))


def _retried_after_a_long_back_off(run: Tape) -> None:
    run.produce(50)
    run.fail("1050-0", attempt=1)
    run.now += 6.0
    run.enrich("1050-0", attempt=2)


def _a_retry_that_was_sent_again(run: Tape) -> None:
    """F4: gone is what a retry is that was parked before, and not settled for good."""
    run.deliver(run.produce(50))
    run.ask("1050-0", outcome="bad: timeout")
    run.settle("1050-0", "retry", answer=None)
    run.tell(Resending, "worker-1", id="1050-0")
    run.settle("1050-0", "retry", answer="gone")
    run.now += 6.0
    run.enrich("1050-0", attempt=2)


def _refused_while_another_works(run: Tape) -> None:
    """F6."""
    run.deliver(run.produce(50))
    run.settle("1050-0", "hand_back", by="janitor")
    run.deliver("1050-0", 2, count=2)
    run.settle("1050-0", "bury", answer="lost")
    run.now += 6.0
    run.ask("1050-0", 2)
    run.finish("1050-0", 2, count=2)


def _a_record_of_a_sending_was_dropped(run: Tape) -> None:
    """F14: a log that nobody reads is no reason to stop."""
    run.leave_out(Sent, id=RETRIED)


def _everything_was_trimmed(run: Tape) -> None:
    run.input.clear()


def _data_that_ends_with_a_newline(run: Tape) -> None:
    run.enrich(run.produce(50, data=b'{"n": 50}\n'))


def _data_that_had_an_enrichment(run: Tape) -> None:
    """Its new one stands where the old one stood."""
    run.enrich(run.produce(50, data=b'{"ai_enrichment": 1, "n": 50}'))
    fields = run.output[-1].fields | {b"data": b'{"ai_enrichment":{"sentiment":{}},"n":50}'}
    run.output[-1] = Entry.of(run.output[-1].id, fields)


def _an_event_without_data(run: Tape) -> None:
    """F48: what it holds is still buried with it."""
    run.deliver(run.produce(50))
    run.alter(Produced, 50, sha=None)
    run.input[-1] = Entry(run.input[-1].id, ((b"other", b"1"), (b"other", b"2")))
    run.settle("1050-0", "bury")
    run.write_dead("1050-0", "malformed")


def _an_event_without_data_or_a_known_id_was_trimmed(run: Tape) -> None:
    _an_event_without_data(run)
    run.deliver(run.produce(51, "info"))
    run.settle("1051-0", "bury")
    run.write_dead("1051-0", "malformed")
    run.input.clear()


def _an_event_of_too_many_fields(run: Tape) -> None:
    """F48: its dead letter holds them packed into one."""
    run.deliver(run.produce(50))
    run.settle("1050-0", "bury")
    run.write_dead("1050-0", "malformed")
    (_, value), *ours = run.dead[-1].pairs
    run.dead[-1] = Entry(run.dead[-1].id, ((b"original_msgpack", value), *ours))


def _a_repetition_whose_producer_knows_no_id(run: Tape) -> None:
    """F49."""
    run.deliver(run.produce(50, "info", event_id="e-0"))
    run.settle("1050-0", "skip")


def _retried_twice_by_one_worker(run: Tape) -> None:
    run.produce(50)
    run.fail("1050-0", attempt=1)
    run.fail("1050-0", attempt=2)
    run.enrich("1050-0", attempt=3)


def _reply_lost(run: Tape) -> None:
    """F4."""
    run.deliver(run.produce(50))
    run.ask("1050-0")
    run.settle("1050-0", "done", answer=None)
    run.write("1050-0")
    run.tell(Resending, "worker-1", id="1050-0")
    run.settle("1050-0", "done", answer="gone")


def _two_janitors_at_once(run: Tape) -> None:
    """F11: both send before either is answered; in between the event is taken."""
    run.deliver(run.produce(50))
    token = {"id": "1050-0", "verdict": "hand_back", "owner": owner_of(1), "count": 1}
    run.tell(Sent, "janitor", **token)
    run.deliver("1050-0", 2, count=2)
    run.tell(Sent, "janitor", **token)
    run.tell(Settled, "janitor", settled="ok", **token)
    run.tell(Settled, "janitor", settled="lost", **token)
    run.ask("1050-0", 2)
    run.finish("1050-0", 2, count=2)


def _killed_before_the_answer(run: Tape) -> None:
    """F3: it was carried out, and nobody lived to record that."""
    run.deliver(run.produce(50), life="b")
    run.ask("1050-0")
    run.settle("1050-0", "done", answer=None, life="b")
    run.write("1050-0")
    run.kill(1, "c")
    run.now += 12.0


def _killed_after_bad_answers(run: Tape) -> None:
    """F2: nothing was settled, so nothing was spent."""
    run.produce(50)
    for count, life in ((1, "b"), (2, "c")):
        run.deliver("1050-0", count=count, life=life)
        run.ask("1050-0", outcome="bad: invalid_answer")
        run.kill(1, chr(ord(life) + 1))
        run.settle("1050-0", "hand_back", count=count, life=life, by="janitor")
    for attempt in (1, 2, 3, 4):
        run.deliver("1050-0", 2, count=3)
        run.ask("1050-0", 2, attempt=attempt, outcome="bad: invalid_answer")
        run.settle("1050-0", "bury" if attempt == 4 else "retry", 2, count=3)
    run.write_dead("1050-0", "invalid_answer", 4)


def _crash_loop(run: Tape) -> None:
    """F9: the event is buried with the third worker that dies of it."""
    run.produce(50)
    for count, life in ((1, "b"), (2, "c"), (3, "d")):
        run.deliver("1050-0", count=count, life=life)
        run.tell(Asked, "worker-1", id="1050-0", attempt=1)
        run.kill(1, chr(ord(life) + 1))
        run.settle("1050-0", "bury" if count == 3 else "hand_back", count=count, life=life, by="janitor")
    run.write_dead("1050-0", "crash_loop")


def _killed_more_often_than_the_budget_after_it_was_settled(run: Tape) -> None:
    run.produce(50)
    for life in "bcde":
        run.deliver("1050-0", life=life)
        run.settle("1050-0", "release", life=life)
        run.kill(1, chr(ord(life) + 1))
    run.enrich("1050-0", life="f")


def _killed_more_often_than_the_budget_while_it_waited_at_the_gate(run: Tape) -> None:
    """F9: a worker that has found the model away does not work on what it has in hand."""
    for n in (50, 51):
        run.produce(n)
    for life in "bcde":
        run.deliver("1051-0", life=life)
        run.ask("1051-0", outcome="away: unreachable")
        run.settle("1051-0", "release", life=life)
        run.deliver("1050-0", life=life)
        run.kill(1, chr(ord(life) + 1))
        run.settle("1050-0", "hand_back", life=life, by="janitor")
    run.enrich("1050-0", life="f")
    run.enrich("1051-0", life="f")


def _killed_more_often_than_the_budget_while_the_model_was_down(run: Tape) -> None:
    """F9, F46."""
    run.produce(50)
    with run.fault("model_down"):
        for life in "bcde":
            run.deliver("1050-0", life=life)
            run.kill(1, chr(ord(life) + 1))
            run.settle("1050-0", "hand_back", life=life, by="janitor")
    run.enrich("1050-0", life="f")


def _killed_more_often_than_the_budget_since_the_group_began_anew(run: Tape) -> None:
    """F9, F32: the count begins anew, too."""
    run.produce(50)
    for count, life in ((1, "b"), (2, "c"), (3, "d"), (1, "e")):
        if life == "e":
            with run.fault("destroy_group"):
                run.now += 1.0
        run.deliver("1050-0", count=count, life=life)
        run.kill(1, chr(ord(life) + 1))
        run.settle("1050-0", "hand_back", count=count, life=life, answer=None if life == "d" else "ok", by="janitor")
    run.enrich("1050-0", count=2, life="f")


def _released_while_the_model_was_away(run: Tape) -> None:
    """F15: what was asked in vain and handed back is no attempt."""
    run.deliver(run.produce(50))
    run.ask("1050-0", outcome="away: unreachable")
    run.settle("1050-0", "release")
    for attempt in (1, 2, 3, 4):
        run.fail("1050-0", attempt=attempt, last=attempt == 4)


def _calls_that_are_lost_again_and_again(run: Tape) -> None:
    """F45: five lost calls under one delivery are one bad answer."""
    run.produce(50)
    for attempt in (1, 2, 3, 4):
        run.deliver("1050-0")
        for _ in range(5):
            run.ask("1050-0", attempt=attempt, outcome="away: dropped")
        run.settle("1050-0", "bury" if attempt == 4 else "retry")
    run.write_dead("1050-0", "model_error", 4)


def _a_tombstone_where_somebody_deletes(run: Tape) -> None:
    """F38: found by a worker that wants to park."""
    run.deliver(run.produce(50))
    with run.fault("delete_entries"):
        run.input.pop()
    run.settle("1050-0", "retry")
    run.write_dead("1050-0", "deleted")


def _deleted_before_the_group_was_destroyed(run: Tape) -> None:
    """F32, F38: the pending list alone knew of it."""
    run.deliver(run.produce(50))
    with run.fault("delete_entries"):
        run.input.pop()
    with run.fault("destroy_group"):
        pass


def _in_hand_and_deleted_before_the_group_was_destroyed(run: Tape) -> None:
    """F32, F38: the new group does not know what its worker wants to write out."""
    run.deliver(run.produce(50))
    with run.fault("delete_entries"):
        run.input.pop()
    with run.fault("destroy_group"):
        pass
    run.settle("1050-0", "done", answer="gone")


def _a_tombstone_of_an_event_whose_producer_knows_no_id(run: Tape) -> None:
    """F38: its bytes are gone; one lost reply is still unaccounted for."""
    run.produce(50, "info")
    with run.fault("delete_entries"):
        run.input.pop()
    run.deliver("1050-0")
    run.settle("1050-0", "bury")
    run.write_dead("1050-0", "deleted")


def _rolled_back(run: Tape) -> None:
    """F34: Redis forgets an event, the record of another, and both of a third; the reader had run ahead."""
    run.produce(50)
    for n in (51, 52):
        run.deliver(run.produce(n))
        run.ask(f"{1000 + n}-0")
        run.settle(f"{1000 + n}-0", "done")
        run.tell(Seen, "reader", id=f"{9500 + n}-0", src=f"{1000 + n}-0")
    with run.fault("rollback"):
        run.input = [entry for entry in run.input if entry.id not in {"1050-0", "1052-0"}]
    run.now += 3.0
    run.enrich("1051-0", 2)
    run.now += 12.0


def _attempts_were_forgotten(run: Tape) -> None:
    """F32: Redis was emptied and filled again; what was spent before is not known any more."""
    run.produce(50)
    run.fail("1050-0", attempt=1)
    with run.fault("rollback"):
        run.now += 1.0
    for attempt in (1, 2, 3, 4):
        run.fail("1050-0", attempt=attempt, last=attempt == 4)


def _group_begun_anew(run: Tape) -> None:
    """F32: owners and counts begin anew with the group."""
    run.deliver(run.produce(50), count=3)
    run.produce(51)
    run.settle("1051-0", "hand_back", by="janitor")
    with run.fault("destroy_group"):
        run.settle("1050-0", "done", answer="gone", count=3)
    run.now += 3.0
    run.deliver("1050-0", 2)
    run.settle("1050-0", "release", 2)
    run.enrich("1050-0", 2)
    run.settle("1051-0", "hand_back", by="janitor")
    run.enrich("1051-0", 2, count=2)


def _told_that_the_lease_is_lost(run: Tape) -> None:
    run.deliver(run.produce(50), life="b")
    run.tell(Renewed, "worker-1", lost=("1050-0",))
    run.kill(1, "c")
    run.now += 4.0
    run.enrich("1050-0", 2, count=2)


def _handed_on_just_in_time(run: Tape) -> None:
    run.deliver(run.produce(50), life="b")
    run.kill(1, "c")
    run.now += 2.5
    run.enrich("1050-0", 2, count=2)


def _handed_on_by_the_next_fleet(run: Tape) -> None:
    """F12: nobody saw the worker end, so its lease has to."""
    run.deliver(run.produce(50), life="b")
    for name in ("janitor", "worker-1", "worker-2"):
        run.tell(ChildStarted, "supervisor", name=name, pid=2)
    run.now += 4.2
    run.enrich("1050-0", 2, count=2, life="c")


def _killed_when_it_had_been_handed_back(run: Tape) -> None:
    """F6: whoever takes it next may take his time."""
    run.deliver(run.produce(50), life="b")
    run.settle("1050-0", "hand_back", life="b", by="janitor")
    run.kill(1, "c")
    run.now += 4.0
    run.enrich("1050-0", 2, count=2)


def _killed_when_another_had_taken_it(run: Tape) -> None:
    """F6: and the janitor that had handed it back was killed before it could say so."""
    run.deliver(run.produce(50), life="b")
    run.settle("1050-0", "hand_back", answer=None, life="b", by="janitor")
    run.deliver("1050-0", 2, count=2)
    run.kill(1, "c")
    run.now += 4.0
    run.ask("1050-0", 2)
    run.finish("1050-0", 2, count=2)


def _handed_on_late_while_redis_was_away(run: Tape) -> None:
    """F20."""
    run.deliver(run.produce(50), life="b")
    with run.fault("kill_redis"):
        run.kill(1, "c")
        run.now += 8.0
    run.enrich("1050-0", 2, count=2)


def _nothing_moves_while_the_model_is_down(run: Tape) -> None:
    """F46: nor is its own view of its callers worth anything."""
    run.deliver(run.produce(50))
    with run.fault("model_down"):
        for _ in range(9):
            run.call(run.now, 3.0, "disconnected")
        run.now += 12.0
    run.ask("1050-0")
    run.finish("1050-0")


def _nothing_moves_because_workers_are_killed_as_fast_as_they_start(run: Tape) -> None:
    run.produce(50)
    for life in "bcdefg":
        run.kill(1, life)
        run.kill(2, life)
        run.now += 2.0
    run.enrich("1050-0", life="g")


def _nothing_moves_because_all_workers_are_frozen(run: Tape) -> None:
    run.produce(50)
    with run.fault("freeze_worker", process="worker-1"), run.fault("freeze_worker", process="worker-2"):
        run.now += 12.0
    run.enrich("1050-0")


def _nothing_moves_until_the_healing_ends_a_fault(run: Tape) -> None:
    run.deliver(run.produce(50))
    run.tell(FaultBegan, "nemesis", fault="black_hole", number=99)
    run.now += 12.0
    run.tell(Healed, "nemesis")
    run.now += 2.0
    run.ask("1050-0")
    run.finish("1050-0")


def _calls_of_the_killed(run: Tape) -> None:
    """F1: the model notices late that its callers are gone."""
    for _ in range(4):
        run.call(run.now, 1.0, "disconnected")
        run.call(run.now + 0.5, 0.4)


def _calls_that_were_granted_apart_and_arrive_together(run: Tape) -> None:
    run.terms = msgspec.structs.replace(run.terms, rate_per_s=2.0, burst=12)
    for place in range(5):
        run.call(run.now + place * 2 * TICK_S)
    for place in range(20):
        run.call(run.now + 1.0 + place)


def _a_call_that_is_still_open(run: Tape) -> None:
    run.calls.append(ModelCall(arrival_s=run.now))


def _calls_of_those_that_drain(run: Tape) -> None:
    """F16."""
    run.tell(Scaled, "supervisor", workers=3, before=2)
    run.now += 0.5
    run.tell(Scaled, "supervisor", workers=2, before=3)
    for _ in range(6):
        run.call(run.now + 8.0, 1.0)
    run.now += 9.0


def _calls_of_orphans(run: Tape) -> None:
    """F12: they have three seconds to leave, and the next fleet is there."""
    with run.fault("kill_supervisor"):
        run.sample(workers=4, orphans=2, oldest_orphan_s=3.5)
    for _ in range(8):
        run.call(run.now, 1.0)


def _scaled_down_and_up(run: Tape) -> None:
    """F16: the worker drains for as long as it may; the next one of its slot has no part in that order."""
    run.tell(Scaled, "supervisor", workers=1, before=2)
    run.tell(ChildStopping, "supervisor", name="worker-2", pid=2, why="scale")
    run.tell(Draining, "worker-2")
    run.now += 9.5
    run.sample()
    run.tell(ChildStopped, "supervisor", name="worker-2", exit="code 0")
    run.now += 2.0
    run.tell(Scaled, "supervisor", workers=2, before=1)
    run.tell(ChildStarted, "supervisor", name="worker-2", pid=2)
    run.now += 11.0


def _stopped_late_because_the_supervisor_was_killed(run: Tape) -> None:
    """F12, F16."""
    run.tell(Scaled, "supervisor", workers=1, before=2)
    run.tell(ChildStopping, "supervisor", name="worker-2", pid=2, why="scale")
    with run.fault("kill_supervisor"):
        run.now += 11.0
    for name in ("janitor", "worker-1"):
        run.tell(ChildStarted, "supervisor", name=name, pid=2)
    run.workers = 1
    run.left["consumers"] = (owner_of(1, "b"),)


def _slow_but_moving(run: Tape) -> None:
    run.deliver(run.produce(50))
    for n in (51, 52, 53, 54):
        run.now += 3.0
        run.enrich(run.produce(n))
    run.ask("1050-0")
    run.finish("1050-0")


def _a_little_larger(run: Tape) -> None:
    run.figures = {"rss_bytes": 330 << 20, "fds": 105, "threads": 21}


def _two_herds(run: Tape) -> None:
    """F42: that may be by chance, however many workers record the same pause."""
    for _ in range(2):
        for process in ("worker-1", "worker-2"):
            run.records.append(GatePaused(mono=run.now, process=process, until_mono=run.now + 5.0))
            run.records.append(GatePaused(mono=run.now + 4.5, process=process, until_mono=run.now + 10.0))
        for end_s in (5.0, 10.0):
            run.call(run.now + end_s + 0.001)
            run.call(run.now + end_s + 0.002)
        run.now += 20.0


def _a_pause_is_kept(run: Tape) -> None:
    """F42: a call that was under way arrives; those who waited come one after the other."""
    for _ in range(3):
        run.tell(GatePaused, "worker-1", until_mono=run.now + 5.0)
        run.call(run.now + 0.9)
        run.tell(GatePaused, "worker-2", until_mono=run.now + 10.0)
        run.now += 10.0
        run.call(run.now + 0.1)
        run.call(run.now + 0.5)
        run.now += 10.0


@pytest.mark.parametrize(
    "happen",
    [
        _zombie_comes_too_late,
        _ghost_is_handed_back,
        _ghost_is_handed_back_to_its_first_owner,
        _ghost,
        _zombie_records_its_delivery_late,
        _zombie_is_told_within_a_heartbeat,
        _retried_after_a_long_back_off,
        _a_retry_that_was_sent_again,
        _refused_while_another_works,
        _a_record_of_a_sending_was_dropped,
        _everything_was_trimmed,
        _data_that_ends_with_a_newline,
        _data_that_had_an_enrichment,
        _an_event_without_data,
        _an_event_without_data_or_a_known_id_was_trimmed,
        _an_event_of_too_many_fields,
        _a_repetition_whose_producer_knows_no_id,
        _retried_twice_by_one_worker,
        _reply_lost,
        _two_janitors_at_once,
        _killed_before_the_answer,
        _killed_after_bad_answers,
        _crash_loop,
        _killed_more_often_than_the_budget_after_it_was_settled,
        _killed_more_often_than_the_budget_while_it_waited_at_the_gate,
        _killed_more_often_than_the_budget_while_the_model_was_down,
        _killed_more_often_than_the_budget_since_the_group_began_anew,
        _released_while_the_model_was_away,
        _calls_that_are_lost_again_and_again,
        _a_tombstone_where_somebody_deletes,
        _deleted_before_the_group_was_destroyed,
        _in_hand_and_deleted_before_the_group_was_destroyed,
        _a_tombstone_of_an_event_whose_producer_knows_no_id,
        _rolled_back,
        _attempts_were_forgotten,
        _group_begun_anew,
        _told_that_the_lease_is_lost,
        _handed_on_just_in_time,
        _handed_on_by_the_next_fleet,
        _killed_when_it_had_been_handed_back,
        _killed_when_another_had_taken_it,
        _handed_on_late_while_redis_was_away,
        _nothing_moves_while_the_model_is_down,
        _nothing_moves_because_workers_are_killed_as_fast_as_they_start,
        _nothing_moves_because_all_workers_are_frozen,
        _nothing_moves_until_the_healing_ends_a_fault,
        _calls_of_the_killed,
        _calls_that_were_granted_apart_and_arrive_together,
        _a_call_that_is_still_open,
        _calls_of_those_that_drain,
        _calls_of_orphans,
        _scaled_down_and_up,
        _stopped_late_because_the_supervisor_was_killed,
        _slow_but_moving,
        _a_little_larger,
        _two_herds,
        _a_pause_is_kept,
    ],
    ids=lambda happen: happen.__name__.strip("_").replace("_", " "),
)
def test_what_only_looks_odd_is_no_violation(happen: Callable[[Tape], None]) -> None:
    run = green(open_end=True)
    happen(run)
    run.end()
    judgement = run.judged()
    assert judgement.verdict == "green", str(judgement)


NOT_MEASURED = "the processes were not measured before the faults and after the drain"


# -- coverage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "missing"),
    [
        ({"expected_faults": ("kill_redis",)}, "fault kill_redis: never began"),
        ({"expected_answers": ("bury/lost",)}, "answer bury/lost: never"),
        ({"expected_sights": ("ghost",)}, "sight ghost: never"),
    ],
)
def test_a_run_that_did_not_show_what_was_expected_is_inconclusive(terms: dict[str, Any], missing: str) -> None:
    run = green()
    run.terms = msgspec.structs.replace(run.terms, **terms)
    judgement = run.judged()
    assert (judgement.verdict, judgement.coverage) == ("inconclusive", [missing])


def test_a_fault_without_an_effect_is_not_covered() -> None:
    """The nemesis says that it killed Redis, and nobody noticed."""
    run = green(open_end=True)
    run.terms = msgspec.structs.replace(run.terms, expected_faults=("kill_redis",))
    with run.fault("kill_redis"):
        pass
    run.end()
    assert run.judged().coverage == ["fault kill_redis: began 1 times, and no record shows an effect"]


def test_a_run_that_was_cut_short_is_inconclusive() -> None:
    """What waits is not lost, and what had no time to happen is not late."""
    run = green(open_end=True)
    run.deliver(run.produce(50, event_id="e-50"), life="b")
    run.deliver(run.produce(51, event_id="e-50"), 2)
    run.settle("1051-0", "skip", 2)
    run.left["pending"] = ("1050-0",)
    run.tell(Scaled, "supervisor", workers=1, before=2)
    run.tell(ChildStopping, "supervisor", name="worker-2", pid=2, why="scale")
    run.kill(1, "c")
    judgement = run.judged()
    assert judgement.verdict == "inconclusive", str(judgement)
    assert judgement.coverage == ["the faults were never healed", NOT_MEASURED]


def test_a_run_without_events_is_inconclusive() -> None:
    judgement = Tape().judged()
    assert judgement.verdict == "inconclusive"
    assert "answer done/ok: never" in judgement.coverage


def test_a_run_without_faults_may_be_green_where_none_are_expected() -> None:
    run = quiet()
    run.end()
    assert run.judged().verdict == "green"


def test_a_fleet_has_to_move_only_when_it_has_been_started() -> None:
    run = Tape()
    run.terms = msgspec.structs.replace(run.terms, expected_faults=(), expected_answers=(), expected_sights=())
    run.produce(1)
    run.now += 12.0
    run.up()
    run.now += 6.0
    run.enrich("1001-0")
    run.end()
    assert run.judged().verdict == "green"


@pytest.mark.parametrize("kept", [(False, False), (True, False), (False, True)])
def test_a_run_that_was_not_measured_at_both_ends_is_inconclusive(kept: tuple[bool, bool]) -> None:
    run = green()
    fault_s = next(record.mono for record in run.records if isinstance(record, FaultBegan))
    run.tamper(lambda record: None if isinstance(record, Sampled) and not kept[record.mono > fault_s] else record)
    judgement = run.judged()
    assert judgement.verdict == "inconclusive"
    assert judgement.coverage == [NOT_MEASURED]


def test_what_is_broken_counts_more_than_what_was_not_shown() -> None:
    run = green()
    run.terms = msgspec.structs.replace(run.terms, expected_sights=("ghost",))
    run.write(GOOD)
    assert run.judged().verdict == "red"


@pytest.mark.parametrize(
    ("fault", "felt", "effect"),
    [
        ("black_hole", 1, None),
        ("kill_worker", 0, ChildDied(mono=0.0, name="worker-2")),
        ("kill_janitor", 0, ChildDied(mono=0.0, name="janitor")),
        ("kill_supervisor", 0, ChildStarted(mono=0.0, name="worker-2", pid=2)),
        ("scale", 0, Scaled(mono=0.0, workers=2, before=2)),
        ("swallow", 0, Resending(mono=0.0, id=GOOD)),
        ("destroy_group", 0, GroupRecreated(mono=0.0)),
    ],
)
def test_a_fault_is_covered_only_if_its_effect_shows(fault: str, felt: int, effect: Record | None) -> None:
    for shows in (False, True):
        run = quiet()
        run.terms = msgspec.structs.replace(run.terms, expected_faults=(fault,))
        with run.fault(fault, felt=felt * shows):
            run.now += 1.0
        if effect and shows:
            run.records.append(msgspec.structs.replace(effect, mono=run.now + 1.0))
        run.now += 10.0
        run.end()
        missing = f"fault {fault}: began 1 times, and no record shows an effect"
        assert run.judged().coverage == ([] if shows else [missing])


def quiet() -> Tape:
    """Record a fleet that works, and nothing that is to be expected of a storm."""
    run = Tape()
    run.terms = msgspec.structs.replace(run.terms, expected_faults=(), expected_answers=(), expected_sights=())
    run.up()
    run.enrich(run.produce(1))
    run.now += 5.0
    return run


def seen(happen: Callable[[Tape], None]) -> set[str]:
    run = green(open_end=True)
    happen(run)
    run.end()
    run.terms = msgspec.structs.replace(run.terms, expected_sights=tuple(SIGHTS))
    unseen = {line.removeprefix("sight ").removesuffix(": never") for line in run.judged().coverage}
    return SIGHTS.keys() - unseen


@pytest.mark.parametrize(
    ("happen", "sight"),
    [
        (_ghost, "ghost"),
        (_ghost_is_handed_back, "ghost"),
        (_zombie_comes_too_late, "zombie_refused"),
        (_reply_lost, "lost_reply"),
        (_a_tombstone_where_somebody_deletes, "tombstone"),
        (_crash_loop, "crash_loop"),
        (_a_pause_is_kept, "pause"),
        (_rolled_back, "rollback"),
    ],
)
def test_a_sight_is_seen_where_it_is_and_nowhere_else(happen: Callable[[Tape], None], sight: str) -> None:
    """A plain run shows one: what the killed worker held is handed back."""
    assert seen(_retried_twice_by_one_worker) == {"reclaim"}
    assert seen(happen) == {"reclaim", sight}


def test_what_redis_forgot_is_counted_and_what_was_trimmed_is_not() -> None:
    run = green(open_end=True)
    run.input = [entry for entry in run.input if entry.id != GOOD]
    _rolled_back(run)
    run.end()
    numbers = run.judged().numbers
    assert (numbers["missing"], numbers["rolled_back"]) == (0, 2)
    assert (numbers["kills"], numbers["faults"]) == (1, {"kill_worker": 1, "rollback": 1})


def test_a_fault_of_an_unknown_class_is_refused() -> None:
    run = green(open_end=True)
    with run.fault("act_of_god"):
        pass
    with pytest.raises(ValueError, match="'act_of_god'"):
        run.judged()


# -- stretches of time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start_s", "end_s", "process", "calm"),
    [
        (0.0, 100.0, None, [(0.0, 10.0), (22.0, 30.0), (47.0, 50.0), (57.0, 100.0)]),
        (0.0, 100.0, "worker-1", [(0.0, 10.0), (22.0, 50.0), (57.0, 100.0)]),
        (0.0, 5.0, None, [(0.0, 5.0)]),
        (21.0, 25.0, None, [(22.0, 25.0)]),
        (12.0, 21.0, None, []),
        (25.0, 35.0, None, [(25.0, 30.0)]),
    ],
)
def test_calm_is_what_no_such_fault_touches(
    start_s: float, end_s: float, process: str | None, calm: list[tuple[float, float]]
) -> None:
    run = Tape()
    for began_s, for_s, name, hits in (
        (10.0, 10.0, "kill_redis", None),
        (12.0, 1.0, "kill_redis", None),
        (30.0, 15.0, "freeze_worker", "worker-2"),
        (50.0, 5.0, "freeze_worker", "worker-1"),
        (60.0, 5.0, "model_down", None),
    ):
        run.now = began_s - TICK_S
        with run.fault(name, process=hits):
            run.now += for_s - TICK_S
    stretches = arrange(run.history()).calm(
        start_s, end_s, [Effect.REDIS_AWAY, Effect.FROZEN], after_s=2.0, process=process
    )
    assert [(round(began, 6), round(ended, 6)) for began, ended in stretches] == calm


@pytest.mark.parametrize(
    ("start_s", "end_s", "workers"), [(0.0, 9.0, 2), (0.0, 10.0, 5), (10.0, 19.0, 5), (20.0, 30.0, 1), (19.0, 21.0, 5)]
)
def test_the_workers_that_were_wanted_at_most_are_known(start_s: float, end_s: float, workers: int) -> None:
    run = Tape()
    run.records = [Scaled(mono=10.0, workers=5, before=2), Scaled(mono=20.0, workers=1, before=5)]
    assert arrange(run.history()).desired_max(start_s, end_s) == workers
