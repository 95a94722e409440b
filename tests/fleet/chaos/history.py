"""The history of a chaos run: what every process recorded, by the one clock that all processes of a host share."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
from tests.fleet.chaos.records import KINDS, MODEL_CALL, ModelCall, Record

RECORDS, FINAL, TERMS, READING = "records.jsonl", "final.json", "terms.json", "reading.json"


class BrokenHistoryError(ValueError):
    """A line that should be a record and is none; the message says which."""


class Entry(msgspec.Struct, frozen=True):
    """An entry of a stream, field by field: names may repeat, and need not be text."""

    id: str
    pairs: tuple[tuple[bytes, bytes], ...]

    @classmethod
    def of(cls, entry_id: str, fields: Mapping[bytes, bytes] | Sequence[bytes]) -> Self:
        """Make one from a dict, or from the flat list of names and values."""
        if isinstance(fields, Mapping):
            return cls(entry_id, tuple(fields.items()))
        return cls(entry_id, tuple(zip(fields[::2], fields[1::2], strict=True)))

    @property
    def fields(self) -> dict[bytes, bytes]:
        """The last value of each name; in a dead letter that is ours."""
        return dict(self.pairs)


class Final(msgspec.Struct, frozen=True, kw_only=True):
    """What Redis held after the drain. `pending` and `undelivered` are ids, `parked` and `attempts` sizes."""

    input: tuple[Entry, ...] = ()
    output: tuple[Entry, ...] = ()
    dead: tuple[Entry, ...] = ()
    pending: tuple[str, ...] = ()
    undelivered: tuple[str, ...] = ()
    parked: int = 0
    attempts: int = 0
    consumers: tuple[str, ...] = ()


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What the run promised, and the bounds by which it is judged."""

    seed: int
    workers: int  # at the start
    concurrency: int
    lease_s: float
    sweep_s: float
    drain_s: float
    heal_to_drained_s_max: float
    retries: int = 3
    deliveries_max: int = 3
    in_flight_max: int | None = None
    rate_per_s: float | None = None
    burst: int = 0
    # what must have happened, or the run proves nothing
    expected_faults: tuple[str, ...] = ()
    expected_answers: tuple[str, ...] = ()  # "<verdict>/<answer>"
    expected_sights: tuple[str, ...] = ()  # of coverage.SIGHTS
    # bounds in time
    handover_s_max: float = 2.0
    orphan_s_max: float = 3.0
    stop_grace_s: float = 4.0  # past the drain deadline, until the supervisor kills
    pause_known_s_max: float = 1.0
    recovery_s: float = 5.0  # how long after a fault what it disturbed is not yet promised
    slack_s: float = 1.0  # for a machine that is busy: between a fact and its record
    progress_window_s: float = 10.0
    progress_records_min: int = 1
    # bounds of resources: the first sample times the factor, and what is spare
    growth_factor_max: float = 1.5
    rss_spare_bytes: int = 32 << 20
    fds_spare: int = 16
    threads_spare: int = 4
    workers_spare: int = 0  # while one is being replaced
    consumers_spare: int = 2  # not yet retired


class Reading(msgspec.Struct, frozen=True):
    """How much of the files was no record: lines torn by a killed writer, and lines that never were JSON."""

    torn: int = 0
    skipped: int = 0


class History(msgspec.Struct, frozen=True, kw_only=True):
    """One run. The records are in the order of `mono`, the calls in that of their arrival."""

    records: tuple[Record, ...]
    calls: tuple[ModelCall, ...] = ()
    final: Final = Final()
    terms: Terms
    reading: Reading = Reading()

    @classmethod
    def of(cls, files: Sequence[Path], final: Final, terms: Terms) -> Self:
        """Read the run's files. Raises BrokenHistoryError."""
        records, calls, reading = read(files)
        return cls(records=records, calls=calls, final=final, terms=terms, reading=reading)


# -- files -------------------------------------------------------------------------------------------------------------


class _Head(msgspec.Struct):
    event: str = ""


def read(files: Sequence[Path]) -> tuple[tuple[Record, ...], tuple[ModelCall, ...], Reading]:
    """Merge files of JSON lines by time. Events that nobody judges are left out.

    A last line without its end was torn by the kill of its writer, and is counted; so are lines that are no JSON, such
    as stack dumps. Any other line that begins as a record and is none raises BrokenHistoryError.
    """
    records, calls = list[Record](), list[ModelCall]()
    torn = skipped = 0
    for file in files:
        *lines, tail = file.read_bytes().split(b"\n")
        for number, line in enumerate([*lines, tail], start=1):
            if not line.startswith(b"{"):
                skipped += bool(line.strip())
                continue
            try:
                record = _record(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                if number <= len(lines):
                    raise BrokenHistoryError(f"{file}:{number}: {error}: {line[:200]!r}") from error
                torn += 1
                continue
            if isinstance(record, ModelCall):
                calls.append(record)
            elif record is not None:
                records.append(record)
    records.sort(key=lambda record: record.mono)
    calls.sort(key=lambda call: call.arrival_s)
    return tuple(records), tuple(calls), Reading(torn, skipped)


def _record(line: bytes) -> Record | ModelCall | None:
    event = msgspec.json.decode(line, type=_Head).event
    if event == MODEL_CALL:
        return msgspec.json.decode(line, type=ModelCall)
    kind = KINDS.get(event)
    return msgspec.json.decode(line, type=kind) if kind else None


class Scribe:
    """Writes the records of producer, nemesis, reader or sampler.

    One write a line: none is lost when its writer is killed, and those of several do not run into each other.
    """

    def __init__(self, file: Path, process: str) -> None:
        self._descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._process = process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tell(self, event: str, **fields: Any) -> None:
        """Write a record, with the time now unless `mono` is given. Raises ValidationError for one of a wrong shape."""
        told_of = {"mono": time.monotonic(), "process": self._process, "event": event, **fields}
        kind: Any = ModelCall if event == MODEL_CALL else KINDS[event]
        os.write(self._descriptor, msgspec.json.encode(msgspec.convert(told_of, kind)) + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def save(history: History, folder: Path) -> None:
    """Keep a run, to be judged again."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [msgspec.json.encode(record) + b"\n" for record in (*history.records, *history.calls)]
    (folder / RECORDS).write_bytes(b"".join(lines))
    for name, part in ((FINAL, history.final), (TERMS, history.terms), (READING, history.reading)):
        (folder / name).write_bytes(msgspec.json.encode(part) + b"\n")


def load(folder: Path) -> History:
    """Return a run that was kept. Raises BrokenHistoryError."""
    records, calls, _ = read([folder / RECORDS])
    return History(
        records=records,
        calls=calls,
        final=msgspec.json.decode((folder / FINAL).read_bytes(), type=Final),
        terms=msgspec.json.decode((folder / TERMS).read_bytes(), type=Terms),
        reading=msgspec.json.decode((folder / READING).read_bytes(), type=Reading),
    )
