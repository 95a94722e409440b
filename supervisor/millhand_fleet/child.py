"""One child process: how it is started, heard, measured, stopped and killed."""

import multiprocessing
import os
import pickle
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.reduction import DupFd, ForkingPickler
from pathlib import Path
from typing import IO, Any

from millhand.pulse import HANG_LIMIT_S, Birth, Line

KILL_AFTER_S = HANG_LIMIT_S + 5.0  # past the child's own watchdog, which leaves its stacks
BIRTH_LIMIT_S = 60.0  # to the first beat: on a busy machine the imports alone may take long
STACKS_CHARS_MAX = 16_384
UNWANTED = ("rich", "httpx._main")  # loaded by structlog and httpx if they can, for nothing we do: 5 MiB each
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20

_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Spec:
    """What a child is. Its target is called with `args(identity)` and its Birth."""

    name: str
    target: Callable[..., None]
    args: Callable[[str], tuple[Any, ...]]
    consumer: str = ""  # what the identity of an incarnation begins with, if not the name
    log_file: str = ""  # where it writes what it does not write to the fleet's log
    stacks: str = ""  # where it leaves its stacks when it hangs or crashes
    beats: bool = True  # False: a foreign program, which knows nothing of our line and gets a SIGTERM


class Parcel:
    """What a new process calls, and with what. In the process itself it is the pair of the two.

    It travels in a file of its own. Through the pipe that multiprocessing has for it, we would wait for the process as
    soon as the configuration does not fit in there; and for ever, if it dies before it reads.
    """

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.target = target
        self.args = args
        self._contents: IO[bytes] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pack. Only while a process is being started."""
        self._contents = os.fdopen(os.memfd_create("parcel"), "wb")
        self._contents.write(ForkingPickler.dumps((self.target, self.args)))
        self._contents.flush()
        return _unpacked, (DupFd(self._contents.fileno()),)

    def close(self) -> None:
        """Let go of the file: the process has its own descriptor of it."""
        if self._contents is not None:
            self._contents.close()


def _unpacked(end: Any) -> Any:
    """Load a parcel, and the modules of what it calls without what those need not have. Others may have it later."""
    unwanted = [name for name in UNWANTED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(unwanted))  # type: ignore[arg-type] # Python's own way to say: not to be had
    with os.fdopen(end.detach(), "rb") as contents:
        contents.seek(0)
        parcel = pickle.load(contents)  # noqa: S301 - from our own supervisor
    for name in unwanted:
        del sys.modules[name]
    return parcel


def _call(parcel: Any) -> None:
    target, args = parcel
    target(*args)


class Child:
    """One incarnation of a spec. Start it from the main thread: the kernel's death signal follows the thread."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.identity = f"{spec.consumer or spec.name}:{secrets.token_hex(4)}"
        self.born = self.last_beat = time.monotonic()
        self.beaten = not spec.beats  # once, at least: its imports are over
        self.ready = False
        self.stats: dict[str, Any] = {}
        self.unusable: str | None = None
        self.kill_at: float | None = None
        self.killed = False
        if spec.stacks:
            with suppress(OSError):
                Path(spec.stacks).unlink(missing_ok=True)  # those of an earlier life are in the log
        self.line, end = Line.pair()
        birth = Birth(spec.name, end, os.getpid(), spec.stacks)
        parcel = Parcel(spec.target, (*spec.args(self.identity), birth))
        self._process = _spawn.Process(target=_call, args=(parcel,), name=spec.name)
        try:
            self._process.start()
        except BaseException:
            self.line.close()
            raise
        finally:
            parcel.close()
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

    @property
    def rss_mib(self) -> float:
        """How much memory it has in use, in MiB; 0 where the kernel does not say."""
        with suppress(OSError, ValueError, IndexError):
            return int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES / MIB
        return 0.0

    def hear(self) -> list[dict[str, Any]]:
        """Take in what the child says of itself; return what is meant for others."""
        orders = []
        for message in self.line.receive():
            if "beat" in message:
                self.last_beat, self.stats, self.beaten = time.monotonic(), message["beat"], True
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
            return "did not stop in time" + self._frozen()
        limit_s = KILL_AFTER_S if self.beaten else BIRTH_LIMIT_S
        if self.spec.beats and now - self.last_beat > limit_s:
            return f"silent for {limit_s:g} s" + self._frozen()
        return None

    def kill(self) -> None:
        """End it at once."""
        self.killed = True
        self._process.kill()

    def stacks(self) -> str:
        """Return what it left when it hung or crashed: where each of its threads was. Empty if it did neither."""
        with suppress(OSError):
            return Path(self.spec.stacks).read_text(encoding="utf-8", errors="replace")[:STACKS_CHARS_MAX].strip()
        return ""

    def bury(self) -> None:
        """Give its descriptors back, once it has ended."""
        self._process.join()
        self._process.close()
        self.line.close()

    def _frozen(self) -> str:
        """Say why there are no stacks, where the process was stopped: it cannot dump them itself."""
        with suppress(OSError):
            if Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in "Tt":
                return "; it was stopped (SIGSTOP), and so could not show where it was"
        return ""
