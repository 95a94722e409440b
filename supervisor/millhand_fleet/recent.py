"""The last few records of an output stream, as a person wants to see them. No payload unless that is configured."""

from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from millhand.event import ENRICHMENT
from millhand.stream import Script
from millhand.tasks.task import META

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from millhand.keys import Keys

RECENT_MAX = 5
DETAIL_CHARS_MAX = 200
PAYLOAD_CHARS_MAX = 400
VALUE_BYTES_MAX = 65_536  # of a record's data; results of a longer one are not shown


class DeadRecord(msgspec.Struct, frozen=True):
    """A dead letter: its own id, the event's, and why."""

    id: str
    at: str | None
    src: str
    reason: str
    detail: str


class EnrichedRecord(msgspec.Struct, frozen=True):
    """An enriched event; `results` and `payload` are None unless `desk.show_payloads`."""

    id: str
    at: str | None
    src: str
    results: dict[str, Any] | None = None
    payload: str | None = None


class Recent:
    """Looks at the ends of both output streams."""

    def __init__(self, redis: "Redis", keys: "Keys", *, show_payloads: bool) -> None:
        self._keys = keys
        self._recent = Script(redis, "recent")
        self._show_payloads = show_payloads

    async def dead(self) -> tuple[DeadRecord, ...]:
        """Return the newest dead letters, the newest first. Raises RedisError."""
        fields = ["src", "failure_reason", "failure_detail"]
        rows = await self._rows(self._keys.dead_letter, DETAIL_CHARS_MAX, fields)
        return tuple(
            DeadRecord(entry_id, moment(entry_id), _text(src), _text(reason), _text(detail))
            for entry_id, src, reason, detail in rows
        )

    async def enriched(self) -> tuple[EnrichedRecord, ...]:
        """Return the newest enriched events, the newest first. Raises RedisError."""
        fields = ["src", "data"] if self._show_payloads else ["src"]
        rows = await self._rows(self._keys.output, VALUE_BYTES_MAX, fields)
        return tuple(
            EnrichedRecord(entry_id, moment(entry_id), _text(src), *(shown(data[0] or b"") if data else ()))
            for entry_id, src, *data in rows
        )

    async def _rows(self, stream: str, bytes_max: int, fields: list[str]) -> list[tuple[Any, ...]]:
        rows: list[list[Any]] = await self._recent(keys=[stream], args=[RECENT_MAX, bytes_max, *fields])
        return [(entry_id.decode(), *values) for entry_id, *values in rows]


def moment(entry_id: str) -> str | None:
    """Return when an entry was added, in ISO 8601; None where its id is no time."""
    with suppress(ValueError, OverflowError, OSError):
        at = datetime.fromtimestamp(int(entry_id.partition("-")[0]) / 1000, UTC)
        return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return None


def shown(data: bytes) -> tuple[dict[str, Any] | None, str]:
    """Return an enriched event's results by task, and the beginning of its payload; no results of what is cut short."""
    try:
        event = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None, _text(data)[:PAYLOAD_CHARS_MAX]
    results = event.pop(ENRICHMENT, None)
    if isinstance(results, dict):
        results = {task: result for task, result in results.items() if task != META}
    payload = msgspec.json.encode(event).decode()[:PAYLOAD_CHARS_MAX]
    return results if isinstance(results, dict) else None, payload


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")
