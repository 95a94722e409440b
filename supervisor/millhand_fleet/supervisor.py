"""The supervisor: a tick that obeys commands, reaps, kills what hangs, spawns what is due. Standard library only."""

import os
import random
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

from millhand.pulse import MESSAGE_BYTES_MAX
from millhand_fleet.blueprint import Blueprint, Outside, RefusedError
from millhand_fleet.child import Child, Spec
from millhand_fleet.notify import status_line
from millhand_fleet.restarts import Wear
from millhand_fleet.rolling import Rolling
from millhand_fleet.slot import Slot, Slots, exit_text, is_worker, number_of, shortened, worker_name
from millhand_fleet.state import WORKERS_MAX, DesiredCount, OperatorPause
from millhand_fleet.states import converge, in_crash_loop

TICK_S = 0.25
REPORT_EVERY_S = 1.0
STOP_GRACE_S = 4.0  # past a drain deadline, for the last answers to be written
SERVER_STOP_S = 5.0
STARTS_AT_ONCE = max(4, 2 * len(os.sched_getaffinity(0)))  # workers that import: more would only make all of them late
NEWS_MAX = 8 * WORKERS_MAX  # births and deaths that no janitor was there to hear
ANSWER_CHARS_MAX = MESSAGE_BYTES_MAX // 8  # of an answer's text, whatever its characters take


