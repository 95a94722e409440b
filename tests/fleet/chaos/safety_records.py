"""Safety, as it shows in the streams that are left: invariants 1 to 5 and 7."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from tests.fleet.chaos.acts import Act
from tests.fleet.chaos.faults import Effect
from tests.fleet.chaos.history import Entry
from tests.fleet.chaos.judgement import Finding
from tests.fleet.chaos.records import Produced
from tests.fleet.chaos.timeline import Timeline, ours

DATA = b"data"
ENRICHMENT = "ai_enrichment"
PACKED = b"original_msgpack"  # an original of too many fields for one call, in one

Pairs = tuple[tuple[bytes, bytes], ...]


def no_loss(run: Timeline) -> Iterator[Finding]:
    """1: every event that Redis accepted ends in a record, or still waits where the run was cut short.

    Excused are repetitions that were skipped, if what they repeat has a record, and what is no longer in the input
    because Redis itself fell back or was emptied, or was deleted by a fault before another took the pending list away,
    which alone knew of it. A tombstone is a loss where nothing in the run deletes.
    """
    for entry_id in sorted(lost(run)):
        yield Finding("was accepted and has no record", (entry_id,), run.stories.get(entry_id, ()))
    if not any(Effect.DELETES in fault.effects for fault in run.faults):
        for entry_id, records in run.dead.items():
            if any(ours(record.fields, "failure_reason") == "deleted" for record in records):
                yield Finding("was deleted from the input, and no fault did that", (entry_id,))


def lost(run: Timeline) -> set[str]:
    """Return the events that were accepted and have no record, though nothing excuses that."""
    without = {entry_id for entry_id in {*run.produced, *run.inputs} - run.waiting if not run.has_record(entry_id)}
    return {entry_id for entry_id in without if not _is_repetition(run, entry_id)} - rolled_back(run) - untold(run)


def untold(run: Timeline) -> set[str]:
    """Return the events that were deleted before the group was: no pending list is left that could tell of them."""
    deleted = [fault.began_s for fault in run.faults if Effect.DELETES in fault.effects]
    regrouped = [fault.ended_s for fault in run.faults if Effect.REGROUPS in fault.effects]
    if not deleted or not regrouped or max(regrouped) < min(deleted):
        return set()
    gone = {entry_id for entry_id in run.produced.keys() - run.inputs.keys() if not run.has_record(entry_id)}
    return {entry_id for entry_id in gone if run.produced[entry_id].mono < max(regrouped)}


def rolled_back(run: Timeline) -> set[str]:
    """Return the events without a record that vanished from the input when Redis fell back or was emptied."""
    gone = {entry_id for entry_id in run.produced.keys() - run.inputs.keys() if not run.has_record(entry_id)}
    return {entry_id for entry_id in gone if _is_forgotten_after(run, run.produced[entry_id].mono)}


def _is_forgotten_after(run: Timeline, since_s: float) -> bool:
    """Whether Redis lost, at that time or later, something that it had accepted."""
    return any(Effect.FORGETS in fault.effects and fault.ended_s >= since_s for fault in run.faults)


def _is_repetition(run: Timeline, entry_id: str) -> bool:
    """Whether an event was skipped, and another with its event_id has a record or will have one."""
    event_id = _event_id(run, entry_id)
    if event_id is None or not any(act.verdict == "skip" for act in run.acts_on(entry_id)):
        return False
    others = {*run.produced, *run.inputs} - {entry_id}
    return any(
        _event_id(run, other) == event_id and (run.has_record(other) or other in run.waiting) for other in others
    )


def _event_id(run: Timeline, entry_id: str) -> str | None:
    if entry_id in run.produced:
        return run.produced[entry_id].event_id
    return ours(run.inputs[entry_id].fields, "event_id") or None


def no_duplicate(run: Timeline) -> Iterator[Finding]:
    """2: no event has more than one record, enriched and dead letters taken together."""
    for entry_id in sorted({*run.enriched, *run.dead}):
        enriched, dead = len(run.enriched.get(entry_id, ())), len(run.dead.get(entry_id, ()))
        if enriched + dead > 1:
            says = f"has {enriched} enriched records and {dead} dead letters"
            yield Finding(says, (entry_id,), run.stories.get(entry_id, ()))


class Origins(NamedTuple):
    """Where the records come from whose source the producer does not know by its id."""

    recovered: set[str]  # one of its lost replies: Redis had accepted the event
    unknown: set[str]


def nothing_from_nowhere(run: Timeline) -> Iterator[Finding]:
    """3: the source of every record was produced, as an event that was accepted or one whose reply was lost."""
    for entry_id in sorted(origins(run).unknown):
        yield Finding("has a record, and nobody produced it", (entry_id,), run.stories.get(entry_id, ()))


def origins(run: Timeline) -> Origins:
    """Match sources of unknown ids with the lost replies, by their bytes and each at most once.

    The tombstone of an event that the producer does not know has no bytes: it may be that of any lost reply left over.
    """
    replies_lost = Counter(one.sha for one in run.all(Produced) if one.outcome == "info")
    found = Origins(set(), set())
    sources = {*run.enriched, *run.dead} - run.produced.keys()
    hashes = {source: _sha_of_source(run, source) for source in sources}
    for source in sorted(sources, key=lambda source: hashes[source] is None):
        sha = hashes[source] or next(replies_lost.elements(), None)
        if sha is not None and replies_lost[sha] > 0:
            replies_lost[sha] -= 1
            found.recovered.add(source)
        else:
            found.unknown.add(source)
    return found


def _sha_of_source(run: Timeline, source: str) -> str | None:
    """Return the hash of an event's bytes, from wherever they can be had."""
    if source in run.inputs:
        return sha_of(run.inputs[source].fields.get(DATA))
    for entry in run.dead.get(source, ()):
        return sha_of(dict(originals(entry)).get(DATA))
    return sha_of(_rebuilt(run.enriched[source][0].fields.get(DATA, b"")))


