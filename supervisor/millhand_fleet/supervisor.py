"""The supervisor: a tick that obeys commands, reaps, kills what hangs, spawns what is due. Standard library only."""

import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Protocol

from millhand_fleet.child import Child, Spec
from millhand_fleet.restarts import after_exit
from millhand_fleet.state import WORKERS_MAX, DesiredCount

TICK_S = 0.25
REPORT_EVERY_S = 1.0
STOP_GRACE_S = 4.0  # past a drain deadline, for the last answers to be written
SERVER_STOP_S = 5.0
NOT_IN_A_ROW = {"at_the_gate", "counts"}  # of a child's stats
SHORT_CHARS = 40  # of a child's text, where the whole picture would be too long a message


class Tell(Protocol):
    """Where events go: a structlog logger, or a test's list."""

    def info(self, event: str, **fields: Any) -> Any: ...  # noqa: D102 - as in structlog
    def warning(self, event: str, **fields: Any) -> Any: ...  # noqa: D102
    def error(self, event: str, **fields: Any) -> Any: ...  # noqa: D102


@dataclass(frozen=True)
class Roles:
    """The children of a fleet. They start in this order and stop in the reverse one."""

    servers: tuple[Spec, ...]
    janitor: Callable[[tuple[str, ...]], Spec]  # made anew each time, with the consumers that live
    desk: Spec
    worker: Callable[[int], Spec]


@dataclass
class Slot:
    """A place for one child after another."""

    child: Child | None = None
    failures: int = 0
    restarts: int = 0
    not_before: float = 0.0
    last_exit: str | None = None


