"""Whether repeated enrichments agree: those of two records, of two runs, and of one event in one run. Pure."""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum, StrEnum
from hashlib import blake2b
from itertools import groupby, zip_longest
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from millhand.event import DATA, ENRICHMENT, EVENT_ID
from millhand.tasks.task import META

DIGEST_BYTES = 16
DEPTH_MAX = 32  # of an answer; what differs further down is shown as a whole
MEASURED = frozenset({"tokens_out", "model_s", "total_s", "worker", "at"})  # another at each call, and explains nothing


class Record(msgspec.Struct, frozen=True):
    """An enriched entry of an output stream: the event's payload, its results without `meta`, and `meta`.

    The payload is in the spelling that all its spellings share: spaces, escapes and the order of members do not count.
    """

    id: str
    src: str
    hash: str
    event_id: bytes | None
    payload: bytes
    results: dict[str, Any]
    meta: dict[str, Any]


class SameEvent(StrEnum):
    """What makes two records those of the same event, if anything does."""

    PAYLOAD = "payload"
    EVENT_ID = "event_id"  # although the payloads differ
    NO = "no"


class Difference(msgspec.Struct, frozen=True):
    """A place where two answers differ, such as `entities.people[0]`. What one of them has not got there is unset."""

    path: str
    a: Any = UNSET
    b: Any = UNSET


class Comparison(msgspec.Struct, frozen=True):
    """Two records side by side. `meta` differs as well where it may explain what the results do."""

    a: str
    b: str
    a_src: str
    b_src: str
    same_event: SameEvent
    same_hash: bool
    results: list[Difference]
    meta: list[Difference]

    @property
    def is_equal(self) -> bool:
        """Whether the same event got the same answer."""
        return self.same_hash and self.same_event is not SameEvent.NO


class Runs(msgspec.Struct, frozen=True):
    """Two runs side by side, in records; `pairs` are ids of differing ones, one pair an event, A's oldest first."""

    same: int
    different: int
    only_in_a: int
    only_in_b: int
    pairs: list[tuple[str, str]]

    @property
    def is_equal(self) -> bool:
        """Whether each record has a like one in the other run."""
        return not (self.different or self.only_in_a or self.only_in_b)


class Repeats(msgspec.Struct, frozen=True):
    """One run in itself, in events; `pairs` as in Runs, both ids of the same stream."""

    events: int
    repeated: int
    different: int
    pairs: list[tuple[str, str]]

    @property
    def is_equal(self) -> bool:
        """Whether each event got the same answer each time."""
        return not self.different


class Side(IntEnum):
    """The run that a record is of."""

    A = 1
    B = -1


class _Count(NamedTuple):
    records: int  # of A, less those of B
    id: str  # of one of them


class Ledger:
    """How often each event got each answer. Equal answers of both runs cancel out, in whatever order they come.

    Of what is left it holds a digest of the event and one of the answer, a count and an id: no payloads. So two runs
    that agree, and are read at the same pace, take no memory, and those that do not, about 300 bytes a record.
    """

    def __init__(self) -> None:
        self._counts: dict[bytes, _Count] = {}
        self._same = 0

    def add(self, side: Side, event: bytes, record: Record) -> None:
        """Enter a record; `event` is what `digest_of` says of it."""
        key = event + _digest(record.hash.encode(), b"hash")
        before = self._counts.get(key)
        records = (before.records if before else 0) + side
        self._same += abs(records) < abs(records - side)
        if records:
            self._counts[key] = before._replace(records=records) if before else _Count(records, record.id)
        else:
            del self._counts[key]

    def runs(self, limit: int) -> Runs:
        """Compare what was entered as A with what was entered as B, each record paired with one of the same event."""
        different = only_in_a = only_in_b = 0
        pairs: list[tuple[str, str]] = []
        for answers in self._events():
            in_a = [count for count in answers if count.records > 0]
            in_b = [count for count in answers if count.records < 0]
            many_a, many_b = sum(count.records for count in in_a), -sum(count.records for count in in_b)
            different += min(many_a, many_b)
            only_in_a += max(0, many_a - many_b)
            only_in_b += max(0, many_b - many_a)
            if in_a and in_b:
                pairs.append((_oldest(in_a).id, _oldest(in_b).id))
        return Runs(self._same, different, only_in_a, only_in_b, _first(limit, pairs))

    def repeats(self, limit: int) -> Repeats:
        """Look for events that got more than one record; all must have been entered as A."""
        events = repeated = different = 0
        pairs: list[tuple[str, str]] = []
        for answers in self._events():
            events += 1
            repeated += sum(count.records for count in answers) > 1
            if len(answers) > 1:
                different += 1
                first, second, *_ = sorted(answers, key=lambda count: _age_order(count.id))
                pairs.append((first.id, second.id))
        return Repeats(events, repeated, different, _first(limit, pairs))

    def _events(self) -> Iterator[list[_Count]]:
        """Yield the different answers of each event."""
        for _, keys in groupby(sorted(self._counts), key=lambda key: key[:DIGEST_BYTES]):
            yield [self._counts[key] for key in keys]


