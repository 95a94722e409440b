"""The supervisor's decisions, tick by tick, with children made of paper."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.unit.paper_fleet import DRAIN_S, KILLED, PaperChild, PaperFleet

from millhand.histogram import BOUNDS_S
from millhand.pulse import MESSAGE_BYTES_MAX, Line
from millhand_fleet import supervisor
from millhand_fleet.state import WORKERS_MAX, DesiredCount, StateDir
from millhand_fleet.supervisor import SERVER_STOP_S, STOP_GRACE_S, TICK_S, Supervisor

HOST_NAME_MAX = 64  # as in Linux

Raise = Callable[..., PaperFleet]
really_wait = Supervisor._wait


# -- starting ----------------------------------------------------------------------------------------------------------


def test_servers_are_started_first_then_desk_and_janitor(new_fleet: Raise) -> None:
    fleet = new_fleet()
    fleet.tick()
    assert fleet.names == ["valkey", "model", "desk", "janitor"]


def test_workers_wait_until_the_janitor_has_been_through(new_fleet: Raise) -> None:
    """What an earlier fleet left pending is handed back before anybody reads."""
    fleet = new_fleet()
    fleet.tick()
    fleet.make_ready("desk", "model")
    assert not [name for name in fleet.names if name.startswith("worker")]
    fleet.make_ready("janitor")
    assert fleet.names[4:] == ["worker-1", "worker-2", "worker-3"]


def test_a_ready_child_is_told_of_once(new_fleet: Raise) -> None:
    fleet = new_fleet()
    fleet.tick()
    fleet["janitor"].says_ready = True
    for _ in range(3):
        fleet.tick()
    assert [tale["name"] for tale in fleet.tales("child.ready")] == ["janitor"]
    assert "worker-1" in fleet.names


def test_workers_do_not_wait_for_a_janitor_that_died_later(fleet: PaperFleet) -> None:
    fleet.die("janitor")
    fleet.die("worker-1")
    fleet.pass_time(1)
    assert "worker-1" in fleet.names


def test_a_fleet_of_no_workers_has_everything_else(new_fleet: Raise) -> None:
    fleet = new_fleet(workers=0)
    fleet.tick()
    fleet.make_ready("janitor")
    assert fleet.names == ["valkey", "model", "desk", "janitor"]


def test_nothing_is_started_twice(fleet: PaperFleet) -> None:
    before = list(fleet.born)
    for _ in range(5):
        fleet.pass_time(1)
    assert fleet.born == before


# -- scaling -----------------------------------------------------------------------------------------------------------


def test_scaling_up_touches_no_running_child(fleet: PaperFleet) -> None:
    before = list(fleet.living)
    fleet.order("scale", workers=5)
    assert fleet.living[: len(before)] == before
    assert fleet.names[len(before) :] == ["worker-4", "worker-5"]
    assert fleet.stopping == set()


def test_scaling_down_stops_the_highest_slots_and_touches_no_other(fleet: PaperFleet) -> None:
    before = list(fleet.born)
    fleet.order("scale", workers=1)
    assert fleet.stopping == {"worker-2", "worker-3"}
    assert fleet["worker-3"].stopped_with == (DRAIN_S, STOP_GRACE_S)
    assert fleet.born == before


def test_a_worker_that_was_scaled_away_is_not_started_again(fleet: PaperFleet) -> None:
    fleet.order("scale", workers=2)
    fleet.die("worker-3", 0)
    fleet.pass_time(60)
    assert [name for name in fleet.names if name.startswith("worker")] == ["worker-1", "worker-2"]
    assert fleet.tales("child.died") == []
    assert [tale["name"] for tale in fleet.tales("child.stopped")] == ["worker-3"]


def test_scaling_up_again_while_a_worker_still_stops_starts_its_successor_afterwards(fleet: PaperFleet) -> None:
    fleet.order("scale", workers=2)
    leaving = fleet["worker-3"]
    fleet.order("scale", workers=3)
    assert fleet["worker-3"] is leaving
    fleet.die("worker-3", 0)
    assert fleet["worker-3"] is not leaving
    assert not fleet["worker-3"].stopping


@pytest.mark.parametrize("by", [-4, WORKERS_MAX - 2, -WORKERS_MAX])
def test_a_count_that_a_fleet_cannot_have_is_refused(fleet: PaperFleet, by: int) -> None:
    """F51: and nothing changes."""
    answer = fleet.order("scale", by=by)
    assert "there are 3 workers" in answer["conflict"]
    assert fleet.desired.value == 3
    assert fleet.stopping == set()


def test_differences_that_race_each_other_all_count(fleet: PaperFleet) -> None:
    """F16: each is taken from what the one before has left."""
    fleet["desk"].orders += [{"order": "scale", "number": n, "workers": None, "by": 1} for n in (1, 2)]
    assert fleet.order("scale", by=-1) == {"said": {"workers": 4, "before": 5}}


def test_an_order_that_there_is_none_of_is_refused(fleet: PaperFleet) -> None:
    assert "no order 'dance'" in fleet.order("dance")["invalid"]


def test_a_scaled_count_is_saved_before_the_next_tick(fleet: PaperFleet, state: StateDir) -> None:
    fleet.order("scale", workers=7)
    assert DesiredCount(state, 3).value == 7


def test_a_count_that_cannot_be_saved_does_not_end_the_fleet(
    fleet: PaperFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StateDir, "write", full)
    assert "No space left" in fleet.order("scale", workers=5)["conflict"]
    assert fleet.desired.value == 3
    assert fleet.tick() == "waits"


def test_a_worker_in_a_hundred_is_known_by_its_number(fleet: PaperFleet) -> None:
    """As text, worker-10 would stand before worker-2."""
    fleet.order("scale", workers=12)
    fleet.order("scale", workers=9)
    assert fleet.stopping == {"worker-10", "worker-11", "worker-12"}


def test_a_vacant_slot_is_forgotten_when_it_is_scaled_away(fleet: PaperFleet) -> None:
    for _ in range(2):
        fleet.die("worker-3")
    assert "worker-3" not in fleet.names
    fleet.order("scale", workers=2)
    fleet.order("scale", workers=3)
    assert "worker-3" in fleet.names, "a new slot has no failures to atone for"


# -- deaths ------------------------------------------------------------------------------------------------------------


def deaths_told(fleet: PaperFleet) -> list[str]:
    return [message["died"] for message in fleet["janitor"].line.sent if "died" in message]


def test_a_born_worker_is_told_to_the_janitor(fleet: PaperFleet) -> None:
    """It may have been started after the janitor was, and must not be taken for a dead one of an earlier life."""
    fleet.order("scale", workers=4)
    assert {"born": fleet["worker-4"].identity} in fleet["janitor"].line.sent


def test_a_died_worker_is_told_to_the_janitor(fleet: PaperFleet) -> None:
    dead = fleet.die("worker-2")
    assert deaths_told(fleet) == [dead.identity]
    assert fleet["janitor"].line.sent[-1] == {"born": fleet["worker-2"].identity}


def test_a_worker_that_stopped_is_told_to_the_janitor_too(fleet: PaperFleet) -> None:
    """What it could not hand back in time is the janitor's now."""
    leaving = fleet["worker-3"]
    fleet.order("scale", workers=2)
    fleet.die("worker-3", 0)
    assert deaths_told(fleet) == [leaving.identity]


