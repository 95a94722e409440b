"""streaq on Redis streams, on uvloop, no results kept."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import uvloop
from streaq import Worker

from scripts.bench.peers import work


@asynccontextmanager
async def begin() -> AsyncIterator[work.AsyncModel]:
    """Make what belongs to this process, and say that it takes events."""
    await worker.redis.incr(work.READY)
    yield work.AsyncModel()


worker = Worker(
    redis_url=work.REDIS_URL,
    queue_name=work.QUEUE,
    concurrency=work.IN_FLIGHT,
    lifespan=begin,
    anyio_kwargs={"loop_factory": uvloop.new_event_loop},
)


@worker.task(silent=True, ttl=0)
async def enrich(data: bytes) -> None:
    """Do the work."""
    await worker.redis.xadd(work.OUTPUT, {"data": await worker.context.enrich(data)})


def feed(batches: Iterator[list[bytes]]) -> None:
    """Add events as tasks."""

    async def add() -> None:
        async with worker:
            for batch in batches:
                await worker.enqueue_many([enrich.enqueue(data) for data in batch])

    asyncio.run(add())


if __name__ == "__main__":
    work.main(feed)
