"""worker-ctl, prepared for a chaos run: what a run cannot wait for is shortened, and a mutant may be put in.

Every process of the fleet runs this file again, because multiprocessing's spawn does, so what is patched here is
patched in all of them. `CHAOS_MUTANT` names a mutant of `mutants.MUTANTS`.
"""

import os
import sys
import time
from pathlib import Path

sys.path[:0] = [] if str(Path(__file__).parents[3]) in sys.path else [str(Path(__file__).parents[3])]

from typing import Any  # noqa: E402 - the project's root has to be found first

from tests.fleet.chaos.faults import BLOCK, POISON  # noqa: E402
from tests.fleet.chaos.mutants import MUTANTS  # noqa: E402

from millhand import asking, pulse  # noqa: E402
from millhand_fleet import restarts  # noqa: E402
from millhand_fleet.ctl.main import main  # noqa: E402

HANG_LIMIT_S = 6.0  # longer than any freeze: who was frozen goes on
BACKOFF_MAX_S = 0.5  # who is killed every second is not ill
BLOCKED_S = 60.0


def shorten() -> None:
    """Make a hang and a crash loop short enough for a run."""
    pulse.HANG_LIMIT_S = HANG_LIMIT_S
    restarts.BACKOFF_MAX_S = BACKOFF_MAX_S


def obey_events() -> None:
    """Let an event kill or hang its worker at the moment when the model is asked about it."""
    call = asking.Asker._call

    async def dangerous(self: asking.Asker, inquiry: Any, permit: Any) -> Any:
        data = inquiry.delivery.fields.get(b"data", b"")
        if POISON in data:
            os.kill(os.getpid(), 9)
        if BLOCK in data:
            time.sleep(BLOCKED_S)  # noqa: ASYNC251 - that is what it is for
        return await call(self, inquiry, permit)

    asking.Asker._call = dangerous  # type: ignore[method-assign]


shorten()
obey_events()
if name := os.environ.get("CHAOS_MUTANT"):
    MUTANTS[name].put_in()
if __name__ == "__main__":
    main()
