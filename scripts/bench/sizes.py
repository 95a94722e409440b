"""What larger events cost: once the model is asked about each, once every answer is known."""

from collections.abc import Iterator

import msgspec

from scripts.bench.events import TEXTS, text_of
from scripts.bench.pace import pace
from scripts.bench.rig import fast_model, fleet, server
from scripts.bench.rows import Report, Row

SIZES = {300: 40_000, 4096: 20_000, 65_536: 2_000}  # bytes, and how many such events
WORKERS = 2
CTX_TOKENS = 1 << 18  # no text is too long for the model
FIRST = 1_000_000  # so that all numbers have as many digits


def measure(*, short: bool = False) -> Report:
    """Let two workers enrich events of each size."""
    rows: list[Row] = []
    with fast_model(64, 0) as model:
        for answers, settings in (("asked", {"model.concurrency": 16}), ("known", {"cache.ttl_s": 3600})):
            for size, most in SIZES.items():
                count = most // (4 if short else 1) // (4 if answers == "asked" else 1)
                common = {"model.in_flight_max": 1000, "model.num_ctx": CTX_TOKENS, **settings}
                with (
                    server("everysec") as (running, client),
                    fleet(running.url, model, workers=WORKERS, settings=common) as up,
                ):
                    seen = pace(up, running, client, sized(0, TEXTS, size), sized(TEXTS, count, size))
                rows.append(
                    {
                        "answers": answers,
                        "event_bytes": size,
                        "events": count,
                        "events_per_s": seen.per_s,
                        "mb_per_s": seen.per_s * size / 1e6,
                        "cpu_ms": seen.cpu_ms,
                        "server_cpu_ms": seen.server_cpu_ms,
                    }
                )
    return Report(f"{WORKERS} workers, a model that answers at once, appendfsync everysec; {TEXTS} texts in turn", rows)


def sized(first: int, count: int, size: int) -> Iterator[bytes]:
    """Yield so many events of so many bytes; most of that is the text."""
    for number in range(first, first + count):
        event = {"id": FIRST + number, "source": "shop", "text": text_of(number)}
        room = size - len(msgspec.json.encode(event))
        yield msgspec.json.encode({**event, "text": text_of(number) + " " + "x" * (room - 1)})
