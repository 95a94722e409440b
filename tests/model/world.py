"""Every step that is possible in a state: what workers and janitors do, and what goes wrong.

A call without a reply may be carried out at any later time, or never; at once is the lost reply. A failover puts Redis
back to what its replica had, and nobody tells the workers.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from tests.model.server import COMMANDS, DUE, LATER, LUA, UNHUNG, Answer, Call, Entry, Hand, Script, Server
from tests.model.state import JANITOR, Bounds, State, Worker, beat, readings, sights, verdicts

STRICT = ("bury", "park", "release")
SENT, CARRIED_OUT, LATE, SEEN = "sent", "carried out", "late", "seen"
FALLS_DUE = "a retry falls due"


class Step(NamedTuple):
    """One thing that happens. A call that is carried out has an answer; without a call, `how` tells all."""

    state: State
    how: str
    call: Call | None = None
    answer: Answer | None = None


def tombstone(call: Call, said: str) -> Call | None:
    """Return what is sent after an answer: a deleted entry is buried, in the same breath."""
    return call._replace(script="bury", number=0, word="deleted") if said == "deleted" else None


class Rules(NamedTuple):
    """What is right, or a mistake: what each script does, and what its caller sends after an answer."""

    scripts: Mapping[str, Script] = {**LUA, **COMMANDS}
    then: Callable[[Call, str], Call | None] = tombstone


class World:
    """The steps within bounds. `answers` holds what each call that was met does to each server."""

    def __init__(self, bounds: Bounds, rules: Rules) -> None:
        self.bounds = bounds
        self.answers: dict[tuple[Server, Call], Answer] = {}
        self._rules = rules
        self._busy: dict[tuple[Server, Worker], Worker] = {}

    def start(self) -> State:
        """Return the state in which all begins: nothing is delivered yet."""
        entries = (Entry(),) * self.bounds.entries
        return State(Server(entries), tuple(Worker(name) for name in self.bounds.names), (), self.bounds.left)

    def steps(self, state: State) -> Iterator[Step]:
        """Yield everything that may happen next."""
        for place, worker in enumerate(state.workers):
            yield from self._read(state, place, worker)
            for hand in worker.hands:
                yield from self._settle(state, place, worker, hand)
                yield from self._renew(state, place, worker, hand)
            yield from self._die(state, place, worker)
        yield from self._arrive(state)
        yield from self._sweep(state)
        yield from self._touch(state)
        yield from self._fail_over(state)

    # -- workers ----------------------------------------------------------------------------------------------------

    def _read(self, state: State, place: int, worker: Worker) -> Iterator[Step]:
        """Let a worker read or take; what is delivered without a reply is a ghost."""
        for call in readings(state.server, worker.name, self.bounds):
            answer = self._answer(state.server, call)
            yield self._heard(state, place, (*worker.hands, *answer.given), call, answer)
            if state.left.losses:
                yield Step(self._next(state.with_sent(call).spending("losses")), SENT, call)

    def _settle(self, state: State, place: int, worker: Worker, hand: Hand) -> Iterator[Step]:
        """Let a worker send a verdict, and keep it in mind until a reply comes."""
        others = _without(worker.hands, hand)
        for call in verdicts(hand, worker.name, self.bounds):
            answer = self._answer(state.server, call)
            more = self._rules.then(call, answer.said)
            yield self._heard(state, place, (*others, hand._replace(sent=more)) if more else others, call, answer)
            if state.left.losses:
                unsure = state.with_hands(place, (*others, hand._replace(sent=call)))
                yield Step(self._next(unsure.with_sent(call).spending("losses")), SENT, call)

    def _renew(self, state: State, place: int, worker: Worker, hand: Hand) -> Iterator[Step]:
        """Let a worker renew a lease, and drop what it has lost."""
        if call := beat(hand, worker.name):
            answer = self._answer(state.server, call)
            kept = _without(worker.hands, hand) if answer.said == "lost" else worker.hands
            yield self._heard(state, place, kept, call, answer)

    def _die(self, state: State, place: int, worker: Worker) -> Iterator[Step]:
        if state.left.crashes:
            name = f"w{self.bounds.workers + self.bounds.left.crashes - state.left.crashes + 1}"
            workers = (*state.workers[:place], Worker(name), *state.workers[place + 1 :])
            yield Step(state._replace(workers=workers).spending("crashes"), f"{worker.name} dies, {name} follows")

    # -- the wire, and the janitor ----------------------------------------------------------------------------------

    def _arrive(self, state: State) -> Iterator[Step]:
        """Let a call be carried out that was sent before."""
        for number, call in enumerate(state.wire):
            if call not in state.wire[:number]:
                wire = state.wire[:number] + state.wire[number + 1 :]
                yield self._unheard(state._replace(wire=wire), call, LATE)

    def _sweep(self, state: State) -> Iterator[Step]:
        """Let a janitor see what is to be done, and do it at some later time, or at once."""
        seen = sum(call.maker == JANITOR for call in state.wire)
        for call in sights(state, self.bounds):
            if seen < self.bounds.sights:
                yield Step(state.with_sent(call), SEEN, call)
            elif not self.bounds.sights:
                yield self._unheard(state, call, CARRIED_OUT)

    # -- time and faults --------------------------------------------------------------------------------------------

    def _touch(self, state: State) -> Iterator[Step]:
        """Let time pass, or somebody delete what is not his."""
        server, left = state.server, state.left
        for place, entry in enumerate(server.entries):
            if entry.hung == LATER:
                yield Step(state.with_server(server.with_entry(place, entry._replace(hung=DUE))), FALLS_DUE)
            if left.deletions and entry.is_pending and entry.stands:
                after = state.with_server(server.with_entry(place, entry._replace(stands=False)))
                yield Step(after.spending("deletions"), f"entry {place} is deleted")
        if left.zset_losses and any(entry.hung for entry in server.entries):
            after = state.with_server(Server(tuple(entry._replace(hung=UNHUNG) for entry in server.entries)))
            yield Step(after.spending("zset_losses"), "the zset is lost")

    def _fail_over(self, state: State) -> Iterator[Step]:
        if state.replica is not None:
            after = state.with_server(state.replica)._replace(replica=None)
            yield Step(after.spending("failovers"), "the replica takes over")
        elif state.left.failovers:
            yield Step(state._replace(replica=state.server), "the replica's link is cut")

    # -- what a call does, and what can do nothing any more ---------------------------------------------------------

    def _answer(self, server: Server, call: Call) -> Answer:
        found = self.answers.get((server, call))
        if found is None:
            found = self.answers[server, call] = self._rules.scripts[call.script](server, call)
        return found

    def _heard(self, state: State, place: int, hands: tuple[Hand, ...], call: Call, answer: Answer) -> Step:
        """Carry out a worker's call; `hands` is what the worker holds once it has heard the answer."""
        after = state.with_hands(place, hands).with_server(answer.server)
        return Step(self._next(after), CARRIED_OUT, call, answer)

    def _unheard(self, state: State, call: Call, how: str) -> Step:
        """Carry out a call whose answer only the janitor is there to hear."""
        answer = self._answer(state.server, call)
        after = state.with_server(answer.server)
        more = self._rules.then(call, answer.said) if call.maker == JANITOR else None
        if more and more not in after.wire:
            after = after.with_sent(more)
        return Step(self._next(after), how, call, answer)

    def _next(self, state: State) -> State:
        """Forget what can do nothing any more, unless a failover might revive it: fewer states, the same findings."""
        if state.left.failovers:
            return state
        server = state.server
        wire = state.wire and tuple([call for call in state.wire if not self._is_spent(server, call)])
        workers = tuple([self._still_busy(server, worker) if worker.hands else worker for worker in state.workers])
        return State(server, workers, wire, state.left)

    def _still_busy(self, server: Server, worker: Worker) -> Worker:
        found = self._busy.get((server, worker))
        if found is None:
            sent = [(hand, verdicts(hand, worker.name, self.bounds)) for hand in worker.hands]
            hands = [hand for hand, calls in sent if not all(self._is_spent(server, call) for call in calls)]
            found = self._busy[server, worker] = Worker(worker.name, tuple(hands))
        return found

    def _is_spent(self, server: Server, call: Call) -> bool:
        """Whether a call does nothing, and never will: its entry has its record, or its token lies behind."""
        entry = server.entries[call.entry] if call.entry >= 0 else Entry()
        if not entry.records and (call.script not in STRICT or call.deliveries >= entry.deliveries):
            return False
        answer = self._answer(server, call)
        return answer.server == server and not answer.raised


def _without(hands: tuple[Hand, ...], dropped: Hand) -> tuple[Hand, ...]:
    return tuple([hand for hand in hands if hand is not dropped])
