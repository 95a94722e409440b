"""A backlog that waits beside the workers until the clock starts, and what came out of it.

`hold` puts away what was added while nobody worked; `release` lets warm and idle workers have all of it at one moment,
whoever made the queue and whatever type its keys are.
"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import msgspec

from scripts.bench.events import DATA, ENRICHMENT, events, text_of

BATCH = 500
PAGE = 5000
POLL_S = 0.02
STALL_S = 30.0
SHOWN_MAX = 5  # numbers in an error
US_PER_S = 1_000_000

# KEYS: where it was held, where it goes. Answers how many entries there are. A stream cannot simply be renamed: the
# group, and the readers who wait, belong to the one that stands there. It leaves no garbage to those who are measured.
COPY = """
local from, copied = '-', 0
repeat
  local page = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 1000)
  for _, entry in ipairs(page) do redis.call('XADD', KEYS[2], '*', unpack(entry[2])) end
  copied = copied + #page
  from = #page > 0 and '(' .. page[#page][1]
until not from
redis.call('DEL', KEYS[1])
collectgarbage()
return copied
"""


class _Record(msgspec.Struct):
    id: int
    text: str
    sent_us: int
    ai_enrichment: msgspec.Raw = msgspec.Raw(b"")


class NotOnce(Exception):
    """Not every event came out exactly once, whole and enriched; or nothing came out any more."""


def fill(client: Any, key: str, entries: Iterable[bytes]) -> None:
    """Add events to a stream, in batches."""
    rest = iter(entries)
    while batch := list(islice(rest, BATCH)):
        with client.pipeline(transaction=False) as pipeline:
            for data in batch:
                pipeline.xadd(key, {DATA: data})
            pipeline.execute()


def fill_held(client: Any, key: str, first: int, count: int) -> None:
    """Add so many events to a stream, put away for `release`."""
    fill(client, _held(key), events(first, count))


def hold(client: Any, keys: Sequence[str]) -> None:
    """Put queues away, those that are there."""
    for key in keys:
        if client.exists(key):
            client.rename(key, _held(key))


def release(client: Any, keys: Sequence[str]) -> float:
    """Give the queues to those who wait for them; return when, in seconds by the server's clock."""
    for key in keys:
        kind = client.type(_held(key))
        if kind == b"stream":
            client.eval(COPY, 2, _held(key), key)
        elif kind != b"none":
            client.rename(_held(key), key)
    return now_s(client)


def now_s(client: Any) -> float:
    """Return the server's time."""
    seconds, micros = client.time()
    return float(seconds + micros / US_PER_S)


def wait_for(client: Any, output: str, count: int) -> float:
    """Wait until the output holds so many; return when the last was written, in seconds by the server's clock.

    Raises NotOnce where nothing comes for `STALL_S`.
    """
    seen, changed_s = -1, time.monotonic()
    while (length := client.xlen(output)) < count:
        if length != seen:
            seen, changed_s = length, time.monotonic()
        elif time.monotonic() - changed_s > STALL_S:
            raise NotOnce(f"{length} of {count} events came out, and then none for {STALL_S:g} s")
        time.sleep(POLL_S)
    ((last, _),) = client.xrevrange(output, count=1)
    return int(last.split(b"-")[0]) / 1000


def begin(client: Any, keys: Sequence[str], output: str) -> float:
    """Empty the output and release the backlog; return when, in seconds by the server's clock.

    Who counts CPU time begins after it: the server may have been busy with the handing out.
    """
    client.delete(output)
    return release(client, keys)


def check(client: Any, output: str, first: int, count: int) -> None:
    """Require that the output holds each of the events once. Raises NotOnce."""
    if complaint := complaint_about(read_all(client, output), first, count):
        raise NotOnce(complaint)


def read_all(client: Any, stream: str) -> Iterable[bytes]:
    """Yield the `data` of all entries of a stream."""
    after = b"-"
    while page := client.xrange(stream, min=after, count=PAGE):
        yield from (fields[DATA.encode()] for _, fields in page)
        after = b"(" + page[-1][0]


def complaint_about(records: Iterable[bytes], first: int, count: int) -> str:
    """Return what is wrong with the output of events `first` to `first + count`; "" if each is there once, enriched."""
    decode = msgspec.json.Decoder(_Record).decode
    seen: Counter[int] = Counter()
    altered: set[int] = set()
    for data in records:
        try:
            record = decode(data)
        except msgspec.DecodeError as error:
            return f"a record is none of ours: {error}"
        seen[record.id] += 1
        if record.text != text_of(record.id) or not bytes(record.ai_enrichment).startswith(b"{"):
            altered.add(record.id)
    wanted = range(first, first + count)
    faults = {
        "lost": set(wanted) - seen.keys(),
        "unknown": {number for number in seen if number not in wanted},
        "more than once": {number for number, times in seen.items() if times > 1},
        f"altered or without {ENRICHMENT}": altered,
    }
    return "; ".join(f"{name}: {_shown(numbers)}" for name, numbers in faults.items() if numbers)


def _shown(numbers: set[int]) -> str:
    some = ", ".join(map(str, sorted(numbers)[:SHOWN_MAX]))
    return f"{len(numbers)} ({some}{', …' if len(numbers) > SHOWN_MAX else ''})"


def _held(key: str) -> str:
    return f"{key}:held"
