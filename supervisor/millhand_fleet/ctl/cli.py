"""The command itself: global options, and commands that are loaded when they are called."""

import ast
import difflib
import importlib.util
import io
import os
import sys
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from millhand import __version__

COMMANDS = {
    "up": "millhand_fleet.ctl.up:up",
    "stop": "millhand_fleet.ctl.orders:stop",
    "scale": "millhand_fleet.ctl.orders:scale",
    "status": "millhand_fleet.ctl.status:status",
    "top": "millhand_fleet.ctl.top:top",
    "pause": "millhand_fleet.ctl.orders:pause",
    "resume": "millhand_fleet.ctl.orders:resume",
    "drain": "millhand_fleet.ctl.orders:drain",
    "restart": "millhand_fleet.ctl.orders:restart",
    "reload": "millhand_fleet.ctl.orders:reload",
    "produce": "millhand_fleet.ctl.produce:produce",
    "tail": "millhand_fleet.ctl.tail:tail",
    "dead": "millhand_fleet.ctl.dead:dead",
    "trim": "millhand_fleet.ctl.trim:trim",
    "verify": "millhand_fleet.ctl.verify:verify",
    "compare": "millhand_fleet.ctl.compare:compare",
    "doctor": "millhand_fleet.ctl.doctor:doctor",
    "config": "millhand_fleet.ctl.config:config",
    "demo": "millhand_fleet.ctl.demo:demo",
    "completion": "millhand_fleet.ctl.completion:completion",
}


EX_INTERRUPTED = 130  # as shells say it of Ctrl-C
PROGRAM = "worker-ctl"
COMPLETE_VARIABLE = "_WORKER_CTL_COMPLETE"
SECTIONS = {"up": "The fleet", "produce": "Its events", "doctor": "Around it", "config": "Around it"}  # begin here

EPILOG = """\b
Exit codes:
   0  done
   1  refused, failed, or not as it should be; a line says why
   2  a wrong argument
   3  what doctor found is an error
  69  the fleet, or its Redis, does not answer
  75  another supervisor is there already
  78  only a change of settings helps
 130  interrupted by Ctrl-C

Most commands take --json. Colour is for terminals alone; NO_COLOR=1 is honoured there too."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called: help and completion take their words from the text."""

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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands in sections, without importing them."""
        del ctx
        sections: list[tuple[str, list[tuple[str, str]]]] = []
        for name in COMMANDS:
            heading = SECTIONS.get(name, sections[-1][0] if sections else "Commands")
            if not sections or heading != sections[-1][0]:
                sections.append((heading, []))
            sections[-1][1].append((name, summary(name)))
        for heading, rows in sections:
            with formatter.section(heading):
                formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name without importing it, or an option."""
        names = [CompletionItem(name, help=summary(name)) for name in COMMANDS if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Ctrl-C ends each with the code that shells expect."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(EX_INTERRUPTED)


def summary(name: str) -> str:
    """Return the first sentence of a command's help. It is read from the source: importing all of them takes long."""
    module, _, function = COMMANDS[name].partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None, module  # noqa: S101
    assert spec.origin is not None, module  # noqa: S101
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            paragraph, _, _ = (ast.get_docstring(node) or "").partition("\n\n")
            sentence, _, _ = " ".join(paragraph.split()).partition(". ")
            return sentence.removesuffix(".")
    raise LookupError(COMMANDS[name])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="MILLHAND_CONFIG",
    help="The TOML file. Default: ./millhand.toml, then /etc/millhand/millhand.toml, then built-in values.",
)
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_context
def cli(ctx: click.Context, file: Path | None) -> None:
    """Run and mind a fleet of workers that enrich events with a local language model.

    \b
    Example: worker-ctl up --embedded
    """  # noqa: D301 - click's own mark
    ctx.obj = file
    if os.environ.get("NO_COLOR"):
        ctx.color = False


def run() -> None:
    """Run the command. What the terminal's encoding has no sign for is written with backslashes, and ends nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    cli(prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE)
