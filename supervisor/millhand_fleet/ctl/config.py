"""worker-ctl config show, check."""

from pathlib import Path

import click
import msgspec

from millhand.address import HIDDEN, told
from millhand.config import EMBEDDED, SECRETS, SECTIONS, Config
from millhand.errors import ConfigError
from millhand.tasks.catalogue import chosen_tasks
from millhand_fleet.ctl.settings import found_file, leave, load_config, redis_url


@click.group()
def config() -> None:
    """Look at the configuration."""


@config.command()
@click.pass_obj
def show(file: Path | None) -> None:
    """Print the configuration in force, and where each value comes from.

    \b
    Example: worker-ctl --config conf/millhand.toml config show
    """  # noqa: D301 - click's own mark
    settings = load_config(file)
    for section in SECTIONS:
        click.echo(f"[{section}]")
        for key, value in msgspec.to_builtins(getattr(settings, section)).items():
            shown = _toml(_masked(key, value) if f"{section}.{key}" in SECRETS else value)
            click.echo(f"{key} = {shown}  # {settings.origins.get(f'{section}.{key}', 'default')}")
        click.echo()
    for name, table in settings.task.items():
        click.echo(f"[task.{name}]  # {settings.origins[f'task.{name}']}\nprompt = {_toml(table.prompt)}")
        for field_name, field in table.fields.items():
            given = {key: value for key, value in msgspec.to_builtins(field).items() if value not in (None, ())}
            members = ", ".join(f"{key} = {_toml(value)}" for key, value in given.items())
            click.echo(f"fields.{field_name} = {{ {members} }}")
        click.echo()


@config.command()
@click.pass_obj
def check(file: Path | None) -> None:
    """Check the configuration without starting anything. Exit code 0 if a fleet could start with it.

    \b
    Example: worker-ctl --config conf/millhand.toml config check
    """  # noqa: D301 - click's own mark
    settings = load_config(file)
    _check_tasks(settings)
    if settings.redis.url != EMBEDDED:
        redis_url(settings)
    click.echo(f"{file or found_file() or 'built-in values'}: good; tasks {', '.join(settings.enrich.tasks)}")


def _check_tasks(settings: Config) -> None:
    try:
        chosen_tasks(settings)
    except ConfigError as error:
        leave("the configuration cannot be used", *error.problems)


def _masked(key: str, value: str) -> str:
    return told(value) if key == "url" else HIDDEN if value else ""


def _toml(value: object) -> str:
    return msgspec.json.encode(value).decode()