class Supervisor:
    """Keeps the children of one fleet alive."""

    def __init__(self, roles: Roles, desired: DesiredCount, drain_s: float, tell: Tell) -> None:
        self._roles = roles
        self._desired = desired
        self._drain_s = drain_s
        self._tell = tell
        self._slots: dict[str, Slot] = {}
        self._stop_requested = False
        self._cleared = False  # the janitor has been through once: workers may read
        self._worked = False  # a worker was ready once: from now on no child's word ends the fleet
        self._unusable: str | None = None
        self._reported = 0.0
        self._answers: list[tuple[Child, dict[str, Any]]] = []

    def request_stop(self) -> None:
        """Raise the flag; the next tick acts. Safe in a signal handler, and as often as one likes."""
        self._stop_requested = True

    def run(self) -> str | None:
        """Tick until everything has stopped. Return why the fleet cannot be used, None after a stop by request."""
        self._tell.info("supervisor.started", pid=os.getpid(), workers=self._desired.value)
        while True:
            self._hear()
            self._reap()
            self._kill_overdue()
            if self._stopping:
                if not self._stop_in_order():
                    break
            else:
                self._converge()
            self._report()
            self._answer()
            self._wait()
        self._tell.info("supervisor.stopped", reason=self._unusable or "requested")
        return self._unusable

    @property
    def _stopping(self) -> bool:
        return self._stop_requested or self._unusable is not None

    def _wait(self) -> None:
        """Sleep until something happens, or a tick has passed."""
        lines = [child.line.end for child in self._children() if not child.line.closed]
        wait([*lines, *(child.sentinel for child in self._children())], timeout=TICK_S)

    # -- obey -------------------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        for name, slot in self._slots.items():
            if slot.child is None:
                continue
            was_ready = slot.child.ready
            for order in slot.child.hear():
                self._obey(slot.child, order)
            if slot.child.ready and not was_ready:
                self._on_ready(name, slot.child)
            if slot.child.unusable and not self._worked:
                self._unusable = slot.child.unusable

    def _obey(self, child: Child, order: dict[str, Any]) -> None:
        """Carry an order out. Its answer follows the next picture: whoever has the one has seen the other."""
        said: dict[str, Any]
        match order["order"]:
            case "scale":
                said = self._scale(order["workers"], order["by"])
            case "stop":
                self._tell.info("fleet.stop_ordered")
                self.request_stop()
                said = {"said": {"stopping": True}}
            case other:
                said = {"invalid": f"there is no order {other!r}"}
        self._answers.append((child, {"answer": order["number"], **said}))
        self._reported = 0.0

    def _scale(self, workers: int | None, by: int | None) -> dict[str, Any]:
        before = self._desired.value
        wanted = workers if workers is not None else before + (by or 0)
        if not 0 <= wanted <= WORKERS_MAX:
            return {"conflict": f"there are {before} workers, and {wanted} is not within 0 to {WORKERS_MAX}"}
        try:
            self._desired.set(wanted)
        except OSError as error:
            self._tell.error("fleet.not_scaled", workers=wanted, before=before, error=str(error))
            return {"conflict": f"the count cannot be kept in the state directory: {error}"}
        self._tell.info("fleet.scaled", workers=wanted, before=before)
        return {"said": {"workers": wanted, "before": before}}

    def _on_ready(self, name: str, child: Child) -> None:
        self._tell.info("child.ready", name=name, pid=child.pid, after_s=round(child.lived_s, 2))
        self._cleared = self._cleared or name == "janitor"
        self._worked = self._worked or _is_worker(name)

    # -- reap and kill ----------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        for name, slot in list(self._slots.items()):
            child = slot.child
            if child is None or child.exit_code is None:
                continue
            self._hear_last_words(child)
            slot.child = None
            slot.last_exit = _exit_text(child.exit_code)
            if _is_worker(name):
                self._tell_janitor({"died": child.identity, "at_the_gate": child.stats.get("at_the_gate", [])})
            if child.stopping or self._stopping:
                self._tell.info("child.stopped", name=name, exit=slot.last_exit)
            else:
                slot.failures, delay_s = after_exit(slot.failures, child.lived_s, random.random())  # noqa: S311 - jitter
                slot.restarts += 1
                slot.not_before = time.monotonic() + delay_s
                see = {"see": child.spec.log_file} if child.spec.log_file else {}
                self._tell.warning("child.died", name=name, exit=slot.last_exit, restart_in_s=round(delay_s, 2), **see)
            child.bury()
            self._reported = 0.0

    def _hear_last_words(self, child: Child) -> None:
        child.hear()
        if child.unusable:
            self._tell.error("child.unusable", name=child.spec.name, detail=child.unusable)
            if not self._worked:
                self._unusable = child.unusable

    def _kill_overdue(self) -> None:
        for child in self._children():
            if reason := child.overdue():
                self._tell.error("child.killed", name=child.spec.name, pid=child.pid, reason=reason)
                child.kill()

    # -- spawn what is due ------------------------------------------------------------------------------------------

    def _converge(self) -> None:
        """Start what is missing and due; stop the workers that are too many."""
        for spec in (*self._roles.servers, self._roles.desk):
            self._ensure(spec)
        self._ensure(self._roles.janitor(self._living_consumers()))
        if self._cleared:
            for number in range(1, self._desired.value + 1):
                self._ensure(self._roles.worker(number))
        for name, slot in list(self._slots.items()):
            if _is_worker(name) and _worker_number(name) > self._desired.value:
                if slot.child is None:
                    del self._slots[name]
                else:
                    slot.child.stop(self._drain_s, STOP_GRACE_S)

    def _ensure(self, spec: Spec) -> None:
        """Start a child of this spec if there is none and it is due."""
        name = spec.name
        slot = self._slots.setdefault(name, Slot())
        if slot.child is None and time.monotonic() >= slot.not_before:
            try:
                slot.child = Child(spec)
            except OSError as error:
                slot.failures, delay_s = after_exit(slot.failures, 0.0, random.random())  # noqa: S311 - jitter
                delay_s = max(delay_s, TICK_S)
                slot.not_before = time.monotonic() + delay_s
                self._tell.error("child.not_started", name=name, error=str(error), again_in_s=round(delay_s, 2))
                return
            self._tell.info("child.started", name=name, pid=slot.child.pid)
            if _is_worker(name):
                self._tell_janitor({"born": slot.child.identity})

    def _stop_in_order(self) -> bool:
        """Stop the workers, then janitor and desk, then the servers they need. False when all are gone."""
        groups: tuple[tuple[float, Callable[[str], bool]], ...] = (
            (self._drain_s, _is_worker),
            (SERVER_STOP_S, lambda name: name in {"janitor", "desk"}),
            (SERVER_STOP_S, lambda _: True),
        )
        for within_s, belongs in groups:
            children = [child for child in self._children() if belongs(child.spec.name)]
            for child in children:
                child.stop(within_s, STOP_GRACE_S)
            if children:
                return True
        return False

    # -- tell -------------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        """Give the desk a picture of the fleet, after every change and every second."""
        now = time.monotonic()
        desk = self._slots.get("desk")
        if desk is None or desk.child is None or now - self._reported < REPORT_EVERY_S:
            return
        self._reported = now
        rows = [_row(name, slot) for name, slot in self._slots.items()]
        picture = {
            "desired": self._desired.value,
            "pid": os.getpid(),
            "paused": False,
            "crash_loop": False,
            "rolling": None,
            "stop_wait_note": None,
            "children": rows,
        }
        if not desk.child.line.send({"fleet": picture}):
            desk.child.line.send({"fleet": {**picture, "children": [_shortened(row) for row in rows]}})
        counts = {child.identity: child.stats["counts"] for child in self._children() if "counts" in child.stats}
        if counts:
            desk.child.line.send({"counts": counts})  # by itself: the picture of a large fleet has no room for it

    def _answer(self) -> None:
        for child, answer in self._answers:
            child.line.send(answer)
        self._answers.clear()

    def _tell_janitor(self, message: dict[str, Any]) -> None:
        janitor = self._slots.get("janitor")
        if janitor is not None and janitor.child is not None:
            janitor.child.line.send(message)

    def _living_consumers(self) -> tuple[str, ...]:
        return tuple(child.identity for child in self._children() if _is_worker(child.spec.name))

    def _children(self) -> Iterator[Child]:
        return iter([slot.child for slot in self._slots.values() if slot.child is not None])


def _row(name: str, slot: Slot) -> dict[str, Any]:
    child = slot.child
    row: dict[str, Any] = {"name": name, "restarts": slot.restarts, "last_exit": slot.last_exit, "state": "restarting"}
    if child is not None:
        state = "stopping" if child.stopping else "ready" if child.ready or not child.spec.beats else "starting"
        row |= {"state": state, "pid": child.pid, "for_s": round(child.lived_s, 1), "identity": child.identity}
        row |= {"stats": {name: value for name, value in child.stats.items() if name not in NOT_IN_A_ROW}}
    return row


def _shortened(row: dict[str, Any]) -> dict[str, Any]:
    stats = row.get("stats", {})
    short = {name: value[:SHORT_CHARS] if isinstance(value, str) else value for name, value in stats.items()}
    return {**row, "stats": short}


def _worker_number(name: str) -> int:
    return int(name.removeprefix("worker-"))


def _is_worker(name: str) -> bool:
    return name.startswith("worker-")


def _exit_text(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"code {code}"
