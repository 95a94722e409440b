"""The history checker: a run in which all is well, and what each invariant finds in one where a single thing is not."""

from collections.abc import Callable

import msgspec
import pytest
from tests.fleet.chaos.checker import LIVENESS, SAFETY
from tests.fleet.chaos.history import Entry
from tests.fleet.chaos.judgement import Judgement
from tests.fleet.chaos.records import (
    Asked,
    ChildDied,
    ChildStarted,
    ChildStopped,
    ChildStopping,
    Drained,
    Draining,
    GatePaused,
    Healed,
    Produced,
    Resending,
    Scaled,
    Seen,
    Sent,
    Settled,
)
from tests.fleet.chaos.safety_records import sha_of
from tests.fleet.chaos.tape import GOOD, HOPELESS, RECOVERED, RETRIED, TICK_S, Tape, green, owner_of


def broken(judgement: Judgement) -> set[int]:
    return {violation.number for violation in (*judgement.safety, *judgement.liveness)}


def test_a_run_in_which_all_is_well_is_green() -> None:
    judgement = green().judged()
    assert judgement.verdict == "green", str(judgement)


def test_the_numbers_are_those_of_the_run() -> None:
    numbers = green().judged().numbers
    assert numbers["produced"] == {"ok": 5, "info": 2, "fail": 1}
    assert (numbers["enriched"], numbers["dead"], numbers["recovered"]) == (4, {"invalid_answer": 1}, 1)
    assert (numbers["duplicates"], numbers["missing"], numbers["rolled_back"]) == (0, 0, 0)
    assert (numbers["kills"], numbers["faults"], numbers["deaths"]) == (1, {"kill_worker": 1}, {"workers": 1})
    assert (numbers["deliveries"], numbers["model_calls"], numbers["handed_on"]) == (11, 9, 1)
    assert numbers["settles"] == {"bury/ok": 1, "done/ok": 4, "hand_back/ok": 1, "retry/ok": 4, "skip/ok": 1}
    assert numbers["handover_worst_s"] == pytest.approx(4 * TICK_S)
    assert numbers["heal_to_drained_s"] == pytest.approx(TICK_S)


# -- one thing that is not well ----------------------------------------------------------------------------------------


def _lost(run: Tape) -> None:
    run.produce(50)


def _lost_without_a_known_id(run: Tape) -> None:
    run.produce(50, "info")


def _lost_from_the_input(run: Tape) -> None:
    run.produce(50, arrives=False)


def _lost_long_after_a_rollback(run: Tape) -> None:
    with run.fault("rollback"):
        pass
    run.produce(50, arrives=False)


def _lost_among(run: Tape, *faults: str) -> None:
    run.produce(50, arrives=False)
    for name in faults:
        with run.fault(name):
            pass


def _lost_after_all_that_deletes(run: Tape) -> None:
    _lost_among(run, "delete_entries", "destroy_group")
    run.produce(51, arrives=False)
    run.leave_out(Produced, n=50)


def _lost_where_the_pending_list_still_knew_of_it(run: Tape) -> None:
    _lost_among(run, "delete_entries")


def _lost_where_nothing_deletes(run: Tape) -> None:
    _lost_among(run, "destroy_group")


def _lost_by_a_deletion_after_the_group_was_destroyed(run: Tape) -> None:
    _lost_among(run, "destroy_group", "delete_entries")


def _lost_with_the_event_id_of_another(run: Tape) -> None:
    run.deliver(run.produce(50, event_id="e-0"))


def _both_of_two_skipped(run: Tape) -> None:
    for n in (50, 51):
        run.deliver(run.produce(n, event_id="e-50"))
        run.settle(f"{1000 + n}-0", "skip")


def _skipped_without_an_event_id(run: Tape) -> None:
    run.deliver(run.produce(50))
    run.settle("1050-0", "skip")


def _skipped_without_an_event_id_or_a_known_id(run: Tape) -> None:
    run.deliver(run.produce(50, "info"))
    run.settle("1050-0", "skip")


def _trimmed_while_pending(run: Tape) -> None:
    run.deliver(run.produce(50))
    run.settle("1050-0", "bury")
    run.write_dead("1050-0", "deleted")


def _enriched_twice(run: Tape) -> None:
    run.write(GOOD)


def _enriched_and_buried(run: Tape) -> None:
    run.settle(GOOD, "bury", answer=None)
    run.write_dead(GOOD, "crash_loop")


