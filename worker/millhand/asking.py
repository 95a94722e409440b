"""From an event to a valid answer: an earlier one, a share in a call with others, or a call of its own."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import msgspec

from millhand.cache import Answers, Turn
from millhand.calling import Caller
from millhand.config import Config
from millhand.errors import BadAnswer, Malformed, ModelAway, Reasoned
from millhand.model.answer import Answer
from millhand.model.context import ContextGuard, Fitted, TooLong
from millhand.permit import Permit
from millhand.sharing import Guest, Party, Seat, Share
from millhand.tasks.room import fitting
from millhand.tasks.task import Prompt, Questions
from millhand.verdict import Delivery, Expired, Failed, Interrupted, Outcome

NOT_SHARED = ModelAway("not_shared", "the event is asked about alone")
LOST_CALLS_MIN = 5  # while others go through: an event whose call is lost so often is what brings the model down


class Answered(msgspec.Struct, frozen=True):
    """A valid answer, and how it came about; `marks` is what else `meta` says of that."""

    results: dict[str, Any]
    answer: Answer
    attempt: int
    prompt_hash: str
    marks: dict[str, Any] = {}


class Inquiry(msgspec.Struct):
    """How far one event has come that is asked about alone: `spent` are its failed attempts, `lost` its lost calls."""

    delivery: Delivery
    fitted: Fitted
    prompt: Prompt
    spent: tuple[BadAnswer, ...] = ()
    lost: int = 0

    @property
    def attempt(self) -> int:
        """The number of the attempt that comes next, from 1."""
        return self.delivery.attempt + len(self.spent)


class Asker:
    """Asks about the events of one worker. `age_s` tells how old an event is."""

    def __init__(
        self, config: Config, questions: Questions, caller: Caller, answers: Answers, age_s: Callable[[Delivery], float]
    ) -> None:
        self._config = config
        self._questions = questions
        self._caller = caller
        self._answers = answers
        self._age_s = age_s
        self._guard = ContextGuard(config.model, config.enrich.too_long)

    def party(self, size: int, permit: Permit) -> Party:
        """Return a party of so many events that share a call, for which there is this permit."""
        return Party(
            size, lambda guests: self._call_together(guests, permit), lambda: self._caller.gate.give_back([permit])
        )

    async def ask(self, delivery: Delivery, text: str, permit: Permit, seat: Seat | None = None) -> Answered | Outcome:
        """Ask about one event until there is an answer, or an outcome without one."""
        try:
            fitted = self._guard.fit(self._questions.system, text)
        except TooLong as error:
            return Failed(error)
        guest = Guest(delivery, text)
        if not self._answers.are_kept:
            return await self._ask_model(guest, fitted, permit, seat, Turn(self._answers))
        prompt = self._questions.prompt(fitted.text)
        async with AsyncExitStack() as stack:
            with self._caller.waits([delivery]):
                turn = await stack.enter_async_context(
                    self._answers.turn(prompt, delivery, self._caller.digest, lambda: self._let_others_go(permit, seat))
                )
            if turn.found:
                answer, results = turn.found
                return Answered(results, answer, delivery.attempt, prompt.hash, {"cached": True, **fitted.mark})
            return await self._ask_model(guest, fitted, permit, seat, turn)

    async def _ask_model(
        self, guest: Guest, fitted: Fitted, permit: Permit, seat: Seat | None, turn: Turn
    ) -> Answered | Outcome:
        share = await seat.share(guest) if seat and not fitted.cuts else None
        if share:
            return await self._shared(guest.delivery, share, turn)
        return await self._ask_alone(guest.delivery, fitted, permit, turn)

    def _let_others_go(self, permit: Permit, seat: Seat | None) -> None:
        """Hold nobody up while somebody else asks the same: not who needs the permit, nor the party."""
        self._caller.gate.give_back([permit])
        if seat:
            seat.decline()

    # -- alone ------------------------------------------------------------------------------------------------------

    async def _ask_alone(self, delivery: Delivery, fitted: Fitted, permit: Permit, turn: Turn) -> Answered | Outcome:
        inquiry = Inquiry(delivery, fitted, self._questions.prompt(fitted.text))
        while await self._caller.admitted([delivery], permit):
            if (age_s := self._age_s(delivery)) > self._config.delivery.age_max_s:
                return Expired(age_s)
            try:
                answer, results = await self._call(inquiry, permit)
            except Reasoned as error:
                if failed := self._after(error, inquiry):
                    return failed
                continue
            if not inquiry.spent and inquiry.fitted is fitted:
                await turn.keep(answer)
            return Answered(results, answer, inquiry.attempt, inquiry.prompt.hash, inquiry.fitted.mark)
        return Failed(inquiry.spent[-1]) if inquiry.spent else Interrupted()

    async def _call(self, inquiry: Inquiry, permit: Permit) -> tuple[Answer, dict[str, Any]]:
        deliveries = [inquiry.delivery]
        answer = await self._caller.make(inquiry.prompt, inquiry.attempt, permit, deliveries)
        try:
            self._guard.check(inquiry.fitted, answer)
            results = self._questions.parse(answer.content)
        except Reasoned as error:
            self._caller.tell(error, inquiry.attempt, deliveries)
            raise
        self._caller.tell(None, inquiry.attempt, deliveries)
        return answer, results

    def _after(self, error: Reasoned, inquiry: Inquiry) -> Failed | None:
        """Decide after a failed call: None to ask again, with what is in the inquiry then."""
        match error:
            case Malformed() if inquiry.spent:
                return Failed(inquiry.spent[-1])  # it was the repair that did not fit, not the event
            case ModelAway():
                inquiry.lost += error.lost
                if inquiry.lost < max(LOST_CALLS_MIN, 2 * self._config.gate.failures_max):
                    return None
                detail = f"{inquiry.lost} calls were lost: {error.detail}"
                return Failed(BadAnswer("model_error", detail), inquiry.spent)
            case TooLong():
                with suppress(TooLong):
                    inquiry.fitted = self._guard.refit(inquiry.fitted, error)
                    inquiry.prompt = self._questions.prompt(inquiry.fitted.text)
                    return None
            case BadAnswer(content=content) if content and inquiry.attempt == 1 and self._config.delivery.retries:
                inquiry.spent = (error,)
                inquiry.prompt = self._questions.repair(inquiry.fitted.text, content, error.detail)
                return None
        return Failed(error, inquiry.spent)

    # -- together ---------------------------------------------------------------------------------------------------

    async def _shared(self, delivery: Delivery, share: Share, turn: Turn) -> Answered:
        content = msgspec.json.encode(share.results).decode()
        await turn.keep(msgspec.structs.replace(share.answer, content=content))
        return Answered(share.results, share.answer, delivery.attempt, share.prompt_hash, {"shared": share.among})

    async def _call_together(self, guests: Sequence[Guest], permit: Permit) -> list[Share | None]:
        """Make as few calls as the context allows. What fits nowhere, or whose call fails, gets no share."""
        model = self._config.model
        texts = [guest.text for guest in guests]
        groups = fitting(self._questions, texts, len(texts), model.num_ctx, model.num_predict)
        calls = [
            self._call_group([guests[place] for place in group], permit if number == 0 else self._caller.gate.permit())
            for number, group in enumerate(groups)
        ]
        return [share for shares in await asyncio.gather(*calls) for share in shares]

    async def _call_group(self, guests: Sequence[Guest], permit: Permit) -> list[Share | None]:
        nothing: list[Share | None] = [None] * len(guests)
        deliveries = [guest.delivery for guest in guests]
        prompt = self._questions.batch([guest.text for guest in guests])
        try:
            if len(guests) == 1 or not await self._caller.admitted(deliveries, permit):
                return nothing
            answer = await self._caller.make(prompt, 1, permit, deliveries)
            self._guard.check(Fitted(prompt.user, prompt.system, len(prompt.user)), answer)
        except (ModelAway, BadAnswer, Malformed):
            return nothing
        finally:
            self._caller.gate.give_back([permit])
        parsed = self._questions.parse_batch(answer.content, len(guests))
        for results, delivery in zip(parsed, deliveries, strict=True):
            self._caller.tell(None if isinstance(results, dict) else NOT_SHARED, 1, [delivery])
        return [
            Share(answer, results, len(guests), prompt.hash) if isinstance(results, dict) else None
            for results in parsed
        ]
