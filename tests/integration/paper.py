"""Processes that share answers, before a model on paper."""

import asyncio
from typing import Any

import msgspec
from tests.rig import config_for, eventually_async

from millhand.cache import Answers, QuestionHash
from millhand.config import Config
from millhand.courier import Courier
from millhand.keys import Keys
from millhand.log import logger
from millhand.model.answer import Answer
from millhand.stream import connect
from millhand.tasks.catalogue import chosen_tasks
from millhand.tasks.task import Questions
from millhand.verdict import Delivery

DIGEST = "d1"
TTL_S = 3600.0
WALKS = 8  # of one process
GOOD = Answer('{"sentiment":{"label":"positive","confidence":90}}', 200, 12, 1.25)
UNTIL_S_MAX = 10.0


class Paper:
    """A model on paper: it answers as soon as it is let, and counts."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.failures = 0  # calls that fail before one does not
        self.answer = GOOD

    async def generate(self, text: str) -> Answer:
        """Answer, or fail."""
        self.calls.append(text)
        if self.failures:
            self.failures -= 1
            raise ValueError(text)
        await self.may_answer.wait()
        return self.answer

    async def asked(self, times: int) -> None:
        """Wait until so many calls have come."""
        await eventually_async(lambda: len(self.calls) >= times, what=f"{times} calls have come")


class Mill:
    """Processes with a connection pool each, on one server, before one model."""

    def __init__(self, url: str) -> None:
        self.config = config_for(url, flags={"cache.ttl_s": TTL_S, "model.timeout_s": 5.0})
        self.keys = Keys.of(self.config)
        self.model = Paper()
        self.redis = connect(url)
        self._clients = [self.redis]
        self._walks: list[asyncio.Task[Any]] = []

    def process(self, ttl_s: float = TTL_S) -> Answers:
        """Begin another process, with as many connections as a worker has."""
        cached = msgspec.structs.replace(self.config.cache, ttl_s=ttl_s)
        config = msgspec.structs.replace(self.config, cache=cached)
        client = connect(config.redis.url, connections_max=WALKS + 4)
        self._clients.append(client)
        return Answers(Courier(client), self.keys, config, questions(config), logger())

    def walk(
        self, answers: Answers, n: int = 1, text: str = "a fine day", attempts: int = 0, count: int = 1
    ) -> "asyncio.Task[Answer]":
        """Take one event to its answer, as a worker does."""
        delivery = Delivery(f"{n}-1", {}, f"here:w{id(answers)}:a", count, attempts)
        walk = asyncio.create_task(self._answer(answers, text, delivery))
        self._walks.append(walk)
        return walk

    async def _answer(self, answers: Answers, text: str, delivery: Delivery) -> Answer:
        async with answers.turn(questions(self.config).prompt(text), delivery, DIGEST) as turn:
            if turn.found:
                answer, results = turn.found
                assert results["sentiment"]["label"] == "positive"
                return answer
            answer = await self.model.generate(text)
            await turn.keep(answer)
            return answer

    async def waits(self, n: int) -> None:
        """Wait until so many looks at a question have found that somebody else asks it, for sure."""
        before = await self.looks()
        await eventually_async(lambda: self._looked_again(before + 2 * n), what=f"{n} events wait")

    async def _looked_again(self, looks: int) -> bool:
        return await self.looks() >= looks

    async def looks(self) -> int:
        """Return how often anybody has looked for an answer's age."""
        stats: Any = await self.redis.info("commandstats")
        return int(stats.get("cmdstat_zscore", {}).get("calls", 0))

    async def totals(self) -> dict[str, int]:
        """Return what the scripts have counted."""
        counted: Any = await self.redis.hgetall(self.keys.totals)
        return {name.decode(): int(value) for name, value in counted.items()}

    def marker(self, text: str = "a fine day") -> str:
        """Name the marker of the question about a text."""
        return self.keys.asking(self.question(text))

    def question(self, text: str = "a fine day") -> str:
        """Return the question about a text."""
        return QuestionHash(questions(self.config).prompt(""), self.config.model, DIGEST).of(text)

    async def kept(self) -> dict[bytes, bytes]:
        """Return the answers that are kept. Fails if the two keys disagree."""
        answers: Any = await self.redis.hgetall(self.keys.answers)
        assert set(answers) == set(await self.redis.zrange(self.keys.answer_times, 0, -1))
        return dict(answers)

    async def close(self) -> None:
        """End what a test has left, and close the connections."""
        for walk in self._walks:
            walk.cancel()
        await asyncio.gather(*self._walks, return_exceptions=True)
        for client in self._clients:
            await client.aclose()


def questions(config: Config) -> Questions:
    return Questions(chosen_tasks(config))


async def ended(*walks: "asyncio.Task[Answer]") -> list[Answer]:
    """Return the answers, all within a bounded time."""
    async with asyncio.timeout(UNTIL_S_MAX):
        return await asyncio.gather(*walks)