def _added_twice_by_one_call(run: Tape) -> None:
    run.input.append(Entry("1900-0", run.input[0].pairs))
    run.enrich("1900-0")


def _recovered_twice(run: Tape) -> None:
    run.input.append(Entry("1900-0", next(entry.pairs for entry in run.input if entry.id == RECOVERED)))
    run.enrich("1900-0")


def _input_altered(run: Tape) -> None:
    run.enrich(run.produce(50))
    run.alter(Produced, 50, sha=sha_of(b"{}"))


def _replace_data(run: Tape, old: bytes, new: bytes, place: int = 0) -> None:
    entry = run.output[place]
    run.output[place] = Entry.of(entry.id, entry.fields | {b"data": entry.fields[b"data"].replace(old, new)})


def _enriched_event_altered(run: Tape) -> None:
    _replace_data(run, b"event 0", b"event 9")


def _enriched_event_respelled(run: Tape) -> None:
    _replace_data(run, b'"n": 0', b'"n":0')


def _enriched_event_has_another_member(run: Tape) -> None:
    _replace_data(run, b'"meta":{}}}', b'"meta":{}},"x":1}')


def _enriched_event_without_an_enrichment(run: Tape) -> None:
    _replace_data(run, b'{"sentiment":{"label":"positive"},"meta":{}}', b"7")


def _recovered_event_altered(run: Tape) -> None:
    _replace_data(run, b"event 4", b"event 9", -1)


def _enriched_event_altered_after_a_trim(run: Tape) -> None:
    run.input = [entry for entry in run.input if entry.id != GOOD]
    _enriched_event_altered(run)


def _dead_letter_altered(run: Tape) -> None:
    (_, *rest), entry_id = run.dead[0].pairs, run.dead[0].id
    run.dead[0] = Entry(entry_id, ((b"data", b"{}"), *rest))


def _dead_letter_lost_a_field(run: Tape) -> None:
    place = next(place for place, entry in enumerate(run.input) if entry.id == HOPELESS)
    run.input[place] = Entry(HOPELESS, (*run.input[place].pairs, (b"traceparent", b"00")))


def _dead_letter_altered_after_a_trim(run: Tape) -> None:
    run.input = [entry for entry in run.input if entry.id != HOPELESS]
    _dead_letter_altered(run)


def _finished_and_yet_buried(run: Tape) -> None:
    run.deliver(run.produce(50))
    run.settle("1050-0", "bury", answer=None)
    run.write_dead("1050-0", "malformed")
    run.settle("1050-0", "done")


def _finished_twice(run: Tape) -> None:
    run.settle(GOOD, "done")


def _gone_and_yet_pending(run: Tape) -> None:
    run.deliver(run.produce(50))
    run.settle("1050-0", "done", answer="gone")
    _cut_short(run)


def _delivered_after_its_end(run: Tape) -> None:
    run.now += 5.0
    run.deliver(GOOD)


def _asked_about_after_its_end(run: Tape) -> None:
    run.now += 5.0
    run.tell(Asked, "worker-2", id=GOOD, attempt=1)


def _asked_about_after_it_was_gone(run: Tape) -> None:
    run.deliver(run.produce(50))
    run.settle("1050-0", "done", answer=None)
    run.write("1050-0")
    run.settle("1050-0", "done", 2, answer="gone")
    run.now += 5.0
    run.tell(Asked, "worker-2", id="1050-0", attempt=1)


def _asked_about_by_one_while_another_was_frozen(run: Tape) -> None:
    with run.fault("freeze_worker", process="worker-1"):
        run.now += 5.0
    run.tell(Asked, "worker-2", id=GOOD, attempt=1)


def _written_without_a_settle(run: Tape) -> None:
    run.deliver(run.produce(50))
    run.write("1050-0")


def _buried_without_a_settle(run: Tape) -> None:
    run.deliver(run.produce(50))
    run.settle("1050-0", "release")
    run.write_dead("1050-0", "malformed")


def _released_by_one_that_never_had_it(run: Tape) -> None:
    run.produce(50)
    run.settle("1050-0", "release")
    run.enrich("1050-0")


def _buried_by_one_whose_lease_was_lost(run: Tape) -> None:
    run.deliver(run.produce(50))
    run.settle("1050-0", "bury", answer=None)
    run.tell(Resending, "worker-1", id="1050-0")
    run.settle("1050-0", "hand_back", answer=None, by="janitor")
    run.deliver("1050-0", 2, count=2)
    run.settle("1050-0", "bury")
    run.write_dead("1050-0", "malformed")


