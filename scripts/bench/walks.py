"""What whole walks cost beside a plain loop that does the same work and promises nothing; both in this process."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec
from tests.integration.hands import CONSUMER, working
from tests.rig import config_for

from millhand.config import Cache, Config, Log
from millhand.keys import Keys
from millhand.log import configure
from millhand.stream import connect
from scripts.bench import backlog, rig
from scripts.bench.events import DATA, ENRICHMENT, TEXTS

TURNS = 3  # the best counts: what disturbs only ever adds
EVENTS = 1000
KEPT_S = 3600.0
BATCH = 10  # entries that the plain loop reads at a time
POLL_S = 0.02
KNOWN, ASKED = "a walk, answer known", "a walk, model asked"

Work = Callable[[Any, Config], Awaitable[float]]


async def walk_ratios() -> dict[str, float]:
    """Return the CPU time of a walk in that of the plain loop: once no answer has to be asked for, once every one."""
    best: dict[tuple[str, Work], float] = {}
    configure(Log(level="warning"), "guard")
    with rig.server("none") as (server, client), rig.fast_model(64, 0) as model:
        asked = config_for(server.url, model.url)
        known = msgspec.structs.replace(asked, cache=Cache(ttl_s=KEPT_S))
        for _ in range(TURNS):
            for name, config in ((KNOWN, known), (ASKED, asked)):
                for work in (walked, looped):
                    client.flushall()
                    keys = Keys.of(config)
                    client.xgroup_create(keys.input, keys.group, "0", mkstream=True)
                    took_s = await work(client, config)
                    best[name, work] = min(took_s, best.get((name, work), took_s))
    return {name: round(best[name, walked] / best[name, looped], 3) for name in (KNOWN, ASKED)}


async def walked(client: Any, config: Config) -> float:
    """Have a worker enrich the events; return the CPU seconds that it took."""
    async with working(config) as at_work:
        await at_work.ready()
        await _spent(client, config, TEXTS)  # whatever can be known is known now
        return await _spent(client, config, EVENTS)


async def looped(client: Any, config: Config) -> float:
    """Have the plain loop do it."""
    looping = asyncio.create_task(_loop(config))
    try:
        await _spent(client, config, TEXTS)
        return await _spent(client, config, EVENTS)
    finally:
        looping.cancel()


async def _spent(client: Any, config: Config, count: int) -> float:
    """Give so many events to whoever waits for them; return the CPU seconds until all have come out."""
    keys = Keys.of(config)
    backlog.fill_held(client, keys.input, 0, count)
    wanted = client.xlen(keys.output) + count
    began_s = time.process_time()
    backlog.release(client, [keys.input])
    while client.xlen(keys.output) < wanted:  # noqa: ASYNC110 - it is Redis that knows, and it sets no event
        await asyncio.sleep(POLL_S)
    return time.process_time() - began_s


async def _loop(config: Config) -> None:
    """Enrich what comes, as one would without a fleet: one after the other, and lost if this process dies."""
    keys = Keys.of(config)
    redis: Any = connect(config.redis.url)
    answer: object = {"sentiment": {"label": "neutral", "confidence": 50}}
    async with redis, httpx.AsyncClient(base_url=config.model.url) as model:
        while True:
            reply = await redis.xreadgroup(keys.group, CONSUMER, {keys.input: ">"}, count=BATCH, block=1000)
            for entry_id, fields in reply[0][1] if reply else ():
                payload = msgspec.json.decode(fields[DATA.encode()])
                if not config.cache.ttl_s:
                    question = {"model": config.model.name, "messages": [{"role": "user", "content": payload["text"]}]}
                    said = await model.post("/api/chat", json=question)
                    answer = msgspec.json.decode(said.json()["message"]["content"])
                async with redis.pipeline(transaction=False) as pipeline:
                    pipeline.xadd(keys.output, {DATA: msgspec.json.encode({**payload, ENRICHMENT: answer})})
                    pipeline.xack(keys.input, keys.group, entry_id)
                    await pipeline.execute()
