"""Celery with prefork processes: acknowledged after the work, as the others do, and no results."""

from collections.abc import Iterator
from typing import Any

import redis
from celery import Celery
from celery.signals import worker_process_init

from scripts.bench.peers import work

app = Celery("bench", broker=work.REDIS_URL, set_as_current=True)
app.conf.update(
    task_default_queue=work.QUEUE,
    task_ignore_result=True,
    task_acks_late=True,
    worker_prefetch_multiplier=16,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)
made: dict[str, Any] = {}


@worker_process_init.connect
def begin(**_: object) -> None:
    """Make what belongs to this process, and say that it takes events."""
    made["output"] = redis.Redis.from_url(work.REDIS_URL)
    made["model"] = work.BlockingModel()
    made["output"].incr(work.READY)


@app.task(name="enrich")
def enrich(data: str) -> None:
    """Do the work."""
    made["output"].xadd(work.OUTPUT, {"data": made["model"].enrich(data)})


def feed(batches: Iterator[list[bytes]]) -> None:
    """Add events as tasks, over one connection."""
    with app.producer_pool.acquire(block=True) as producer:
        for batch in batches:
            for data in batch:
                enrich.apply_async((data.decode(),), producer=producer)


if __name__ == "__main__":
    work.main(feed)
