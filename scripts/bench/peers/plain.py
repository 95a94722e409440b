"""A hand-written loop: redis-py and httpx on uvloop, nothing between them and the work.

Reads as many as there are free slots, and writes and acknowledges each event in one pipeline when it is finished. No
retries, no leases, no dead letters.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import redis
import uvloop
from redis import asyncio as aioredis

from scripts.bench.peers import work

BLOCK_MS = 1000
Entry = tuple[bytes, bytes]


async def run() -> None:
    """Work until killed: keep as many events in flight as may be."""
    client, model = await opened(), work.AsyncModel()
    slots = asyncio.Semaphore(work.IN_FLIGHT)
    tasks: set[asyncio.Task[None]] = set()

    async def enrich(entry: bytes, data: bytes) -> None:
        await write(client, [(entry, await model.enrich(data))])
        slots.release()

    while True:
        await slots.acquire()
        free = 1
        while not slots.locked():
            await slots.acquire()
            free += 1
        entries = await read(client, free)
        for _ in range(free - len(entries)):
            slots.release()
        for entry, data in entries:
            task = asyncio.create_task(enrich(entry, data))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


async def opened() -> aioredis.Redis:
    """Return a client; say that this process takes events."""
    client = aioredis.Redis.from_url(work.REDIS_URL)
    with contextlib.suppress(redis.ResponseError):  # another process has made the group
        await client.xgroup_create(work.QUEUE, work.GROUP, id="0", mkstream=True)
    await client.incr(work.READY)
    return client


async def read(client: aioredis.Redis, count: int) -> list[Entry]:
    """Return up to so many entries; none where none came for a while."""
    found: Any = await client.xreadgroup(work.GROUP, str(os.getpid()), {work.QUEUE: ">"}, count=count, block=BLOCK_MS)
    return [(entry, fields[b"data"]) for _, entries in found for entry, fields in entries]


async def write(client: aioredis.Redis, batch: list[Entry]) -> None:
    """Write outputs and acknowledge their entries."""
    if batch:
        async with client.pipeline(transaction=True) as pipeline:
            for _, output in batch:
                pipeline.xadd(work.OUTPUT, {"data": output})
            pipeline.xack(work.QUEUE, work.GROUP, *[entry for entry, _ in batch])
            await pipeline.execute()


def feed(batches: Iterator[list[bytes]]) -> None:
    """Add events."""
    with redis.Redis.from_url(work.REDIS_URL) as client:
        for batch in batches:
            with client.pipeline(transaction=False) as pipeline:
                for data in batch:
                    pipeline.xadd(work.QUEUE, {"data": data})
                pipeline.execute()


if __name__ == "__main__":
    if sys.argv[1:]:
        work.main(feed)
    else:
        uvloop.run(run())
