"""Workers and janitors at work inside a test's own event loop."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.rig import eventually_async

from millhand import stream
from millhand.config import Config
from millhand.log import logger
from millhand.pulse import Pulse
from millhand.stop import Stop
from millhand.stream import connect
from millhand.worker import Worker
from millhand_fleet.janitor import Janitor

CONSUMER = "here:w1:a"
BLOCK_MS = 20  # a worker that stops waits for its read to end


class Ear(Pulse):
    """Takes what a child says to its supervisor, without a line."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        """Remember it."""
        self.said.append(message)

    @property
    def ready(self) -> bool:
        """Whether the child has said that it is."""
        return {"ready": True} in self.said


class AtWork:
    """A worker, or a janitor, and what a test may do to it."""

    def __init__(self, stop: Stop, ear: Ear, running: "asyncio.Task[None]") -> None:
        self.stop = stop
        self.ear = ear
        self.running = running

    async def ready(self) -> None:
        """Wait until it says that it is; fail if it ended instead."""
        await eventually_async(lambda: self.ear.ready or self.running.done(), what="the child is ready")
        if self.running.done():
            self.running.result()

    async def ended(self) -> None:
        """Wait until it has stopped."""
        await asyncio.wait_for(self.running, 10)


@asynccontextmanager
async def working(config: Config, consumer: str = CONSUMER, *, block_ms: int = BLOCK_MS) -> AsyncIterator[AtWork]:
    """Run a worker for the length of the block; what it holds at the end is released."""
    stop, ear = Stop(config.fleet.drain_s), Ear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "BLOCK_MS", block_ms)
        worker = Worker(config, consumer, stop, logger())
        ear.stats, ear.hear = worker.stats, worker.hear
        try:
            async with _until_stopped(AtWork(stop, ear, asyncio.create_task(worker.run(ear)))) as at_work:
                yield at_work
        finally:
            await worker._close()  # where it failed, it has not done so itself


@asynccontextmanager
async def sweeping(config: Config, living: Iterable[str] = ()) -> AsyncIterator[tuple[AtWork, Janitor]]:
    """Run a janitor for the length of the block."""
    stop, ear = Stop(config.fleet.drain_s), Ear()
    redis = connect(config.redis.url)
    janitor = Janitor(redis, config, living, logger())
    try:
        async with _until_stopped(AtWork(stop, ear, asyncio.create_task(janitor.run(stop, ear)))) as at_work:
            yield at_work, janitor
    finally:
        await redis.aclose()


@asynccontextmanager
async def _until_stopped(at_work: AtWork) -> AsyncIterator[AtWork]:
    try:
        yield at_work
    finally:
        at_work.stop.request(0)
        await at_work.ended()
