"""The settle scripts as a model, explored whole: workers, janitors, and whatever may go wrong between them.

That the real scripts do as the model says is shown on a real server, by the integration test of the same name.
"""

import sys
from collections import defaultdict

import pytest
from tests.model import invariants
from tests.model.exploration import explore
from tests.model.mistakes import MISTAKES, TRAP
from tests.model.worlds import WORLDS, explored

ANSWERS = {
    "finish": {"ok", "gone"},
    "skip": {"ok", "gone"},
    "bury": {"ok", "gone", "lost"},
    "park": {"ok", "gone", "lost", "deleted"},
    "release": {"ok", "gone", "lost", "deleted"},
    "renew": {"kept", "lost"},
    "take_due": {"0 taken", "1 taken", "2 taken"},
    "retire_consumer": {"ok", "lost"},
    "read_new": {"0 read", "1 read"},
    "hang_up": {"hung", "there"},
}
STATES_MIN = 20_000  # of all worlds; far fewer, and some actor has stopped acting


@pytest.mark.parametrize("world", WORLDS)
def test_no_state_that_can_be_reached_breaks_a_promise(world: str) -> None:
    """F3, F4, F5, F6, F10, F11, F34, F38, F39: nothing is lost or twice, tokens hold, no state is a trap."""
    found = explored(WORLDS[world])

    assert not found.broken, "\n".join((found.broken, *found.story))


def test_every_answer_of_every_script_is_met() -> None:
    """An exploration that missed half of what can happen would look as good as a whole one."""
    said = defaultdict(set)
    for bounds in WORLDS.values():
        for (_, call), answer in explored(bounds).answers.items():
            said[call.script].add(answer.said)

    assert said == ANSWERS
    assert sum(explored(bounds).states for bounds in WORLDS.values()) > STATES_MIN


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_found(name: str) -> None:
    """F3, F4, F5, F6, F10, F11, F38, F39: a wrong rule breaks a promise the right one keeps; `-rP` tells how."""
    mistake = MISTAKES[name]

    found = explore(mistake.bounds, mistake.rules, mistake.breaks)

    sys.stdout.write("\n".join((f"{name}: {found.broken}", *found.story)))
    assert found.broken == mistake.breaks
    assert not explored(mistake.bounds).broken


def test_every_invariant_is_broken_by_some_mistake() -> None:
    """What nothing breaks says nothing."""
    every = invariants.OF_STATES + invariants.OF_CALLS + invariants.UNLESS_ROLLED_BACK

    assert {one.__name__ for one in every} | {TRAP} == {mistake.breaks for mistake in MISTAKES.values()}


@pytest.mark.parametrize(
    ("name", "story"),
    [
        (
            "XADD, then XACK",
            (
                "w1: read_new -> 1 read",
                "w1: finish 0 -> added",
                "janitor: release 0 as (w1, 1) is due",
                "janitor: release 0 as (w1, 1) arrives -> ok",
                "w1: take_due -> 1 taken",
                "w1: finish 0 -> added",
            ),
        ),
        ("XACK, then XADD", ("w1: read_new -> 1 read", "w1: finish 0 -> acknowledged", "w1 dies, w3 follows")),
        (
            "finish unasked, sent again",
            (
                "w1: read_new -> 1 read",
                "w1: finish 0 -> no reply",
                "w1: finish 0 -> ok",
                "w1: finish 0 arrives -> ok",
            ),
        ),
        (
            "retire by a bare DELCONSUMER",
            (
                "janitor: retire_consumer w1 is due",
                "w1: read_new -> 1 read",
                "janitor: retire_consumer w1 arrives -> ok",
            ),
        ),
    ],
)
def test_counterexample_is_a_short_story(name: str, story: tuple[str, ...]) -> None:
    """What goes wrong can be read, step by step, and there is no shorter way."""
    mistake = MISTAKES[name]

    assert explore(mistake.bounds, mistake.rules, mistake.breaks).story == story
