"""A supervisor whose children are made of paper, on a clock that stands still."""

from typing import TYPE_CHECKING, Any

from millhand_fleet.blueprint import Blueprint, Outside, RefusedError, Renewal, Roles
from millhand_fleet.child import Spec
from millhand_fleet.restarts import Wear
from millhand_fleet.state import DesiredCount, OperatorPause, StateDir
from millhand_fleet.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable

DRAIN_S = 20.0
KILLED = -9
NO_WEAR = Wear()


class PaperLine:
    """A line that keeps what was sent along it."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.closed = False
        self.is_full = False
        self.end = object()

    def send(self, message: dict[str, Any]) -> bool:
        if self.is_full:
            return False
        self.sent.append(message)
        return True


class PaperChild:
    """A child that does what the test says."""

    beats_at_once = True

    def __init__(self, spec: Spec, number: int, fleet: "PaperFleet") -> None:
        self.spec = spec
        self.identity = f"{spec.name}:{number}"
        self.args = spec.args(self.identity)
        self.pid = 1000 + number
        self.line = PaperLine()
        self.beaten = self.beats_at_once
        self.ready = False
        self.stats: dict[str, Any] = {}
        self.unusable: str | None = None
        self.exit_code: int | None = None
        self.stopping = False
        self.stopped_with: tuple[float, float] | None = None
        self.late: str | None = None
        self.kills = 0
        self.buried = False
        self.rss_mib = 60.0
        self.left_stacks = ""
        self.sentinel = number
        self.orders: list[dict[str, Any]] = []
        self.says_ready = False
        self.words: list[str | None] = []  # one for each time it is heard: why it cannot work, or nothing
        self._fleet = fleet
        self._born = fleet.now

    @property
    def lived_s(self) -> float:
        return self._fleet.now - self._born

    def hear(self) -> list[dict[str, Any]]:
        orders, self.orders = self.orders, []
        self.ready = self.ready or self.says_ready
        self.unusable = (self.words.pop(0) if self.words else None) or self.unusable
        return orders

    def stop(self, within_s: float, grace_s: float) -> None:
        self.stopping = True
        self.stopped_with = (within_s, grace_s)

    def overdue(self) -> str | None:
        return None if self.kills else self.late

    def kill(self) -> None:
        self.kills += 1

    def stacks(self) -> str:
        return self.left_stacks

    def bury(self) -> None:
        self.buried = True


class PaperNotify:
    """Keeps what systemd would be told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def ready(self) -> None:
        self.said.append("ready")

    def reloading(self) -> None:
        self.said.append("reloading")

    def stopping(self) -> None:
        self.said.append("stopping")

    def status(self, text: str) -> None:
        self.said.append(text)

    def beat(self) -> None:
        self.said.append("beat")


class Waiting(Exception):
    """A tick is over, and the supervisor waits for something to happen."""


class PaperFleet:
    """A supervisor on a clock that stands still, and everything it ever started, told or wrote down."""

    def __init__(self, state: StateDir, workers: int) -> None:
        self.state = state
        self.now = 1000.0
        self.born: list[PaperChild] = []
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.refuse: dict[str, OSError] = {}
        self.notify = PaperNotify()
        self.renewal: Renewal | RefusedError = RefusedError("invalid", "there is no other configuration")
        self.while_renewing: Callable[[], None] = lambda: None
        self.remembered: list[list[int]] = []
        self.roles = Roles(
            servers=(self._spec("valkey", beats=False), self._spec("model")),
            janitor=lambda living: Spec("janitor", print, lambda _: (living,)),
            desk=self._spec("desk"),
            worker=lambda number: self._spec(f"worker-{number}"),
        )
        self.desired = DesiredCount(state, workers)
        outside = Outside(self, self.notify, self._renew, lambda pids: self.remembered.append(list(pids)))  # type: ignore[arg-type]
        self.supervisor = Supervisor(self.blueprint(), self.desired, OperatorPause(state), outside)

    def blueprint(self, drain_s: float = DRAIN_S, wear: Wear = NO_WEAR) -> Blueprint:
        return Blueprint(self.roles, drain_s, wear)

    def _renew(self) -> Renewal:
        self.while_renewing()
        if isinstance(self.renewal, RefusedError):
            raise self.renewal
        return self.renewal

    @staticmethod
    def _spec(name: str, *, beats: bool = True) -> Spec:
        return Spec(name, print, lambda _: (), beats=beats)

    # -- what the supervisor sees of the world

    def monotonic(self) -> float:
        return self.now

    def spawn(self, spec: Spec) -> PaperChild:
        if spec.name in self.refuse:
            raise self.refuse[spec.name]
        self.born.append(PaperChild(spec, len(self.born), self))
        return self.born[-1]

    def info(self, event: str, **fields: Any) -> None:
        self.told.append((event, fields))

    warning = error = info

    # -- what the test does to it

    def tick(self) -> str | None:
        """Let the supervisor run until it waits. Return what `run` returns; "waits" while it has not."""
        try:
            return self.supervisor.run()
        except Waiting:
            return "waits"

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.tick()

    def make_ready(self, *names: str) -> None:
        for name in names:
            self[name].says_ready = True
        self.tick()

    def die(self, name: str, exit_code: int = KILLED) -> PaperChild:
        dead = self[name]
        dead.exit_code = exit_code
        self.tick()
        return dead

    def order(self, order: str, **more: Any) -> dict[str, Any]:
        """Give an order; return the answer."""
        desk = self["desk"]
        desk.orders.append({"order": order, "number": len(self.told), "workers": None, "by": None, **more})
        self.tick()
        answers = [message for message in desk.line.sent if "answer" in message]
        return {name: value for name, value in answers[-1].items() if name != "answer"}

    def __getitem__(self, name: str) -> PaperChild:
        """Return the living child of this name."""
        (child,) = (child for child in self.living if child.spec.name == name)
        return child

    @property
    def living(self) -> list[PaperChild]:
        return [child for child in self.born if not child.buried]

    @property
    def names(self) -> list[str]:
        return [child.spec.name for child in self.living]

    @property
    def stopping(self) -> set[str]:
        return {child.spec.name for child in self.living if child.stopping}

    def tales(self, event: str) -> list[dict[str, Any]]:
        return [fields for told, fields in self.told if told == event]
