"""Dead letters: finding them page by page, giving their events back to the workers, and dropping them."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from redis import exceptions

from millhand.event import EVENT_ID
from millhand.keys import Keys
from millhand.settle import RESEND_PAUSE_MAX_S, RESEND_PAUSE_MIN_S
from millhand.stream import REFUSED, RedisError, Script

if TYPE_CHECKING:
    from redis.asyncio import Redis

PAGE = 200
PAGE_BYTES = 4 << 20  # after which a page ends: an event may have any size
PATIENCE_S = 15.0  # for which a person waits while Redis is away
FIELDS_MAX = 20_000  # that requeue.lua writes
DIGITS_MAX = 18  # of a count
WITHOUT_LIMIT = -1
FOREIGN = "foreign"  # the reason of an entry that bury has not written

T = TypeVar("T")
Pairs = tuple[tuple[bytes, bytes], ...]


class NoAnswer(Exception):
    """Redis refused, or did not answer for as long as a person waits. What was under way may have been done."""


class Requeued(StrEnum):
    """What came of requeueing a dead letter."""

    OK = "ok"
    GONE = "gone"  # requeued or dropped before, perhaps by this call's predecessor whose reply was lost
    REFUSED = "refused"  # requeued as often as it may be
    EMPTY = "empty"  # a tombstone: there is no event to requeue
    TOO_WIDE = "too_wide"  # more than FIELDS_MAX fields
    FOREIGN = "foreign"  # an entry that bury has not written


class DeadLetter(msgspec.Struct, frozen=True):
    """A dead letter. `fields` are the original's pairs in their order, byte for byte; names may repeat."""

    id: str
    reason: str
    fields: Pairs
    src: str = ""
    detail: bytes = b""
    attempts: int = 0
    deliveries: int = 0
    redrives: int = 0
    errors: tuple[str, ...] = ()
    consumer: str = ""
    failed_at: str = ""

    @property
    def buried_ms(self) -> int:
        """When it was buried, by Redis's clock, in ms since the epoch."""
        return int(self.id.partition("-")[0])


class Selection(msgspec.Struct, frozen=True):
    """Which dead letters are meant: those of `ids`, or else all that pass every filter, the oldest `limit` of them."""

    ids: tuple[str, ...] = ()
    reasons: frozenset[str] = frozenset()
    older_than_s: float | None = None
    newer_than_s: float | None = None
    text: bytes = b""
    limit: int | None = None

    @property
    def is_filtered(self) -> bool:
        """Whether there is a filter: a limit alone is none."""
        return bool(self.reasons or self.text) or (self.older_than_s, self.newer_than_s) != (None, None)

    def matches(self, letter: DeadLetter) -> bool:
        """Whether a dead letter passes the filters that are not about its age."""
        if self.reasons and letter.reason not in self.reasons:
            return False
        return self.text in letter.detail or any(self.text in part for pair in letter.fields for part in pair)


class Stretch(msgspec.Struct, frozen=True):
    """A piece of the stream, both ends included, and Redis's clock. Dead letters that come later are not in it."""

    start: str
    end: str
    now_ms: int


class Pace:
    """Lets something happen at most so often a second, without bursts."""

    def __init__(self, rate_per_s: float) -> None:
        self._gap_s = 1 / rate_per_s
        self._next = 0.0

    async def turn(self) -> None:
        """Wait until it may happen again."""
        now = time.monotonic()
        if self._next > now:
            await asyncio.sleep(self._next - now)
        self._next = max(self._next, now) + self._gap_s


