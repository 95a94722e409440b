"""A fleet's streams as a test fills and reads them."""

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Self, cast

import msgspec
from tests.rig import eventually_async

from millhand.keys import Keys
from millhand.verdict import Delivery, Done, Enriched
from millhand_fleet.restore import restore_group

if TYPE_CHECKING:
    from redis.asyncio import Redis

PAIRS_OF = "local found = {} for _, e in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do found[#found+1] = e[2] end \
return found"
UNTIL_S_MAX = 20.0

DONE = Done(Enriched(b'{"text":"a","ai_enrichment":{}}', "0" * 32))


class Pending(msgspec.Struct, frozen=True):
    """A row of the pending list."""

    id: str
    owner: str
    idle_ms: int
    count: int


class Race:
    """The streams of one fleet."""

    def __init__(self, redis: "Redis", keys: Keys) -> None:
        self.redis = redis
        self.keys = keys

    async def open(self) -> Self:
        """Create the group."""
        await restore_group(self.redis, self.keys)
        return self

    async def add(self, text: str = "a fine day", **fields: bytes) -> str:
        """Produce an event with a text; `fields` stand beside its `data`."""
        return await self.add_data(json.dumps({"text": text}).encode(), **fields)

    async def add_data(self, data: bytes, **fields: bytes) -> str:
        """Produce an entry with these bytes in `data`."""
        return await self.add_pairs(b"data", data, *(part for name in fields for part in (name.encode(), fields[name])))

    async def add_pairs(self, *pairs: bytes) -> str:
        """Produce an entry field by field, so that names may repeat."""
        entry_id: bytes = await self._do("XADD", self.keys.input, "*", *pairs)
        return entry_id.decode()

    async def deliver(self, consumer: str = "other:w1:a", count: int = 1) -> list[Delivery]:
        """Deliver new entries to a consumer, as its read does."""
        reply = await self._do(
            "XREADGROUP", "GROUP", self.keys.group, consumer, "COUNT", count, "STREAMS", self.keys.input, ">"
        )
        ((_, entries),) = reply.items() if isinstance(reply, dict) else reply
        return [Delivery(entry_id.decode(), fields, consumer, 1) for entry_id, fields in entries]

    async def delivered(self, consumer: str = "other:w1:a") -> Delivery:
        """Produce an event and deliver it."""
        await self.add()
        (delivery,) = await self.deliver(consumer)
        return delivery

    async def steal(self, entry_id: str, consumer: str = "thief:w1:b", *, count: int | None = None) -> None:
        """Claim an entry past all rules; its count rises, or becomes `count`."""
        options: dict[str, Any] = {} if count is None else {"retrycount": count, "justid": True}
        await self.redis.xclaim(self.keys.input, self.keys.group, consumer, 0, [entry_id], **options)

    async def age(self, entry_id: str, idle_ms: int = 3_600_000) -> None:
        """Make a pending entry look as if nobody had touched it for so long."""
        owner = (await self.pending_row(entry_id)).owner
        await self.redis.xclaim(self.keys.input, self.keys.group, owner, 0, [entry_id], idle=idle_ms, justid=True)

    async def pending(self) -> list[Pending]:
        """Return the whole pending list."""
        rows: Any = await self.redis.xpending_range(self.keys.input, self.keys.group, min="-", max="+", count=10_000)
        return [
            Pending(
                row["message_id"].decode(),
                row["consumer"].decode(),
                row["time_since_delivered"],
                row["times_delivered"],
            )
            for row in rows
        ]

    async def pending_row(self, entry_id: str) -> Pending:
        """Return the row of one pending entry."""
        (row,) = [row for row in await self.pending() if row.id == entry_id]
        return row

    async def held(self) -> dict[str, tuple[str, int]]:
        """Return who holds what, and its delivery count."""
        return {row.id: (row.owner, row.count) for row in await self.pending()}

    async def consumers(self) -> set[str]:
        """Return the names of the group's consumers."""
        return {row["name"].decode() for row in await self.redis.xinfo_consumers(self.keys.input, self.keys.group)}

    async def output(self) -> list[dict[bytes, bytes]]:
        """Return the enriched entries."""
        return await self._entries(self.keys.output)

    async def dead(self) -> list[dict[bytes, bytes]]:
        """Return the dead letters."""
        return await self._entries(self.keys.dead_letter)

    async def enriched(self) -> dict[str, dict[str, Any]]:
        """Return each enriched event's `ai_enrichment` by the id of its source. Fails if one was enriched twice."""
        records = await self.output()
        found = {record[b"src"].decode(): json.loads(record[b"data"])["ai_enrichment"] for record in records}
        assert len(found) == len(records), "an event was enriched twice"
        return found

    async def buried(self) -> dict[str, dict[str, str]]:
        """Return our fields of each dead letter by the id of its source. Fails if one was buried twice."""
        records = await self.dead()
        ours = (b"failure_reason", b"failure_detail", b"attempts", b"deliveries", b"errors", b"consumer", b"failed_at")
        found = {record[b"src"].decode(): {name.decode(): record[name].decode() for name in ours} for record in records}
        assert len(found) == len(records), "an event was buried twice"
        return found

    async def until_enriched(self, count: int) -> dict[str, dict[str, Any]]:
        """Wait until so many events have left enriched."""
        what = f"{count} events are enriched"
        await eventually_async(lambda: self._holds(self.keys.output, count), UNTIL_S_MAX, what=what)
        return await self.enriched()

    async def until_buried(self, count: int = 1) -> dict[str, dict[str, str]]:
        """Wait until there are so many dead letters."""
        what = f"{count} events are buried"
        await eventually_async(lambda: self._holds(self.keys.dead_letter, count), UNTIL_S_MAX, what=what)
        return await self.buried()

    async def dead_pairs(self) -> list[list[bytes]]:
        """Return the dead letters field by field."""
        found: list[list[bytes]] = await self.redis.eval(PAIRS_OF, 1, self.keys.dead_letter)
        return found

    async def totals(self) -> dict[str, int]:
        """Return the counters. Fails if they disagree with the streams."""
        raw = cast("dict[bytes, bytes]", await self.redis.hgetall(self.keys.totals))
        totals = {name.decode(): int(value) for name, value in raw.items() if not name.startswith(b"group:")}
        dead = await self.dead()
        reasons = Counter(record[b"failure_reason"].decode() for record in dead)
        assert totals.get("enriched", 0) == len(await self.output())
        assert totals.get("dead", 0) == len(dead)
        assert {name[5:]: n for name, n in totals.items() if name.startswith("dead:")} == dict(reasons)
        return totals

    async def attempts(self) -> dict[str, dict[str, Any]]:
        """Return the records of attempts."""
        raw = cast("dict[bytes, bytes]", await self.redis.hgetall(self.keys.attempts))
        return {entry_id.decode(): json.loads(record) for entry_id, record in raw.items()}

    async def parked(self) -> dict[str, float]:
        """Return when what is parked falls due, in ms since the epoch."""
        rows: Any = await self.redis.zrange(self.keys.parked, 0, -1, withscores=True)
        return {entry_id.decode(): due_ms for entry_id, due_ms in rows}

    async def server_ms(self) -> float:
        """Return the server's clock."""
        seconds, microseconds = await self.redis.time()
        return float(seconds) * 1000 + microseconds / 1000

    async def somebody_is_blocked(self) -> bool:
        """Whether somebody waits in a blocking command."""
        return bool((await self.redis.info("clients"))["blocked_clients"])

    async def is_clean(self) -> bool:
        """Whether nothing is pending, parked or remembered any more."""
        return not (await self.pending() or await self.parked() or await self.attempts())

    async def _holds(self, key: str, count: int) -> bool:
        return await self.redis.xlen(key) >= count

    async def _entries(self, key: str) -> list[dict[bytes, bytes]]:
        entries: Any = await self.redis.xrange(key)
        return [fields for _, fields in entries]

    async def _do(self, *command: Any) -> Any:
        return await self.redis.execute_command(*command)  # type: ignore[no-untyped-call]
