"""The supervisor's orders beyond a count, recycling, crash loops, and what is told of it all."""

from dataclasses import replace

import pytest
from tests.unit.paper_fleet import DRAIN_S, NO_WEAR, PaperFleet

from millhand.pulse import PAUSED
from millhand_fleet.blueprint import RefusedError, Renewal
from millhand_fleet.restarts import HEALTHY_AFTER_S, WEAR_AFTER_S, Wear
from millhand_fleet.state import DesiredCount, OperatorPause, StateDir
from millhand_fleet.states import CRASHES_MAX
from millhand_fleet.supervisor import SERVER_STOP_S, STOP_GRACE_S

EVERYBODY = frozenset({"worker", "janitor", "desk"})


def picture(fleet: PaperFleet) -> dict[str, object]:
    """Return the newest picture that the desk has."""
    return [message["fleet"] for message in fleet["desk"].line.sent if "fleet" in message][-1]  # type: ignore[no-any-return]


def workers(fleet: PaperFleet) -> list[str]:
    return sorted(name for name in fleet.names if name.startswith("worker"))


def renewed(fleet: PaperFleet, *changed: str, workers: int = 3, concerns: frozenset[str] = EVERYBODY) -> Renewal:
    fleet.renewal = Renewal(fleet.blueprint(drain_s=7.0), workers, changed, concerns)
    return fleet.renewal


# -- scaling -----------------------------------------------------------------------------------------------------------


def test_scaling_down_sends_the_least_busy_away(fleet: PaperFleet) -> None:
    for name, in_hand in (("worker-1", 3), ("worker-2", 0), ("worker-3", 5)):
        fleet[name].stats = {"in_hand": in_hand}
    fleet.order("scale", by=-2)
    assert fleet.stopping == {"worker-1", "worker-2"}
    assert {tale["why"] for tale in fleet.tales("child.stopping")} == {"scale"}


def test_a_number_that_was_let_go_is_given_again(fleet: PaperFleet) -> None:
    fleet["worker-1"].stats = fleet["worker-3"].stats = {"in_hand": 1}
    fleet.order("scale", workers=2)
    fleet.die("worker-2", 0)
    assert workers(fleet) == ["worker-1", "worker-3"]
    fleet.order("scale", workers=4)
    assert workers(fleet) == ["worker-1", "worker-2", "worker-3", "worker-4"]


# -- pause -------------------------------------------------------------------------------------------------------------


def pauses(fleet: PaperFleet, name: str) -> list[bool]:
    return [message["pause"] for message in fleet[name].line.sent if "pause" in message]


def test_a_pause_is_told_to_every_worker_once(fleet: PaperFleet) -> None:
    assert fleet.order("pause") == {"said": {"paused": True, "before": False}}
    for _ in range(3):
        fleet.pass_time(1)
    assert [pauses(fleet, name) for name in workers(fleet)] == [[True]] * 3
    assert picture(fleet)["paused"] is True
    assert fleet.order("resume") == {"said": {"paused": False, "before": True}}
    assert [pauses(fleet, name) for name in workers(fleet)] == [[True, False]] * 3
    assert [tale for tale, _ in fleet.told if tale in {"fleet.paused", "fleet.resumed"}] == [
        "fleet.paused",
        "fleet.resumed",
    ]


def test_what_a_worker_said_during_an_earlier_pause_does_not_count_for_the_next(fleet: PaperFleet) -> None:
    """Or a drain would be over before it began."""
    fleet.order("pause")
    fleet["worker-1"].stats = {"waits_for": PAUSED, "in_hand": 0}
    fleet.order("resume")
    fleet.order("pause")
    assert fleet["worker-1"].stats["waits_for"] is None


def test_a_worker_that_is_born_during_a_pause_hears_of_it_first(fleet: PaperFleet) -> None:
    fleet.order("pause")
    fleet.die("worker-2")
    assert fleet["worker-2"].line.sent[0] == {"pause": True}


