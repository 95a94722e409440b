"""What the processes of a chaos run record: one struct for each event that is judged."""

from typing import Any, Literal

import msgspec

VALUE_CHARS_MAX = 60

Verdict = Literal["done", "retry", "bury", "release", "skip", "hand_back"]
Answer = Literal["ok", "gone", "lost", "deleted"]


class Record(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """One line: `mono` in seconds of CLOCK_MONOTONIC, and who wrote it ("worker-3", "janitor", "nemesis", …)."""

    mono: float
    process: str = ""


class Delivered(Record, frozen=True, kw_only=True, tag="event.delivered"):
    id: str
    owner: str
    count: int
    attempts: int = 0


class Asked(Record, frozen=True, kw_only=True, tag="model.asked"):
    id: str
    attempt: int


class Answered(Record, frozen=True, kw_only=True, tag="model.answered"):
    """`outcome` is "ok", "bad: <reason>" (spends an attempt) or "away: <reason>" (spends none)."""

    id: str
    attempt: int
    outcome: str

    @property
    def is_bad(self) -> bool:
        return self.outcome.startswith("bad")

    @property
    def is_away(self) -> bool:
        return self.outcome.startswith("away")

    @property
    def reason(self) -> str:
        return self.outcome.partition(":")[2].strip()


class Renewed(Record, frozen=True, kw_only=True, tag="lease.renewed"):
    kept: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class Sent(Record, frozen=True, kw_only=True, tag="settle.sent"):
    id: str
    verdict: Verdict
    owner: str
    count: int


class Resending(Record, frozen=True, kw_only=True, tag="settle.resending"):
    """The outcome of what was sent is unknown; it is sent again, and recorded so."""

    id: str
    error: str = ""


class Settled(Record, frozen=True, kw_only=True, tag="event.settled"):
    id: str
    verdict: Verdict
    settled: Answer
    owner: str
    count: int
    reason: str | None = None
    attempts: int | None = None


class Swept(Record, frozen=True, kw_only=True, tag="janitor.swept"):
    """One pass of the janitor; what it did not do may be left out."""

    examined: int = 0
    handed_back: int = 0
    buried: int = 0
    tombstoned: int = 0
    rehung: int = 0
    retired: int = 0
    trimmed: int = 0


class GroupRecreated(Record, frozen=True, kw_only=True, tag="group.recreated"):
    pass


class RedisWaiting(Record, frozen=True, kw_only=True, tag="redis.waiting"):
    pass


class GatePaused(Record, frozen=True, kw_only=True, tag="gate.paused"):
    until_mono: float


class Draining(Record, frozen=True, kw_only=True, tag="worker.draining"):
    pass


class ChildStarted(Record, frozen=True, kw_only=True, tag="child.started"):
    name: str
    pid: int


class ChildDied(Record, frozen=True, kw_only=True, tag="child.died"):
    name: str
    exit: str = ""


class ChildStopped(Record, frozen=True, kw_only=True, tag="child.stopped"):
    name: str
    exit: str = ""


class ChildStopping(Record, frozen=True, kw_only=True, tag="child.stopping"):
    """The supervisor has told a child to stop, and says why."""

    name: str
    pid: int
    why: str = ""


class Scaled(Record, frozen=True, kw_only=True, tag="fleet.scaled"):
    workers: int
    before: int


class Produced(Record, frozen=True, kw_only=True, tag="event.produced"):
    """`info`: the reply was lost, and the event may be in the stream or not. `sha` is that of its data, if any."""

    n: int
    outcome: Literal["ok", "fail", "info"]
    id: str | None = None
    sha: str | None = None
    event_id: str | None = None


class FaultBegan(Record, frozen=True, kw_only=True, tag="fault.began"):
    """`fault` is a class of `faults.FAULTS`. A fault of one process names it: `detail={"process": "worker-3"}`."""

    fault: str
    number: int
    detail: Any = None


class FaultEnded(Record, frozen=True, kw_only=True, tag="fault.ended"):
    fault: str
    number: int
    detail: Any = None


class Healed(Record, frozen=True, kw_only=True, tag="healed"):
    pass


class Drained(Record, frozen=True, kw_only=True, tag="drained"):
    pass


class Sampled(Record, frozen=True, kw_only=True, tag="fleet.sampled"):
    """`workers` live, the orphans among them; the other figures are sums over all processes of the fleet."""

    workers: int
    orphans: int = 0
    oldest_orphan_s: float = 0.0
    rss_bytes: int = 0
    fds: int = 0
    threads: int = 0


class Seen(Record, frozen=True, kw_only=True, tag="output.seen"):
    id: str
    src: str


class ModelCall(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="model.arrived"):
    """A call as the model saw it. `n` is the event's, None where its text has none; an open call has no end."""

    arrival_s: float
    end_s: float | None = None
    status: int | str = "open"
    n: int | None = None


KINDS: dict[str, type[Record]] = {str(kind.__struct_config__.tag): kind for kind in Record.__subclasses__()}
MODEL_CALL = str(ModelCall.__struct_config__.tag)


def told(record: Record | ModelCall) -> str:
    """Return a record in one line, for evidence."""
    fields = {name: value for name, value in msgspec.to_builtins(record).items() if value is not None}
    mono, process, event = fields.pop("mono", fields.get("arrival_s")), fields.pop("process", ""), fields.pop("event")
    rest = (f"{name}={value if len(str(value)) <= VALUE_CHARS_MAX else '…'}" for name, value in fields.items())
    return " ".join(filter(None, (f"{mono:.3f}", process, event, *rest)))
