"""Telling what happens: named events with fields, one JSON object a line, or readable on a terminal.

Every event's name, level, meaning and fields stand in `conf/log-events.md`. A payload is in none of them.
"""

import atexit
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO, cast

import msgspec
import structlog

from millhand.config import Log
from millhand.errors import clip
from millhand.flood import Flood
from millhand.outlet import Outlet

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

DRAIN_S_MAX = 1.0  # at the end of a process, for what is still queued
TRACEBACK_CHARS_MAX = 3000  # of the end, so that the record is one write to a pipe (PIPE_BUF, 4096 bytes)
PROCESS_CHARS, EVENT_CHARS = 11, 18  # columns on a terminal


class _Process:
    """This process's log, as far as it is not structlog's."""

    outlet: Outlet | None = None
    flood: Flood | None = None


def configure(log: Log, process: str) -> None:
    """Set this process's log up. `process` is who speaks: supervisor, worker-1, janitor, desk."""
    console = log.format == "console" or (log.format == "auto" and sys.stderr.isatty())
    in_full = log.level == "debug"
    outlet = _Process.outlet = Outlet(sys.stderr.fileno())
    flood = _Process.flood = Flood(
        lambda event, count: _speaker(process).warning("log.suppressed", of=event, count=count)
    )
    outlet.tell_dropped = lambda count: _speaker(process).warning("log.dropped", count=count)
    structlog.configure(
        processors=[
            *([] if in_full else [flood]),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
            *([_on_the_monotonic_clock] if in_full else []),
            structlog.processors.format_exc_info,
            _in_reading_order,
            *([_who_first, _console()] if console else [structlog.processors.JSONRenderer(serializer=_json)]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, log.level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", outlet)),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    logging.basicConfig(handlers=[_Library(_speaker(process))], level=logging.WARNING)
    logging.captureWarnings(capture=True)
    atexit.register(drain)


def logger() -> "FilteringBoundLogger":
    """Return the process's logger."""
    log: FilteringBoundLogger = structlog.get_logger().bind()  # each call of one not bound would look its level up
    return log


def is_at_debug(log: "FilteringBoundLogger") -> bool:
    """Whether debug records are written: else what they would say need not be put together for each event."""
    return log.is_enabled_for(logging.DEBUG)


def dropped() -> int:
    """Return how many lines nobody could be given, so far; tell of what was left out. To be called now and then."""
    if _Process.flood:
        _Process.flood.tell_what_was_left_out()
    return _Process.outlet.dropped if _Process.outlet else 0


def drain() -> None:
    """Write what is still queued, within a bounded time. For the end of a process."""
    if _Process.flood:
        _Process.flood.tell_what_was_left_out(at_once=True)
    if _Process.outlet:
        _Process.outlet.drain(DRAIN_S_MAX)


def _speaker(process: str) -> "FilteringBoundLogger":
    """Return a logger for what is told from another thread, which has no context of its own."""
    log: FilteringBoundLogger = structlog.get_logger(process=process)
    return log


class _Library(logging.Handler):
    """Tells what a library says, so that it too is a line of the same kind and waits for nobody."""

    def __init__(self, log: "FilteringBoundLogger") -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        say = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        say("library.said", library=record.name, detail=clip(record.getMessage()), exc_info=record.exc_info)


def _console() -> Any:
    """Render for the eye: in colours on a terminal that wants them, and without a traceback's variables."""
    return structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"),  # no-color.org
        pad_event_to=PROCESS_CHARS + EVENT_CHARS,
        exception_formatter=structlog.dev.plain_traceback,
        sort_keys=False,
    )


def _who_first(_: Any, __: str, record: Any) -> Any:
    """Let whose line it is stand in a column of its own, and no foreign text make a terminal misbehave."""
    record["event"] = f"{record.pop('process', ''):<{PROCESS_CHARS - 1}} {record['event']}"
    return {name: _visible(value) if name != "exception" else value for name, value in record.items()}


def _visible(value: Any) -> Any:
    return ascii(value)[1:-1] if isinstance(value, str) and not value.isprintable() else value


def _in_reading_order(_: Any, __: str, record: Any) -> Any:
    """Put first what an eye looks for first, and cut a traceback to its end, where the error stands."""
    first = {key: record.pop(key) for key in ("timestamp", "level", "process", "event") if key in record}
    if len(record.get("exception", "")) > TRACEBACK_CHARS_MAX:
        record["exception"] = "…" + record["exception"][-TRACEBACK_CHARS_MAX:]
    return {**first, **record}


def _on_the_monotonic_clock(_: Any, __: str, record: Any) -> Any:
    """Add the time by which the records of all processes of a host can be ordered, whatever the wall clock does."""
    record["mono"] = round(time.monotonic(), 6)
    return record


def _json(record: Any, **_: Any) -> str:
    return msgspec.json.encode(record, enc_hook=str).decode()