def test_a_janitor_that_does_not_read_for_a_while_misses_nothing(fleet: PaperFleet) -> None:
    """Promise 5: a worker of whose birth it does not know would lose its permits, and too many would call at once."""
    line = fleet["janitor"].line
    line.is_full = True
    dead = fleet.die("worker-2")
    line.is_full = False
    fleet.pass_time(1)
    assert line.sent[-2:] == [
        {"died": dead.identity, "at_the_gate": []},
        {"born": fleet["worker-2"].identity},
    ]


def test_a_death_while_a_janitor_leaves_is_told_to_its_successor(fleet: PaperFleet) -> None:
    """F12: what the dead worker had only waited with at the gate is not to be buried for it."""
    leaving = fleet["janitor"]
    leaving.stopping = True
    fleet["worker-2"].stats = {"at_the_gate": ["1-0"]}
    dead = fleet.die("worker-2")
    leaving.exit_code = 0
    fleet.tick()
    assert fleet["janitor"] is not leaving
    assert {"died": dead.identity, "at_the_gate": ["1-0"]} in fleet["janitor"].line.sent


def test_a_died_desk_is_none_of_the_janitors_business(fleet: PaperFleet) -> None:
    fleet.die("desk")
    assert deaths_told(fleet) == []


def test_a_new_janitor_knows_which_workers_live(fleet: PaperFleet) -> None:
    living = tuple(fleet[f"worker-{number}"].identity for number in (1, 2, 3))
    fleet.die("janitor")
    assert fleet["janitor"].args == (living,)


