"""worker-ctl status."""

import json
import sys
from pathlib import Path

import click
from rich.console import Console, Group, RenderableType
from rich.text import Text

from millhand_fleet.ctl.desk_client import ask, await_ready
from millhand_fleet.ctl.screen import fact_table, note_table, print_trimmed, process_table, reason_table, title
from millhand_fleet.ctl.settings import load_for_orders
from millhand_fleet.ctl.wording import Document, facts

WIDTH_OFF_TERMINAL = 1000  # a line of a file or a pipe is not wrapped: grep shall find it
REASONS_MAX = 1000  # all of them
EX_NOT_READY = 1
ROLLING_NOTE = "rolling "  # the headline says that


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON object.")
@click.option(
    "--wait", "wait_s", type=click.FloatRange(0, 3600), metavar="SECONDS",
    help="Wait for the fleet to be ready, for so long at most.",
)  # fmt: skip
@click.pass_obj
def status(file: Path | None, *, as_json: bool, wait_s: float | None) -> None:
    """Show the fleet: its health, its streams, a line for each process.

    Exit code 0 if it answers; with --wait 1 if it is not ready by then; 69 if it does not answer.

    \b
    Examples: worker-ctl status --wait 60
              worker-ctl status --json | jq .health.backlog
    """  # noqa: D301 - click's own mark
    config = load_for_orders(file)
    if wait_s is not None:
        await_ready(config, wait_s)
    document = ask(config, "GET", "/status")
    if as_json:
        click.echo(json.dumps(document))
    else:
        show(document, Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_OFF_TERMINAL))
    if wait_s is not None and not document["health"]["ready"]:
        sys.exit(EX_NOT_READY)


def show(document: Document, console: Console) -> None:
    """Print the document for a person."""
    columns = console.width
    parts: list[RenderableType] = [title(document)]
    if document["health"]["reasons"]:
        parts.append(reason_table(document, columns, REASONS_MAX, wraps=True))
    if notes := [note for note in document["health"].get("notes", []) if not note.startswith(ROLLING_NOTE)]:
        parts.append(note_table(notes, columns))
    parts += [Text(), fact_table(facts(document), columns, wraps=True)]
    parts += [Text(), process_table(document["children"], columns, wraps=True)]
    print_trimmed(console, Group(*parts))
