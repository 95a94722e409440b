"""Whatever is ordered, dies, wears out and does not listen, in whatever order: the supervisor ends where it should."""

import random
from collections.abc import Callable
from itertools import count

import pytest
from tests.unit.paper_fleet import KILLED, PaperChild, PaperFleet

from millhand_fleet.blueprint import Renewal
from millhand_fleet.restarts import Wear
from millhand_fleet.state import StateDir

ROLES = ("worker", "janitor", "desk")
STEPS, SETTLED_AFTER = 80, 200
PAUSES_S = (0.0, 0.25, 1.0, 30.0, 70.0)


class Storm:
    """Does to a fleet what a seed says."""

    def __init__(self, fleet: PaperFleet, seed: int) -> None:
        self.fleet = fleet
        self._chance = random.Random(seed)  # noqa: S311 - no secret
        self._numbers = count(1)

    def blow(self) -> None:
        """Let something happen, and some time pass."""
        chance = self._chance
        happens: Callable[[], None] = chance.choice(
            [self._get_ready, self._get_ready, self._go, self._go, self._die, self._wear, self._go_deaf, self._order]
        )
        happens()
        self.fleet.now += chance.choice(PAUSES_S)
        assert self.fleet.tick() == "waits"

    def calm(self) -> None:
        """Let everybody do as told, for as long as it takes."""
        for _ in range(SETTLED_AFTER):
            for child in self.fleet.living:
                child.line.is_full, child.says_ready, child.stats = False, True, {}
                child.exit_code = 0 if child.stopping else None
            self.fleet.now += 5
            assert self.fleet.tick() == "waits"

    def _some(self) -> list[PaperChild]:
        return [child for child in self.fleet.living if self._chance.random() < 0.6]

    def _get_ready(self) -> None:
        for child in self._some():
            child.says_ready = True

    def _go(self) -> None:
        for child in self._some():
            child.exit_code = 0 if child.stopping else None

    def _die(self) -> None:
        for child in self._some()[:1]:
            child.exit_code = self._chance.choice([KILLED, 0, 1])

    def _wear(self) -> None:
        for child in self._some():
            child.stats = {"done": 200, "in_hand": self._chance.randint(0, 3)}

    def _go_deaf(self) -> None:
        for child in self._some():
            child.line.is_full = self._chance.random() < 0.5

    def _order(self) -> None:
        chance, fleet = self._chance, self.fleet
        concerns = frozenset(chance.sample(ROLES, chance.randint(0, len(ROLES))))
        fleet.renewal = Renewal(fleet.blueprint(wear=Wear(100, 0)), chance.randint(0, 5), ("model.name",), concerns)
        order = {"order": chance.choice(["scale", "scale", "pause", "resume", "restart", "reload"]), "by": None}
        for desk in (child for child in fleet.living if child.spec.name == "desk"):
            desk.orders.append({**order, "workers": chance.randint(0, 6), "number": next(self._numbers)})


def workers(fleet: PaperFleet) -> list[PaperChild]:
    return [child for child in fleet.living if child.spec.name.startswith("worker-")]


@pytest.mark.parametrize("seed", range(25))
def test_a_fleet_converges_after_any_storm(
    new_fleet: Callable[..., PaperFleet], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """F12, F16: as many workers as are wanted, each told of the pause, and each known to the janitor: no other is."""
    monkeypatch.setattr(StateDir, "write", lambda *_, **__: None)  # which waits for the disk
    fleet = new_fleet(workers=seed % 5)
    storm = Storm(fleet, seed)
    for _ in range(STEPS):
        storm.blow()
        names = [child.spec.name for child in workers(fleet)]
        assert len(names) == len(set(names)), "never two of one name"
        assert sum(not child.stopping for child in workers(fleet)) <= fleet.desired.value + 1
    storm.calm()

    there = workers(fleet)
    assert [child.stopping for child in there] == [False] * fleet.desired.value
    told_last = [[message["pause"] for message in child.line.sent if "pause" in message][-1:] for child in there]
    assert {pause == [True] for pause in told_last} <= {fleet.supervisor._pause.value}
    known = set(fleet["janitor"].args[0])
    for message in fleet["janitor"].line.sent:
        known |= {message["born"]} if "born" in message else set()
        known -= {message["died"]} if "died" in message else set()
    assert known == {child.identity for child in there}
