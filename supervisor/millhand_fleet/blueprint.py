"""What a supervisor is given: the children that it keeps, and whom else it has to do with."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from millhand_fleet.child import Spec
from millhand_fleet.notify import Notify
from millhand_fleet.restarts import Wear


class Tell(Protocol):
    """Where events go: a structlog logger, or a test's list."""

    def info(self, event: str, **fields: Any) -> Any: ...  # noqa: D102 - as in structlog
    def warning(self, event: str, **fields: Any) -> Any: ...  # noqa: D102
    def error(self, event: str, **fields: Any) -> Any: ...  # noqa: D102


@dataclass(frozen=True)
class Roles:
    """The children of a fleet. They start in this order and stop in the reverse one."""

    servers: tuple[Spec, ...]
    janitor: Callable[[tuple[str, ...]], Spec]  # made anew each time, with the consumers that live
    desk: Spec
    worker: Callable[[int], Spec]


@dataclass(frozen=True)
class Blueprint:
    """What the configuration makes of the fleet. A reload brings another."""

    roles: Roles
    drain_s: float
    wear: Wear
    stop_wait_note: str | None = None  # that whoever runs us would kill us before so long a drain can end


@dataclass(frozen=True)
class Renewal:
    """A configuration that was read again: what has changed in it, and which children that concerns."""

    blueprint: Blueprint
    workers: int  # as configured
    changed: tuple[str, ...] = ()
    concerns: frozenset[str] = frozenset()  # of "worker", "janitor", "desk"


class RefusedError(Exception):
    """An order that is not carried out: its text says why. `kind` is "invalid" or "conflict"."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True)
class Outside:
    """What the supervisor has to do with besides its children."""

    tell: Tell
    notify: Notify
    renew: Callable[[], Renewal]  # reads the configuration again; raises RefusedError
    remember: Callable[[Iterable[int]], None]  # keeps the processes' ids for who comes after us; raises OSError
