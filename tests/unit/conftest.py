"""Fixtures for the supervisor's decisions."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.unit.paper_fleet import PaperFleet, Waiting

from millhand_fleet import supervisor
from millhand_fleet.state import StateDir
from millhand_fleet.supervisor import Supervisor

Raise = Callable[..., PaperFleet]


def waits(_: Supervisor) -> None:
    raise Waiting


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


@pytest.fixture
def new_fleet(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> Raise:
    """Return a fleet whose supervisor has not ticked yet."""

    def made(workers: int = 3) -> PaperFleet:
        fleet = PaperFleet(state, workers)
        monkeypatch.setattr(supervisor, "Child", fleet.spawn)
        monkeypatch.setattr(supervisor, "time", fleet)
        monkeypatch.setattr(supervisor, "random", SimpleNamespace(random=lambda: 1.0))
        monkeypatch.setattr(Supervisor, "_wait", waits)
        return fleet

    return made


@pytest.fixture
def fleet(new_fleet: Raise) -> PaperFleet:
    """Return a fleet of three workers, at work."""
    fleet = new_fleet()
    fleet.tick()
    fleet.make_ready("janitor", "desk", "model")
    fleet.make_ready("worker-1", "worker-2", "worker-3")
    return fleet