def _released_after_it_was_parked_and_taken(run: Tape) -> None:
    run.deliver(run.produce(50), 2)
    run.deliver("1050-0", 1)
    run.settle("1050-0", "release", 1)
    run.settle("1050-0", "release", 2)
    run.enrich("1050-0", 1)


def _released_twice(run: Tape) -> None:
    run.deliver(run.produce(50))
    run.settle("1050-0", "release")
    run.settle("1050-0", "release")
    run.enrich("1050-0")


def _handed_back_twice(run: Tape) -> None:
    run.deliver(run.produce(50))
    token = {"id": "1050-0", "verdict": "hand_back", "owner": owner_of(1), "count": 1}
    run.tell(Sent, "janitor", **token)
    run.tell(Resending, "worker-1", id="1050-0")
    run.tell(Settled, "janitor", settled="ok", **token)
    run.settle("1050-0", "hand_back", by="janitor")
    run.enrich("1050-0", 2, count=2)


def _handed_back_while_another_held_it(run: Tape) -> None:
    run.deliver(run.produce(50), 1)
    run.settle("1050-0", "release", 1)
    run.deliver("1050-0", 2)
    run.settle("1050-0", "hand_back", 1, by="janitor")
    run.enrich("1050-0", 1, count=2, life="b")


def _asked_a_fifth_time(run: Tape) -> None:
    run.produce(50)
    for attempt in (1, 2, 3, 4):
        run.fail("1050-0", attempt=attempt)
    run.enrich("1050-0", attempt=5)


def _five_attempts(run: Tape) -> None:
    run.produce(50)
    for attempt in (1, 2, 3, 4, 4):
        run.fail("1050-0", attempt=attempt)
    run.enrich("1050-0", attempt=4)


def _outage_spent_an_attempt(run: Tape) -> None:
    run.deliver(run.produce(50))
    run.ask("1050-0", outcome="away: throttled")
    run.settle("1050-0", "retry")
    run.fail("1050-0", attempt=2)
    run.enrich("1050-0", attempt=2)


def _buried_too_early(run: Tape) -> None:
    run.produce(50)
    run.fail("1050-0", attempt=1, last=True)


def _buried_for_a_reason_of_another_worker(run: Tape) -> None:
    run.deliver(run.produce(50), 2)
    run.ask("1050-0", 2, outcome="bad: timeout")
    run.settle("1050-0", "retry", 2)
    for attempt in (2, 3, 4):
        run.fail("1050-0", attempt=attempt, last=attempt == 4)
    pairs = tuple((name, b"timeout" if name == b"failure_reason" else value) for name, value in run.dead[-1].pairs)
    run.dead[-1] = Entry(run.dead[-1].id, pairs)


def _attempts_miscounted(run: Tape) -> None:
    run.deliver(run.produce(50))
    run.settle("1050-0", "bury")
    run.write_dead("1050-0", "malformed", 1)


def _delivered_too_often(run: Tape) -> None:
    run.produce(50)
    for count in (1, 2, 3):
        run.deliver("1050-0", 2, count=count)
        run.settle("1050-0", "hand_back", 2, count=count, by="janitor")
    run.enrich("1050-0", 2, count=4)


def _killed_too_many(run: Tape) -> None:
    """Let four workers die of it, though the count stays where it is."""
    run.produce(50)
    for life in "bcde":
        run.deliver("1050-0", life=life)
        run.kill(1, chr(ord(life) + 1))
        run.settle("1050-0", "release", life=life, by="janitor")
    run.enrich("1050-0", life="f")
    run.left["consumers"] = ("@parked", owner_of(1, "f"), owner_of(2))


def _over_the_rate(run: Tape) -> None:
    run.terms = msgspec.structs.replace(run.terms, rate_per_s=2.0, burst=8)
    for place in range(12):
        run.call(run.now + place * 2 * TICK_S)


def _over_the_slots(run: Tape) -> None:
    for _ in range(5):
        run.call(run.now, 0.5)


def _call_during_a_pause(run: Tape) -> None:
    run.tell(GatePaused, "worker-1", until_mono=run.now + 10.0)
    run.call(run.now + 1.5)


def _herd_after_pauses(run: Tape) -> None:
    for start_s in (200.0, 220.0, 240.0):
        run.records.append(GatePaused(mono=start_s, process="worker-1", until_mono=start_s + 10.0))
        run.records.append(GatePaused(mono=start_s, process="worker-2", until_mono=start_s + 10.0))
        run.call(start_s + 10.001)
        run.call(start_s + 10.002)