def test_a_death_while_there_is_no_janitor_is_seen_by_the_next_one(fleet: PaperFleet) -> None:
    fleet.die("janitor")
    fleet.die("janitor")
    assert "janitor" not in fleet.names, "it waits for its second start"
    dead = fleet.die("worker-2")
    fleet.pass_time(1)
    (living,) = fleet["janitor"].args
    assert dead.identity not in living
    assert fleet["worker-1"].identity in living


def test_the_first_death_is_followed_by_a_start_at_once(fleet: PaperFleet) -> None:
    dead = fleet.die("worker-2")
    assert dead.buried
    assert fleet["worker-2"].identity != dead.identity


def test_further_deaths_wait_ever_longer(fleet: PaperFleet) -> None:
    fleet.die("worker-2")
    for delay_s in (0.5, 1.0, 2.0, 4.0):
        fleet.die("worker-2")
        fleet.pass_time(delay_s - 0.01)
        assert "worker-2" not in fleet.names
        fleet.pass_time(0.02)
        assert "worker-2" in fleet.names


def test_a_death_after_a_healthy_life_is_a_first_one(fleet: PaperFleet) -> None:
    for _ in range(2):
        fleet.die("worker-2")
        fleet.pass_time(1)
    fleet.pass_time(60)
    fleet.die("worker-2")
    assert "worker-2" in fleet.names


def test_neighbours_of_a_dying_worker_are_left_alone(fleet: PaperFleet) -> None:
    others = [child for child in fleet.living if child.spec.name != "worker-2"]
    for _ in range(4):
        fleet.die("worker-2")
        fleet.pass_time(5)
    assert [child for child in fleet.living if child.spec.name != "worker-2"] == others


@pytest.mark.parametrize(("code", "text"), [(-9, "signal 9"), (70, "code 70"), (0, "code 0")])
def test_a_death_is_told_with_its_cause(fleet: PaperFleet, code: int, text: str) -> None:
    fleet.die("worker-2", code)
    assert fleet.tales("child.died") == [{"name": "worker-2", "exit": text, "restart_in_s": 0.0}]


@pytest.mark.parametrize("name", ["valkey", "model", "desk", "janitor"])
def test_every_kind_of_child_is_started_again(fleet: PaperFleet, name: str) -> None:
    dead = fleet.die(name)
    assert fleet[name] is not dead


def test_several_deaths_in_one_tick_are_all_seen(fleet: PaperFleet) -> None:
    for number in (1, 2, 3):
        fleet[f"worker-{number}"].exit_code = KILLED
    fleet.tick()
    assert len(fleet.tales("child.died")) == 3
    assert len(deaths_told(fleet)) == 3
    assert fleet.names.count("worker-1") == 1


# -- overdue -----------------------------------------------------------------------------------------------------------


def test_an_overdue_child_is_killed_once_and_then_started_again(fleet: PaperFleet) -> None:
    stuck = fleet["worker-2"]
    stuck.late = "silent for 20 s"
    for _ in range(5):
        fleet.pass_time(1)
    assert stuck.kills == 1
    assert fleet.tales("child.killed") == [{"name": "worker-2", "pid": stuck.pid, "reason": "silent for 20 s"}]
    fleet.die("worker-2")
    assert fleet["worker-2"] is not stuck


