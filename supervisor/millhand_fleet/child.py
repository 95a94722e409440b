"""One child process: how it is started, heard, stopped and killed."""

import multiprocessing
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from millhand.pulse import HANG_LIMIT_S, Birth, Line

KILL_AFTER_S = HANG_LIMIT_S + 5.0  # past the child's own watchdog, which leaves its stacks in the log

_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Spec:
    """What a child is. Its target is called with `args(identity)` and its Birth."""

    name: str
    target: Callable[..., None]
    args: Callable[[str], tuple[Any, ...]]
    consumer: str = ""  # what the identity of an incarnation begins with, if not the name
    log_file: str = ""  # where it writes what it does not write to the fleet's log
    beats: bool = True  # False: a foreign program, which knows nothing of our line and gets a SIGTERM


class Child:
    """One incarnation of a spec. Start it from the main thread: the kernel's death signal follows the thread."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.identity = f"{spec.consumer or spec.name}:{secrets.token_hex(4)}"
        self.born = self.last_beat = time.monotonic()
        self.ready = False
        self.stats: dict[str, Any] = {}
        self.unusable: str | None = None
        self.kill_at: float | None = None
        self.killed = False
        self.line, end = Line.pair()
        self._process = _spawn.Process(
            target=spec.target, args=(*spec.args(self.identity), Birth(spec.name, end, os.getpid())), name=spec.name
        )
        self._process.start()
        end.close()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid or 0

    @property
    def sentinel(self) -> int:
        """A descriptor that becomes readable when the process has ended."""
        return self._process.sentinel

    @property
    def lived_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.born

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self.kill_at is not None

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal, None while it runs."""
        return self._process.exitcode

    def hear(self) -> list[dict[str, Any]]:
        """Take in what the child says of itself; return what is meant for others."""
        orders = []
        for message in self.line.receive():
            if "beat" in message:
                self.last_beat, self.stats = time.monotonic(), message["beat"]
            elif "ready" in message:
                self.ready = True
            elif "unusable" in message:
                self.unusable = message["unusable"]
            else:
                orders.append(message)
        return orders

    def stop(self, within_s: float, grace_s: float) -> None:
        """Tell it to stop; `overdue` when it has not by then."""
        if self.stopping:
            return
        self.kill_at = time.monotonic() + within_s + grace_s
        if self.spec.beats:
            self.line.send({"stop": within_s})
        else:
            self._process.terminate()

    def overdue(self) -> str | None:
        """Why it must be killed, if it must."""
        now = time.monotonic()
        if self.killed:
            return None
        if self.kill_at is not None and now > self.kill_at:
            return "did not stop in time"
        if self.spec.beats and now - self.last_beat > KILL_AFTER_S:
            return f"silent for {KILL_AFTER_S:g} s"
        return None

    def kill(self) -> None:
        """End it at once."""
        self.killed = True
        self._process.kill()

    def bury(self) -> None:
        """Give its descriptors back, once it has ended."""
        self._process.join()
        self._process.close()
        self.line.close()
