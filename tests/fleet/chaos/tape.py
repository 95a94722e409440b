"""A run that is written by hand, for tests of the checker: small, with something of everything in it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from tests.fleet.chaos.checker import judge
from tests.fleet.chaos.history import Entry, Final, History, Terms
from tests.fleet.chaos.judgement import Judgement
from tests.fleet.chaos.records import (
    Answered,
    Asked,
    ChildDied,
    ChildStarted,
    Delivered,
    Drained,
    FaultBegan,
    FaultEnded,
    Healed,
    ModelCall,
    Produced,
    Record,
    Sampled,
    Seen,
    Sent,
    Settled,
)
from tests.fleet.chaos.safety_records import sha_of

TICK_S = 0.01
TERMS = Terms(
    seed=7,
    workers=2,
    concurrency=2,
    lease_s=3.0,
    sweep_s=0.5,
    drain_s=5.0,
    heal_to_drained_s_max=20.0,
    recovery_s=2.0,
    progress_window_s=5.0,
    expected_faults=("kill_worker",),
    expected_answers=("done/ok", "retry/ok", "bury/ok", "hand_back/ok"),
    expected_sights=("reclaim",),
)


def owner_of(worker: int, life: str = "a") -> str:
    return f"host:w{worker}:{life}"


def is_a(record: Record, kind: type[Record], **fields: Any) -> bool:
    return isinstance(record, kind) and all(getattr(record, name) == value for name, value in fields.items())


class Tape:
    """A run that is being recorded, a tick of time for each record."""

    def __init__(self) -> None:
        self.now = 100.0
        self.terms = TERMS
        self.records: list[Record] = []
        self.calls: list[ModelCall] = []
        self.input: list[Entry] = []
        self.output: list[Entry] = []
        self.dead: list[Entry] = []
        self.workers = 2
        self.figures: dict[str, Any] = {"rss_bytes": 200 << 20, "fds": 60, "threads": 12}
        consumers = ("@parked", owner_of(1), owner_of(2, "0"), owner_of(1, "b"), owner_of(2))
        self.left: dict[str, Any] = {"consumers": consumers}

    def history(self) -> History:
        final = Final(input=tuple(self.input), output=tuple(self.output), dead=tuple(self.dead), **self.left)
        records = tuple(sorted(self.records, key=lambda record: record.mono))
        calls = tuple(sorted(self.calls, key=lambda call: call.arrival_s))
        return History(records=records, calls=calls, final=final, terms=self.terms)

    def judged(self) -> Judgement:
        return judge(self.history())

    def tell(self, kind: type[Record], process: str, **fields: Any) -> None:
        self.now += TICK_S
        self.records.append(kind(mono=self.now, process=process, **fields))

    def produce(
        self, n: int, outcome: str = "ok", event_id: str | None = None, *, data: bytes = b"", arrives: bool = True
    ) -> str:
        entry_id = f"{1000 + n}-0"
        data = data or json.dumps({"n": n, "text": f"event {n}"}).encode()
        known_id = entry_id if outcome == "ok" else None
        self.tell(Produced, "producer", n=n, outcome=outcome, id=known_id, sha=sha_of(data), event_id=event_id)
        if arrives:
            fields = {b"data": data} | ({b"event_id": event_id.encode()} if event_id else {})
            self.input.append(Entry.of(entry_id, fields))
        return entry_id

    def deliver(self, entry_id: str, worker: int = 1, *, count: int = 1, life: str = "a") -> None:
        self.tell(Delivered, f"worker-{worker}", id=entry_id, owner=owner_of(worker, life), count=count)

    def ask(self, entry_id: str, worker: int = 1, *, attempt: int = 1, outcome: str = "ok") -> None:
        process = f"worker-{worker}"
        self.tell(Asked, process, id=entry_id, attempt=attempt)
        arrival_s = self.now
        self.tell(Answered, process, id=entry_id, attempt=attempt, outcome=outcome)
        n = int(entry_id.partition("-")[0]) - 1000
        self.calls.append(ModelCall(arrival_s=arrival_s, end_s=self.now, status=200, n=n))

    def call(self, at_s: float, for_s: float = TICK_S, status: int | str = 200) -> None:
        """Let a call of no event arrive at the model."""
        self.calls.append(ModelCall(arrival_s=at_s, end_s=at_s + for_s, status=status))

    def settle(
        self, entry_id: str, verdict: str, worker: int = 1, *, count: int = 1, answer: str | None = "ok", **more: str
    ) -> None:
        """Let a worker settle, or `by="janitor"` in its name. An answer of None dies with its process."""
        process = more.get("by", f"worker-{worker}")
        token = {"id": entry_id, "verdict": verdict, "owner": owner_of(worker, more.get("life", "a")), "count": count}
        self.tell(Sent, process, **token)
        if answer:
            self.tell(Settled, process, settled=answer, **token)

    def write(self, entry_id: str) -> None:
        """Write an enriched event, as `finish` does, and let the reader see it."""
        data = next(entry.fields[b"data"] for entry in self.input if entry.id == entry_id)
        merged = data.rstrip()[:-1] + b',"ai_enrichment":{"sentiment":{"label":"positive"},"meta":{}}}'
        output_id = f"{9000 + len(self.output)}-0"
        self.output.append(Entry.of(output_id, {b"data": merged, b"src": entry_id.encode(), b"hash": b"0"}))
        self.tell(Seen, "reader", id=output_id, src=entry_id)

    def finish(self, entry_id: str, worker: int = 1, *, count: int = 1, life: str = "a") -> None:
        self.settle(entry_id, "done", worker, count=count, life=life)
        self.write(entry_id)

    def enrich(self, entry_id: str, worker: int = 1, *, count: int = 1, attempt: int = 1, life: str = "a") -> None:
        self.deliver(entry_id, worker, count=count, life=life)
        self.ask(entry_id, worker, attempt=attempt)
        self.finish(entry_id, worker, count=count, life=life)

    def fail(self, entry_id: str, worker: int = 1, *, attempt: int, last: bool = False) -> None:
        """Let an attempt fail on a bad answer."""
        self.deliver(entry_id, worker)
        self.ask(entry_id, worker, attempt=attempt, outcome="bad: invalid_answer")
        self.settle(entry_id, "bury" if last else "retry", worker)
        if last:
            self.write_dead(entry_id, "invalid_answer", attempt)

    def write_dead(self, entry_id: str, reason: str, attempts: int = 0) -> None:
        """Write a dead letter, as `bury` does."""
        original = () if reason == "deleted" else next(one.pairs for one in self.input if one.id == entry_id)
        ours = {"failure_reason": reason, "src": entry_id, "original_fields": len(original), "attempts": attempts}
        pairs = tuple((name.encode(), str(value).encode()) for name, value in ours.items())
        self.dead.append(Entry(f"{8000 + len(self.dead)}-0", (*original, *pairs)))

    @contextmanager
    def fault(self, name: str, *, felt: int = 0, process: str | None = None) -> Iterator[None]:
        number = sum(isinstance(record, FaultBegan) for record in self.records)
        self.tell(FaultBegan, "nemesis", fault=name, number=number, detail={"process": process})
        yield
        self.tell(FaultEnded, "nemesis", fault=name, number=number, detail={"felt": felt})

    def kill(self, worker: int, life: str) -> None:
        """Kill a worker; the next one of its slot is born at once."""
        with self.fault("kill_worker", process=f"worker-{worker}"):
            pass
        self.tell(ChildDied, "supervisor", name=f"worker-{worker}", exit="signal 9")
        self.tell(ChildStarted, "supervisor", name=f"worker-{worker}", pid=ord(life))

    def up(self) -> None:
        for name in ("janitor", "worker-1", "worker-2"):
            self.tell(ChildStarted, "supervisor", name=name, pid=1)
        self.sample(workers=1, rss_bytes=10 << 20, fds=6, threads=1)
        self.sample()

    def sample(self, **changed: Any) -> None:
        self.tell(Sampled, "sampler", **({"workers": self.workers} | self.figures | changed))

    def end(self) -> None:
        self.tell(Healed, "nemesis")
        self.tell(Drained, "nemesis")
        self.sample()

    def tamper(self, changed: Callable[[Record], Record | None]) -> None:
        """Change records, or leave them out where None is returned."""
        self.records = [new for record in self.records if (new := changed(record))]

    def alter(self, kind: type[Record], n: int, **changed: Any) -> None:
        """Change the records of a kind that are of the event with this number."""
        change = msgspec.structs.replace
        self.tamper(lambda record: change(record, **changed) if is_a(record, kind, n=n) else record)

    def leave_out(self, kind: type[Record], **fields: Any) -> None:
        """Leave out the records of a kind that have these values."""
        self.tamper(lambda record: None if is_a(record, kind, **fields) else record)

    def stretch(self, after_s: float, by_s: float) -> None:
        """Put more time between what was before a moment and what was after it."""

        def later(moment_s: float) -> float:
            return moment_s + by_s if moment_s > after_s else moment_s

        self.tamper(lambda record: msgspec.structs.replace(record, mono=later(record.mono)))
        self.calls = [
            msgspec.structs.replace(call, arrival_s=later(call.arrival_s), end_s=later(call.end_s or call.arrival_s))
            for call in self.calls
        ]
        self.now = later(self.now)


GOOD, RETRIED, HOPELESS, KILLED, RECOVERED, REPEATED = (f"{1000 + n}-0" for n in (0, 1, 2, 3, 4, 7))


def green(*, open_end: bool = False) -> Tape:
    """Record a run with something of everything, in which all is well. With an open end it goes on."""
    run = Tape()
    run.up()
    run.enrich(run.produce(0, event_id="e-0"))
    run.produce(1)
    run.fail(RETRIED, attempt=1)
    run.enrich(RETRIED, 2, attempt=2)
    run.produce(2)
    for attempt in (1, 2, 3, 4):
        run.fail(HOPELESS, 1 + attempt % 2, attempt=attempt, last=attempt == 4)
    run.produce(3)
    run.deliver(KILLED)
    run.tell(Asked, "worker-1", id=KILLED, attempt=1)
    run.kill(1, "b")
    run.settle(KILLED, "hand_back", by="janitor")
    run.enrich(KILLED, 2, count=2)
    run.produce(4, "info")
    run.enrich(RECOVERED, 1, life="b")
    run.produce(5, "info", arrives=False)
    run.produce(6, "fail", arrives=False)
    run.produce(7, event_id="e-0")
    run.deliver(REPEATED, 2)
    run.settle(REPEATED, "skip", 2)
    if not open_end:
        run.end()
    return run
