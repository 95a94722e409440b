"""worker-ctl scale, pause, resume, drain, restart, reload, stop: what is ordered from a running fleet."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from millhand.config import Config
from millhand.pulse import PAUSED
from millhand_fleet.ctl.desk_client import NO_ANSWER, POLL_S, ask, remedy, request
from millhand_fleet.ctl.settings import EX_UNAVAILABLE, leave, load_for_orders
from millhand_fleet.state import WORKERS_MAX, StateDir

STOP_GRACE_S = 30.0  # beyond the drain deadline
WAIT_S = 600.0

as_json_option = click.option("--json", "as_json", is_flag=True, help="The answer as one JSON object.")
timeout_option = click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0, 86_400), default=WAIT_S, show_default=True,
    help="Wait at most so many seconds.",
)  # fmt: skip
wait_option = click.option("--wait", is_flag=True, help="Wait until the last old worker is gone.")


def _amount(_: click.Context, __: click.Parameter, text: str) -> dict[str, int]:
    """Return {"workers": 8}, or {"by": 2}, {"by": -2}."""
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", text):
        raise click.BadParameter(f"{text!r} is no number of workers: 8, or +2, or -2")
    if abs(int(text)) > WORKERS_MAX:
        raise click.BadParameter(f"{text}: a fleet has 0 to {WORKERS_MAX} workers")
    return {"by" if text[0] in "+-" else "workers": int(text)}


@click.command(context_settings={"ignore_unknown_options": True})  # or `-2` would be an option
@click.argument("amount", metavar="N|+N|-N", callback=_amount)
@as_json_option
@click.pass_obj
def scale(file: Path | None, amount: dict[str, int], as_json: bool) -> None:  # noqa: FBT001 - click's signature
    """Change the number of workers to N, or by N. It is kept over restarts.

    More workers touch none that runs. Fewer: the least busy ones finish what they have in hand, and leave.

    Exit code 0; 1 if the fleet refuses; 69 if it does not answer.

    \b
    Examples: worker-ctl scale 8
              worker-ctl scale -2
    """  # noqa: D301 - click's own mark
    answer = ask(load_for_orders(file), "POST", "/scale", amount)
    _tell(answer, f"workers: {answer['before']} -> {answer['workers']}", as_json=as_json)


@click.command()
@as_json_option
@click.pass_obj
def pause(file: Path | None, as_json: bool) -> None:  # noqa: FBT001 - click's signature
    """Let no worker read any more. What is in hand is finished. It is kept over restarts.

    Exit code 0, also if it was paused before; 69 if the fleet does not answer.

    \b
    Example: worker-ctl pause && worker-ctl status
    """  # noqa: D301 - click's own mark
    answer = ask(load_for_orders(file), "POST", "/pause", {})
    _tell(answer, "was paused already" if answer["before"] else "paused; `worker-ctl resume` goes on", as_json=as_json)


@click.command()
@as_json_option
@click.pass_obj
def resume(file: Path | None, as_json: bool) -> None:  # noqa: FBT001 - click's signature
    """Let the workers read again, after a pause or a drain.

    Exit code 0, also if it was not paused; 69 if the fleet does not answer.

    \b
    Example: worker-ctl resume
    """  # noqa: D301 - click's own mark
    answer = ask(load_for_orders(file), "POST", "/resume", {})
    _tell(answer, "resumed" if answer["before"] else "was not paused", as_json=as_json)


@click.command()
@timeout_option
@as_json_option
@click.pass_obj
def drain(file: Path | None, timeout_s: float, as_json: bool) -> None:  # noqa: FBT001 - click's signature
    """Pause, and wait until no worker has an event in hand. What is parked for a retry stays parked.

    Exit code 0; 1 if something is still in hand after the timeout, and then it stays paused; 69 if the fleet does not
    answer.

    \b
    Example: worker-ctl drain --timeout 120 && sudo reboot
    """  # noqa: D301 - click's own mark
    config = load_for_orders(file)
    ask(config, "POST", "/pause", {})
    status = _await(config, timeout_s, is_drained, _not_drained)
    reachable = status["redis"]["reachable"]  # or the numbers are old, or none
    parked, backlog = (status["streams"][name] if reachable else None for name in ("parked", "backlog"))
    counts = f"parked {parked}, backlog {backlog}" if reachable else "Redis does not answer, so what waits is not known"
    told = f"nothing is in hand; {counts}; `worker-ctl resume` goes on"
    _tell({"paused": True, "in_hand": 0, "parked": parked, "backlog": backlog}, told, as_json=as_json)


@click.command()
@wait_option
@timeout_option
@as_json_option
@click.pass_obj
def restart(file: Path | None, wait: bool, timeout_s: float, as_json: bool) -> None:  # noqa: FBT001 - click's signature
    """Replace the workers one by one, each only when its successor is ready; then janitor and desk.

    The supervisor stays: for a new version of millhand, stop the fleet and start it.

    Exit code 0; 1 if the fleet refuses, or with --wait if it has not finished in time; 69 if it does not answer.

    \b
    Example: worker-ctl restart --wait
    """  # noqa: D301 - click's own mark
    config = load_for_orders(file)
    answer = ask(config, "POST", "/restart", {})
    _roll(config, answer, timeout_s if wait else None, as_json=as_json)


@click.command()
@wait_option
@timeout_option
@as_json_option
@click.pass_obj
def reload(file: Path | None, wait: bool, timeout_s: float, as_json: bool) -> None:  # noqa: FBT001 - click's signature
    """Read the configuration again, and replace what it concerns one by one, each only when its successor is ready.

    The fleet's own file, environment and flags are read again. Where anything in them is wrong, or cannot change while
    the fleet runs, nothing changes.

    Exit code 0; 1 if the configuration is refused, or with --wait if it has not finished in time; 69 if the fleet does
    not answer.

    \b
    Example: worker-ctl config check && worker-ctl reload --wait
    """  # noqa: D301 - click's own mark
    config = load_for_orders(file, tells=False)  # the fleet says it itself
    answer = ask(config, "POST", "/reload", {})
    _roll(config, answer, timeout_s if wait else None, as_json=as_json)


@click.command()
@as_json_option
@click.pass_obj
def stop(file: Path | None, as_json: bool) -> None:  # noqa: FBT001 - click's signature
    """Stop the fleet, and wait until it has stopped. Events in hand may finish first.

    Exit code 0; 1 if it has not stopped in time; 69 if it does not answer.

    \b
    Example: worker-ctl stop
    """  # noqa: D301 - click's own mark
    config = load_for_orders(file)
    ask(config, "POST", "/stop", {})
    state = StateDir(config.state_dir)
    deadline = time.monotonic() + config.fleet.drain_s + STOP_GRACE_S
    while state.held():
        if time.monotonic() > deadline:
            leave("the fleet has not stopped in time; see its log", code=1)
        time.sleep(POLL_S)
    _tell({"stopped": True}, "stopped", as_json=as_json)


def is_drained(status: dict[str, Any]) -> bool:
    """Whether each worker that could read says that it is paused, and none has anything in hand."""
    workers = [row for row in status["children"] if row["name"].startswith("worker-")]
    stats = [row.get("stats") or {} for row in workers]
    at_rest = all(row["stats"].get("waits_for") == PAUSED for row in workers if row["state"] == "ready")
    return bool(status["paused"]) and at_rest and not any(one.get("in_hand") for one in stats)


def _not_drained(status: dict[str, Any]) -> NoReturn:
    rows = [row for row in status["children"] if (row.get("stats") or {}).get("in_hand")]
    lines = [f"{row['name']} has {row['stats']['in_hand']} in hand" for row in rows]
    if not lines:
        lines.append("not every worker has said yet that it rests")
    reasons = [reason for reason in status["health"]["reasons"] if not reason.startswith("paused")]
    leave("the fleet is paused, but has not drained in time", *lines, *reasons, code=1)


def _roll(config: Config, answer: dict[str, Any], wait_s: float | None, *, as_json: bool) -> None:
    """Tell of a rolling replacement that has begun; wait for its end, if so many seconds are given."""
    changed = f" ({', '.join(answer['changed'])})" if answer.get("changed") else ""
    if answer.get("changed") == []:
        _tell(answer, "nothing has changed, so nothing is replaced", as_json=as_json)
        return
    if wait_s is not None:
        _await(config, wait_s, lambda status: not status["rolling"], _not_rolled)
        answer = {**answer, "rolling": None, "finished": True}
    if not answer["workers"] and "changed" not in answer:
        _tell(answer, "no worker is there to be replaced; janitor and desk are", as_json=as_json)
        return
    done = "replaced" if wait_s is not None else "replacing, one by one"
    workers = _counted(answer["workers"], "worker", "workers")
    text = f"{done}: {workers}{changed}" if answer["workers"] else f"taken over, no worker replaced{changed}"
    _tell(answer, text, as_json=as_json)


def _not_rolled(status: dict[str, Any]) -> NoReturn:
    rows = [row for row in status["children"] if row["state"] == "starting" and row["name"].startswith("worker-")]
    lines = [f"{row['name']} is starting for {row['for_s']:.0f} s; {_waits_for(row)}" for row in rows]
    left = _counted(status["rolling"]["left"], "process", "processes")
    leave(f"not finished in time, and goes on; still to be replaced: {left}", *lines, code=1)


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _waits_for(row: dict[str, Any]) -> str:
    reason = (row.get("stats") or {}).get("waits_for")
    return f"it waits for {reason}" if reason else "see the log"


def _await(
    config: Config, timeout_s: float, condition: Callable[[Any], bool], give_up: Callable[[Any], NoReturn]
) -> dict[str, Any]:
    """Look at the fleet until a condition holds, and return what was seen. The desk may be replaced meanwhile."""
    deadline = time.monotonic() + timeout_s
    while True:
        status: dict[str, Any] | None = None
        try:
            reply = request(config, "GET", "/status")
            status = None if reply.is_error else reply.document
        except NO_ANSWER as error:
            if not StateDir(config.state_dir).held():  # somebody has stopped it meanwhile
                leave(*remedy(config, error), code=EX_UNAVAILABLE)
        if status is not None and condition(status):
            return status
        if time.monotonic() > deadline:
            last: dict[str, Any] = status if status is not None else ask(config, "GET", "/status")
            return last if condition(last) else give_up(last)
        time.sleep(POLL_S)


def _tell(answer: dict[str, Any], text: str, *, as_json: bool) -> None:
    click.echo(json.dumps(answer) if as_json else text)
