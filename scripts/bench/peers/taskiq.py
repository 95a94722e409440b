"""taskiq on a Redis stream: the broker that acknowledges, arguments not parsed by pydantic, on uvloop."""

import asyncio
from collections.abc import Iterator

from redis import asyncio as aioredis
from taskiq import TaskiqEvents, TaskiqState
from taskiq_redis import RedisStreamBroker

from scripts.bench.peers import work

broker = RedisStreamBroker(
    work.REDIS_URL, queue_name=work.QUEUE, consumer_group_name=work.GROUP, xread_count=work.IN_FLIGHT
)
output = aioredis.Redis.from_url(work.REDIS_URL)
models: list[work.AsyncModel] = []


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def begin(_: TaskiqState) -> None:
    """Make what belongs to this process, and say that it takes events."""
    models.append(work.AsyncModel())
    await output.incr(work.READY)


@broker.task("enrich")
async def enrich(data: str) -> None:
    """Do the work."""
    await output.xadd(work.OUTPUT, {"data": await models[0].enrich(data)})


def feed(batches: Iterator[list[bytes]]) -> None:
    """Add events as tasks."""

    async def add() -> None:
        await broker.startup()
        for batch in batches:
            await asyncio.gather(*(enrich.kiq(data.decode()) for data in batch))
        await broker.shutdown()

    asyncio.run(add())


if __name__ == "__main__":
    work.main(feed)
