"""FastStream on a Redis stream: a subscriber in a consumer group, uvloop, no argument parsing by pydantic."""

import asyncio
import os
from collections.abc import Iterator

from faststream import AckPolicy, FastStream
from faststream.redis import RedisBroker, RedisStreamMessage, StreamSub
from redis import asyncio as aioredis

from scripts.bench.peers import work

broker = RedisBroker(work.REDIS_URL, apply_types=False, logger=None)
app = FastStream(broker, logger=None)
output = aioredis.Redis.from_url(work.REDIS_URL)
stream = StreamSub(
    work.QUEUE,
    group=work.GROUP,
    consumer=str(os.getpid()),
    max_records=work.IN_FLIGHT,
    polling_interval=1000,
    last_id=">",
)
models: list[work.AsyncModel] = []


async def undecoded(message: RedisStreamMessage) -> bytes:
    """Leave the decoding to the work."""
    return bytes(message.body)


@broker.subscriber(stream=stream, max_workers=work.IN_FLIGHT, ack_policy=AckPolicy.NACK_ON_ERROR, decoder=undecoded)
async def enrich(data: bytes) -> None:
    """Do the work."""
    await output.xadd(work.OUTPUT, {"data": await models[0].enrich(data)})


@app.on_startup
async def begin() -> None:
    """Make what belongs to this process."""
    models.append(work.AsyncModel())


@app.after_startup
async def tell() -> None:
    """Say that this process takes events."""
    await output.incr(work.READY)


def feed(batches: Iterator[list[bytes]]) -> None:
    """Add events by the broker's own producer."""

    async def add() -> None:
        async with broker:
            for batch in batches:
                async with output.pipeline(transaction=False) as pipeline:
                    for data in batch:
                        await broker.publish(data, stream=work.QUEUE, pipeline=pipeline)
                    await pipeline.execute()

    asyncio.run(add())


if __name__ == "__main__":
    work.main(feed)
