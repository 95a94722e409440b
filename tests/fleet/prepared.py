"""A fleet whose processes do what a test needs: cannot start, grow, hang; and whose waits are short."""

import json
import subprocess
import sys
from typing import Any

from tests.fleet.conftest import RunningFleet

LAUNCH = """\
import os, pathlib, sys, time
FOLDER = pathlib.Path(__file__).parent
if __name__ != "__main__" and (FOLDER / "broken").exists():
    raise ImportError("no module named abacus")
from millhand import asking, pulse, telling
pulse.HANG_LIMIT_S = 2.0
from millhand_fleet import restarts
restarts.WEAR_AFTER_S = 0.0
restarts.BACKOFF_MAX_S = 1.0
leak, tell, call = [], telling.Teller.settled, asking.Asker._call
def leaking(self, *told):
    if (FOLDER / "leaks").exists():
        leak.append(bytearray(os.urandom(2 << 20)))
    tell(self, *told)
async def blocking(self, inquiry, permit):
    if b"[[block]]" in inquiry.delivery.fields.get(b"data", b""):
        time.sleep(60)
    return await call(self, inquiry, permit)
telling.Teller.settled, asking.Asker._call = leaking, blocking
from millhand_fleet.ctl.main import main
if __name__ == "__main__":
    main()
"""


class PreparedFleet(RunningFleet):
    """A fleet whose every process runs LAUNCH: it can be broken, leaks and hangs if told to, and has less patience."""

    def up(self, *options: str, ready: bool = True) -> None:
        """Start the supervisor; wait until the workers are at work."""
        launch = self.folder / "launch.py"
        launch.write_text(LAUNCH)
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, launch, "up", *options], env=self.environment, cwd=self.folder, stdout=log, stderr=log
            )
        if ready:
            self.eventually_ready()

    def records(self) -> list[dict[str, Any]]:
        """Return everything that the log tells, in its order."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def supervisor_pid(self) -> int:
        """Return the supervisor's process."""
        assert self.process is not None
        return self.process.pid

    def terminated(self) -> bool:
        """Send the supervisor a SIGTERM; return whether it ends, and well."""
        return self.terminate() == 0
