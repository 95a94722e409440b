"""Answers that are kept: an equal question is not asked twice, and what several ask at once is asked once.

An event goes on without it wherever Redis does not do as asked: it saves calls, and nothing rests on it.
"""

import asyncio
import hashlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from millhand.config import Config, Model
from millhand.courier import Courier
from millhand.errors import BadAnswer
from millhand.keys import Keys
from millhand.model.answer import Answer
from millhand.model.retry_after import RETRY_AFTER_MAX_S
from millhand.stream import RedisError, Script
from millhand.tasks.task import Prompt, Questions
from millhand.verdict import Delivery

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

ANSWERS_MAX = 50_000  # kept at once by a fleet: some 16 MB where they are short
ANSWER_BYTES_MAX = 4096  # of one that is kept; the longest of the built-in tasks fit
HOLD_S = 10.0  # how long the others wait for an asker that died
RENEWALS_PER_HOLD = 3  # so that two may be missed
LOOKED_UP_MAX = 1000  # questions at once: the server is not held up for long, and Lua takes no more than some thousand
COMMAND_S_MAX = 1.0  # what is found later than this is not worth the wait
PAUSE_MIN_S = 0.02  # before the next look at a question that somebody else asks; doubles
PAUSE_MAX_S = 0.25
ASKERS_MAX = 2  # that an event waits for, one after the other: what fails for them is likely to fail for all
ANSWER_DECODER = msgspec.json.Decoder(Answer)
TELL_EVERY_S = 60.0  # a cache that does not work is no reason to flood the log


class QuestionHash:
    """Hashes questions: all that decides the answer of a first attempt. What does not depend on the text goes first.

    That part is a JSON array, which says itself where it ends, so that no text can pass for a part of it.
    """

    def __init__(self, prompt: Prompt, model: Model, model_digest: str) -> None:
        self.model_digest = model_digest
        options = (model.num_ctx, model.num_predict, model.temperature, model.seed)
        begun = msgspec.json.encode((model.name, model_digest, options, prompt.system, prompt.schema))
        self._begun = hashlib.blake2b(begun, digest_size=16)

    def of(self, text: str) -> str:
        """Return the hash of the question about a text, to which all else is as given."""
        whole = self._begun.copy()
        whole.update(text.encode())
        return whole.hexdigest()


class Asked(NamedTuple):
    """A question, by its hash, and who looks for its answer."""

    question: str
    looker: str


class Turn:
    """An event's turn at its question: the answer and its results are `found`, or it is the event's to ask."""

    def __init__(self, answers: "Answers", asked: Asked | None = None) -> None:
        self._answers = answers
        self._asked = asked
        self.found: tuple[Answer, dict[str, Any]] | None = None
        self.is_kept = False

    async def keep(self, answer: Answer) -> None:
        """Keep a valid answer for the others. Does nothing where the question is not one for the cache."""
        if self._asked is not None:
            self.is_kept = await self._answers.keep(self._asked, answer)