class DeadLetters:
    """The stream of dead letters. Each call is sent again until Redis answers, or raises NoAnswer."""

    def __init__(self, redis: "Redis", keys: Keys, tell: Callable[[str], None]) -> None:
        self._redis = redis
        self._keys = keys
        self._tell = tell
        self._read = Script(redis, "read_dead")
        self._requeue = Script(redis, "requeue")
        self._drop = Script(redis, "drop_dead")

    async def stretch(self, selection: Selection) -> Stretch:
        """Fix the piece of the stream that a selection is taken from, as of now."""
        clock: Any = await self._patiently(self._redis.time)
        newest: Any = await self._patiently(lambda: self._redis.xrevrange(self._keys.dead_letter, count=1))
        now_ms = clock[0] * 1000 + clock[1] // 1000
        end = newest[0][0].decode() if newest else "0-0"
        if selection.older_than_s is not None:
            end_ms = max(0, now_ms - round(selection.older_than_s * 1000))
            end = str(end_ms) if int(end.partition("-")[0]) > end_ms else end
        start_ms = 0 if selection.newer_than_s is None else max(0, now_ms - round(selection.newer_than_s * 1000))
        return Stretch(f"{start_ms}-0", end, now_ms)

    async def select(self, selection: Selection, stretch: Stretch) -> AsyncIterator[DeadLetter]:
        """Yield what is selected, the oldest first, or the ids in their order; ids that are not there are left out."""
        found = 0
        async for letter in self._of_ids(selection.ids) if selection.ids else self._of(stretch):
            if not selection.matches(letter):
                continue
            yield letter
            found += 1
            if found == selection.limit:
                return

    async def requeue(self, letter: DeadLetter, redrives_max: int) -> Requeued:
        """Give a dead letter's event to the workers again, unless that has been done `redrives_max` times before."""
        own = self._keys
        keys = [own.dead_letter, own.input, own.redrives, own.totals, own.closed]
        if event_id := dict(letter.fields).get(EVENT_ID):
            keys.append(self._keys.seen(event_id))
        answer = await self._patiently(lambda: self._requeue(keys=keys, args=[letter.id, redrives_max]))
        return Requeued(answer[0].decode())

    async def drop(self, ids: Sequence[str]) -> int:
        """Delete dead letters for good. Return how many were there."""
        keys = [self._keys.dead_letter, self._keys.totals, self._keys.closed]
        dropped: int = await self._patiently(lambda: self._drop(keys=keys, args=ids))
        return dropped

    async def _of(self, stretch: Stretch) -> AsyncIterator[DeadLetter]:
        start = stretch.start
        while page := await self._page(start, stretch.end):
            for letter in page:
                yield letter
            start = "(" + page[-1].id

    async def _of_ids(self, ids: Sequence[str]) -> AsyncIterator[DeadLetter]:
        for letter_id in ids:
            for letter in await self._page(letter_id, letter_id):
                yield letter

    async def _page(self, start: str, end: str) -> list[DeadLetter]:
        args = [start, end, PAGE, PAGE_BYTES]
        rows = await self._patiently(lambda: self._read(keys=[self._keys.dead_letter], args=args))
        return [parse(*row) for row in rows]

    async def _patiently(self, send: Callable[[], Awaitable[T]]) -> T:
        """Send what is safe to send again until Redis answers, or a person's patience ends."""
        deadline = time.monotonic() + PATIENCE_S
        pause_s = RESEND_PAUSE_MIN_S
        while True:
            try:
                return await send()
            except (exceptions.ResponseError, *REFUSED) as error:
                raise NoAnswer(f"Redis refuses: {error}") from error
            except RedisError as error:
                why = f"Redis does not answer: {error}"
                if time.monotonic() + pause_s > deadline:
                    raise NoAnswer(why) from error
                if pause_s == RESEND_PAUSE_MIN_S:
                    self._tell(f"{why}; trying again for {PATIENCE_S:.0f} s")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RESEND_PAUSE_MAX_S)


def foresee(letter: DeadLetter, redrives_max: int) -> Requeued:
    """Return what requeueing would come to, if nobody else does it first."""
    if letter.reason == FOREIGN:
        return Requeued.FOREIGN
    if not letter.fields:
        return Requeued.EMPTY
    if len(letter.fields) > FIELDS_MAX:
        return Requeued.TOO_WIDE
    return Requeued.REFUSED if WITHOUT_LIMIT < redrives_max <= letter.redrives else Requeued.OK


def parse(entry_id: bytes, record: Sequence[bytes], unpacked: Sequence[Any] = ()) -> DeadLetter:
    """Read what bury has written; `unpacked` is an original that it had to pack. Anything else is FOREIGN, and kept."""
    pairs = tuple(zip(record[::2], record[1::2], strict=True))
    letter_id = entry_id.decode()
    count = _number(next((value for name, value in reversed(pairs) if name == b"original_fields"), b""), -1)
    stored, fields = count, pairs[: max(0, count)]
    if len(fields) < count and unpacked and all(isinstance(part, bytes) for part in unpacked):
        stored, fields = 1, tuple(zip(unpacked[::2], unpacked[1::2], strict=False))
    if len(fields) != count or [name for name, _ in pairs[stored : stored + 1]] != [b"failure_reason"]:
        return DeadLetter(letter_id, FOREIGN, pairs)
    ours = dict(pairs[stored:])
    return DeadLetter(
        letter_id,
        _text(ours[b"failure_reason"]),
        fields,
        src=_text(ours.get(b"src", b"")),
        detail=ours.get(b"failure_detail", b""),
        attempts=_number(ours.get(b"attempts", b"")),
        deliveries=_number(ours.get(b"deliveries", b"")),
        redrives=_number(ours.get(b"redrives", b"")),
        errors=_errors(ours.get(b"errors", b"[]")),
        consumer=_text(ours.get(b"consumer", b"")),
        failed_at=_text(ours.get(b"failed_at", b"")),
    )


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _number(value: bytes, otherwise: int = 0) -> int:
    return int(value) if value.isdigit() and len(value) <= DIGITS_MAX else otherwise


def _errors(value: bytes) -> tuple[str, ...]:
    try:
        return msgspec.json.decode(value, type=tuple[str, ...])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return (_text(value),)
