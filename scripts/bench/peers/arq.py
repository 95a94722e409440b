"""arq on uvloop: no results kept, no line in the log for each job, polled as often as pays off."""

import asyncio
from collections.abc import Iterator
from typing import Any, ClassVar

import uvloop
from arq import create_pool
from arq.connections import RedisSettings

from scripts.bench.peers import work

LOG = {"version": 1, "disable_existing_loggers": False}  # instead of arq's own, which tells of every job
asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())  # arq has no setting for it


async def begin(context: dict[str, Any]) -> None:
    """Make what belongs to this process, and say that it takes events."""
    context["model"] = work.AsyncModel()
    await context["redis"].incr(work.READY)


async def enrich(context: dict[str, Any], data: bytes) -> None:
    """Do the work."""
    await context["redis"].xadd(work.OUTPUT, {"data": await context["model"].enrich(data)})


class Worker:
    """arq's settings."""

    functions: ClassVar = [enrich]
    on_startup = begin
    redis_settings = RedisSettings.from_dsn(work.REDIS_URL)
    queue_name = work.QUEUE
    max_jobs = work.IN_FLIGHT
    poll_delay = 0.02
    keep_result = 0
    log_results = False


def feed(batches: Iterator[list[bytes]]) -> None:
    """Add events as jobs."""

    async def add() -> None:
        pool = await create_pool(Worker.redis_settings, default_queue_name=work.QUEUE)
        for batch in batches:
            await asyncio.gather(*(pool.enqueue_job("enrich", data) for data in batch))
        await pool.aclose()

    asyncio.run(add())


if __name__ == "__main__":
    work.main(feed)