class Answers:
    """The answers of a fleet, and who of all its processes asks for one. None `are_kept` where `cache.ttl_s` is 0.

    `errors` counts the commands that Redis did not carry out. Hits, misses and saved calls are counted by the scripts.
    """

    def __init__(
        self, courier: Courier, keys: Keys, config: Config, questions: Questions, log: "FilteringBoundLogger"
    ) -> None:
        self._courier = courier
        self._keys = keys
        self._model = config.model
        self._questions = questions
        self._log = log
        self.are_kept = config.cache.ttl_s > 0
        self._ttl_ms = max(1, round(config.cache.ttl_s * 1000))
        self._wait_s_max = RETRY_AFTER_MAX_S + config.model.timeout_s  # one call after the longest pause of the fleet
        self._hash = QuestionHash(questions.prompt(""), config.model, "")
        self._look_up = courier.script("look_up_answer")
        self._look_up_all = courier.script("look_up_answers")
        self._keep = courier.script("keep_answer")
        self._stop_asking = courier.script("stop_asking")
        self._renew = courier.script("renew_asking")
        self._asking: set[Asked] = set()
        self._renewing: asyncio.Task[None] | None = None
        self._tell_at = 0.0
        self.prompt_hash = questions.prompt_hash
        self.errors = 0

    @asynccontextmanager
    async def turn(
        self, prompt: Prompt, delivery: Delivery, model_digest: str, before_waiting: Callable[[], None] = lambda: None
    ) -> AsyncIterator[Turn]:
        """Find the answer or be the one who asks, for the length of the block; waits while somebody else asks.

        Leave the block without `keep`, and the next one asks. A retry must really ask again, so it is on its own. What
        came back from a worker that died waits for nobody: it might be the one who asks, by that worker's hand, and who
        only waits is not blamed for the next death.
        """
        if not self.are_kept or delivery.attempt > 1:
            yield Turn(self)
            return
        asked = Asked(self._question(prompt.user, model_digest), f"{delivery.owner} {delivery.id}")
        turn = Turn(self, asked)
        try:
            turn.found = await self._find(asked, before_waiting, ASKERS_MAX if delivery.count == 1 else 0)
            if turn.found is None:
                self._begin_asking(asked)
            yield turn
        finally:
            self._end_asking(asked)
            if turn.found is None and not turn.is_kept:
                await self._run(self._stop_asking, [self._keys.asking(asked.question)], [asked.looker])

    async def find_all(self, texts: Sequence[str], model_digest: str) -> list[bytes | None]:
        """Return what is kept of the answers to the questions about these texts, for `valid`; None where nothing is.

        Few looks for all of them, in which nobody waits for anybody. What is found counts as a hit, what is not found
        counts as nothing: whoever goes on to `turn` with it is counted there.
        """
        times = list(Counter(texts).items())
        keys = [self._keys.answers, self._keys.answer_times, self._keys.totals]
        found: dict[str, bytes | None] = {}
        for first in range(0, len(times), LOOKED_UP_MAX):
            asked = times[first : first + LOOKED_UP_MAX]
            args: list[Any] = [self._ttl_ms]
            for text, count in asked:
                args += (self._question(text, model_digest), count)
            reply = await self._run(self._look_up_all, keys, args)
            if reply is None:
                break
            found.update(zip((text for text, _ in asked), reply, strict=True))
        return [found.get(text) for text in texts]

    async def keep(self, asked: Asked, answer: Answer) -> bool:
        """Keep an answer and end the asking for it. False where it is too long, or Redis does not."""
        stored = msgspec.json.encode(answer)
        if len(stored) > ANSWER_BYTES_MAX:
            return False
        keys = [self._keys.answers, self._keys.answer_times, self._keys.asking(asked.question)]
        return await self._run(self._keep, keys, [*asked, stored, self._ttl_ms, ANSWERS_MAX]) is not None

    async def _find(
        self, asked: Asked, before_waiting: Callable[[], None], askers_max: int
    ) -> tuple[Answer, dict[str, Any]] | None:
        """Return the answer; None where it is to be asked for, whether the cache says so or does not work."""
        how, pause_s, wait_until = "first", PAUSE_MIN_S, time.monotonic() + self._wait_s_max
        askers = set[bytes]()
        keys = [self._keys.answers, self._keys.answer_times, self._keys.asking(asked.question), self._keys.totals]
        while reply := await self._run(self._look_up, keys, [*asked, self._ttl_ms, round(HOLD_S * 1000), how]):
            word, value = reply
            if word == b"found":
                return self.valid(value)
            if word == b"ask":
                return None
            if not askers:
                before_waiting()
            askers.add(value)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            pause_s = min(2 * pause_s, PAUSE_MAX_S)
            how = "again" if len(askers) <= askers_max and time.monotonic() < wait_until else "alone"
        return None

    def valid(self, stored: bytes) -> tuple[Answer, dict[str, Any]] | None:
        """Read what was kept; what another version or another hand has put there is asked for anew."""
        try:
            answer = ANSWER_DECODER.decode(stored)
            return answer, self._questions.parse(answer.content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadAnswer):
            return None

    def _question(self, text: str, model_digest: str) -> str:
        if self._hash.model_digest != model_digest:
            self._hash = QuestionHash(self._questions.prompt(""), self._model, model_digest)
        return self._hash.of(text)

    # -- the markers ------------------------------------------------------------------------------------------------

    def _begin_asking(self, asked: Asked) -> None:
        self._asking.add(asked)
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew_all())

    def _end_asking(self, asked: Asked) -> None:
        self._asking.discard(asked)
        if not self._asking and self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None

    async def _renew_all(self) -> None:
        """Renew the markers of all that is being asked, or waits at the gate: an outage may outlast any fixed time."""
        while True:
            await asyncio.sleep(HOLD_S / RENEWALS_PER_HOLD)
            asking = list(self._asking)
            markers = [self._keys.asking(asked.question) for asked in asking]
            await self._run(self._renew, markers, [round(HOLD_S * 1000), *(asked.looker for asked in asking)])

    # -- Redis ------------------------------------------------------------------------------------------------------

    async def _run(self, script: Script, keys: list[str], args: list[Any]) -> Any:
        """Run a script. None where Redis does not carry it out, in time or at all."""
        try:
            async with asyncio.timeout(COMMAND_S_MAX):
                return await self._courier.send(script, keys, args)
        except RedisError as error:
            self.errors += 1
            now = time.monotonic()
            say = self._log.debug if now < self._tell_at else self._log.warning
            say("cache.not_used", error=str(error) or type(error).__name__)
            if now >= self._tell_at:
                self._tell_at = now + TELL_EVERY_S
            return None
