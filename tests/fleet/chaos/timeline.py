"""A history put in order for judging: by event, by settle, by fault and by worker process."""

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Literal, TypeVar

import msgspec
from tests.fleet.chaos.acts import Act, acts_of
from tests.fleet.chaos.faults import Effect, Fault, faults_of
from tests.fleet.chaos.history import Entry, History, Terms
from tests.fleet.chaos.records import (
    Answered,
    Asked,
    ChildDied,
    ChildStarted,
    ChildStopped,
    Delivered,
    Drained,
    Healed,
    Produced,
    Record,
    Resending,
    Scaled,
    Sent,
    Settled,
)

R = TypeVar("R", bound=Record)


class Life(msgspec.Struct, frozen=True):
    """One process of a slot of the fleet. One that ended "unseen" was found gone when the next one was started."""

    name: str
    began_s: float
    ended_s: float
    end: Literal["died", "stopped", "unseen", "none"]


class Timeline(msgspec.Struct, frozen=True):
    """What is known of a run. A story is what all processes recorded of one event, in order."""

    history: History
    stories: dict[str, list[Record]]
    acts: dict[str, list[Act]]
    by_process: dict[str, list[Record]]
    produced: dict[str, Produced]  # those of which the producer knows the id
    inputs: dict[str, Entry]
    enriched: dict[str, list[Entry]]  # by the id of their source
    dead: dict[str, list[Entry]]  # likewise
    waiting: frozenset[str]  # not settled when the streams were read
    faults: list[Fault]
    lives: list[Life]
    orders: list[Scaled]

    @property
    def terms(self) -> Terms:
        """What was promised."""
        return self.history.terms

    def all(self, kind: type[R]) -> Iterator[R]:
        """Yield the records of one kind."""
        return (record for record in self.history.records if isinstance(record, kind))

    def story(self, entry_id: str, kind: type[R]) -> list[R]:
        """Return an event's records of one kind."""
        return [record for record in self.stories.get(entry_id, ()) if isinstance(record, kind)]

    def records_of(self, life: Life) -> list[Record]:
        """Return what a process recorded itself."""
        records = self.by_process.get(life.name, [])
        first = bisect_left(records, life.began_s, key=_mono)
        return records[first : bisect_right(records, life.ended_s, key=_mono)]

    def acts_on(self, entry_id: str) -> list[Act]:
        """Return an event's settles in the order of their sending."""
        return self.acts.get(entry_id, [])

    def has_record(self, entry_id: str) -> bool:
        """Whether an event ended in a record."""
        return entry_id in self.enriched or entry_id in self.dead

    @property
    def end_s(self) -> float:
        """When the last record was made."""
        return self.history.records[-1].mono if self.history.records else 0.0

    def first_s(self, kind: type[Record]) -> float | None:
        """When the first record of a kind was made."""
        return next((record.mono for record in self.all(kind)), None)

    @property
    def healed_s(self) -> float | None:
        """When the last fault was over."""
        return self.first_s(Healed)

    @property
    def drained_s(self) -> float | None:
        """When everything was settled."""
        return self.first_s(Drained)

    def calm(
        self,
        start_s: float,
        end_s: float,
        effects: Collection[Effect],
        *,
        after_s: float = 0.0,
        process: str | None = None,
    ) -> list[tuple[float, float]]:
        """Return the stretches without a fault that has one of these effects, or ended less than `after_s` before.

        Given a process, what hits only others does not count.
        """
        stretches, free_s = [], start_s
        for fault in self._during(start_s, end_s, effects, after_s):
            if process is not None and fault.process not in (None, process):
                continue
            if fault.began_s > free_s:
                stretches.append((free_s, fault.began_s))
            free_s = max(free_s, fault.ended_s + after_s)
        return [*stretches, (free_s, end_s)] if free_s < end_s else stretches

    def is_calm(self, start_s: float, end_s: float, effects: Collection[Effect], *, after_s: float = 0.0) -> bool:
        """Whether no fault with one of these effects touched a stretch of time, or a moment."""
        return next(self._during(start_s, end_s, effects, after_s), None) is None

    def _during(self, start_s: float, end_s: float, effects: Collection[Effect], after_s: float) -> Iterator[Fault]:
        """Yield the faults with one of these effects, in the order of their beginnings."""
        for fault in self.faults:
            if fault.effects & set(effects) and fault.began_s <= end_s and fault.ended_s + after_s >= start_s:
                yield fault

    def desired_max(self, start_s: float, end_s: float) -> int:
        """Return how many workers were wanted, at most, in a stretch of time."""
        before = [order.workers for order in self.orders if order.mono <= start_s][-1:]
        first = self.orders[0].before if self.orders else self.terms.workers
        return max([*(before or [first]), *(order.workers for order in self.orders if start_s < order.mono <= end_s)])


def arrange(history: History) -> Timeline:
    """Put a history in order."""
    stories: dict[str, list[Record]] = defaultdict(list)
    by_process: dict[str, list[Record]] = defaultdict(list)
    for record in history.records:
        by_process[record.process].append(record)
        if isinstance(record, Delivered | Asked | Answered | Sent | Resending | Settled):
            stories[record.id].append(record)
    final = history.final
    return Timeline(
        history=history,
        stories=dict(stories),
        by_process=dict(by_process),
        acts={entry_id: acts_of(story) for entry_id, story in stories.items()},
        produced={one.id: one for one in history.records if isinstance(one, Produced) and one.id is not None},
        inputs={entry.id: entry for entry in final.input},
        enriched=_by_source(final.output),
        dead=_by_source(final.dead),
        waiting=frozenset((*final.pending, *final.undelivered)),
        faults=faults_of(history.records),
        lives=_lives(history.records),
        orders=[record for record in history.records if isinstance(record, Scaled)],
    )


def ours(fields: dict[bytes, bytes], name: str) -> str:
    """Return a field that the fleet has written."""
    return fields.get(name.encode(), b"").decode(errors="replace")


def _mono(record: Record) -> float:
    return record.mono


def _by_source(entries: tuple[Entry, ...]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        found[ours(entry.fields, "src")].append(entry)
    return dict(found)


def _lives(records: tuple[Record, ...]) -> list[Life]:
    lives, alive = list[Life](), dict[str, float]()
    for record in records:
        match record:
            case ChildStarted(name=name, mono=mono):
                if name in alive:
                    lives.append(Life(name, alive[name], mono, "unseen"))
                alive[name] = mono
            case ChildDied(name=name, mono=mono) | ChildStopped(name=name, mono=mono) if name in alive:
                lives.append(Life(name, alive.pop(name), mono, "died" if isinstance(record, ChildDied) else "stopped"))
    return lives + [Life(name, began_s, math.inf, "none") for name, began_s in alive.items()]
