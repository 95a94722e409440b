"""A place for one child after another, and what is shown of it."""

from dataclasses import dataclass
from typing import Any

from millhand_fleet.child import Child
from millhand_fleet.restarts import HEALTHY_AFTER_S, Wear, after_exit, worn_by
from millhand_fleet.states import State, Worker, state_of

WORKER = "worker-"
NOT_IN_A_ROW = {"at_the_gate", "counts"}  # of a child's stats
SHORT_CHARS = 40  # of a child's text, where the whole picture would be too long a message
SETTLED = ("done", "retry", "bury", "skip", "gone", "lost")  # the counts of a worker's stats that are events it had


@dataclass
class Slot:
    """What is remembered of a slot. `generation` and `wear_jitter` belong to the child that is in it."""

    child: Child | None = None
    failures: int = 0  # in a row
    restarts: int = 0
    not_before: float = 0.0
    last_exit: str | None = None
    generation: int = 0
    wear_jitter: float = 0.0
    worn: str | None = None  # why its child is to be replaced, whatever its generation
    replaced: bool = False  # its child leaves because it was to be replaced
    rss_mib: float = 0.0
    told_pause: bool = False

    @property
    def state(self) -> State:
        """What its child is about. One that does not beat cannot say that it is ready: it is, as long as it runs."""
        child = self.child
        if child is None:
            return state_of(alive=False, ready=False, stopping=False)
        return state_of(alive=True, ready=child.ready or not child.spec.beats, stopping=child.stopping)

    def admit(self, child: Child, generation: int, wear_jitter: float) -> None:
        """Take in a new child."""
        self.child, self.generation, self.wear_jitter = child, generation, wear_jitter
        self.worn, self.replaced, self.rss_mib, self.told_pause = None, False, 0.0, False

    def fail(self, lived_s: float, now_s: float, jitter: float, at_least_s: float = 0.0) -> float:
        """Count a failure; return in how many seconds the next child is due."""
        self.failures, delay_s = after_exit(self.failures, lived_s, jitter)
        delay_s = max(delay_s, at_least_s)
        self.not_before = now_s + delay_s
        return delay_s

    def measure(self, wear: Wear) -> None:
        """Look at the child: how large it is, whether it is worn out, whether it has lived down its failures."""
        if self.child is None:
            return
        self.rss_mib = self.child.rss_mib
        if self.child.lived_s >= HEALTHY_AFTER_S:
            self.failures = 0
        events = sum(self.child.stats.get(word, 0) for word in SETTLED)
        self.worn = self.worn or worn_by(
            wear, events=events, rss_mib=self.rss_mib, lived_s=self.child.lived_s, jitter=self.wear_jitter
        )

    def tell_pause(self, *, paused: bool) -> None:
        """Tell the child, if it does not know yet. What it said before says nothing of whether it rests now."""
        if self.child and self.told_pause != paused and self.child.line.send({"pause": paused}):
            self.told_pause = paused
            self.child.stats = {**self.child.stats, "waits_for": None}

    def is_old(self, generation: int) -> bool:
        """Whether its child is to be replaced."""
        return self.child is not None and (self.generation < generation or self.worn is not None)

    def as_worker(self, name: str, generation: int) -> Worker:
        """Return what decisions need to know of a worker's slot."""
        stats = self.child.stats if self.child else {}
        return Worker(number_of(name), self.state, stats.get("in_hand", 0), self.is_old(generation))

    def row(self, name: str) -> dict[str, Any]:
        """Return what the desk shows of it."""
        row: dict[str, Any] = {"name": name, "state": str(self.state), "restarts": self.restarts}
        row |= {"failures": self.failures, "last_exit": self.last_exit}
        if child := self.child:
            row |= {"pid": child.pid, "for_s": round(child.lived_s, 1), "identity": child.identity}
            row |= {"rss_mib": round(self.rss_mib, 1)}
            row |= {"stats": {key: value for key, value in child.stats.items() if key not in NOT_IN_A_ROW}}
        return row


class Slots(dict[str, Slot]):
    """All slots by their names, in the order in which they were opened."""

    def children(self) -> list[Child]:
        """Return the children that are there."""
        return [slot.child for slot in self.values() if slot.child is not None]

    def child(self, name: str) -> Child | None:
        """Return the child of this name, if it is there."""
        slot = self.get(name)
        return slot.child if slot else None

    def workers(self) -> dict[str, Slot]:
        """Return the workers' slots."""
        return {name: slot for name, slot in self.items() if is_worker(name)}

    def consumers(self) -> tuple[str, ...]:
        """Return the identities of the workers that are there."""
        return tuple(child.identity for child in self.children() if is_worker(child.spec.name))

    def old_left(self, generation: int) -> int:
        """Return how many workers are there that are to be replaced, or are just leaving for that."""
        workers = self.workers().values()
        return sum(slot.replaced if slot.state is State.STOPPING else slot.is_old(generation) for slot in workers)

    def ready_workers(self) -> int:
        """Return how many workers are ready."""
        return sum(slot.state is State.READY for slot in self.workers().values())

    def unborn_workers(self) -> int:
        """Return how many workers have been started and have not given a sign of life yet."""
        return sum(not child.beaten for child in self.children() if is_worker(child.spec.name))

    def rows(self) -> list[dict[str, Any]]:
        """Return what the desk shows of them, the workers last and by number."""
        return [slot.row(name) for name, slot in sorted(self.items(), key=lambda item: number_of(item[0]))]

    def counts(self) -> dict[str, Any]:
        """Return what the children count, by identity. It is too much for a row."""
        return {child.identity: child.stats["counts"] for child in self.children() if "counts" in child.stats}


def shortened(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose texts are cut."""
    stats = row.get("stats", {})
    short = {name: value[:SHORT_CHARS] if isinstance(value, str) else value for name, value in stats.items()}
    return {**row, "stats": short}


def worker_name(number: int) -> str:
    """Return the name of a worker's slot."""
    return f"{WORKER}{number}"


def number_of(name: str) -> int:
    """Return the number in the name of a worker's slot; 0 for any other child."""
    return int(name.removeprefix(WORKER)) if is_worker(name) else 0


def is_worker(name: str) -> bool:
    """Whether a child of this name is a worker."""
    return name.startswith(WORKER)


def exit_text(code: int) -> str:
    """Say how a process ended."""
    return f"signal {-code}" if code < 0 else f"code {code}"
