"""Whether whoever runs the fleet gives it the time to drain."""

from pathlib import Path
from typing import Any

import pytest

from millhand_fleet import stop_wait
from millhand_fleet.stop_wait import seconds_of, stop_wait_of

SUPERVISORD = {
    "SUPERVISOR_ENABLED": "1",
    "SUPERVISOR_SERVER_URL": "unix:///run/supervisor.sock",
    "SUPERVISOR_GROUP_NAME": "fleets",
    "SUPERVISOR_PROCESS_NAME": "millhand",
}
ROWS = [
    {"group": "fleets", "name": "other", "stopwaitsecs": 1},
    {"group": "others", "name": "millhand", "stopwaitsecs": 2},
    {"group": "fleets", "name": "millhand", "stopwaitsecs": 10},
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    asked = []

    def call(path: str, method: str) -> Any:
        asked.append((path, method))
        return ROWS

    monkeypatch.setattr(stop_wait, "_call", call)
    return asked


def test_a_supervisord_that_kills_too_early_is_noticed(asked: list[tuple[str, str]]) -> None:
    note = stop_wait_of(SUPERVISORD).note(24.0)
    assert note is not None
    assert "stopwaitsecs in supervisord's configuration is 10 s" in note
    assert "need 24 s" in note
    assert asked == [("/run/supervisor.sock", "supervisor.getAllConfigInfo")]


def test_a_supervisord_that_waits_long_enough_is_fine(asked: list[tuple[str, str]]) -> None:
    assert stop_wait_of(SUPERVISORD).note(10.0) is None
    assert asked


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SUPERVISOR_ENABLED": "1"},
        {**SUPERVISORD, "SUPERVISOR_SERVER_URL": "unix:///nowhere"},
        {**SUPERVISORD, "SUPERVISOR_SERVER_URL": "http://127.0.0.1:9001"},
    ],
)
def test_what_cannot_be_found_out_is_not_complained_about(environment: dict[str, str]) -> None:
    assert stop_wait_of(environment).note(24.0) is None


def test_a_program_that_supervisord_does_not_know_is_not_complained_about(asked: list[tuple[str, str]]) -> None:
    assert stop_wait_of({**SUPERVISORD, "SUPERVISOR_PROCESS_NAME": "another"}).note(24.0) is None
    assert asked


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45s\n", 45), ("1min 30s", 90), ("1h 2min 3.5s", 3723.5), ("500ms", 0.5), ("infinity", None), ("", None)],
)
def test_systemds_way_to_write_a_time_is_understood(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(("shown", "noted"), [("10s", True), ("1min", False), ("infinity", False)])
def test_a_systemd_that_kills_too_early_is_noticed(
    shown: str,
    noted: bool,  # noqa: FBT001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a systemctl that says so, for a process that lives in a unit."""
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f'#!/bin/sh\n[ "$4" = millhand.service ] && echo {shown}\n')
    systemctl.chmod(0o755)
    cgroup = tmp_path / "cgroup"
    cgroup.write_text("0::/system.slice/millhand.service\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(stop_wait, "CGROUP", cgroup)
    note = stop_wait_of({"INVOCATION_ID": "4711"}).note(24.0)
    assert bool(note) is noted
    assert note is None or note.startswith("TimeoutStopSec in the systemd unit is 10 s")
