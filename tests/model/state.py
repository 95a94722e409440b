"""What there is at one moment besides the server, and what each actor may want then.

Workers hold what they believe is theirs, and send a verdict until a reply comes. The janitor may take any delivery for
abandoned at any time: that is more than it does, and whatever holds then holds for it too.
"""

from typing import NamedTuple

from tests.model.server import DUE, PARKED, UNHUNG, Call, Hand, Server

JANITOR = "janitor"


class Left(NamedTuple):
    """How often something may still go wrong."""

    crashes: int = 0  # a worker dies, and another takes its place under a new name
    losses: int = 0  # no reply comes to a worker's call, which is carried out at any later time, or never
    deletions: int = 0  # an entry is deleted while it is pending
    zset_losses: int = 0
    failovers: int = 0


class Bounds(NamedTuple):
    """How large a world is."""

    left: Left = Left()
    entries: int = 1
    workers: int = 2
    retries: int = 1
    deliveries_max: int = 2
    sights: int = 1  # that janitors act on later, however old; with 0, a janitor acts on what is
    retiring: bool = False  # janitors retire consumers
    repeated: bool = False  # the last entry repeats another's event_id, so it may be skipped

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the workers that live at first."""
        return tuple(f"w{number + 1}" for number in range(self.workers))


class Worker(NamedTuple):
    """A living worker."""

    name: str
    hands: tuple[Hand, ...] = ()


class State(NamedTuple):
    """Everything at one moment. `wire` holds calls that are sent, and not carried out yet."""

    server: Server
    workers: tuple[Worker, ...]
    wire: tuple[Call, ...]
    left: Left
    replica: Server | None = None  # what a failover would bring back; None while the link is up

    @property
    def is_settled(self) -> bool:
        """Whether every entry has come to its end."""
        return all(entry.records for entry in self.server.entries)

    def with_server(self, server: Server) -> "State":
        """Put what a server holds in place."""
        return State(server, self.workers, self.wire, self.left, self.replica)

    def with_hands(self, place: int, hands: tuple[Hand, ...]) -> "State":
        """Give a worker what it holds from now on. Two alike are one: whatever becomes of one becomes of both."""
        if len(hands) > 1:
            hands = tuple(sorted(set(hands), key=_order))
        worker = Worker(self.workers[place].name, hands)
        workers = (*self.workers[:place], worker, *self.workers[place + 1 :])
        return State(self.server, workers, self.wire, self.left, self.replica)

    def with_sent(self, call: Call) -> "State":
        """Put a call on the wire."""
        return self._replace(wire=tuple(sorted((*self.wire, call))))

    def spending(self, fault: str) -> "State":
        """Let one thing less go wrong from now on."""
        return self._replace(left=self.left._replace(**{fault: getattr(self.left, fault) - 1}))


def _order(hand: Hand) -> tuple[object, ...]:
    return hand[:4], hand.sent or ()


def readings(server: Server, name: str, bounds: Bounds) -> list[Call]:
    """Return how a worker may get something into its hands."""
    calls = [Call("read_new", name, owner=name)] if not all(entry.delivered for entry in server.entries) else []
    due = sum(entry.hung == DUE for entry in server.entries)
    take = Call("take_due", name, owner=name, deliveries=bounds.deliveries_max)
    return calls + [take._replace(number=limit + 1) for limit in range(due)]


def verdicts(hand: Hand, name: str, bounds: Bounds) -> list[Call]:
    """Return what a worker may send about a delivery: anew, only what it has sent before."""
    token = (name, hand.entry, hand.owner, hand.deliveries)
    if hand.sent:
        return [hand.sent]
    if hand.owner == PARKED:  # given without fields
        return [Call("bury", *token, word="deleted")]
    calls = [
        Call("finish", name, hand.entry),
        Call("bury", *token, word="timeout"),
        Call("release", *token, number=hand.deliveries, word="released"),
    ]
    if hand.attempts < bounds.retries:
        calls.append(Call("park", *token, number=hand.attempts + 1))
    if bounds.repeated and hand.entry == bounds.entries - 1:
        calls.append(Call("skip", name, hand.entry))
    return calls


def beat(hand: Hand, name: str) -> Call | None:
    """Return how a worker renews a lease: not that of what it was given without fields, or has decided about."""
    return (
        Call("renew", name, hand.entry, hand.owner, hand.deliveries) if hand.owner == name and not hand.sent else None
    )


def sights(state: State, bounds: Bounds) -> list[Call]:
    """Return what a janitor would do that takes everything for abandoned. What a dead worker had may be blameless."""
    calls = []
    living = [worker.name for worker in state.workers]
    for place, entry in enumerate(state.server.entries):
        token = (JANITOR, place, entry.owner, entry.deliveries)
        hand_back = Call("release", *token, number=entry.deliveries + 1, word="handed_back")
        if entry.owner == PARKED and entry.hung == UNHUNG:
            calls.append(Call("hang_up", JANITOR, place))
        elif entry.is_pending and entry.owner != PARKED:
            if entry.owner not in living:
                calls.append(hand_back._replace(number=entry.deliveries))
            is_last = entry.deliveries >= bounds.deliveries_max
            calls.append(Call("bury", *token, word="crash_loop") if is_last else hand_back)
    if bounds.retiring:
        owners = {entry.owner for entry in state.server.entries}
        calls += [Call("retire_consumer", JANITOR, owner=name) for name in bounds.names if name not in owners]
    return calls
