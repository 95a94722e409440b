"""Repetitions: entries whose `event_id` an earlier entry has had."""

import asyncio
import random
from typing import TYPE_CHECKING

from millhand import event as events
from millhand.stream import EventIds, RedisError, is_stale

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis
    from structlog.typing import FilteringBoundLogger

    from millhand.keys import Keys
    from millhand.verdict import Delivery

ASK_AGAIN_MIN_S = 0.2
ASK_AGAIN_MAX_S = 1.0


class Repetitions:
    """Knows which entry had an event_id first. `refused` says why Redis cannot be asked, while it cannot."""

    def __init__(self, redis: "Redis", keys: "Keys", window_s: float, log: "FilteringBoundLogger") -> None:
        self._redis = redis
        self._window_s = window_s
        self._log = log
        self._event_ids = EventIds(redis, keys, window_s)
        self._asks = asyncio.Lock()  # one after the other: of two that come together, the first is the first
        self.refused: str | None = None

    async def first(self, delivery: "Delivery", on_refusal: "Callable[[], None]") -> str | None:
        """Return the entry whose event_id this one repeats; None where it has its own, or where that is not asked.

        Waits for as long as Redis refuses, and calls `on_refusal` each time.
        """
        event_id = delivery.fields.get(events.EVENT_ID)
        while self._window_s and event_id:
            try:
                async with self._asks:
                    first = await self._event_ids.first_with(event_id, delivery)
            except RedisError as error:
                say = self._log.debug if self.refused else self._log.warning
                say("event_id.waiting", error=str(error), **delivery.labels())
                self.refused = str(error)
                on_refusal()
                if is_stale(error):
                    await self._redis.connection_pool.disconnect()
                await asyncio.sleep(random.uniform(ASK_AGAIN_MIN_S, ASK_AGAIN_MAX_S))  # noqa: S311 - jitter
                continue
            self.refused = None
            return first if first != delivery.id else None
        return None
