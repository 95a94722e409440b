"""Looks at programs, files and limits of this host. Blocking, and reads only."""

import importlib.metadata
import json
import os
import platform
import re
import resource
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import millhand
import millhand_fleet
from millhand.config import CONTROL_SOCKET, ENVIRONMENT_PREFIX
from millhand_fleet.doctor.facts import FileFacts, ProgramFacts
from millhand_fleet.doctor.processes import Process, ancestors, look_at
from millhand_fleet.doctor.setup import Setup, given_file

LIBRARIES = ("redis", "httpx", "msgspec", "uvloop", "supervisor")
SECRET = re.compile(r"://[^/\s@]*:[^/\s@]+@|^--?(pass|password|requirepass)=.")
DESCRIPTORS_OF_A_WORKER = 64  # beside its calls: Redis, log, pipes
DESCRIPTORS_EACH = 8  # of the supervisor, for a child
DESCRIPTORS_OTHERS = 64
PARENTS_EXAMINED_MAX = 3


def look_at_programs(setup: Setup) -> ProgramFacts:
    """Return which programs are in use here and in the running fleet."""
    running = setup.supervisor
    editable = _editable_from()
    return ProgramFacts(
        python=platform.python_version(),
        executable=sys.executable,
        version=millhand.__version__,
        package=str(Path(millhand.__file__).parent),
        fleet_package=str(Path(millhand_fleet.__file__).parent),
        editable_from=editable,
        libraries=tuple(_versions()),
        running_executable=_executable(running) if running else "",
        running_package=_package(running, editable) if running else "",
        file=str(setup.file.absolute()) if setup.file else "",
        running_file=given_file(running) if running else None,
        problems=setup.problems,
        overriding=tuple(
            (key, origin) for key, origin in setup.config.origins.items() if origin.startswith(ENVIRONMENT_PREFIX)
        ),
        differing=_differing(running) if running else (),
    )


def look_at_files(setup: Setup, children: list[int]) -> FileFacts:
    """Return permissions, room and limits. `children` are the processes of the running fleet."""
    config, running = setup.config, setup.supervisor
    state_dir = config.state_dir
    folder, control = _stat(state_dir), _stat(state_dir / CONTROL_SOCKET)
    file = _stat(setup.file) if setup.file else None
    free_bytes, inodes_share = _room(state_dir)
    own_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return FileFacts(
        uid=os.getuid(),
        state_dir=str(state_dir),
        state_mode=stat.S_IMODE(folder.st_mode) if folder else None,
        state_uid=folder.st_uid if folder else 0,
        socket_mode=stat.S_IMODE(control.st_mode) if control else None,
        socket_uid=control.st_uid if control else 0,
        file=str(setup.file.absolute()) if setup.file else "",
        file_mode=stat.S_IMODE(file.st_mode) if file else None,
        file_has_password=_file_has_password(setup),
        telltale_processes=tuple(_telltales(running, children)),
        free_bytes=free_bytes,
        free_inodes_share=inodes_share,
        holds_data=setup.is_redis_embedded,
        descriptors=running.descriptors if running else own_limit,
        descriptors_wanted=_descriptors_wanted(setup),
        workers=setup.workers,
    )


def _editable_from() -> str:
    """Return the folder that an editable installation leads to; "" where it is a copy, or none."""
    try:
        raw = importlib.metadata.distribution("millhand").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return ""
    told = json.loads(raw) if raw else {}
    return unquote(urlsplit(told["url"]).path) if told.get("dir_info", {}).get("editable") else ""


def _versions() -> Iterator[str]:
    for name in LIBRARIES:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} is not installed"


def _executable(running: Process) -> str:
    """Return the interpreter of the fleet: ours, where it stands in the same folder."""
    first = running.arguments[0] if running.arguments else ""
    if not Path(first).is_absolute():
        return ""
    return sys.executable if Path(first).parent == Path(sys.executable).parent else first


def _package(running: Process, editable_from: str) -> str:
    """Return the folder from which the fleet has its millhand; "" where that cannot be told."""
    if running.environment is None or _executable(running) != sys.executable:
        return ""
    places = [Path(running.folder, entry) for entry in running.environment.get("PYTHONPATH", "").split(":") if entry]
    installed = Path(editable_from, "worker") if editable_from else Path(millhand.__file__).parent.parent
    return next((str(p.resolve() / "millhand") for p in [*places, installed] if (p / "millhand").is_dir()), "")


def _differing(running: Process) -> tuple[str, ...]:
    """Return the names of millhand's variables that are not the same here and there."""
    there = running.environment
    if there is None:
        return ()
    names = {name for name in (*there, *os.environ) if name.startswith(ENVIRONMENT_PREFIX)}
    return tuple(sorted(name for name in names if there.get(name) != os.environ.get(name)))


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _room(path: Path) -> tuple[int | None, float | None]:
    """Return what is free where a folder is, or will be: bytes, and the share of inodes."""
    place = next((part for part in (path, *path.parents) if part.exists()), None)
    if place is None:
        return None, None
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize, found.f_favail / found.f_files if found.f_files else None


def _file_has_password(setup: Setup) -> bool:
    redis, origins = setup.config.redis, setup.config.origins
    held = {"redis.password"} if redis.password else set()
    with suppress(ValueError):  # no address: a problem of its own
        held |= {"redis.url"} if urlsplit(redis.url).password else set()
    return setup.file is not None and any(origins.get(key) == str(setup.file) for key in held)


def _telltales(running: Process | None, children: list[int]) -> Iterator[str]:
    """Name the processes whose arguments hold a password; never the arguments."""
    if running is None:
        return
    found = [running, *ancestors(running)[:PARENTS_EXAMINED_MAX], *(look_at(pid) for pid in children)]
    for process in found:
        if process and any(SECRET.search(argument) for argument in process.arguments):
            yield f"process {process.pid} ({process.name})"


def _descriptors_wanted(setup: Setup) -> int:
    """Return what the process with the most needs: a worker with its calls, or the supervisor with its children."""
    config = setup.config
    worker = DESCRIPTORS_OF_A_WORKER + config.model.concurrency
    return max(worker, DESCRIPTORS_OTHERS + DESCRIPTORS_EACH * setup.workers)
