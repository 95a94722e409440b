"""The gate: the one door to the model. It is closed while the model is away, so that nothing is read meanwhile."""

import random
import time
from typing import TYPE_CHECKING

from millhand.errors import ModelAway, ModelBusy
from millhand.stop import Stop

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

PAUSE_MIN_S = 0.5
PAUSE_MAX_S = 15.0
JITTER_SHARE = 0.1  # of a pause, so that those who wait do not come back as one


class Gate:
    """This process's view of whether the model can be asked."""

    def __init__(self, stop: Stop, log: "FilteringBoundLogger") -> None:
        self._stop = stop
        self._log = log
        self._open_at = 0.0
        self._pause_s = 0.0
        self.away: ModelAway | None = None

    async def admit(self) -> bool:
        """Wait until the model may be asked. False if a stop is requested first."""
        while (wait_s := self._open_at - time.monotonic()) > 0:
            if await self._stop.sleep(wait_s * (1 + JITTER_SHARE * random.random())):  # noqa: S311 - jitter, no secret
                return False
        return not self._stop.requested

    def close(self, away: ModelAway) -> None:
        """Close for as long as the model asked for; where it did not say, for ever longer up to a limit."""
        now = time.monotonic()
        wait_s = away.wait_s if isinstance(away, ModelBusy) else None
        if now < self._open_at:
            self._open_at = max(self._open_at, now + (wait_s or 0.0))
            return
        if self.away is None or self.away.reason != away.reason:
            self._log.error("model.away", reason=away.reason, detail=away.detail)
        self.away = away
        self._pause_s = min(max(2 * self._pause_s, PAUSE_MIN_S), PAUSE_MAX_S)
        self._open_at = now + (wait_s or self._pause_s)

    def open(self) -> None:
        """Note that the model has answered."""
        if self.away is not None:
            self._log.info("model.back", after=self.away.reason)
        self.away = None
        self._pause_s = 0.0
