"""Other processes of this host, as /proc shows them. What cannot be seen is absent, never an error."""

import os
from contextlib import suppress
from pathlib import Path

import msgspec

PROC = Path("/proc")
ANCESTORS_MAX = 20


class Process(msgspec.Struct, frozen=True):
    """A process of which the caller may see this much."""

    pid: int
    name: str
    arguments: tuple[str, ...]
    parent: int
    folder: str = ""  # its working directory; "" where that is not ours to see
    environment: dict[str, str] | None = None
    descriptors: int | None = None  # its soft RLIMIT_NOFILE


def look_at(pid: int, proc: Path = PROC) -> Process | None:
    """Return what can be seen of a process; None if there is none."""
    place = proc / str(pid)
    try:
        arguments = _parts((place / "cmdline").read_bytes())
        status = dict(line.partition(":\t")[::2] for line in (place / "status").read_text().splitlines())
        name, parent = status["Name"], int(status["PPid"])
    except (OSError, ValueError, KeyError):
        return None
    folder, environment = "", None
    with suppress(OSError):
        folder = str((place / "cwd").readlink())
        environment = dict(part.partition("=")[::2] for part in _parts((place / "environ").read_bytes()))
    return Process(pid, name, arguments, parent, folder, environment, _descriptors(place))


def ancestors(process: Process, proc: Path = PROC) -> list[Process]:
    """Return the processes above one, the nearest first."""
    found: list[Process] = []
    above = look_at(process.parent, proc)
    while above is not None and len(found) < ANCESTORS_MAX:
        found.append(above)
        above = look_at(above.parent, proc) if above.parent else None
    return found


def _parts(raw: bytes) -> tuple[str, ...]:
    return tuple(os.fsdecode(part) for part in raw.split(b"\0") if part)


def _descriptors(place: Path) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in (place / "limits").read_text().splitlines():
            if line.startswith("Max open files"):
                return int(line.split()[3])
    return None
