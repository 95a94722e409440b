"""Which tasks there are: built in, from the TOML file, or from a Python package's entry point."""

import math
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from millhand.config import Config, TaskField, TaskTable, guess
from millhand.errors import ConfigError
from millhand.tasks.builtin import builtin_tasks
from millhand.tasks.task import META, Result, Task

ENTRY_POINT_GROUP = "millhand.tasks"


def chosen_tasks(config: Config) -> list[Task]:
    """Return the tasks that `enrich.tasks` names, in its order. Raises ConfigError for one that does not exist."""
    known = builtin_tasks(config.enrich.translate_to)
    plugins = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    known |= {name: task_from_table(name, table) for name, table in config.task.items()}
    origin = config.origins.get("enrich.tasks", "default")
    tasks = []
    for name in config.enrich.tasks:
        if name == META:
            raise ConfigError([f"enrich.tasks ({origin}): a task cannot be called {META!r}, that member is millhand's"])
        if name not in known and name in plugins:
            known[name] = _load(plugins[name])
        if name not in known:
            names = sorted(known | plugins)
            meant = guess(name, names)
            raise ConfigError(
                [
                    f"enrich.tasks ({origin}): there is no task {name!r}"
                    + (f"; did you mean {meant}?" if meant else f"; there are {', '.join(names)}")
                ]
            )
        tasks.append(known[name])
    if len(set(config.enrich.tasks)) < len(config.enrich.tasks):
        raise ConfigError([f"enrich.tasks ({origin}): names a task twice"])
    return tasks


def task_from_table(name: str, table: TaskTable) -> Task:
    """Make a task of a `[task.NAME]` table of the configuration."""
    members = [(field_name, field_type(field)) for field_name, field in table.fields.items()]
    result = msgspec.defstruct(name.title(), members, bases=(Result,), frozen=True, forbid_unknown_fields=True)
    return Task(name, table.prompt, result)


def field_type(field: TaskField) -> Any:
    """Return the type, with its bounds, that one field of a task's result must have."""
    match field.type:
        case "enum":
            return Literal[field.values]
        case "integer":
            least = None if field.min is None else math.ceil(field.min)
            most = None if field.max is None else math.floor(field.max)
            return Annotated[int, Meta(ge=least, le=most)]
        case "number":
            return Annotated[float, Meta(ge=field.min, le=field.max)]
        case "boolean":
            return bool
        case "string":
            return Annotated[str, Meta(max_length=field.length_max)]
        case "list":
            member = Annotated[str, Meta(max_length=field.length_max)]
            return Annotated[list[member], Meta(max_length=field.items_max)]


def _load(point: Any) -> Task:
    where = f"entry point {point.name} = {point.value}"
    try:
        task = point.load()
    except (Exception, SystemExit) as error:  # a module that calls sys.exit() must not end a supervisor that reloads
        raise ConfigError([f"{where}: cannot be loaded: {type(error).__name__}: {error}"]) from error
    if not isinstance(task, Task):
        raise ConfigError([f"{where}: is a {type(task).__name__}, not a millhand.tasks.task.Task"])
    if task.name != point.name:
        raise ConfigError([f"{where}: its task is called {task.name!r}; both names must be the same"])
    return task