class Supervisor:
    """Keeps the children of one fleet alive."""

    def __init__(self, blueprint: Blueprint, desired: DesiredCount, pause: OperatorPause, outside: Outside) -> None:
        self._blueprint = blueprint
        self._desired = desired
        self._pause = pause
        self._outside = outside
        self._tell = outside.tell
        self._slots = Slots()
        self._rolling = Rolling(self._slots)
        self._crash_loop = False
        self._stop_requested = self._reload_requested = False
        self._cleared = False  # the janitor has been through once: workers may read
        self._worked = False  # a worker was ready once: from now on no child's word ends the fleet
        self._unusable: str | None = None
        self._reported = 0.0
        self._remembered = set[int]()
        self._news = deque[dict[str, Any]](maxlen=NEWS_MAX)  # for the janitor
        self._orders: list[tuple[Child, dict[str, Any]]] = []
        self._answers: list[tuple[Child, dict[str, Any]]] = []

    def request_stop(self) -> None:
        """Raise the flag; the next tick acts. Safe in a signal handler, and as often as one likes."""
        self._stop_requested = True

    def request_reload(self) -> None:
        """Raise the flag; the next tick reads the configuration again. Safe in a signal handler."""
        self._reload_requested = True

    def run(self) -> str | None:
        """Tick until everything has stopped. Return why the fleet cannot be used, None after a stop by request."""
        self._tell.info("supervisor.started", pid=os.getpid(), workers=self._desired.value, paused=self._pause.value)
        self._outside.notify.ready()
        self._warn_of_a_short_stop()
        while True:
            self._hear()
            self._reap()
            self._kill_overdue()
            self._obey_orders()
            if self._stopping:
                self._outside.notify.stopping()
                if not self._stop_in_order():
                    break
            else:
                self._reload_if_requested()
                self._converge()
                self._judge()
            self._pass_on_news()
            self._remember()
            self._report()
            self._answer()
            self._outside.notify.beat()
            self._wait()
        self._tell.info("supervisor.stopped", reason=self._unusable or "requested")
        return self._unusable

    @property
    def _stopping(self) -> bool:
        return self._stop_requested or self._unusable is not None

    def _wait(self) -> None:
        """Sleep until something happens, or a tick has passed."""
        lines = [child.line.end for child in self._slots.children() if not child.line.closed]
        try:
            wait([*lines, *(child.sentinel for child in self._slots.children())], timeout=TICK_S)
        except OSError:  # more descriptors than we may have now: poll(2) refuses, and we look without it
            time.sleep(TICK_S)

    # -- obey -------------------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        for name, slot in self._slots.items():
            if slot.child is None:
                continue
            was_ready = slot.child.ready
            self._orders += [(slot.child, order) for order in slot.child.hear()]
            if slot.child.ready and not was_ready:
                self._on_ready(name, slot.child)
            if slot.child.unusable and not self._worked:
                self._unusable = slot.child.unusable

    def _obey_orders(self) -> None:
        """Obey what was ordered. It may take long (a slow disk, a plug-in's import), so nobody is judged after it.

        Who has beaten meanwhile is heard in the next tick, before anybody is killed for his silence.
        """
        orders, self._orders = self._orders, []
        for child, order in orders:
            self._obey(child, order)

    def _obey(self, child: Child, order: dict[str, Any]) -> None:
        """Carry an order out. Its answer follows the next picture: whoever has the one has seen the other."""
        answer: dict[str, Any]
        try:
            answer = {"said": self._carry_out(order)}
        except RefusedError as error:
            answer = {error.kind: str(error)[:ANSWER_CHARS_MAX]}
        self._answers.append((child, {"answer": order.get("number", 0), **answer}))
        self._reported = 0.0

    def _carry_out(self, order: dict[str, Any]) -> dict[str, Any]:
        """Do as ordered, and return what to say to it. Raises RefusedError."""
        if self._stopping and order.get("order") != "stop":
            raise RefusedError("conflict", "the fleet is stopping")
        match order:
            case {"order": "scale", "workers": workers, "by": by}:
                return self._scale(workers, by)
            case {"order": "pause" | "resume" as word}:
                return self._set_pause(paused=word == "pause")
            case {"order": "restart"}:
                return self._roll("restart", frozenset({"worker", "janitor", "desk"}))
            case {"order": "reload"}:
                return self._reload()
            case {"order": "stop"}:
                self._tell.info("fleet.stop_ordered")
                self.request_stop()
                return {"stopping": True}
        raise RefusedError("invalid", f"there is no order {order.get('order')!r}")

    def _scale(self, workers: int | None, by: int | None) -> dict[str, Any]:
        before = self._desired.value
        wanted = workers if workers is not None else before + (by or 0)
        if not 0 <= wanted <= WORKERS_MAX:
            raise RefusedError("conflict", f"there are {before} workers; {wanted} is not within 0 to {WORKERS_MAX}")
        try:
            self._desired.set(wanted)
        except OSError as error:
            self._tell.error("fleet.not_scaled", workers=wanted, before=before, error=str(error))
            raise RefusedError("conflict", f"the number cannot be kept in the state directory: {error}") from error
        self._tell.info("fleet.scaled", workers=wanted, before=before)
        return {"workers": wanted, "before": before}

    def _set_pause(self, *, paused: bool) -> dict[str, Any]:
        before = self._pause.value
        try:
            self._pause.set(paused)
        except OSError as error:
            raise RefusedError("conflict", f"the pause cannot be kept in the state directory: {error}") from error
        if paused != before:
            self._tell.info("fleet.paused" if paused else "fleet.resumed")
        return {"paused": paused, "before": before}

    def _reload(self) -> dict[str, Any]:
        """Read the configuration again, and replace what its changes concern. Raises RefusedError: nothing changed."""
        self._outside.notify.reloading()
        try:
            renewal = self._outside.renew()
        except RefusedError as error:
            self._tell.error("fleet.reload_refused", problems=str(error).splitlines())
            raise
        finally:
            self._outside.notify.ready()
        self._blueprint = renewal.blueprint
        self._warn_of_a_short_stop()
        try:
            self._desired.configure(renewal.workers)
        except OSError as error:
            self._tell.error("fleet.not_scaled", workers=renewal.workers, before=self._desired.value, error=str(error))
        self._tell.info("fleet.reloaded", changed=list(renewal.changed), workers=self._desired.value)
        return {**self._roll("reload", renewal.concerns), "changed": list(renewal.changed)}

    def _warn_of_a_short_stop(self) -> None:
        if self._blueprint.stop_wait_note:
            self._tell.warning("fleet.stop_wait_too_short", detail=self._blueprint.stop_wait_note)

    def _reload_if_requested(self) -> None:
        if self._reload_requested:
            self._reload_requested = False
            try:
                self._reload()
            except RefusedError:
                return  # told already

    def _roll(self, what: str, concerns: frozenset[str]) -> dict[str, Any]:
        """Have the children of these roles replaced."""
        workers = self._rolling.begin(what, concerns)
        if concerns and self._rolling.what:
            self._tell.info("fleet.rolling", what=what, workers=workers)
        return {"rolling": self._rolling.what, "workers": workers}

    def _on_ready(self, name: str, child: Child) -> None:
        self._tell.info("child.ready", name=name, pid=child.pid, after_s=round(child.lived_s, 2))
        self._cleared = self._cleared or name == "janitor"
        self._worked = self._worked or is_worker(name)

    # -- reap and kill ----------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        for name, slot in list(self._slots.items()):
            child = slot.child
            if child is None or child.exit_code is None:
                continue
            self._hear_last_words(child)
            slot.child = None
            slot.last_exit = exit_text(child.exit_code)
            if is_worker(name):
                self._tell_janitor({"died": child.identity, "at_the_gate": child.stats.get("at_the_gate", [])})
            if stacks := child.stacks():
                self._tell.error("child.stacks", name=name, pid=child.pid, exit=slot.last_exit, stack=stacks)
            if child.stopping or self._stopping:
                self._tell.info("child.stopped", name=name, exit=slot.last_exit)
                if is_worker(name):
                    del self._slots[name]
            else:
                slot.restarts += 1
                delay_s = slot.fail(child.lived_s, time.monotonic(), random.random())  # noqa: S311 - jitter, no secret
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
        for child in self._slots.children():
            if reason := child.overdue():
                self._tell.error("child.killed", name=child.spec.name, pid=child.pid, reason=reason)
                child.kill()

    # -- spawn what is due, send away what is too much --------------------------------------------------------------

    def _converge(self) -> None:
        """Go one step from the children that are there to those that there should be."""
        roles = self._blueprint.roles
        for spec in (*roles.servers, roles.desk):
            self._ensure(spec.name, lambda spec=spec: spec)  # type: ignore[misc]
        self._ensure("janitor", lambda: roles.janitor(self._slots.consumers()))
        if not self._cleared:
            return
        states = [slot.as_worker(name, self._rolling.generation) for name, slot in self._slots.workers().items()]
        change = converge(states, self._desired.value)
        for number in change.closed:
            self._close(worker_name(number))
        for name in [*self._slots.workers(), *map(worker_name, change.opened)]:
            self._ensure(name, lambda name=name: roles.worker(number_of(name)))  # type: ignore[misc]
        for slot in self._slots.workers().values():
            slot.tell_pause(paused=self._pause.value)

    def _ensure(self, name: str, spec: Callable[[], Spec]) -> None:
        """Start a child in this slot if there is none and it is due."""
        slot = self._slots.setdefault(name, Slot())
        if slot.child is not None or time.monotonic() < slot.not_before:
            return
        if is_worker(name) and self._slots.unborn_workers() >= STARTS_AT_ONCE:
            return
        try:
            child = Child(spec())
        except OSError as error:
            delay_s = slot.fail(0.0, time.monotonic(), random.random(), TICK_S)  # noqa: S311 - jitter, no secret
            self._tell.error("child.not_started", name=name, error=str(error), again_in_s=round(delay_s, 2))
            return
        slot.admit(child, self._rolling.generation, random.random())  # noqa: S311 - jitter, no secret
        self._tell.info("child.started", name=name, pid=child.pid)
        if is_worker(name):
            self._tell_janitor({"born": child.identity})

    def _close(self, name: str) -> None:
        """Let a worker's slot go: at once if it is empty, else when its child has drained."""
        slot = self._slots[name]
        if slot.child is None:
            del self._slots[name]
            return
        old = slot.generation < self._rolling.generation
        slot.replaced = slot.is_old(self._rolling.generation)
        why = (self._rolling.what or "restart") if old else f"recycle: {slot.worn}" if slot.worn else "scale"
        self._send_away(slot.child, why, self._blueprint.drain_s)

    def _send_away(self, child: Child, why: str, within_s: float) -> None:
        if not child.stopping:
            self._tell.info("child.stopping", name=child.spec.name, pid=child.pid, why=why, within_s=within_s)
            child.stop(within_s, STOP_GRACE_S)

    def _remember(self) -> None:
        """Keep the children's numbers for the next supervisor, in case this one is killed."""
        pids = {child.pid for child in self._slots.children()}
        if pids != self._remembered:
            self._remembered = pids
            with suppress(OSError):
                self._outside.remember(sorted(pids))

    def _stop_in_order(self) -> bool:
        """Stop the workers, then janitor and desk, then the servers they need. False when all are gone."""
        groups: tuple[tuple[float, Callable[[str], bool]], ...] = (
            (self._blueprint.drain_s, is_worker),
            (SERVER_STOP_S, lambda name: name in {"janitor", "desk"}),
            (SERVER_STOP_S, lambda _: True),
        )
        for within_s, belongs in groups:
            children = [child for child in self._slots.children() if belongs(child.spec.name)]
            for child in children:
                self._send_away(child, "stop", within_s)
            if children:
                return True
        return False

    # -- judge and tell ---------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        """Tell when a rolling replacement is over, and when a crash loop begins and ends."""
        for child in self._rolling.whose_turn():
            self._send_away(child, self._rolling.what or "restart", SERVER_STOP_S)
        if what := self._rolling.end():
            self._tell.info("fleet.rolled", what=what)
            self._reported = 0.0
        janitor = self._slots.get("janitor", Slot())
        loop = in_crash_loop([slot.failures for slot in self._slots.workers().values()], janitor.failures)
        if loop != self._crash_loop:
            self._crash_loop, self._reported = loop, 0.0
            last = sorted({slot.last_exit for slot in self._slots.values() if slot.failures and slot.last_exit})
            tell = self._tell.error if loop else self._tell.info
            tell("fleet.crash_loop" if loop else "fleet.crash_loop_over", **({"last_exits": last} if loop else {}))

    def _report(self) -> None:
        """Measure the children, and give the desk a picture of them: after every change and every second."""
        now = time.monotonic()
        if now - self._reported < REPORT_EVERY_S:
            return
        self._reported = now
        for name, slot in self._slots.items():
            slot.measure(self._blueprint.wear if is_worker(name) else Wear())
        self._rolling.notice_the_worn()
        self._outside.notify.status(self._in_a_line())
        if desk := self._slots.child("desk"):
            picture = self._picture()
            if not desk.line.send({"fleet": picture}):
                desk.line.send({"fleet": {**picture, "children": list(map(shortened, picture["children"]))}})
            if counts := self._slots.counts():
                desk.line.send({"counts": counts})  # by itself: the picture of a large fleet has no room for it

    def _picture(self) -> dict[str, Any]:
        return {
            "desired": self._desired.value,
            "pid": os.getpid(),
            "paused": self._pause.value,
            "crash_loop": self._crash_loop,
            "rolling": self._rolling.told(),
            "stop_wait_note": self._blueprint.stop_wait_note,
            "children": self._slots.rows(),
        }

    def _in_a_line(self) -> str:
        so = {"paused": self._pause.value, "crash loop": self._crash_loop, "stopping": self._stopping}
        so[f"rolling {self._rolling.what}"] = self._rolling.what is not None
        return status_line(self._slots.ready_workers(), self._desired.value, so)

    def _answer(self) -> None:
        for child, answer in self._answers:
            child.line.send(answer)
        self._answers.clear()

    def _tell_janitor(self, message: dict[str, Any]) -> None:
        self._news.append(message)
        self._pass_on_news()

    def _pass_on_news(self) -> None:
        """Tell the janitor who was born and who died; what it cannot hear now, it or its successor hears later."""
        janitor = self._slots.child("janitor")
        while self._news and janitor and not janitor.stopping and janitor.line.send(self._news[0]):
            self._news.popleft()
