"""One call to the model: let in by the gate, made, and told to the gate."""

import math
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from millhand.errors import BadAnswer, ModelAway, Reasoned
from millhand.gate import Gate
from millhand.histogram import Histogram
from millhand.log import is_at_debug
from millhand.model.answer import Answer
from millhand.model.ollama import OllamaModel
from millhand.permit import VOID, End, Permit, end_of
from millhand.tasks.task import Prompt
from millhand.verdict import Delivery

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

DIGEST_GOOD_S = 60.0  # then it is asked for again: somebody may have pulled new weights under the same name


class Caller:
    """Makes the calls of one worker. `probe` is what the model is asked to find out whether it is back.

    `waiting` are the ids of events that wait for a call: what waits is not worked on, so that if this worker dies, that
    is not the event's doing.
    """

    def __init__(self, model: OllamaModel, gate: Gate, probe: Prompt, log: "FilteringBoundLogger") -> None:
        self.gate = gate
        self._model = model
        self._probe_prompt = probe
        self._tells_all = is_at_debug(log)
        self._log = log
        self._met_after = -1  # how often the model had been away when we last met it
        self._met_s = -math.inf
        self.digest = ""
        self.waiting: set[str] = set()
        self.asking = 0  # calls under way
        self.times = Histogram()  # of all calls that were answered, or failed
        self.tokens = [0, 0]  # in and out
        gate.probe = self._probe

    async def meet_model(self) -> None:
        """Learn the digest of the model's weights. Raises ModelAway."""
        await self._meet(self._model.digest())

    async def _probe(self) -> None:
        await self._meet(self._model.probe(self._probe_prompt))

    async def _meet(self, learning: Awaitable[str]) -> None:
        absences = self.gate.absences
        self.digest = await learning
        self._met_after, self._met_s = absences, time.monotonic()

    async def _look_again(self) -> None:
        """Learn the digest again when it is old. Where that fails, the next call tells what is wrong."""
        now_s = time.monotonic()
        if now_s > self._met_s + DIGEST_GOOD_S and self.gate.away is None:
            self._met_s = now_s  # for all others meanwhile
            with suppress(ModelAway):
                await self.meet_model()

    @contextmanager
    def waits(self, deliveries: Sequence[Delivery]) -> Iterator[None]:
        """Count these as waiting for the length of the block."""
        ids = {delivery.id for delivery in deliveries}
        self.waiting |= ids
        try:
            yield
        finally:
            self.waiting -= ids

    async def admitted(self, deliveries: Sequence[Delivery], permit: Permit) -> bool:
        """Wait until a call about these events may begin. False if a stop is requested first."""
        with self.waits(deliveries):
            await self._look_again()
            return await self.gate.admit(permit)

    async def make(self, prompt: Prompt, attempt: int, permit: Permit, deliveries: Sequence[Delivery]) -> Answer:
        """Make one call. Raises what the model client raises, sorted anew where there is an outage."""
        for delivery in deliveries if self._tells_all else ():
            self._log.debug("model.asked", **delivery.labels(attempt))
        started_s = time.monotonic()
        try:
            if self._met_after != self.gate.absences:
                await self.meet_model()
            answer = await self._measured(prompt, attempt)
        except Reasoned as error:
            sorted_error = await self._sorted(error, permit, time.monotonic() - started_s)
            self.tell(sorted_error, attempt, deliveries)
            raise sorted_error from error
        except BaseException:
            self.gate.leave(permit, VOID)
            raise
        self.gate.leave(permit, End("ok", time.monotonic() - started_s, answer.queue_s))
        return answer

    async def _measured(self, prompt: Prompt, attempt: int) -> Answer:
        """Ask the model, and count how long that takes. A call that we end ourselves has no time of its own."""
        started_s = time.monotonic()
        self.asking += 1
        try:
            answer = await self._model.generate(prompt, attempt)
        except Reasoned:
            self.times.observe(time.monotonic() - started_s)
            raise
        finally:
            self.asking -= 1
        self.times.observe(time.monotonic() - started_s)
        self.tokens = [self.tokens[0] + answer.tokens_in, self.tokens[1] + answer.tokens_out]
        return answer

    async def _sorted(self, error: Reasoned, permit: Permit, wall_s: float) -> Reasoned:
        """Tell the gate of a call that failed. In an outage, what may be the event's fault is not held against it."""
        standing = await self.gate.tell(permit, end_of(error, wall_s))
        shuts_it_itself = standing.came_about == "open"  # as an event may that the model cannot bear
        if isinstance(error, BadAnswer) and error.strikes and standing.state == "open":
            return ModelAway(error.reason, error.detail, lost=shuts_it_itself)
        if isinstance(error, ModelAway) and standing.state != "closed":
            error.lost = error.lost and shuts_it_itself
        return error

    def tell(self, error: Reasoned | None, attempt: int, deliveries: Sequence[Delivery]) -> None:
        """Log how a call ended for each event: `bad` is the event's, `away` is not. None: with a valid answer."""
        if not self._tells_all:
            return
        spends = len(deliveries) == 1 and not isinstance(error, ModelAway)
        outcome = "ok" if error is None else f"{'bad' if spends else 'away'}: {error.reason}"
        for delivery in deliveries:
            self._log.debug("model.answered", outcome=outcome, **delivery.labels(attempt))
