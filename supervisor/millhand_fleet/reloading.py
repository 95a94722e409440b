"""What a configuration that was read again changes, and what it may not change while the fleet runs."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from millhand.config import EMBEDDED, SECTIONS, Config
from millhand.errors import Unusable
from millhand_fleet.admission import require_usable
from millhand_fleet.blueprint import Blueprint, RefusedError, Renewal

EVERYBODY = frozenset({"worker", "janitor", "desk"})
READ_BY = {  # who has to be replaced when a key, or a section, changes; everybody where nothing is said
    "fleet.workers": frozenset[str](),
    "fleet.recycle_events": frozenset[str](),
    "fleet.recycle_mib": frozenset[str](),
    "janitor": frozenset({"janitor"}),
    "desk": frozenset({"desk"}),
}
FIXED = {  # what only a new start of the fleet can change, and why
    "fleet.name": "it names the fleet's keys",
    "fleet.state_dir": "the supervisor holds it",
    "redis": "the whole fleet must be on one Redis and its streams",
    "desk.port": "the socket is open",
    "log.format": "the supervisor has its own already",
}
FIXED_IF_EMBEDDED = {"model.num_ctx": "the embedded model is loaded with it"}


class Reloader:
    """Reads the configuration again when it is called, and accepts it whole or not at all."""

    def __init__(self, config: Config, read: Callable[[], Config], drawn: Callable[[Config], Blueprint]) -> None:
        self._config = config
        self._read = read
        self._drawn = drawn

    def __call__(self) -> Renewal:
        """Return what has changed since the last time. Raises RefusedError with every problem, one a line."""
        try:
            config = self._read()
            require_usable(config)
        except Unusable as error:
            raise RefusedError("invalid", f"the configuration cannot be used; nothing has changed\n{error}") from error
        except Exception as error:  # a plug-in may raise anything, and a fleet that works must not end over it
            said = f"{type(error).__name__}: {error}"
            raise RefusedError("invalid", f"a task cannot be loaded; nothing has changed\n{said}") from error
        changed = changed_keys(self._config, config)
        if fixed := list(fixed_keys(changed, self._config, config)):
            raise RefusedError(
                "conflict", "\n".join(["stop the fleet and start it for this; nothing has changed", *fixed])
            )
        self._config = config
        return Renewal(self._drawn(config), config.fleet.workers, changed, concerned(changed))


def changed_keys(before: Config, after: Config) -> tuple[str, ...]:
    """Return the keys whose values differ: "section.key", and "task.NAME" for a table of a task."""
    old, new = _values(before), _values(after)
    return tuple(key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key))


def fixed_keys(changed: tuple[str, ...], before: Config, after: Config) -> Iterator[str]:
    """Yield a sentence for each changed key that cannot change while the fleet runs."""
    fixed = {**FIXED, **(FIXED_IF_EMBEDDED if before.model.url == EMBEDDED else {})}
    if EMBEDDED in {before.model.url, after.model.url}:
        fixed["model.url"] = "the embedded model is a child of the fleet"
    for key in changed:
        if why := fixed.get(key) or fixed.get(key.partition(".")[0]):
            yield f"{key} ({after.origins.get(key, 'default')}): cannot change while the fleet runs: {why}"


def concerned(changed: tuple[str, ...]) -> frozenset[str]:
    """Return which children have to be replaced."""
    none = frozenset[str]()
    return none.union(*(READ_BY.get(key, READ_BY.get(key.partition(".")[0], EVERYBODY)) for key in changed))


def _values(config: Config) -> dict[str, Any]:
    sections = {name: msgspec.to_builtins(getattr(config, name)) for name in SECTIONS}
    values = {f"{section}.{key}": value for section, table in sections.items() for key, value in table.items()}
    return values | {f"task.{name}": msgspec.to_builtins(table) for name, table in config.task.items()}
