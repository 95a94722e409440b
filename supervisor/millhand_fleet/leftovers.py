"""Ending what an earlier supervisor's children have left behind. They leave by themselves, unless they are stopped."""

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from millhand.stop import end_at_once
from millhand_fleet.state import ORPHANS_GONE_S, POLL_S, StateDir

CHILDREN = "children.json"
BOOT = Path("/proc/sys/kernel/random/boot_id")


def remember(state: StateDir, pids: Iterable[int]) -> None:
    """Write down which processes are ours now. Raises OSError."""
    children = [[pid, began] for pid in pids if (began := _began(pid))]
    state.write(CHILDREN, {"boot": _boot(), "children": children}, is_lasting=False)


def end_leftovers(state: StateDir) -> list[int]:
    """Wait a moment until the remembered processes are gone, and kill those that are not; return these.

    A stopped process (SIGSTOP) hears neither end-of-file nor a signal, and may hold a port that we need.
    """
    deadline = time.monotonic() + ORPHANS_GONE_S
    killed = []
    for pid, began in _remembered(state):
        while _began(pid) == began:
            if _is_stopped(pid) or time.monotonic() > deadline:
                end_at_once(pid)
                killed.append(pid)
                break
            time.sleep(POLL_S)
    return killed


def is_orphan(pid: int, parent: int) -> bool:
    """Whether a process lives, and has another parent than the one that started it: that one is gone."""
    return pid > 0 and parent > 0 and _stat(pid)[1:2] not in ([], [str(parent)])


def _remembered(state: StateDir) -> list[tuple[int, str]]:
    remembered: Any = state.read(CHILDREN)
    if remembered.get("boot") != _boot():
        return []  # numbers and times of another life of this host, which may be those of anybody now
    rows = remembered.get("children")
    with suppress(TypeError, ValueError):
        return [(int(pid), str(began)) for pid, began in rows]
    return []


def _began(pid: int) -> str:
    """Return when a process began, in ticks; empty if it is gone. A later one of its number has another."""
    fields = _stat(pid)
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""  # noqa: PLR2004 - proc(5)


def _boot() -> str:
    """Return what names this life of the host; empty where the kernel does not say."""
    with suppress(OSError):
        return BOOT.read_text(encoding="ascii").strip()
    return ""


def _is_stopped(pid: int) -> bool:
    return _stat(pid)[:1] in (["T"], ["t"])


def _stat(pid: int) -> list[str]:
    """Return a process's fields from `state` on."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return []
