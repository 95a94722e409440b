"""Looks for who keeps the fleet up: the processes above it, and the files of supervisord and systemd."""

import configparser
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from millhand_fleet.doctor.facts import Program, SupervisionFacts
from millhand_fleet.doctor.processes import Process, ancestors
from millhand_fleet.doctor.setup import Setup
from millhand_fleet.supervisor import STOP_GRACE_S

SUPERVISORD_FILES = (
    "supervisord.conf", "conf/supervisord.conf", "/etc/supervisord.conf", "/etc/supervisor/supervisord.conf",
    "/etc/supervisor/conf.d/*.conf",
)  # fmt: skip
UNITS = ("/etc/systemd/system/*.service", "/run/systemd/system/*.service", "/lib/systemd/system/millhand*.service")
KEEPERS = {"supervisord", "systemd", "runit", "s6-supervise", "tini", "docker-init"}
STARTS = re.compile(r"worker-ctl\b.*\bup\b")
STOPWAITSECS = 10.0  # supervisord's own default
TIMEOUT_STOP_S = 90.0  # systemd's
UNIT_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "": 1.0}


def look_at_supervision(setup: Setup, stop_wait_note: str = "") -> SupervisionFacts:
    """Return who is above the running fleet, and what the files say that start one."""
    above = ancestors(setup.supervisor) if setup.supervisor else []
    programs: list[Program] = []
    unreadable: list[str] = []
    for kind, path in _files([argument for process in above for argument in _configured(process.arguments)]):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
            programs += supervisord_programs(path, text) if kind == "supervisord" else systemd_units(path, text)
        except (OSError, configparser.Error) as error:
            unreadable.append(f"{path}: {str(error).splitlines()[0]}")
    drain_s = setup.config.fleet.drain_s
    return SupervisionFacts(
        is_running=setup.is_running,
        parents=tuple(f"{process.name} ({process.pid})" for process in _up_to_a_keeper(above)),
        programs=tuple(programs),
        unreadable=tuple(unreadable),
        stop_wait_note=stop_wait_note,
        stop_s=drain_s + STOP_GRACE_S,
    )


def supervisord_programs(path: Path, text: str) -> list[Program]:
    """Return the programs of a supervisord configuration that start a fleet. Raises configparser.Error."""
    parser = configparser.RawConfigParser(strict=False, inline_comment_prefixes=(";",))
    parser.read_string(text)
    opens_port = parser.has_section("inet_http_server") and not parser.get("inet_http_server", "password", fallback="")
    found = []
    for section in parser.sections():
        if section.startswith("program:") and STARTS.search(parser.get(section, "command", fallback="")):
            stops_all = _yes(parser.get(section, "stopasgroup", fallback="false"))
            kills_all = _yes(parser.get(section, "killasgroup", fallback=str(stops_all)))
            wait_s = _seconds(parser.get(section, "stopwaitsecs", fallback=""), STOPWAITSECS)
            name = section.removeprefix("program:")
            found.append(Program(str(path), name, "supervisord", wait_s, stops_all, kills_all, opens_port))
    return found


def systemd_units(path: Path, text: str) -> list[Program]:
    """Return the unit, if it starts a fleet."""
    settings: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        name, separator, value = line.partition("=")
        if separator and not line.startswith(("#", ";")):
            settings[name.strip()] = value.strip()
    if not STARTS.search(settings.get("ExecStart", "")):
        return []
    wait = settings.get("TimeoutStopSec", settings.get("TimeoutSec", ""))
    mode = settings.get("KillMode", "control-group")
    signals_all, kills_all = mode == "control-group", mode in {"control-group", "mixed"}
    return [Program(str(path), path.name, "systemd", _seconds(wait, TIMEOUT_STOP_S), signals_all, kills_all)]


def _up_to_a_keeper(above: list[Process]) -> list[Process]:
    """Return the processes up to the first that keeps others up; the nearest alone where there is none."""
    keepers = [number for number, process in enumerate(above) if process.name in KEEPERS]
    return above[: keepers[0] + 1] if keepers else above[:1]


def _files(named: list[Path]) -> Iterator[tuple[str, Path]]:
    """Yield the files that there are, each once."""
    seen: set[Path] = set()
    places = [("supervisord", path) for path in named]
    places += [("supervisord", path) for pattern in SUPERVISORD_FILES for path in _matching(pattern)]
    places += [("systemd", path) for pattern in UNITS for path in _matching(pattern)]
    for kind, path in places:
        if path.resolve() not in seen:
            seen.add(path.resolve())
            yield kind, path.absolute()


def _matching(pattern: str) -> list[Path]:
    folder, _, name = pattern.rpartition("/")
    try:
        return sorted(Path(folder or ".").glob(name))
    except OSError:
        return []


def _configured(arguments: tuple[str, ...]) -> Iterator[Path]:
    """Yield the file that a supervisord was given by -c."""
    if not any("supervisord" in argument for argument in arguments[:2]):
        return
    for flag, value in pairwise(arguments):
        if flag in {"-c", "--configuration"} and Path(value).is_file():
            yield Path(value)


def _yes(text: str) -> bool:
    return text.strip().lower() in {"true", "1", "yes", "on", "t", "y"}


def _seconds(text: str, default_s: float) -> float:
    """Return a length of time as supervisord (a number) and systemd (45, 45s, 1min 30s, infinity) write it."""
    if text == "infinity":
        return float("inf")
    parts = re.findall(r"([0-9.]+)\s*([a-z]*)", text)
    try:
        return sum(float(number) * UNIT_S[unit] for number, unit in parts) if parts else default_s
    except (KeyError, ValueError):
        return default_s
