"""Dramatiq on Redis: processes of threads, each thread with an httpx client and a Redis connection of its own."""

import threading
from collections.abc import Iterator

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

from scripts.bench.peers import work

output = redis.Redis.from_url(work.REDIS_URL)
own = threading.local()


class Ready(dramatiq.Middleware):
    """Says that a process takes events."""

    def after_worker_boot(self, _broker: dramatiq.Broker, _worker: dramatiq.Worker) -> None:
        """Tell."""
        output.incr(work.READY)


broker = RedisBroker(url=work.REDIS_URL)
broker.add_middleware(Ready())
dramatiq.set_broker(broker)


@dramatiq.actor
def enrich(data: str) -> None:
    """Do the work."""
    if not hasattr(own, "model"):
        own.model = work.BlockingModel()
    output.xadd(work.OUTPUT, {"data": own.model.enrich(data)})


def feed(batches: Iterator[list[bytes]]) -> None:
    """Add events as messages."""
    for batch in batches:
        for data in batch:
            enrich.send(data.decode())


if __name__ == "__main__":
    work.main(feed)
