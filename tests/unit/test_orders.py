"""What `worker-ctl drain` and `restart --wait` wait for, from the desk's documents."""

from typing import Any

import click
import pytest
from click.testing import CliRunner

from millhand.config import Config
from millhand.pulse import PAUSED
from millhand_fleet.ctl import orders
from millhand_fleet.ctl.desk_client import Reply
from millhand_fleet.ctl.orders import drain, is_drained, restart
from millhand_fleet.state import StateDir


def worker(number: int = 1, state: str = "ready", **stats: Any) -> dict[str, Any]:
    return {"name": f"worker-{number}", "state": state, "for_s": 70.0, "stats": {"in_hand": 0, **stats}}


RESTS = worker(waits_for=PAUSED)
READS_STILL = worker(2, waits_for=None)
HOLDS = worker(2, waits_for=PAUSED, in_hand=3)
LEAVES = worker(2, "stopping", in_hand=1)
IS_BORN = worker(2, "starting", waits_for="redis: refused")
IS_GONE = {"name": "worker-2", "state": "restarting"}
JANITOR = {"name": "janitor", "state": "ready", "stats": {"waits_for": None}}


def document(*children: dict[str, Any], paused: bool = True, rolling: dict[str, Any] | None = None) -> dict[str, Any]:
    streams, redis = {"parked": 1, "backlog": 2}, {"reachable": True}
    health: dict[str, list[str]] = {"reasons": []}
    return {
        "paused": paused, "rolling": rolling, "children": children,
        "streams": streams, "redis": redis, "health": health,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "drained"),
    [
        (document(RESTS, JANITOR), True),
        (document(), True),
        (document(RESTS, IS_GONE), True),
        (document(RESTS, IS_BORN), True),
        (document(RESTS, READS_STILL), False),
        (document(RESTS, HOLDS), False),
        (document(RESTS, LEAVES), False),
        (document(RESTS, paused=False), False),
    ],
)
def test_a_fleet_has_drained_when_all_who_could_read_rest_and_nobody_has_anything(
    *, status: dict[str, Any], drained: bool
) -> None:
    assert is_drained(status) is drained


class Desk:
    """Answers orders, and is silent to the first looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, status: dict[str, Any], *, silent: bool) -> None:
        self.status, self._silent = status, silent
        monkeypatch.setattr(orders, "load_for_orders", lambda _: Config())
        monkeypatch.setattr(StateDir, "held", lambda _: True)
        monkeypatch.setattr(orders, "ask", self._ask)
        monkeypatch.setattr(orders, "request", self._request)

    def _ask(self, _: Config, method: str, *__: Any) -> Any:
        return self.status if method == "GET" else {"rolling": "restart", "workers": 2}

    def _request(self, *_: Any) -> Reply:
        if self._silent:
            raise ConnectionRefusedError
        return Reply(200, self.status)


def typed(command: click.Command, *arguments: str) -> tuple[int, str]:
    """Run a command that has no time; return its exit code, and what it said."""
    done = CliRunner().invoke(command, [*arguments, "--timeout", "0"], obj=None)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.mark.parametrize("silent", [False, True])
def test_what_is_over_at_the_last_look_was_in_time(monkeypatch: pytest.MonkeyPatch, *, silent: bool) -> None:
    """The desk is among those that are replaced, and may not answer for a moment."""
    Desk(monkeypatch, document(RESTS), silent=silent)
    assert typed(restart, "--wait") == (0, "replaced: 2 workers\n")
    assert typed(drain)[0] == 0


@pytest.mark.parametrize("silent", [False, True])
def test_what_is_not_over_in_time_is_said_with_what_is_left(monkeypatch: pytest.MonkeyPatch, *, silent: bool) -> None:
    Desk(monkeypatch, document(HOLDS, IS_BORN, rolling={"what": "restart", "left": 2}), silent=silent)
    code, said = typed(restart, "--wait")
    assert code == 1
    assert "still to be replaced: 2 processes" in said
    assert "worker-2 is starting for 70 s; it waits for redis: refused" in said
    code, said = typed(drain)
    assert code == 1
    assert "worker-2 has 3 in hand" in said


def test_a_drain_that_has_just_been_ordered_says_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker has in hand it tells once a second."""
    Desk(monkeypatch, document(RESTS, READS_STILL), silent=False)
    assert "not every worker has said yet that it rests" in typed(drain)[1]
