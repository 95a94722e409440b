"""The command itself: global options, and commands that are loaded when they are called.

Worker processes import this module again (multiprocessing's spawn does), so it stays light.
"""

import difflib
import importlib
from pathlib import Path
from typing import Any

import click

from millhand import __version__

COMMANDS = {
    "up": "millhand_fleet.ctl.up:up",
    "stop": "millhand_fleet.ctl.orders:stop",
    "scale": "millhand_fleet.ctl.orders:scale",
    "status": "millhand_fleet.ctl.status:status",
    # top stands here
    # ---
    "pause": "millhand_fleet.ctl.orders:pause",
    "resume": "millhand_fleet.ctl.orders:resume",
    "drain": "millhand_fleet.ctl.orders:drain",
    "restart": "millhand_fleet.ctl.orders:restart",
    "reload": "millhand_fleet.ctl.orders:reload",
    # ---
    "produce": "millhand_fleet.ctl.produce:produce",
    # tail stands here
    "dead": "millhand_fleet.ctl.dead:dead",
    # trim and verify stand here
    "compare": "millhand_fleet.ctl.compare:compare",
    # ---
    # doctor stands here
    # ---
    "config": "millhand_fleet.ctl.config:config",
    # demo and completion stand here
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Find a command, and guess at what was meant where there is none."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            meant = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(COMMANDS)}."
            ctx.fail(f"No such command {args[0]!r}. {meant}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="MILLHAND_CONFIG",
    help="The TOML file. Default: ./millhand.toml, then /etc/millhand/millhand.toml, then built-in values.",
)
@click.version_option(__version__, prog_name="worker-ctl")
@click.pass_context
def cli(ctx: click.Context, file: Path | None) -> None:
    """Run and mind a fleet of workers that enrich events with a local language model."""
    ctx.obj = file


def main() -> None:
    """Run the command."""
    cli(prog_name="worker-ctl")


if __name__ == "__main__":
    main()