def test_an_overdue_child_is_killed_while_the_fleet_stops_too(fleet: PaperFleet) -> None:
    fleet.supervisor.request_stop()
    fleet.tick()
    fleet["worker-2"].late = "did not stop in time"
    fleet.tick()
    assert fleet["worker-2"].kills == 1


# -- unusable ----------------------------------------------------------------------------------------------------------


def end_of(fleet: PaperFleet) -> str | None:
    """Let everybody who is told to stop do so, until the supervisor returns."""
    for _ in range(10):
        for child in fleet.living:
            if child.stopping:
                child.exit_code = 0
        if (end := fleet.tick()) != "waits":
            return end
    raise AssertionError(f"the supervisor does not end: {fleet.names}")


@pytest.mark.parametrize("name", ["janitor", "worker-1", "desk", "model"])
@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        pytest.param(["Redis 6.2 is too old"], None, id="while it lives"),
        pytest.param(["Redis 6.2 is too old"], 78, id="as it leaves"),
        pytest.param([None, "Redis 6.2 is too old"], 78, id="its last words"),
    ],
)
def test_a_word_that_nothing_helps_ends_a_fleet_that_never_worked(
    new_fleet: Raise, name: str, words: list[str | None], exit_code: int | None
) -> None:
    fleet = new_fleet()
    fleet.tick()
    fleet.make_ready("janitor")
    fleet[name].words = list(words)
    fleet[name].exit_code = exit_code
    fleet.tick()
    assert end_of(fleet) == "Redis 6.2 is too old"
    assert fleet.living == []
    assert fleet.tales("supervisor.stopped") == [{"reason": "Redis 6.2 is too old"}]


def test_the_same_word_does_not_end_a_fleet_that_has_worked(fleet: PaperFleet) -> None:
    """A Redis that is replaced by an older one for a minute must not take the fleet down for good."""
    fleet.die("janitor")
    fleet.make_ready("janitor")
    fleet["worker-2"].words = [None, "Redis 6.2 is too old"]
    dead = fleet.die("worker-2", 78)
    assert fleet.tales("child.unusable") == [{"name": "worker-2", "detail": "Redis 6.2 is too old"}]
    assert fleet["worker-2"] is not dead
    assert fleet.stopping == set()
    for _ in range(3):
        fleet.pass_time(60)
    assert fleet.tick() == "waits"


# -- stopping ----------------------------------------------------------------------------------------------------------


def test_a_stop_goes_from_the_workers_over_janitor_and_desk_to_the_servers(fleet: PaperFleet) -> None:
    fleet.supervisor.request_stop()
    for group in ({"worker-1", "worker-2", "worker-3"}, {"janitor", "desk"}, {"valkey", "model"}):
        assert fleet.tick() == "waits"
        assert fleet.stopping == group
        for name in group - {min(group)}:
            fleet.die(name, 0)
        assert fleet.stopping == {min(group)}, "the next group waits for the last of this one"
        fleet[min(group)].exit_code = 0
    assert fleet.tick() is None
    assert fleet.living == []


def test_each_group_gets_its_own_time_to_stop(fleet: PaperFleet) -> None:
    fleet.supervisor.request_stop()
    assert end_of(fleet) is None
    given = {child.spec.name: child.stopped_with for child in fleet.born}
    assert given["worker-1"] == (DRAIN_S, STOP_GRACE_S)
    assert given["janitor"] == given["valkey"] == (SERVER_STOP_S, STOP_GRACE_S)


def test_a_stop_can_be_ordered_through_the_desk(fleet: PaperFleet) -> None:
    assert fleet.order("stop") == {"said": {"stopping": True}}
    assert fleet.stopping == {"worker-1", "worker-2", "worker-3"}
    assert end_of(fleet) is None


def test_a_stop_asked_for_many_times_is_one_stop(fleet: PaperFleet) -> None:
    for _ in range(3):
        fleet.supervisor.request_stop()
        fleet.tick()
    assert end_of(fleet) is None
    assert fleet.tales("supervisor.stopped") == [{"reason": "requested"}]


