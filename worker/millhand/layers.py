"""How file, environment and flags become one configuration.

Later wins: built-in default < TOML file < `MILLHAND_<SECTION>_<KEY>` < command-line flag. Everything is checked here,
at the border, and everything that is wrong is told at once; a value that got through needs no second look.
"""

import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from millhand.config import (
    ENVIRONMENT_FILE,
    ENVIRONMENT_PREFIX,
    NAME_RULE,
    SECRETS,
    SECTIONS,
    TASK_NAME,
    Config,
    Section,
    TaskField,
    TaskTable,
    guess,
    impossible,
    meant_clause,
)
from millhand.errors import ConfigError
from millhand.secret import is_public


def load(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any] | None = None) -> Config:
    """Build the configuration from its layers.

    `flags` maps "section.key" to a value that is already typed. Raises ConfigError with every problem found: which key,
    where it stands, what is wrong with it, and what was perhaps meant.
    """
    config, problems = load_what_is_right(file, environment, flags)
    if problems:
        raise ConfigError(problems)
    return config


def load_what_is_right(
    file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any] | None = None
) -> tuple[Config, list[str]]:
    """Build a configuration in which what is wrong is left at its default; return it with every problem found.

    Of what cannot work together, or is no address, nothing is left out: it is only told.
    """
    layers = _Layers()
    if file is not None:
        layers.add_file(file)
    layers.add_environment(environment)
    for key, value in (flags or {}).items():
        section, _, name = key.partition(".")
        layers.add(section, name, value, origin="--" + name.replace("_", "-"))
    return layers.build(), layers.problems


