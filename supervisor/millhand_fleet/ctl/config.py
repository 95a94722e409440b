"""worker-ctl config show, check."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from millhand.address import HIDDEN, told
from millhand.config import SECRETS, SECTIONS, Config
from millhand.errors import ConfigError, Unusable
from millhand.layers import load
from millhand_fleet.admission import require_usable
from millhand_fleet.ctl.settings import found_file, leave, load_config

AS_JSON = click.option("--json", "as_json", is_flag=True, help="The same as one JSON object.")


@click.group()
def config() -> None:
    """Look at the configuration."""


@config.command()
@AS_JSON
@click.pass_obj
def show(file: Path | None, *, as_json: bool) -> None:
    """Print the configuration in force, and where each value comes from.

    Exit code 0; 78 if it cannot be used.

    \b
    Examples: worker-ctl --config conf/millhand.toml config show
              worker-ctl config show --json | jq .model.name.value
    """  # noqa: D301 - click's own mark
    settings = load_config(file)
    if as_json:
        click.echo(json.dumps(_document(settings)))
        return
    for section in SECTIONS:
        click.echo(f"[{section}]")
        for key, value in msgspec.to_builtins(getattr(settings, section)).items():
            name = f"{section}.{key}"
            click.echo(f"{key} = {_toml(_shown(name, value))}  # {settings.origins.get(name, 'default')}")
        click.echo()
    for name, table in settings.task.items():
        click.echo(f"[task.{name}]  # {settings.origins[f'task.{name}']}\nprompt = {_toml(table.prompt)}")
        for field_name, field in table.fields.items():
            given = {key: value for key, value in msgspec.to_builtins(field).items() if value not in (None, ())}
            members = ", ".join(f"{key} = {_toml(value)}" for key, value in given.items())
            click.echo(f"fields.{field_name} = {{ {members} }}")
        click.echo()


@config.command()
@AS_JSON
@click.pass_obj
def check(file: Path | None, *, as_json: bool) -> None:
    """Check the configuration without starting anything.

    Exit code 0 if a fleet could start with it; 78 with every problem, a line each, if not.

    \b
    Examples: worker-ctl --config conf/millhand.toml config check
              worker-ctl config check --json | jq -r '.problems[]'
    """  # noqa: D301 - click's own mark
    where = str(file or found_file() or "built-in values")
    try:
        settings = load(file or found_file(), os.environ)
        require_usable(settings)
    except Unusable as error:
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        if not as_json:
            leave("the configuration cannot be used", *problems)
        click.echo(json.dumps({"good": False, "file": where, "problems": problems}))
        sys.exit(os.EX_CONFIG)
    if as_json:
        click.echo(json.dumps({"good": True, "file": where, "problems": [], "tasks": settings.enrich.tasks}))
    else:
        click.echo(f"{where}: good; tasks {', '.join(settings.enrich.tasks)}")


def _document(settings: Config) -> dict[str, Any]:
    """Return each value with its origin; the tasks of the file as they stand in it."""
    sections = {
        section: {
            key: {
                "value": _shown(f"{section}.{key}", value),
                "origin": settings.origins.get(f"{section}.{key}", "default"),
            }
            for key, value in msgspec.to_builtins(getattr(settings, section)).items()
        }
        for section in SECTIONS
    }
    return {**sections, "task": msgspec.to_builtins(settings.task)}


def _shown(name: str, value: Any) -> Any:
    """Return a value as it may be shown, and as JSON can hold it."""
    if name in SECRETS:
        return _masked(name, value)
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _masked(name: str, value: str) -> str:
    return told(value) if name == "redis.url" else HIDDEN if value else ""


def _toml(value: object) -> str:
    return msgspec.json.encode(value).decode()