def _output_out_of_order(run: Tape) -> None:
    run.output[1:3] = [run.output[2], run.output[1]]
    run.leave_out(Seen)
    for entry in run.output:
        run.tell(Seen, "reader", id=entry.id, src=entry.fields[b"src"].decode())


def _reader_missed_one(run: Tape) -> None:
    run.leave_out(Seen, src=RETRIED)


def _reader_missed_the_last(run: Tape) -> None:
    run.leave_out(Seen, src=RECOVERED)


def _reader_saw_one_that_is_gone(run: Tape) -> None:
    run.tell(Seen, "reader", id="9999-0", src=GOOD)


def _a_worker_too_many(run: Tape) -> None:
    run.sample(workers=3)


def _an_orphan(run: Tape) -> None:
    run.sample(orphans=1, oldest_orphan_s=6.0)


def _left_parked(run: Tape) -> None:
    run.left["parked"] = 1


def _consumers_pile_up(run: Tape) -> None:
    run.left["consumers"] = tuple(owner_of(1, str(life)) for life in range(5))


def _memory_grew(run: Tape) -> None:
    run.sample(rss_bytes=400 << 20)


def _nothing_moves_for_a_while(run: Tape) -> None:
    run.deliver(run.produce(50))
    run.now += 4.0
    run.enrich(run.produce(51))
    run.now += 10.0
    run.ask("1050-0")
    run.finish("1050-0")


def _cut_short(run: Tape) -> None:
    run.left["pending"] = ("1050-0",)
    run.leave_out(Drained)
    run.leave_out(Healed)
    run.sample()


def _never_settled(run: Tape) -> None:
    run.deliver(run.produce(50))
    run.now += 12.0
    _cut_short(run)


def _never_handed_on(run: Tape) -> None:
    run.deliver(run.produce(50), life="b")
    run.kill(1, "c")
    run.now += 3.2
    _cut_short(run)


def _never_drained(run: Tape) -> None:
    run.leave_out(Drained)


def _drained_late(run: Tape) -> None:
    run.stretch(next(record.mono for record in run.records if isinstance(record, Healed)), 21.0)


def _handed_on_late(run: Tape) -> None:
    died_s = next(record.mono for record in run.records if isinstance(record, ChildDied))
    run.stretch(died_s, 3.5)


def _handed_on_late_after_another_was_refused(run: Tape) -> None:
    run.deliver(run.produce(50), 2)
    run.settle("1050-0", "hand_back", 2, by="janitor")
    run.deliver("1050-0", 1, count=2, life="b")
    run.settle("1050-0", "bury", 2, answer="lost")
    run.kill(1, "c")
    run.settle("1050-0", "bury", 2, answer="lost")
    run.now += 4.0
    run.enrich("1050-0", 2, count=3)


def _never_handed_on_by_the_next_fleet(run: Tape) -> None:
    run.deliver(run.produce(50))
    for name in ("janitor", "worker-1", "worker-2"):
        run.tell(ChildStarted, "supervisor", name=name, pid=2)
    run.now += 4.8
    run.enrich("1050-0", 2, count=2, life="c")


def _stopped_late(run: Tape) -> None:
    run.tell(Scaled, "supervisor", workers=1, before=2)
    run.tell(ChildStopping, "supervisor", name="worker-2", pid=2, why="scale")
    run.now += 10.5
    run.tell(ChildStopped, "supervisor", name="worker-2", exit="code 0")
    run.workers = 1
    run.left["consumers"] = (owner_of(1, "b"),)


def _drains_for_ever(run: Tape) -> None:
    run.tell(Draining, "worker-2")
    run.now += 10.5


