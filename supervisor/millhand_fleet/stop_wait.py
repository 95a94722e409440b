"""How long supervisord or systemd, if one of them runs us, waits after a SIGTERM before it kills."""

import re
import subprocess
import xmlrpc.client
from collections.abc import Mapping
from contextlib import closing, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers.expat import ExpatError

from millhand_fleet.ctl.desk_client import UnixConnection

ANSWER_S = 2.0
UNIX = "unix://"
CGROUP = Path("/proc/self/cgroup")
IN_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


class StopWait(NamedTuple):
    """For how long whoever runs us waits, by which setting of theirs; None where nobody runs us, or nobody says."""

    waits_s: float | None = None
    setting: str = ""

    def note(self, needed_s: float) -> str | None:
        """Return what to change where we would be killed before a drain can end; None where all is well, or unknown."""
        if self.waits_s is None or self.waits_s >= needed_s:
            return None
        return (
            f"{self.setting} is {self.waits_s:g} s: whatever is not finished by then is killed. fleet.drain_s and the "
            f"grace after it need {needed_s:g} s"
        )


def stop_wait_of(environment: Mapping[str, str]) -> StopWait:
    """Ask whoever runs us. Takes some seconds at the most."""
    if environment.get("SUPERVISOR_ENABLED"):
        return StopWait(_supervisord_waits_s(environment), "stopwaitsecs in supervisord's configuration")
    if environment.get("INVOCATION_ID"):
        return StopWait(_systemd_waits_s(), "TimeoutStopSec in the systemd unit")
    return StopWait()


def _supervisord_waits_s(environment: Mapping[str, str]) -> float | None:
    """Ask the supervisord that started us for this program's stopwaitsecs."""
    url = environment.get("SUPERVISOR_SERVER_URL", "")
    ours = environment.get("SUPERVISOR_GROUP_NAME"), environment.get("SUPERVISOR_PROCESS_NAME")
    if not url.startswith(UNIX):
        return None
    with suppress(OSError, HTTPException, xmlrpc.client.Error, ExpatError, KeyError, ValueError):
        rows: Any = _call(url.removeprefix(UNIX), "supervisor.getAllConfigInfo")
        return next((float(row["stopwaitsecs"]) for row in rows if (row["group"], row["name"]) == ours), None)
    return None


def _call(path: str, method: str) -> Any:
    with closing(UnixConnection(Path(path), ANSWER_S)) as connection:
        connection.request("POST", "/RPC2", xmlrpc.client.dumps((), method), {"Content-Type": "text/xml"})
        (answer,), _ = xmlrpc.client.loads(connection.getresponse().read().decode())
        return answer


def _systemd_waits_s() -> float | None:
    """Ask systemd for our unit's TimeoutStopUSec, which it prints as a person would write it."""
    with suppress(OSError, subprocess.SubprocessError, StopIteration):
        cgroup = CGROUP.read_text(encoding="utf-8")
        unit = next(part for part in reversed(re.split(r"[/\n]", cgroup)) if part.endswith(".service"))
        command = ["systemctl", "show", "--property=TimeoutStopUSec", "--value", unit]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=True)  # noqa: S603
        return seconds_of(shown.stdout)
    return None


def seconds_of(text: str) -> float | None:
    """Return the seconds in systemd's "1min 30s"; None where it says none, or "infinity"."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(us|ms|s|min|h|d)\b", text)
    return sum(float(number) * IN_S[unit] for number, unit in parts) if parts else None