def sha_of(data: bytes | None) -> str | None:
    """Return what the producer records of an event's bytes."""
    return None if data is None else hashlib.sha256(data).hexdigest()


def originals(dead_letter: Entry) -> Pairs:
    """Return the pairs of a dead letter that are the original's."""
    return dead_letter.pairs[: int(ours(dead_letter.fields, "original_fields") or 0)]


def _rebuilt(data: bytes) -> bytes:
    """Return the original of an enriched event, if it was written as the producer writes: without spaces at its end."""
    return data[: max(0, data.rfind(b'"%b":' % ENRICHMENT.encode()))].removesuffix(b",") + b"}"


def content(run: Timeline) -> Iterator[Finding]:
    """4: input, enriched events and dead letters hold the bytes that were produced.

    An enriched event is the original object with `ai_enrichment` as its last member: up to that the same bytes, and
    without it the same object. One that had such a member has another. A dead letter begins with the original's fields.
    """
    for entry_id, entry in run.inputs.items():
        produced = run.produced.get(entry_id)
        if produced and produced.sha != sha_of(entry.fields.get(DATA)):
            yield Finding("stands in the input with other bytes than were produced", (entry_id,), [produced])
    for entry_id, enriched in run.enriched.items():
        for entry in enriched:
            if wrong := _wrong_in_enriched(run, entry_id, entry.fields.get(DATA, b"")):
                yield Finding(f"was enriched as {entry.id}, and {wrong}", (entry_id,))
    for entry_id, dead in run.dead.items():
        for entry in dead:
            if wrong := _wrong_in_dead(run, entry_id, entry):
                yield Finding(f"was buried as {entry.id}, and {wrong}", (entry_id,))


def _wrong_in_enriched(run: Timeline, entry_id: str, data: bytes) -> str:
    try:
        merged = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        if not isinstance(msgspec.json.decode(merged.pop(ENRICHMENT, msgspec.Raw(b"null"))), dict):
            return f"it has no object `{ENRICHMENT}`"
        if entry_id in run.inputs:
            original = run.inputs[entry_id].fields.get(DATA, b"")
            source = msgspec.json.decode(original, type=dict[str, msgspec.Raw])
            had_one = source.pop(ENRICHMENT, None) is not None
            same_bytes = had_one or data.startswith(original.rstrip()[:-1].rstrip())
            same = {name: bytes(raw) for name, raw in merged.items()} == {
                name: bytes(raw) for name, raw in source.items()
            }
            return "" if same and same_bytes else "without its enrichment it is not the original"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"it cannot be read: {error}"
    produced = run.produced.get(entry_id)
    if produced and produced.sha != sha_of(_rebuilt(data)):
        return "the original, rebuilt from it, is not what was produced"
    return ""


def _wrong_in_dead(run: Timeline, entry_id: str, dead_letter: Entry) -> str:
    pairs = originals(dead_letter)
    if ours(dead_letter.fields, "failure_reason") == "deleted" or any(name == PACKED for name, _ in pairs):
        return ""
    if entry_id in run.inputs:
        return "" if dict(pairs) == run.inputs[entry_id].fields else "its first fields are not the original's"
    produced = run.produced.get(entry_id)
    same = not produced or produced.sha == sha_of(dict(pairs).get(DATA))
    return "" if same else "its bytes are not those that were produced"


def settles_are_true(run: Timeline) -> Iterator[Finding]:
    """5: an event is finished at most once; what was finished or buried has that record, and what was gone has one.

    Unless Redis itself lost the record afterwards. What was deleted before its group was is gone and has none.
    """
    excused = untold(run)
    for entry_id, acts in run.acts.items():
        for first, second in itertools.pairwise(act for act in acts if (act.verdict, act.answer) == ("done", "ok")):
            if not _is_forgotten_after(run, first.sent_s):
                yield Finding("was finished twice", (entry_id,), (*first.records, *second.records))
        for act in acts:
            if act.answer == "gone" and entry_id in excused:
                continue
            if (wrong := _untrue(run, act)) and not _is_forgotten_after(run, act.sent_s):
                yield Finding(wrong, (entry_id,), act.records)


def _untrue(run: Timeline, act: Act) -> str:
    match act.verdict, act.answer:
        case "done", "ok" if act.id not in run.enriched:
            return "was finished and is not among the enriched"
        case "bury", "ok" if act.id not in run.dead:
            return "was buried and is not among the dead letters"
        case "done" | "bury", "gone" if not run.has_record(act.id):
            return "was gone, and has no record in the end"
    return ""


def acknowledged_by_settling(run: Timeline) -> Iterator[Finding]:
    """7: an event leaves the pending list only by being finished or buried, and whoever does that records it first.

    A tombstone is written where any verdict finds the entry deleted.
    """
    for entry_id in sorted({*run.enriched, *run.dead}):
        verdicts = {act.verdict for act in run.acts_on(entry_id)}
        is_tombstone = any(ours(one.fields, "failure_reason") == "deleted" for one in run.dead.get(entry_id, ()))
        if entry_id in run.enriched and "done" not in verdicts:
            yield Finding("is among the enriched, and nobody finished it", (entry_id,), run.stories.get(entry_id, ()))
        if entry_id in run.dead and not (verdicts if is_tombstone else verdicts & {"bury"}):
            yield Finding("is among the dead letters, and nobody buried it", (entry_id,), run.stories.get(entry_id, ()))