class _Layers:
    """Collects values layer by layer, and every problem on the way, so that a person fixes them in one go."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
        self.tasks: dict[str, TaskTable] = {}
        self.origins: dict[str, str] = {}
        self.problems: list[str] = []

    def add_file(self, file: Path) -> None:
        try:
            document = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            self.problems.append(f"{file}: cannot be read: {error.strerror}")
            return
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            self.problems.append(f"{file}: is not TOML: {error}")
            return
        for section, table in document.items():
            if section == "task":
                self._add_tasks(table, str(file))
            elif section not in SECTIONS:
                self._refuse(section, str(file), "there is no such section", guess(section, [*SECTIONS, "task"]))
            elif not isinstance(table, dict):
                self._refuse(section, str(file), "is a section: write [" + section + "] and its keys below it")
            else:
                for key, value in table.items():
                    self.add(section, key, value, origin=str(file))
        if self.values["redis"].get("password") and is_public(file):
            self._refuse("redis.password", str(file), f"can be read by everybody on this host: chmod o-r {file}")

    def add_environment(self, environment: Mapping[str, str]) -> None:
        for variable, text in sorted(environment.items()):
            if not variable.startswith(ENVIRONMENT_PREFIX) or variable == ENVIRONMENT_FILE:
                continue
            section, _, key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().partition("_")
            if section in SECTIONS and key in _types(SECTIONS[section]):
                self.add(section, key, _from_text(text, _types(SECTIONS[section])[key]), origin=variable, strict=False)
            else:
                self.problems.append(
                    f"{variable} (environment): no key has this name{meant_clause(guess(variable, _variables()))}"
                )

    def add(self, section: str, key: str, value: Any, *, origin: str, strict: bool = True) -> None:
        values = self._converted(section, SECTIONS[section], {key: value}, origin, strict=strict)
        self.values[section] |= values
        if values:
            self.origins[f"{section}.{key}"] = origin

    def _add_tasks(self, tables: Any, origin: str) -> None:
        if not isinstance(tables, dict):
            self._refuse("task", origin, "is a section: write [task.NAME] and its keys below it")
            return
        for name, table in tables.items():
            path = f"task.{name}"
            self.origins[path] = origin
            if not re.fullmatch(TASK_NAME, name):
                self._refuse(path, origin, NAME_RULE)
            elif isinstance(table, dict):
                self._add_task(name, table, origin)
            else:
                self._refuse(path, origin, f"is a section: write [{path}] and its keys below it")

    def _add_task(self, name: str, table: dict[str, Any], origin: str) -> None:
        path, before = f"task.{name}", len(self.problems)
        values = self._converted(path, TaskTable, {key: part for key, part in table.items() if key != "fields"}, origin)
        fields = table.get("fields")
        if not isinstance(fields, dict) or not fields:
            self._refuse(path, origin, "has no `fields`: an answer needs at least one")
        built: dict[str, TaskField] = {}
        for field_name, field in fields.items() if isinstance(fields, dict) else ():
            place = f"{path}.fields.{field_name}"
            if not re.fullmatch(TASK_NAME, field_name):
                self._refuse(place, origin, NAME_RULE)
            elif not isinstance(field, dict):
                self._refuse(place, origin, 'is a table, e.g. { type = "string" }')
            else:
                before_field = len(self.problems)
                members = self._converted(place, TaskField, field, origin)
                if len(self.problems) == before_field:
                    built[field_name] = TaskField(**members)
        if len(self.problems) == before:
            self.tasks[name] = TaskTable(prompt=values["prompt"], fields=built)

    def _converted(
        self,
        path: str,
        struct: type[Section],
        table: dict[str, Any],
        origin: str,
        *,
        strict: bool = True,
    ) -> dict[str, Any]:
        """Return the values of a table that are right; refuse each that is not, and each that is missing."""
        wanted, values = _types(struct), {}
        for key, value in table.items():
            if key not in wanted:
                self._refuse(f"{path}.{key}", origin, "there is no such key", guess(key, wanted))
                continue
            try:
                values[key] = msgspec.convert(value, wanted[key], strict=strict)
            except msgspec.ValidationError as error:
                shown = "its value" if f"{path}.{key}" in SECRETS else repr(value)[:80]
                self._refuse(f"{path}.{key}", origin, *_explained(value, wanted[key], error, shown))
        for field in msgspec.structs.fields(struct):
            if field.required and field.name not in table and field.name != "fields":
                self._refuse(path, origin, f"has no `{field.name}`")
        return values

    def build(self) -> Config:
        sections: dict[str, Any] = {name: struct(**self.values[name]) for name, struct in SECTIONS.items()}
        config = Config(**sections, task=self.tasks, origins=self.origins)
        for key, reason in impossible(config):
            self._refuse(key, self.origins.get(key, "default"), reason)
        return config

    def _refuse(self, key: str, origin: str, reason: str, meant: str | None = None) -> None:
        self.problems.append(f"{key} ({origin}): {reason}{meant_clause(meant)}")


def _types(struct: type[Section]) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(struct)}


def _variables() -> list[str]:
    return [f"{ENVIRONMENT_PREFIX}{s}_{key}".upper() for s, struct in SECTIONS.items() for key in _types(struct)]


def _from_text(text: str, wanted: Any) -> Any:
    inner = typing.get_args(wanted)[0] if typing.get_origin(wanted) is Annotated else wanted
    if typing.get_origin(inner) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    if typing.get_origin(inner) is types.UnionType or typing.get_origin(inner) is typing.Union:
        return int(text) if text.isascii() and text.isdigit() else text
    return text


def _explained(value: Any, wanted: Any, error: msgspec.ValidationError, shown: str) -> tuple[str, str | None]:
    """Return what is wrong with a value in words, and what was perhaps meant."""
    choices = _choices(wanted)
    if typing.get_origin(wanted) is Literal or (choices and isinstance(value, str)):
        return f"{shown} is none of: {', '.join(choices)}", guess(str(value), choices)
    if "matching regex" in str(error):
        return f"{shown} will not do: {NAME_RULE}", None
    return f"{shown} will not do: {error}", None


def _choices(wanted: Any) -> tuple[str, ...]:
    """Return the words that a value may be, if it may be words; what else it may be is told as "a number"."""
    if typing.get_origin(wanted) is Literal:
        return typing.get_args(wanted)
    parts = typing.get_args(wanted) if typing.get_origin(wanted) in {types.UnionType, typing.Union} else ()
    words = next((typing.get_args(part) for part in parts if typing.get_origin(part) is Literal), ())
    return ("a number", *words) if words else ()
