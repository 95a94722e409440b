"""worker-ctl up."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from millhand.address import told
from millhand.config import EMBEDDED, Config
from millhand.errors import Unusable
from millhand.layers import load
from millhand.log import configure, drain, logger
from millhand.stop import ask_to_stop, on_hangup, on_stop_signals
from millhand_fleet.ctl.settings import found_file, leave, load_config
from millhand_fleet.leftovers import is_orphan
from millhand_fleet.state import POLL_S, FleetRunningError, StateDir

if TYPE_CHECKING:
    from millhand_fleet.assemble import Fleet

ROOM_GRACE_S = 30.0  # beyond the drain deadline, as `worker-ctl stop` waits


@click.command()
@click.option("--embedded", is_flag=True, help="Bring Redis and the model along, whatever the configuration says.")
@click.option("--workers", type=click.IntRange(0, 256), help="How many workers to start with.")
@click.pass_obj
def up(file: Path | None, embedded: bool, workers: int | None) -> None:  # noqa: FBT001 - click's signature
    """Run the fleet in the foreground until it is stopped.

    This is what supervisord or systemd runs. SIGTERM and Ctrl-C let the events in hand finish first. SIGHUP reads the
    configuration again, as `worker-ctl reload` does; from a terminal that is closed it stops the fleet.

    Exit code 0 after a stop; 74 if the state directory cannot be written; 75 if a supervisor is there already; 78 if
    only a change of settings helps.

    \b
    Example: worker-ctl up --embedded --workers 4
    """  # noqa: D301 - click's own mark
    flags = {"fleet.workers": workers}
    if embedded:
        flags |= {"redis.url": EMBEDDED, "model.url": EMBEDDED, "model.name": "smollm2:135m"}  # type: ignore[dict-item]
    given = {key: value for key, value in flags.items() if value is not None}
    config = load_config(file, given)
    configure(config.log, "supervisor")
    fleet = _assembled(config, lambda: load(file or found_file(), os.environ, given))
    on_stop_signals(fleet.supervisor.request_stop)
    on_hangup(fleet.supervisor.request_stop if sys.stderr.isatty() else fleet.supervisor.request_reload)
    _tell_up(config, fleet)
    try:
        unusable = fleet.supervisor.run()
    except Exception as error:  # noqa: BLE001 - whatever it is, a supervisor that does nothing must not stay
        logger().critical("supervisor.failed", error=str(error), exc_info=True)
        drain()
        os._exit(os.EX_SOFTWARE)  # the children hear it from their lines; a tidy exit would wait for them for ever
    if unusable:
        leave("the fleet cannot work", *unusable.splitlines())


def _assembled(config: Config, read: Callable[[], Config]) -> "Fleet":
    """Make the fleet; leave with what to do where that cannot be."""
    from millhand_fleet.assemble import assemble  # noqa: PLC0415 - loads every part of the fleet
    from millhand_fleet.stop_wait import stop_wait_of  # noqa: PLC0415

    waits = stop_wait_of(os.environ)
    try:
        try:
            return assemble(config, read, waits)
        except FleetRunningError as error:
            if not _made_room(config, error):
                raise
            return assemble(config, read, waits)
    except FleetRunningError as error:
        leave(str(error), code=os.EX_TEMPFAIL)
    except Unusable as error:
        first, _, rest = str(error).partition("\n")
        leave(first, *rest.splitlines())
    except OSError as error:
        why = error.strerror or str(error)
        leave(
            f"the state directory {config.state_dir} cannot be written: {why}",
            "make room there, then try again",
            code=os.EX_IOERR,
        )


def _made_room(config: Config, running: FleetRunningError) -> bool:
    """Have a fleet whose supervisord was killed make room for us, whom the next supervisord has started.

    It went on without anybody who minds it or reads its log. False if it is no such fleet.
    """
    if "SUPERVISOR_ENABLED" not in os.environ or not is_orphan(running.holder, running.parent):
        return False
    logger().warning("fleet.taken_over", pid=running.holder, detail="its supervisord is gone: it drains and makes room")
    ask_to_stop(running.holder)
    state, deadline = StateDir(config.state_dir), time.monotonic() + config.fleet.drain_s + ROOM_GRACE_S
    while state.held() and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return True


def _tell_up(config: Config, fleet: "Fleet") -> None:
    logger().info(
        "fleet.up",
        fleet=config.fleet.name,
        workers=fleet.workers,
        redis=told(fleet.redis_url) + _embedded(config.redis.url),
        model=f"{config.model.name} at {fleet.model_url}" + _embedded(config.model.url),
        tasks=", ".join(config.enrich.tasks),
        health=f"{fleet.desk_url}/healthz",
        state=str(config.state_dir),
    )


def _embedded(url: str) -> str:
    return " (embedded)" if url == EMBEDDED else ""
