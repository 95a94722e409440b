"""A rolling replacement: who is old, who is left, when it is over. Workers one by one, then janitor and desk."""

from typing import Any

from millhand_fleet.child import Child
from millhand_fleet.slot import Slots

OTHERS = ("janitor", "desk")


class Rolling:
    """What is being replaced now, if anything is."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.generation = 0  # a worker of an earlier one is old
        self.what: str | None = None  # what for: restart, reload, recycle
        self._others_left: dict[str, str] = {}  # janitor and desk, until their successors are ready: who has to go

    def begin(self, what: str, concerns: frozenset[str]) -> int:
        """Have whoever has one of these roles replaced; return how many workers that are."""
        if not concerns:
            return 0
        others = ((name, self._slots.child(name)) for name in OTHERS if name in concerns)
        self._others_left |= {name: child.identity for name, child in others if child}
        if "worker" in concerns:
            self.generation += 1
        self.what = what if self.left else None
        return self._workers_left if "worker" in concerns else 0

    def notice_the_worn(self) -> None:
        """Begin where a worker is worn out."""
        if not self.what and self._workers_left:
            self.what = "recycle"

    @property
    def left(self) -> int:
        """How many are still to be replaced, or are just leaving."""
        return self._workers_left + len(self._others_left)

    def whose_turn(self) -> list[Child]:
        """Return who of janitor and desk has to go now: no old worker is left."""
        due = []
        for name, old in [] if self._workers_left else list(self._others_left.items()):
            child = self._slots.child(name)
            if child and child.identity == old:
                due.append(child)
            elif child and child.ready:
                del self._others_left[name]
        return due

    def end(self) -> str | None:
        """Return what is over, once, if nobody is left."""
        over, self.what = (self.what, None) if not self.left else (None, self.what)
        return over

    def told(self) -> dict[str, Any] | None:
        """Return what the desk shows of it."""
        return {"what": self.what, "left": self.left} if self.what else None

    @property
    def _workers_left(self) -> int:
        return self._slots.old_left(self.generation)
