"""worker-ctl scale, stop: what is ordered from a running fleet."""

import time
from pathlib import Path

import click

from millhand_fleet.ctl.desk_client import POLL_S, ask
from millhand_fleet.ctl.settings import leave, load_config
from millhand_fleet.state import StateDir

STOP_GRACE_S = 30.0  # beyond the drain deadline


@click.command()
@click.argument("workers", type=click.IntRange(0, 256))
@click.pass_obj
def scale(file: Path | None, workers: int) -> None:
    """Change the number of workers to WORKERS. It is kept over restarts.

    \b
    Example: worker-ctl scale 8
    """  # noqa: D301 - click's own mark
    answer = ask(load_config(file), "POST", "/scale", {"workers": workers})
    click.echo(f"workers: {answer['before']} -> {answer['workers']}")


@click.command()
@click.pass_obj
def stop(file: Path | None) -> None:
    """Stop the fleet, and wait until it has stopped. Events in hand may finish first.

    \b
    Example: worker-ctl stop
    """  # noqa: D301 - click's own mark
    config = load_config(file)
    ask(config, "POST", "/stop")
    state = StateDir(config.state_dir)
    deadline = time.monotonic() + config.fleet.drain_s + STOP_GRACE_S
    while state.held():
        if time.monotonic() > deadline:
            leave("the fleet has not stopped in time; see its log", code=1)
        time.sleep(POLL_S)
    click.echo("stopped")
