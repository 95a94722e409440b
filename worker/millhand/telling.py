"""Telling what becomes of events: in the log, in the counts, and in how old they were."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from millhand.histogram import Histogram
from millhand.log import is_at_debug
from millhand.settle import Finished, Settled
from millhand.verdict import Bury, Delivery, Done, Verdict, tell, word_of

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

AGES_S = (-1.0, 10 * 365 * 86_400.0)  # beyond these an entry's id is no time, or we do not know the server's yet


class Teller:
    """Tells for one worker. `counts` are its settled events by verdict; `ages` of those that are settled for good."""

    def __init__(self, age_s: Callable[[Delivery], float], log: "FilteringBoundLogger") -> None:
        self._age_s = age_s
        self._log = log
        self._tells_all = is_at_debug(log)
        self.counts: Counter[str] = Counter()
        self.ages = Histogram()

    def delivered(self, deliveries: Sequence[Delivery]) -> None:
        """Tell what is in hand from now on."""
        for delivery in deliveries if self._tells_all else ():
            self._log.debug("event.delivered", attempts=delivery.attempts, **delivery.labels())

    def settled(self, delivery: Delivery, verdict: Verdict, settled: Settled) -> None:
        """Tell what became of one event."""
        word = word_of(verdict)
        if settled is Settled.OK and isinstance(verdict, Done | Bury):
            self._observe(delivery)
        self.counts[word if settled is Settled.OK else settled.value] += 1
        say = self._log.warning if isinstance(verdict, Bury) else self._log.info
        if isinstance(verdict, Done) and settled is Settled.OK:
            if not self._tells_all:
                return
            say = self._log.debug
        say("event.settled", verdict=word, settled=settled.value, **delivery.labels(), **tell(verdict))

    def finished(self, finished: Finished, settled: Sequence[Settled]) -> None:
        """Tell what became of many that were to be written out, as `settled` does of one."""
        for (delivery, enriched), each in zip(finished, settled, strict=True):
            if self._tells_all or each is not Settled.OK:
                self.settled(delivery, Done(enriched), each)
            else:
                self.counts["done"] += 1
                self._observe(delivery)

    def _observe(self, delivery: Delivery) -> None:
        age_s = self._age_s(delivery)
        if AGES_S[0] < age_s < AGES_S[1]:
            self.ages.observe(max(0.0, age_s))
