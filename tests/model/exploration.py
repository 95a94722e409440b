"""All that can happen within bounds, breadth first, so that the first violation found has the shortest story."""

from collections import deque
from typing import NamedTuple, TypeVar

from tests.model import invariants
from tests.model.fairness import MODEL_ANSWERS, MODEL_FAILS, most_urgent, stuck
from tests.model.invariants import OfCall, OfState
from tests.model.server import Answer, Call, Server
from tests.model.state import Bounds, State
from tests.model.world import LATE, SEEN, SENT, Rules, Step, World

T = TypeVar("T", OfState, OfCall)


class Explored(NamedTuple):
    """What was found. `broken` names the invariant, if one is, and `story` tells the shortest way to it."""

    states: int
    steps: int
    answers: dict[tuple[Server, Call], Answer]
    broken: str = ""
    story: tuple[str, ...] = ()


def explore(bounds: Bounds, rules: Rules | None = None, only: str = "") -> Explored:
    """Visit every state until an invariant is broken; if none is, see whether each state comes to its end.

    `only` names the one invariant that is asked for, where wrong rules break several.
    """
    return _Exploration(World(bounds, rules or Rules()), only).run()


class _Exploration:
    def __init__(self, world: World, only: str) -> None:
        self._world = world
        self._of_calls = _chosen(invariants.OF_CALLS, only)
        self._unless_rolled_back = _chosen(invariants.UNLESS_ROLLED_BACK, only)
        self._of_states = _chosen(invariants.OF_STATES, only)
        self._came: dict[State, tuple[State, Step] | None] = {world.start(): None}
        self._onward: dict[tuple[str, ...], dict[State, State]] = {MODEL_ANSWERS: {}, MODEL_FAILS: {}}
        self._checked: set[object] = set()
        self._steps = 0

    def run(self) -> Explored:
        queue = deque(self._came)
        while queue:
            state = queue.popleft()
            steps = list(self._world.steps(state))
            self._steps += len(steps)
            for step in steps:
                if broken := self._broken_by(state, step):
                    return self._found(broken, (*self._story(state), tell(step)))
                if step.state not in self._came:
                    self._came[step.state] = (state, step)
                    queue.append(step.state)
            for wishes, onward in self._onward.items():
                onward[state] = most_urgent(state, steps, wishes)
        return self._end()

    def _broken_by(self, state: State, step: Step) -> str:
        """Return the invariant that a step breaks. What was checked once is not checked again."""
        if step.call and step.answer:
            rolled_back = state.left.failovers < self._world.bounds.left.failovers
            carried_out = (state.server, step.call, rolled_back)
            if carried_out not in self._checked:
                self._checked.add(carried_out)
                for holds in self._of_calls + (() if rolled_back else self._unless_rolled_back):
                    if not holds(state.server, step.call, step.answer):
                        return holds.__name__
        if step.state.server not in self._checked:
            self._checked.add(step.state.server)
            for is_fine in self._of_states:
                if not is_fine(step.state.server):
                    return is_fine.__name__
        return ""

    def _end(self) -> Explored:
        for onward in self._onward.values():
            if states := stuck(onward):
                story = min((self._story(state) for state in states), key=len)
                return self._found("every_entry_comes_to_its_end", story)
        return self._found()

    def _found(self, broken: str = "", story: tuple[str, ...] = ()) -> Explored:
        return Explored(len(self._came), self._steps, self._world.answers, broken, story)

    def _story(self, state: State) -> tuple[str, ...]:
        """Return the steps by which a state was reached first."""
        told = []
        came = self._came[state]
        while came is not None:
            before, step = came
            told.append(tell(step))
            came = self._came[before]
        return tuple(reversed(told))


def _chosen(every: tuple[T, ...], only: str) -> tuple[T, ...]:
    return tuple(one for one in every if only in ("", one.__name__))


def tell(step: Step) -> str:
    """Spell a step in a line."""
    if step.call is None:
        return step.how
    call = step.call
    whom = {"retire_consumer": f" {call.owner}"}.get(call.script, f" {call.entry}" if call.entry >= 0 else "")
    token = f" as ({call.owner}, {call.deliveries})" if call.entry >= 0 and call.deliveries else ""
    spelled = f"{call.maker}: {call.script}{whom}{token}"
    if step.answer is not None:
        return f"{spelled}{' arrives' if step.how == LATE else ''} -> {step.answer.said}"
    return {SENT: f"{spelled} -> no reply", SEEN: f"{spelled} is due"}[step.how]
