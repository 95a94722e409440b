"""Under what conditions a measurement was made: figures without them say nothing."""

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.rig import name_of

from millhand_fleet.embedded import preflight

CPU_INFO = Path("/proc/cpuinfo")
PACKAGES = ("redis", "hiredis", "httpx", "msgspec", "uvloop")


def conditions(**more: object) -> dict[str, object]:
    """Return what there is to know about machine, moment and versions, and what the caller adds."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_cpu()}",
        "system": f"{platform.system()} {platform.release()}",
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "server": name_of(preflight.valkey_binary()),
        "millhand": version("millhand") + _commit(),
        "packages": {name: version(name) for name in PACKAGES},
        **more,
    }


def in_words(told: Mapping[str, object]) -> str:
    """Return conditions as lines for a person."""
    return "\n".join(f"{name}: {_value(value)}" for name, value in told.items())


def _value(value: object) -> str:
    return "".join(f"\n  {name}: {of}" for name, of in value.items()) if isinstance(value, Mapping) else str(value)


def _cpu() -> str:
    told = CPU_INFO.read_text(encoding="utf-8") if CPU_INFO.exists() else ""
    names = [line.split(":", 1)[1].strip() for line in told.splitlines() if line.startswith("model name")]
    return names[0] if names else "processor unknown"


def _commit() -> str:
    """Return the commit that is checked out, in brackets; "" where there is no git or no repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - arguments of ours
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f" ({told.stdout.strip()})"
