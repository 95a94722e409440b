"""worker-ctl status."""

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from millhand_fleet.ctl.desk_client import ask, await_ready
from millhand_fleet.ctl.settings import load_config


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON object.")
@click.option(
    "--wait", "wait_s", type=click.FloatRange(0, 3600), help="Wait so many seconds for the fleet to be ready."
)
@click.pass_obj
def status(file: Path | None, as_json: bool, wait_s: float | None) -> None:  # noqa: FBT001 - click's signature
    """Show the fleet: its health, its streams, a line for each process.

    Exit code 0 if it answers; with --wait 1 if it is not ready by then; 69 if it does not answer.

    \b
    Examples: worker-ctl status --wait 60
              worker-ctl status --json | jq .health.backlog
    """  # noqa: D301 - click's own mark
    config = load_config(file)
    if wait_s is not None:
        await_ready(config, wait_s)
    document = ask(config, "GET", "/status")
    if as_json:
        click.echo(json.dumps(document))
    else:
        _show(document)
    if wait_s is not None and not document["health"]["ready"]:
        sys.exit(1)


def _show(document: dict[str, Any]) -> None:
    console = Console(highlight=False)
    health, streams, redis = document["health"], document["streams"], document["redis"]
    colour = {"ok": "green", "degraded": "yellow"}.get(health["status"], "red")
    console.print(
        f"fleet [bold]{document['fleet']}[/]  [{colour}]{health['status']}[/]  model {escape(document['model'])}"
    )
    for reason in health["reasons"]:
        console.print(f"  [{colour}]•[/] {escape(reason)}", soft_wrap=True)
    rate = "-" if health["success_rate"] is None else f"{health['success_rate']:.2%}"
    console.print(
        f"backlog {streams['backlog']}  pending {streams['pending']} (parked {streams['parked']})  "
        f"enriched {streams['enriched']}  dead letters {streams['dead']}  success {rate}  "
        f"{streams['enriched_per_s']:g} events/s",
        soft_wrap=True,
    )
    console.print(
        f"redis {escape(redis['server'] or redis['error'] or 'not asked yet')}  durability {redis['durability']}"
    )
    console.print(f"gate {escape(_gate_text(document['gate']))}{_cache_text(streams)}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("process", "state", "pid", "up", "restarts", "last exit", "doing"):
        table.add_column(column)
    for row in document["children"]:
        table.add_row(*_cells(row))
    console.print(table)


def _gate_text(gate: dict[str, Any]) -> str:
    """Say in a line what the gate lets through."""
    failed = sum(count for end, count in gate["calls"].items() if end != "ok")
    tokens = "" if gate["tokens"] is None else f"  tokens {gate['tokens']:g}"
    permits = f"permits {gate['permits']} of {gate['permits_max']}"
    return f"{gate['state']}  {permits}{tokens}  calls {gate['calls']['ok']} ok, {failed} failed"


def _cache_text(streams: dict[str, Any]) -> str:
    """Say which share of the questions the cache has answered, if it is asked at all."""
    saved = streams["cache_hits"] + streams["cache_joined"]
    asked = saved + streams["cache_misses"]
    return f"  cache {saved / asked:.0%} of {asked}" if asked else ""


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    stats = row.get("stats") or {}
    doing = stats.get("waits_for") or "  ".join(f"{name} {count}" for name, count in stats.items() if count)
    up = f"{row['for_s']:.0f} s" if "for_s" in row else ""
    cells = (row["name"], row["state"], row.get("pid", ""), up, row["restarts"], row["last_exit"] or "", doing)
    return tuple(escape(str(cell)) for cell in cells)