def test_a_worker_that_did_not_take_the_word_in_is_told_again(
    fleet: PaperFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = fleet["worker-2"].line
    with monkeypatch.context() as patch:
        patch.setattr(deaf, "send", lambda _: False)
        fleet.order("pause")
    fleet.pass_time(1)
    assert pauses(fleet, "worker-2") == [True]


def test_a_pause_outlives_the_supervisor(fleet: PaperFleet, state: StateDir) -> None:
    fleet.order("pause")
    assert OperatorPause(state).value is True
    fleet.order("resume")
    assert OperatorPause(state).value is False


def test_a_pause_that_cannot_be_kept_is_none(fleet: PaperFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StateDir, "write", full)
    assert "No space left" in fleet.order("pause")["conflict"]
    assert picture(fleet)["paused"] is False
    assert pauses(fleet, "worker-1") == []


# -- rolling -----------------------------------------------------------------------------------------------------------


def test_a_restart_replaces_one_worker_after_the_other_the_new_one_first(fleet: PaperFleet) -> None:
    old = [fleet[name] for name in workers(fleet)]
    assert fleet.order("restart") == {"said": {"rolling": "restart", "workers": 3}}
    for left, one in zip((5, 4, 3), old, strict=True):
        fleet.tick()
        assert picture(fleet)["rolling"] == {"what": "restart", "left": left}, "janitor and desk among them"
        assert not [child for child in old if child.stopping and not child.buried], "nobody goes yet"
        (new,) = (child for child in fleet.living if child.spec.name.startswith("worker") and not child.ready)
        new.says_ready = True
        fleet.tick()
        fleet.tick()
        assert [child for child in old if child.stopping and not child.buried] == [one]
        assert one.stopped_with == (DRAIN_S, STOP_GRACE_S)
        assert fleet.tales("fleet.rolled") == []
        fleet.die(one.spec.name, 0)
    assert len(workers(fleet)) == 3
    assert not [child for child in old if not child.buried]
    others_replaced(fleet)
    assert picture(fleet)["rolling"] is None
    assert fleet.tales("child.died") == []
    assert fleet.tales("fleet.rolled") == [{"what": "restart"}]


def others_replaced(fleet: PaperFleet) -> None:
    """Let janitor and desk go, whose turn it is, and their successors get ready."""
    fleet.tick()
    for name in sorted(fleet.stopping):
        fleet.die(name, 0)
    fleet.make_ready("janitor", "desk")
    fleet.pass_time(1)


def test_janitor_and_desk_have_their_turn_after_the_workers(fleet: PaperFleet) -> None:
    """So that the fleet is seen and minded meanwhile, and keeps both where the new workers never get ready."""
    janitor, desk = fleet["janitor"], fleet["desk"]
    fleet.order("restart")
    fleet.pass_time(60)
    assert fleet.stopping == set()
    for name in ("worker-1", "worker-2", "worker-3"):
        fleet.die(name)
    fleet.make_ready(*workers(fleet))
    fleet.tick()
    fleet.die("worker-4", 0)
    fleet.tick()
    assert janitor.stopped_with == desk.stopped_with == (SERVER_STOP_S, STOP_GRACE_S)
    assert picture(fleet)["rolling"] == {"what": "restart", "left": 2}
    others_replaced(fleet)
    assert fleet["janitor"] is not janitor
    assert fleet["desk"] is not desk
    assert picture(fleet)["rolling"] is None


def test_whoever_ordered_a_restart_has_the_answer_from_the_old_desk(fleet: PaperFleet) -> None:
    desk = fleet["desk"]
    fleet.order("restart")
    assert [next(iter(message)) for message in desk.line.sent][-1] == "answer"


def test_a_successor_that_never_gets_ready_costs_no_old_worker(fleet: PaperFleet) -> None:
    """What a check of the configuration cannot see: the model's name is a wrong one."""
    old = [fleet[name] for name in workers(fleet)]
    fleet.order("restart")
    for _ in range(20):
        fleet.pass_time(30)
    assert not [child for child in old if child.stopping]
    assert picture(fleet)["rolling"] == {"what": "restart", "left": 5}


def test_a_second_restart_replaces_the_successors_of_the_first(fleet: PaperFleet) -> None:
    fleet.order("restart")
    fleet.tick()
    stuck = fleet["worker-4"]
    fleet.order("restart")
    fleet.tick()
    assert stuck.stopping
    fleet.die("worker-4", 0)
    fleet.tick()
    assert fleet["worker-4"] is not stuck


def test_an_old_worker_that_dies_needs_no_replacement_any_more(fleet: PaperFleet) -> None:
    fleet.order("restart")
    for name in ("worker-1", "worker-2", "worker-3"):
        fleet.die(name)
    fleet.make_ready(*workers(fleet))
    for _ in range(9):
        fleet.pass_time(1)
        for child in fleet.living:
            child.exit_code, child.says_ready = (0 if child.stopping else None), True
    assert picture(fleet)["rolling"] is None
    assert len(workers(fleet)) == 3


def test_a_fleet_of_no_workers_has_only_janitor_and_desk_to_replace(fleet: PaperFleet) -> None:
    fleet.order("scale", workers=0)
    for name in workers(fleet):
        fleet.die(name, 0)
    assert fleet.order("restart") == {"said": {"rolling": "restart", "workers": 0}}
    others_replaced(fleet)
    assert picture(fleet)["rolling"] is None


def test_who_drains_already_is_no_part_of_a_restart(fleet: PaperFleet) -> None:
    fleet.order("scale", workers=1)
    assert fleet.order("restart") == {"said": {"rolling": "restart", "workers": 1}}
    assert picture(fleet)["rolling"] == {"what": "restart", "left": 3}
    fleet.order("scale", workers=0)
    for name in workers(fleet):
        fleet.die(name, 0)
    others_replaced(fleet)
    assert picture(fleet)["rolling"] is None


# -- reload ------------------------------------------------------------------------------------------------------------


def test_a_configuration_that_is_refused_changes_nothing(fleet: PaperFleet) -> None:
    fleet.renewal = RefusedError("invalid", "model.name: bad\nlog.level: worse")
    before = list(fleet.living)
    assert fleet.order("reload") == {"invalid": "model.name: bad\nlog.level: worse"}
    assert fleet.tales("fleet.reload_refused") == [{"problems": ["model.name: bad", "log.level: worse"]}]
    fleet.pass_time(5)
    assert fleet.living == before
    assert fleet.stopping == set()
    assert picture(fleet)["rolling"] is None


def test_a_reload_replaces_whom_it_concerns(fleet: PaperFleet) -> None:
    renewed(fleet, "model.name", "fleet.drain_s")
    answer = fleet.order("reload")
    assert answer == {"said": {"rolling": "reload", "workers": 3, "changed": ["model.name", "fleet.drain_s"]}}
    assert fleet.stopping == set()
    fleet.make_ready("worker-4")
    fleet.tick()
    assert fleet["worker-1"].stopped_with == (7.0, STOP_GRACE_S), "the new configuration's drain time"


@pytest.mark.parametrize("name", ["janitor", "desk"])
def test_a_reload_that_concerns_one_process_leaves_the_others_alone(fleet: PaperFleet, name: str) -> None:
    renewed(fleet, f"{name}.every_s", concerns=frozenset({name}))
    assert fleet.order("reload")["said"] == {"rolling": "reload", "workers": 0, "changed": [f"{name}.every_s"]}
    fleet.pass_time(5)
    assert fleet.stopping == {name}
    fleet.die(name, 0)
    fleet.make_ready(name)
    fleet.pass_time(1)
    assert picture(fleet)["rolling"] is None


def test_a_reload_without_a_change_replaces_nobody(fleet: PaperFleet) -> None:
    renewed(fleet, concerns=frozenset())
    assert fleet.order("reload") == {"said": {"rolling": None, "workers": 0, "changed": []}}
    fleet.pass_time(5)
    assert fleet.stopping == set()


def test_a_reload_without_a_change_leaves_a_restart_as_it_is(fleet: PaperFleet) -> None:
    fleet.order("restart")
    renewed(fleet, concerns=frozenset())
    assert fleet.order("reload") == {"said": {"rolling": "restart", "workers": 0, "changed": []}}
    assert picture(fleet)["rolling"] == {"what": "restart", "left": 5}


def test_a_count_that_was_changed_in_the_configuration_holds_after_a_reload(fleet: PaperFleet, state: StateDir) -> None:
    fleet.order("scale", workers=2)
    renewed(fleet, "fleet.workers", workers=5, concerns=frozenset())
    fleet.order("reload")
    assert fleet.desired.value == 5
    assert DesiredCount(state, 5).value == 5


def test_a_count_that_was_scaled_to_holds_after_a_reload_of_something_else(fleet: PaperFleet) -> None:
    fleet.order("scale", workers=2)
    renewed(fleet, "log.level", workers=3)
    fleet.order("reload")
    assert fleet.desired.value == 2


def test_a_hangup_reloads_and_a_wrong_configuration_does_not_end_the_fleet(fleet: PaperFleet) -> None:
    fleet.supervisor.request_reload()
    assert fleet.tick() == "waits"
    assert len(fleet.tales("fleet.reload_refused")) == 1
    renewed(fleet, "log.level", concerns=frozenset({"desk"}))
    fleet.supervisor.request_reload()
    fleet.tick()
    assert fleet.stopping == {"desk"}
    assert fleet.tales("fleet.reloaded") == [{"changed": ["log.level"], "workers": 3}]


@pytest.mark.parametrize("order", ["pause", "resume", "restart", "reload", "scale"])
def test_a_fleet_that_stops_takes_no_more_orders(fleet: PaperFleet, order: str) -> None:
    fleet.supervisor.request_stop()
    fleet.tick()
    assert fleet.order(order) == {"conflict": "the fleet is stopping"}
    assert fleet.order("stop") == {"said": {"stopping": True}}


# -- recycling ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def wearing(fleet: PaperFleet) -> PaperFleet:
    """Return a fleet whose workers are worn out by 1000 events, or 500 MiB."""
    fleet.renewal = Renewal(fleet.blueprint(wear=Wear(1000, 500)), 3, ("fleet.recycle_mib",), frozenset())
    fleet.order("reload")
    fleet.pass_time(WEAR_AFTER_S)
    return fleet


def test_a_worker_that_has_grown_too_large_is_replaced_the_new_one_first(wearing: PaperFleet) -> None:
    """F18."""
    wearing["worker-2"].rss_mib = 501.0
    wearing.pass_time(2)
    wearing.tick()
    assert workers(wearing) == ["worker-1", "worker-2", "worker-3", "worker-4"]
    assert wearing.stopping == set()
    assert picture(wearing)["rolling"] == {"what": "recycle", "left": 1}
    wearing.make_ready("worker-4")
    wearing.tick()
    assert wearing.stopping == {"worker-2"}
    (tale,) = wearing.tales("child.stopping")
    assert tale["why"] == "recycle: 501 MiB, of 500 at most"
    wearing.die("worker-2", 0)
    wearing.pass_time(2)
    assert picture(wearing)["rolling"] is None
    assert workers(wearing) == ["worker-1", "worker-3", "worker-4"]


def test_workers_that_are_worn_out_together_are_replaced_one_at_a_time(wearing: PaperFleet) -> None:
    """F18: by the events that they have had, whatever became of them."""
    for name in workers(wearing):
        wearing[name].stats = {"in_hand": 1, "done": 900, "retry": 60, "bury": 40}
    wearing.pass_time(2)
    wearing.tick()
    assert picture(wearing)["rolling"] == {"what": "recycle", "left": 3}
    wearing.make_ready("worker-4")
    for _ in range(5):
        wearing.pass_time(1)
    assert wearing.stopping == {"worker-1"}
    assert len(workers(wearing)) == 4


def test_without_limits_nobody_is_recycled(fleet: PaperFleet) -> None:
    assert fleet.blueprint().wear == NO_WEAR
    fleet["worker-1"].rss_mib, fleet["worker-1"].stats = 1e5, {"done": 10**9}
    fleet.pass_time(1000)
    assert fleet.stopping == set()
    assert len(workers(fleet)) == 3


# -- crash loop --------------------------------------------------------------------------------------------------------


def crash(fleet: PaperFleet, *names: str, times: int = CRASHES_MAX) -> None:
    for _ in range(times):
        for name in names:
            fleet.die(name, 1)
        fleet.pass_time(31)


def test_a_fleet_whose_every_worker_dies_says_so_and_goes_on_trying(fleet: PaperFleet) -> None:
    """F17: health shows it; nobody exits over it."""
    crash(fleet, "worker-1", "worker-2", "worker-3", times=CRASHES_MAX - 1)
    assert picture(fleet)["crash_loop"] is False
    crash(fleet, "worker-1", "worker-2", "worker-3", times=1)
    assert picture(fleet)["crash_loop"] is True
    assert fleet.tales("fleet.crash_loop") == [{"last_exits": ["code 1"]}]
    assert fleet.tick() == "waits"
    fleet.pass_time(HEALTHY_AFTER_S)
    fleet.pass_time(1)
    assert picture(fleet)["crash_loop"] is False
    assert len(fleet.tales("fleet.crash_loop_over")) == 1


def test_one_worker_that_dies_is_no_crash_loop(fleet: PaperFleet) -> None:
    crash(fleet, "worker-2", times=9)
    assert picture(fleet)["crash_loop"] is False


def test_a_healthy_minute_makes_failures_forgotten_while_it_lasts(fleet: PaperFleet) -> None:
    crash(fleet, "worker-2", times=2)
    fleet.pass_time(HEALTHY_AFTER_S)
    rows = {row["name"]: row for row in picture(fleet)["children"]}  # type: ignore[attr-defined]
    assert rows["worker-2"]["failures"] == 0
    assert rows["worker-2"]["restarts"] == 2


# -- what is told ------------------------------------------------------------------------------------------------------


def test_stacks_that_a_child_left_are_put_in_the_log_with_its_name(fleet: PaperFleet) -> None:
    """F7."""
    fleet["worker-2"].left_stacks = 'Timeout (0:00:15)!\n  File "x.py", line 7 in loop'
    dead = fleet.die("worker-2", 1)
    (tale,) = fleet.tales("child.stacks")
    assert tale == {"name": "worker-2", "pid": dead.pid, "exit": "code 1", "stack": dead.left_stacks}


def test_the_children_are_written_down_for_the_next_supervisor(fleet: PaperFleet) -> None:
    """F12."""
    fleet.die("worker-2")
    assert fleet.remembered[-1] == sorted(child.pid for child in fleet.living)
    before = len(fleet.remembered)
    fleet.pass_time(5)
    assert len(fleet.remembered) == before, "only when they have changed"


def test_systemd_is_told_how_the_fleet_is(fleet: PaperFleet) -> None:
    fleet.pass_time(2)
    assert fleet.notify.said[0] == "ready", "whatever Redis and the model are about"
    assert "3 of 3 workers ready" in fleet.notify.said
    assert "beat" in fleet.notify.said
    fleet.order("pause")
    assert "3 of 3 workers ready, paused" in fleet.notify.said
    fleet.order("reload")
    reloading = fleet.notify.said.index("reloading")
    assert fleet.notify.said[reloading + 1] == "ready", "also where the configuration is refused"
    fleet.supervisor.request_stop()
    fleet.tick()
    assert "stopping" in fleet.notify.said


def test_a_reload_that_takes_long_costs_no_child_its_life(fleet: PaperFleet) -> None:
    """F12: a plug-in may import for half a minute. Nobody was silent all the while: nobody was listened to."""

    def be_long() -> None:
        for child in fleet.living:
            child.late = "silent for 20 s"

    fleet.while_renewing = be_long
    fleet.order("reload")
    assert fleet.tales("child.killed") == []


def test_a_reload_that_lets_a_drain_take_longer_than_whoever_runs_us_waits_is_told(fleet: PaperFleet) -> None:
    """F15: as at the start."""
    note = "stopwaitsecs is 45 s"
    assert picture(fleet)["stop_wait_note"] is None
    fleet.renewal = Renewal(replace(fleet.blueprint(drain_s=90.0), stop_wait_note=note), 3, ("fleet.drain_s",))
    fleet.order("reload")
    assert picture(fleet)["stop_wait_note"] == note
    assert fleet.tales("fleet.stop_wait_too_short") == [{"detail": note}]
