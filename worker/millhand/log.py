"""Telling what happens: named events with fields, one JSON object a line, or readable on a terminal."""

import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO, cast

import msgspec
import structlog

from millhand.config import Log

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


def configure(log: Log, process: str) -> None:
    """Set this process's log up. `process` is who speaks: supervisor, worker-1, janitor, desk."""
    console = log.format == "console" or (log.format == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(pad_event_to=18)
        if console
        else structlog.processors.JSONRenderer(serializer=_json)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
            *([_on_the_monotonic_clock] if log.level == "debug" else []),
            structlog.processors.format_exc_info,
            _in_reading_order,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, log.level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Patient(sys.stderr.fileno()))),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)


def logger() -> "FilteringBoundLogger":
    """Return the process's logger."""
    log: FilteringBoundLogger = structlog.get_logger()
    return log


class _Patient:
    """A descriptor whose reader may go away: what cannot be written is dropped and counted, and nobody dies of it.

    A record is one write, so that those of several processes do not run into each other.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.dropped = 0

    def write(self, text: str) -> None:
        try:
            os.write(self._descriptor, text.encode(errors="replace"))
        except OSError:
            self.dropped += 1

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""


def _in_reading_order(_: Any, __: str, record: Any) -> Any:
    """Put first what an eye looks for first."""
    first = {key: record.pop(key) for key in ("timestamp", "level", "process", "event") if key in record}
    return {**first, **record}


def _on_the_monotonic_clock(_: Any, __: str, record: Any) -> Any:
    """Add the time by which the records of all processes of a host can be ordered, whatever the wall clock does."""
    record["mono"] = round(time.monotonic(), 6)
    return record


def _json(record: Any, **_: Any) -> str:
    return msgspec.json.encode(record, enc_hook=str).decode()