BEFORE_THE_END = [
    (1, _lost),
    (1, _lost_without_a_known_id),
    (1, _lost_from_the_input),
    (1, _lost_long_after_a_rollback),
    (1, _lost_after_all_that_deletes),
    (1, _lost_where_the_pending_list_still_knew_of_it),
    (1, _lost_where_nothing_deletes),
    (1, _lost_by_a_deletion_after_the_group_was_destroyed),
    (1, _lost_with_the_event_id_of_another),
    (1, _both_of_two_skipped),
    (1, _skipped_without_an_event_id),
    (1, _skipped_without_an_event_id_or_a_known_id),
    (1, _trimmed_while_pending),
    (2, _enriched_twice),
    (2, _enriched_and_buried),
    (3, _added_twice_by_one_call),
    (3, _recovered_twice),
    (4, _input_altered),
    (4, _enriched_event_altered),
    (4, _enriched_event_respelled),
    (4, _enriched_event_has_another_member),
    (4, _enriched_event_without_an_enrichment),
    (4, _recovered_event_altered),
    (4, _enriched_event_altered_after_a_trim),
    (4, _dead_letter_altered),
    (4, _dead_letter_lost_a_field),
    (4, _dead_letter_altered_after_a_trim),
    (5, _finished_and_yet_buried),
    (5, _finished_twice),
    (6, _delivered_after_its_end),
    (6, _asked_about_after_its_end),
    (6, _asked_about_after_it_was_gone),
    (6, _asked_about_by_one_while_another_was_frozen),
    (7, _written_without_a_settle),
    (7, _buried_without_a_settle),
    (8, _released_by_one_that_never_had_it),
    (8, _buried_by_one_whose_lease_was_lost),
    (8, _released_after_it_was_parked_and_taken),
    (8, _released_twice),
    (8, _handed_back_twice),
    (8, _handed_back_while_another_held_it),
    (9, _asked_a_fifth_time),
    (9, _five_attempts),
    (9, _outage_spent_an_attempt),
    (9, _buried_too_early),
    (9, _buried_for_a_reason_of_another_worker),
    (9, _attempts_miscounted),
    (10, _delivered_too_often),
    (10, _killed_too_many),
    (11, _over_the_rate),
    (11, _over_the_slots),
    (12, _call_during_a_pause),
    (13, _output_out_of_order),
    (13, _reader_missed_one),
    (13, _reader_missed_the_last),
    (13, _reader_saw_one_that_is_gone),
    (14, _a_worker_too_many),
    (14, _an_orphan),
    (16, _nothing_moves_for_a_while),
    (18, _handed_on_late_after_another_was_refused),
    (18, _never_handed_on_by_the_next_fleet),
    (19, _stopped_late),
    (19, _drains_for_ever),
]
AFTER_THE_END = [
    (5, _gone_and_yet_pending),
    (12, _herd_after_pauses),
    (15, _left_parked),
    (15, _consumers_pile_up),
    (15, _memory_grew),
    (16, _never_settled),
    (17, _never_drained),
    (17, _drained_late),
    (18, _handed_on_late),
    (18, _never_handed_on),
]


@pytest.mark.parametrize(
    ("number", "corrupt", "at_end"),
    [
        pytest.param(number, corrupt, at_end, id=f"{number}{corrupt.__name__}".replace("_", " "))
        for at_end, cases in ((False, BEFORE_THE_END), (True, AFTER_THE_END))
        for number, corrupt in cases
    ],
)
def test_one_thing_that_is_not_well_is_found_by_its_invariant_and_by_no_other(
    number: int, corrupt: Callable[[Tape], None], *, at_end: bool
) -> None:
    run = green(open_end=not at_end)
    corrupt(run)
    if not at_end:
        run.end()
    judgement = run.judged()
    assert broken(judgement) == {number}, str(judgement)
    assert judgement.verdict == "red"


def test_every_invariant_is_broken_by_some_case() -> None:
    assert {number for number, _ in (*BEFORE_THE_END, *AFTER_THE_END)} == {*SAFETY, *LIVENESS}


def test_a_violation_names_its_invariant_and_events_and_shows_the_records() -> None:
    run = green()
    run.settle(GOOD, "done")
    (violation,) = run.judged().safety
    assert (violation.number, violation.name, violation.ids) == (5, "settles are true", (GOOD,))
    assert violation.sentence.startswith(f"{GOOD} was finished twice: 1")
    assert "worker-1 settle.sent id=1000-0 verdict=done owner=host:w1:a count=1 | 1" in violation.sentence


def test_of_many_violations_and_much_evidence_only_a_few_are_told() -> None:
    run = green(open_end=True)
    for n in range(50, 57):
        run.produce(n)
        for _ in range(10):
            run.deliver(f"{1000 + n}-0")
    run.write(GOOD)
    run.end()
    text = str(run.judged())
    assert text.count("safety: 1 no loss: 10") == 5
    assert text.count("was accepted and has no record: 10") == 5
    assert text.count("event.delivered id=1050-0") == 8
    assert " | … 2 more\n" in text
    assert "safety: 1 no loss: 2 more\n" in text
    assert text.count("safety: 2 ") == 1
