"""worker-ctl status, scale, stop: what is asked of, or ordered from, a running fleet."""

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from millhand.config import CONTROL_SOCKET, Config
from millhand_fleet.ctl.settings import EX_UNAVAILABLE, leave, load_config
from millhand_fleet.state import StateDir

ANSWER_TIMEOUT_S = 8.0
STOP_GRACE_S = 30.0  # beyond the drain deadline
POLL_S = 0.1


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
        _await_ready(config, wait_s)
    document = _ask(config, "GET", "/status")
    if as_json:
        click.echo(json.dumps(document))
    else:
        _show(document)
    if wait_s is not None and not document["health"]["ready"]:
        sys.exit(1)


@click.command()
@click.argument("workers", type=click.IntRange(0, 256))
@click.pass_obj
def scale(file: Path | None, workers: int) -> None:
    """Change the number of workers to WORKERS. It is kept over restarts.

    \b
    Example: worker-ctl scale 8
    """  # noqa: D301 - click's own mark
    answer = _ask(load_config(file), "POST", "/scale", {"workers": workers})
    click.echo(f"workers: {answer['before']} -> {answer['workers']}")


@click.command()
@click.pass_obj
def stop(file: Path | None) -> None:
    """Stop the fleet, and wait until it has stopped. Events in hand may finish first.

    \b
    Example: worker-ctl stop
    """  # noqa: D301 - click's own mark
    config = load_config(file)
    _ask(config, "POST", "/stop")
    state = StateDir(config.state_dir)
    deadline = time.monotonic() + config.fleet.drain_s + STOP_GRACE_S
    while state.held():
        if time.monotonic() > deadline:
            leave("the fleet has not stopped in time; see its log", code=1)
        time.sleep(POLL_S)
    click.echo("stopped")


def _ask(config: Config, method: str, path: str, body: Any = None) -> Any:
    """Ask the desk; leave with what to do where it does not answer."""
    try:
        reply = _request(config, method, path, body)
    except httpx.TransportError as error:
        leave(*_remedy(config, error), code=EX_UNAVAILABLE)
    if reply.is_error:
        leave(reply.json().get("error", reply.text), code=1)
    return reply.json()


def _await_ready(config: Config, wait_s: float) -> None:
    """Wait until the fleet is ready, or the time is over."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if _request(config, "GET", "/readyz").is_success:
                return
        time.sleep(POLL_S)


def _request(config: Config, method: str, path: str, body: Any = None) -> httpx.Response:
    """Send a request to the desk's unix socket."""
    transport = httpx.HTTPTransport(uds=str(config.state_dir / CONTROL_SOCKET))
    with httpx.Client(transport=transport, base_url="http://desk", timeout=ANSWER_TIMEOUT_S) as client:
        return client.request(method, path, json=body)


def _remedy(config: Config, error: Exception) -> tuple[str, ...]:
    """Return why the desk does not answer, and what to do."""
    where = f"fleet {config.fleet.name!r} (state directory {config.state_dir})"
    try:
        running = StateDir(config.state_dir).held()
    except PermissionError:
        return (f"no permission to speak to {where}", "run worker-ctl as the user that runs the fleet")
    if running:
        return (f"{where} runs, but its desk does not answer: {error}", "try again; if that lasts, see its log")
    return (f"{where} is not running", "start it with `worker-ctl up`")


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
