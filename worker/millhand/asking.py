"""From an event to a valid answer: an earlier one, a share in a call with others, or a call of its own."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec

from millhand.cache import Answers, Turn
from millhand.calling import Caller
from millhand.config import Config
from millhand.errors import BadAnswer, Malformed, ModelAway
from millhand.gate import Permit
from millhand.model.answer import Answer
from millhand.model.context import ContextGuard, Fitted, TooLong
from millhand.sharing import Guest, Party, Share
from millhand.tasks.room import fitting
from millhand.tasks.task import Prompt, Questions
from millhand.verdict import Delivery, Expired, Failed, Interrupted, Outcome

LOST_CALLS_MAX = 5  # an event whose call is lost so often may be what brings the model down


class Answered(msgspec.Struct, frozen=True):
    """A valid answer, and how it came about; `marks` is what else `meta` says of that."""

    results: dict[str, Any]
    answer: Answer
    attempt: int
    prompt_hash: str
    marks: dict[str, Any] = {}


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
        return Party(size, lambda guests: self._call_together(guests, permit))

    async def ask(self, delivery: Delivery, text: str, permit: Permit, party: Party | None = None) -> Answered | Outcome:
        """Ask about one event until there is an answer, or an outcome without one."""
        try:
            fitted = self._guard.fit(self._questions.system, text)
        except TooLong as error:
            return Failed(error)
        prompt = self._questions.prompt(fitted.text)
        async with AsyncExitStack() as stack:
            with self._caller.waits([delivery]):
                free_permit = lambda: self._caller.gate.give_back([permit])  # noqa: E731 - nobody waits with a permit
                turn = await stack.enter_async_context(
                    self._answers.turn(prompt, delivery, self._caller.digest, free_permit)
                )
            if turn.found:
                answer, results = turn.found
                return Answered(results, answer, delivery.attempt, prompt.hash, {"cached": True, **fitted.mark})
            share = await party.share(Guest(delivery, text)) if party and not fitted.cuts else None
            if share:
                return await self._shared(delivery, share, turn)
            return await self._ask_alone(delivery, fitted, permit, turn)

    # -- alone ------------------------------------------------------------------------------------------------------

    async def _ask_alone(self, delivery: Delivery, fitted: Fitted, permit: Permit, turn: Turn) -> Answered | Outcome:
        prompt = self._questions.prompt(fitted.text)
        spent: tuple[BadAnswer, ...] = ()
        lost = 0
        while await self._caller.admitted([delivery], permit):
            if (age_s := self._age_s(delivery)) > self._config.delivery.age_max_s:
                return Expired(age_s)
            attempt = delivery.attempt + len(spent)
            try:
                answer, results = await self._call(prompt, fitted, attempt, permit, delivery)
            except ModelAway as away:
                lost += away.lost
                if lost == LOST_CALLS_MAX:
                    return Failed(BadAnswer("model_error", f"{lost} calls were lost: {away.detail}"), spent)
            except TooLong as error:
                try:
                    fitted = self._guard.refit(fitted, error)
                except TooLong:
                    return Failed(error, spent)
                prompt = self._questions.prompt(fitted.text)
            except Malformed as error:
                return Failed(error, spent)
            except BadAnswer as error:
                if not self._may_repair(error, attempt):
                    return Failed(error, spent)
                spent = (error,)
                prompt = self._questions.repair(fitted.text, error.content, error.detail)
            else:
                if not spent:
                    await turn.keep(answer)
                return Answered(results, answer, attempt, prompt.hash, fitted.mark)
        return Interrupted()

    def _may_repair(self, error: BadAnswer, attempt: int) -> bool:
        """Whether to show the model what was wrong with its answer: once, with the first, if an attempt is left."""
        return bool(error.content) and attempt == 1 and self._config.delivery.retries > 0

    async def _call(
        self, prompt: Prompt, fitted: Fitted, attempt: int, permit: Permit, delivery: Delivery
    ) -> tuple[Answer, dict[str, Any]]:
        answer = await self._caller.make(prompt, attempt, permit, [delivery])
        try:
            self._guard.check(fitted, answer)
            results = self._questions.parse(answer.content)
        except (TooLong, BadAnswer) as error:
            self._caller.tell(error, attempt, [delivery])
            raise
        self._caller.tell(None, attempt, [delivery])
        return answer, results

    # -- together ---------------------------------------------------------------------------------------------------

    async def _shared(self, delivery: Delivery, share: Share, turn: Turn) -> Answered:
        content = msgspec.json.encode(share.results).decode()
        await turn.keep(msgspec.structs.replace(share.answer, content=content))
        return Answered(share.results, share.answer, delivery.attempt, share.prompt_hash, {"shared": share.among})

    async def _call_together(self, guests: Sequence[Guest], permit: Permit) -> list[Share | BadAnswer]:
        """Make as few calls as the context allows. What fits nowhere, or whose call fails, gets no share."""
        model = self._config.model
        texts = [guest.text for guest in guests]
        groups = fitting(self._questions, texts, len(texts), model.num_ctx, model.num_predict)
        calls = [
            self._call_group([guests[place] for place in group], permit if number == 0 else self._caller.gate.permit())
            for number, group in enumerate(groups)
        ]
        return [share for shares in await asyncio.gather(*calls) for share in shares]

    async def _call_group(self, guests: Sequence[Guest], permit: Permit) -> list[Share | BadAnswer]:
        nothing: list[Share | BadAnswer] = [BadAnswer("not_shared", "asked alone")] * len(guests)
        deliveries = [guest.delivery for guest in guests]
        prompt = self._questions.batch([guest.text for guest in guests])
        if len(guests) == 1 or not await self._caller.admitted(deliveries, permit):
            return nothing
        try:
            answer = await self._caller.make(prompt, 1, permit, deliveries)
        except (ModelAway, BadAnswer, Malformed):
            return nothing
        shares = self._questions.parse_batch(answer.content, len(guests))
        for share, delivery in zip(shares, deliveries, strict=True):
            self._caller.tell(None if isinstance(share, dict) else NOT_SHARED, 1, [delivery])
        among = len(guests)
        return [
            Share(answer, share, among, prompt.hash) if isinstance(share, dict) else NOT_SHARED for share in shares
        ]