def test_nobody_is_started_while_the_fleet_stops(fleet: PaperFleet) -> None:
    fleet.supervisor.request_stop()
    fleet.tick()
    born = len(fleet.born)
    fleet.die("desk")
    fleet.die("worker-1")
    fleet.pass_time(60)
    assert len(fleet.born) == born


def test_a_worker_that_is_killed_while_stopping_is_still_told_to_the_janitor(fleet: PaperFleet) -> None:
    fleet.supervisor.request_stop()
    fleet.tick()
    fleet["worker-1"].stats = {"in_hand": 2, "at_the_gate": ["1-0"]}
    dead = fleet.die("worker-1")
    assert {"died": dead.identity, "at_the_gate": ["1-0"]} in fleet["janitor"].line.sent


def test_a_stop_before_the_first_child_ends_at_once(new_fleet: Raise) -> None:
    fleet = new_fleet()
    fleet.supervisor.request_stop()
    assert fleet.tick() is None
    assert fleet.born == []


# -- waiting -----------------------------------------------------------------------------------------------------------


def test_between_ticks_it_listens_to_every_line_that_is_open_and_for_every_death(
    fleet: PaperFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line at its end would be readable for ever, and the supervisor would never rest."""
    waited: list[tuple[set[Any], float]] = []
    monkeypatch.setattr(supervisor, "wait", lambda things, timeout: waited.append((set(things), timeout)))
    fleet["worker-2"].line.closed = True
    really_wait(fleet.supervisor)
    lines = {child.line.end for child in fleet.living if child.spec.name != "worker-2"}
    assert waited == [(lines | {child.sentinel for child in fleet.living}, TICK_S)]


def test_a_supervisor_that_has_more_lines_than_it_may_have_goes_on(
    fleet: PaperFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F19: poll(2) refuses more descriptors than the limit, should somebody lower that."""
    slept: list[float] = []

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(supervisor, "wait", refuse)
    monkeypatch.setattr(PaperFleet, "sleep", lambda _, seconds: slept.append(seconds), raising=False)
    really_wait(fleet.supervisor)
    assert slept == [TICK_S]


# -- a machine without room --------------------------------------------------------------------------------------------


def test_a_child_that_cannot_be_started_is_tried_again_ever_later(new_fleet: Raise) -> None:
    """F17."""
    fleet = new_fleet()
    fleet.refuse["desk"] = OSError(11, "Resource temporarily unavailable")
    fleet.tick()
    for delay_s in (TICK_S, 0.5, 1.0, 2.0):
        tried = len(fleet.tales("child.not_started"))
        fleet.pass_time(delay_s - 0.01)
        assert len(fleet.tales("child.not_started")) == tried
        fleet.pass_time(0.02)
        assert len(fleet.tales("child.not_started")) == tried + 1
    del fleet.refuse["desk"]
    fleet.pass_time(30)
    assert "desk" in fleet.names


def test_a_child_that_cannot_be_started_hinders_no_other(new_fleet: Raise) -> None:
    """F17."""
    fleet = new_fleet()
    fleet.refuse["valkey"] = OSError(24, "Too many open files")
    fleet.tick()
    assert fleet.names == ["model", "desk", "janitor"]


def test_a_crowd_of_workers_is_started_a_few_at_a_time(fleet: PaperFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """F17: two hundred that import at once would all be late."""
    monkeypatch.setattr(supervisor, "STARTS_AT_ONCE", 4)
    monkeypatch.setattr(PaperChild, "beats_at_once", False)
    fleet.order("scale", workers=20)
    for born in (7, 11, 15, 19, 20, 20):
        assert len([name for name in fleet.names if name.startswith("worker-")]) == born
        for child in fleet.living:
            child.beaten = True
        fleet.tick()


# -- reporting ---------------------------------------------------------------------------------------------------------


def reports(fleet: PaperFleet) -> list[dict[str, Any]]:
    return [message["fleet"] for message in fleet["desk"].line.sent if "fleet" in message]


def test_the_desk_gets_a_picture_of_every_child(fleet: PaperFleet) -> None:
    fleet["worker-1"].stats = {"in_hand": 2}
    fleet.pass_time(2)
    rows = {row["name"]: row for row in reports(fleet)[-1]["children"]}
    assert set(rows) == {"valkey", "model", "desk", "janitor", "worker-1", "worker-2", "worker-3"}
    assert rows["worker-1"] == {
        "name": "worker-1",
        "restarts": 0,
        "failures": 0,
        "rss_mib": 60.0,
        "last_exit": None,
        "state": "ready",
        "pid": fleet["worker-1"].pid,
        "for_s": 2.0,
        "identity": fleet["worker-1"].identity,
        "stats": {"in_hand": 2},
    }
    assert rows["valkey"]["state"] == "ready", "a foreign program does not say so, but it runs"


def states(fleet: PaperFleet) -> dict[str, str]:
    rows = reports(fleet)[-1]["children"]
    return {row["name"]: row["state"] for row in rows if row["name"].startswith("worker")}


def test_a_picture_shows_who_starts_who_stops_and_who_is_awaited(fleet: PaperFleet) -> None:
    fleet.die("worker-1")
    fleet.die("worker-2")
    fleet.die("worker-2")
    fleet.pass_time(0.1)
    assert states(fleet) == {"worker-1": "starting", "worker-2": "restarting", "worker-3": "ready"}
    rows = {row["name"]: row for row in reports(fleet)[-1]["children"]}
    assert (rows["worker-2"]["restarts"], rows["worker-2"]["last_exit"]) == (2, "signal 9")
    assert rows["worker-2"]["failures"] == 2
    fleet.order("scale", workers=1)
    assert states(fleet) == {"worker-1": "stopping", "worker-3": "ready"}


def test_pictures_are_sent_every_second_and_not_more_often(fleet: PaperFleet) -> None:
    fleet.pass_time(2)
    before = len(reports(fleet))
    for _ in range(10):
        fleet.pass_time(0.25)
    assert len(reports(fleet)) - before == 2


@pytest.mark.parametrize("change", [lambda fleet: fleet.die("worker-1"), lambda fleet: fleet.order("scale", workers=2)])
def test_a_change_is_reported_at_once(fleet: PaperFleet, change: Callable[[PaperFleet], Any]) -> None:
    fleet.pass_time(2)
    before = len(reports(fleet))
    change(fleet)
    assert len(reports(fleet)) == before + 1


def test_a_new_count_is_in_the_very_next_picture(fleet: PaperFleet) -> None:
    """The command line waits for it."""
    fleet.order("scale", workers=9)
    assert reports(fleet)[-1]["desired"] == 9


@pytest.fixture
def line() -> Iterator[tuple[Line, Line]]:
    ours, end = Line.pair()
    theirs = Line(end)
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    "detail", ["x" * 500, "ü" * 500, "\N{SLEEPING SYMBOL}" * 500], ids=["1 byte", "2 bytes", "4 bytes"]
)
def test_the_picture_of_the_largest_fleet_in_trouble_fits_one_message(
    fleet: PaperFleet, line: tuple[Line, Line], detail: str
) -> None:
    """Every worker waits for the model, with the longest detail there is: just then somebody looks."""
    ours, theirs = line
    fleet.order("scale", workers=WORKERS_MAX)
    for child in fleet.living:
        if child.spec.name.startswith("worker"):
            child.ready = True
            child.identity = f"{'h' * HOST_NAME_MAX}:{child.spec.name}:01234567"
            counts = dict.fromkeys(("in_hand", "done", "retry", "bury", "release", "gone"), 10**6)
            times = [999_999.999, *[1_234_567] * (len(BOUNDS_S) + 1)]
            heavy = {"event_s": times, "model_s": times, "tokens": [10**9, 10**9]}
            child.stats = {**counts, "waits_for": f"model_unreachable: {detail}", "counts": heavy}
    fleet["desk"].line = ours  # type: ignore[assignment]
    fleet.pass_time(2)
    picture, counted = theirs.receive()
    too_long = f"it has more than {MESSAGE_BYTES_MAX} bytes"
    assert len(picture["fleet"]["children"]) == WORKERS_MAX + 4, too_long
    assert len(counted["counts"]) == WORKERS_MAX, too_long