def parse(entry_id: str, fields: Mapping[bytes, bytes]) -> Record | None:
    """Return the record in an entry of an output stream; None if it is not one that a fleet has written."""
    try:
        payload = msgspec.json.decode(fields[DATA], type=dict[str, Any])
        results = dict(payload.pop(ENRICHMENT))
        meta = dict(results.pop(META))
        return Record(
            entry_id,
            src=fields.get(b"src", b"").decode(errors="backslashreplace"),
            hash=fields[b"hash"].decode(),
            event_id=fields.get(EVENT_ID),
            payload=_canonical(payload),
            results=results,
            meta=meta,
        )
    except (KeyError, TypeError, ValueError, RecursionError):  # msgspec's and Unicode's errors are ValueErrors
        return None


def digest_of(record: Record, *, by_payload: bool) -> bytes:
    """Return what stands for a record's event: its event_id where it has one, unless told `by_payload`."""
    if record.event_id is not None and not by_payload:
        return _digest(record.event_id, b"event_id")
    return _digest(record.payload, b"payload")


def compare(a: Record, b: Record) -> Comparison:
    """Put two records side by side."""
    same_event = SameEvent.NO
    if a.payload == b.payload:
        same_event = SameEvent.PAYLOAD
    elif a.event_id is not None and a.event_id == b.event_id:
        same_event = SameEvent.EVENT_ID
    a_meta, b_meta = ({name: x for name, x in each.meta.items() if name not in MEASURED} for each in (a, b))
    return Comparison(
        a=a.id, b=b.id, a_src=a.src, b_src=b.src,
        same_event=same_event,
        same_hash=a.hash == b.hash,
        results=list(differences(a.results, b.results)),
        meta=list(differences(a_meta, b_meta)),
    )  # fmt: skip


def differences(a: Any, b: Any, path: str = "", depth: int = DEPTH_MAX) -> Iterator[Difference]:
    """Yield where two values that came from JSON differ; 1 and 1.0 do, as they do in a hash."""
    if depth and isinstance(a, dict) and isinstance(b, dict):
        for name in {**a, **b}:
            below = f"{path}.{name}" if path else str(name)
            yield from differences(a.get(name, UNSET), b.get(name, UNSET), below, depth - 1)
    elif depth and isinstance(a, list) and isinstance(b, list):
        for index, (left, right) in enumerate(zip_longest(a, b, fillvalue=UNSET)):
            yield from differences(left, right, f"{path}[{index}]", depth - 1)
    elif a is UNSET or b is UNSET or _canonical(a) != _canonical(b):
        yield Difference(path, a, b)


def _canonical(value: Any) -> bytes:
    """Return the bytes that all spellings of a JSON value share."""
    return msgspec.json.encode(value, order="deterministic")


def _digest(part: bytes, kind: bytes) -> bytes:
    return blake2b(part, digest_size=DIGEST_BYTES, person=kind).digest()


def _oldest(counts: Iterable[_Count]) -> _Count:
    return min(counts, key=lambda count: _age_order(count.id))


def _first(limit: int, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return heapq.nsmallest(limit, pairs, key=lambda pair: _age_order(pair[0]))


def _age_order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)
