"""Whether every entry comes to its end once nothing goes wrong any more: no state is a trap."""

from collections.abc import Mapping, Sequence

from tests.model.state import JANITOR, State
from tests.model.world import CARRIED_OUT, FALLS_DUE, LATE, SEEN, Step

MODEL_ANSWERS = ("finish", "skip", "bury", "park", "release")  # what a worker sends first, of what it may send
MODEL_FAILS = ("park", "bury", "release", "skip", "finish")
JANITORS = {LATE: 5, SEEN: 8, CARRIED_OUT: 8}
BEGUN, PASSING, READING, NEVER = 0, 6, 7, 9
READINGS = ("read_new", "take_due")
RENEWING, RETIRING = "renew", "retire_consumer"


def most_urgent(state: State, steps: Sequence[Step], wishes: Sequence[str]) -> State:
    """Return where a state goes where all do their work and nothing fails; itself if there is nothing to do.

    Workers settle what they have in hand, the janitor does what it has seen, time passes, workers take more; only when
    nobody has anything in hand, the janitor looks for what is abandoned.
    """
    found, least = state, NEVER
    for step in steps:
        call = step.call
        if call is None:
            urgency = PASSING if step.how == FALLS_DUE else NEVER
        elif call.maker == JANITOR:
            urgency = JANITORS[step.how] if call.script != RETIRING or step.how == LATE else NEVER
        elif step.how != CARRIED_OUT or call.script == RENEWING:
            urgency = NEVER
        elif call.script in READINGS:
            urgency = READING
        else:
            urgency = wishes.index(call.script) if call.script in wishes else BEGUN
        if urgency < least:
            found, least = step.state, urgency
    return found


def stuck(onward: Mapping[State, State]) -> list[State]:
    """Return the states from which the way onward does not lead to the end of every entry."""
    leads_home: dict[State, bool] = {}
    for start in onward:
        way = {}
        state = start
        while state not in leads_home and state not in way:
            way[state] = True
            state = onward[state]
        home = leads_home.get(state, state.is_settled)
        leads_home.update(dict.fromkeys(way, home))
    return [state for state, home in leads_home.items() if not home]
