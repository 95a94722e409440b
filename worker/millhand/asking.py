"""From an event to a valid answer: through the gate, in one call or several, each of which is told to the gate."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from millhand.errors import BadAnswer, Malformed, ModelAway, Reasoned
from millhand.gate import VOID, End, Gate, Permit, end_of
from millhand.model.answer import Answer
from millhand.model.ollama import OllamaModel
from millhand.tasks.task import Prompt, Questions
from millhand.verdict import Delivery, Expired, Failed, Interrupted, Outcome, Policy

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

LOST_CALLS_MAX = 5  # an event whose call is lost so often may be what brings the model down
PROBE_TEXT = "This is a test."


class Answered(msgspec.Struct, frozen=True):
    """A valid answer, and how it came about."""

    results: dict[str, Any]
    answer: Answer
    attempt: int
    prompt_hash: str
    marks: dict[str, Any] = {}  # what else `meta` says


class _Asked(NamedTuple):
    """A call's answer with what it means."""

    answer: Answer
    results: dict[str, Any]


class Asker:
    """Asks the model about events. `waiting` are the ids of those that wait at the gate."""

    def __init__(
        self,
        *,
        model: OllamaModel,
        questions: Questions,
        gate: Gate,
        policy: Policy,
        age_s: Callable[[Delivery], float],
        log: "FilteringBoundLogger",
    ) -> None:
        self._model = model
        self._questions = questions
        self._gate = gate
        self._policy = policy
        self._age_s = age_s
        self._log = log
        self._met_after = -1  # how often the model had been away when we last met it
        self.digest = ""
        self.waiting: set[str] = set()
        gate.probe = self.probe

    async def meet_model(self) -> None:
        """Learn the digest of the model's weights. Raises ModelAway."""
        absences = self._gate.absences
        self.digest = await self._model.digest()
        self._met_after = absences

    async def probe(self) -> None:
        """Find out whether the model is there and answers, whatever it says. Raises what a call would."""
        await self.meet_model()
        try:
            await self._model.generate(self._questions.prompt(PROBE_TEXT))
        except BadAnswer as error:
            if error.strikes:
                raise
        except Malformed:
            pass  # it refuses this prompt: it is there

    async def ask(self, delivery: Delivery, text: str, permit: Permit) -> Answered | Outcome:
        """Ask about one event until there is an answer, or an outcome without one."""
        prompt = self._questions.prompt(text)
        spent: tuple[BadAnswer, ...] = ()
        lost = 0
        while await self._admitted(delivery, permit):
            if (age_s := self._age_s(delivery)) > self._policy.age_max_s:
                return Expired(age_s)
            attempt = delivery.attempt + len(spent)
            try:
                asked = await self._call(prompt, attempt, permit, delivery)
            except ModelAway as away:
                lost += away.lost
                if lost == LOST_CALLS_MAX:
                    return Failed(BadAnswer("model_error", f"{lost} calls were lost: {away.detail}"), spent)
            except BadAnswer as error:
                if spent or not error.content or attempt > self._policy.retries:
                    return Failed(error, spent)
                spent = (error,)
                prompt = self._questions.prompt(text)
            except Malformed as error:
                return Failed(error, spent)
            else:
                return Answered(asked.results, asked.answer, attempt, self._questions.prompt_hash)
        return Interrupted()

    async def _admitted(self, delivery: Delivery, permit: Permit) -> bool:
        """Wait at the gate. What waits there is not worked on: if this worker dies, that is not the event's doing."""
        self.waiting.add(delivery.id)
        try:
            return await self._gate.admit(permit)
        finally:
            self.waiting.discard(delivery.id)

    async def _call(self, prompt: Prompt, attempt: int, permit: Permit, delivery: Delivery) -> _Asked:
        """Make one call, tell the gate how it ended, and check what the model says."""
        asked = {"id": delivery.id, "attempt": attempt}
        self._log.debug("model.asked", **asked)
        started_s = time.monotonic()
        try:
            if self._met_after != self._gate.absences:
                await self.meet_model()
            answer = await self._model.generate(prompt, attempt)
        except Reasoned as error:
            sorted_error = await self._sorted(error, permit, time.monotonic() - started_s)
            self._tell(sorted_error, asked)
            raise sorted_error from error
        except BaseException:
            self._gate.leave(permit, VOID)
            raise
        self._gate.leave(permit, End("ok", time.monotonic() - started_s))
        try:
            results = self._questions.parse(answer.content)
        except BadAnswer as error:
            self._tell(error, asked)
            raise
        self._log.debug("model.answered", outcome="ok", **asked)
        return _Asked(answer, results)

    async def _sorted(self, error: Reasoned, permit: Permit, wall_s: float) -> Reasoned:
        """Tell the gate of a call that failed. In an outage, what may be the event's fault is not held against it."""
        end = end_of(error, wall_s)
        state = await self._gate.tell(permit, end)
        if isinstance(error, BadAnswer) and error.strikes and state == "open":
            return ModelAway(error.reason, error.detail, lost=True)
        return error

    def _tell(self, error: Reasoned, asked: dict[str, Any]) -> None:
        sort = "away" if isinstance(error, ModelAway) else "bad"
        self._log.debug("model.answered", outcome=f"{sort}: {error.reason}", **asked)
