"""Which deliveries are abandoned: never one that is renewed, soon one that is not, whatever the server's clock does."""

import math
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from millhand_fleet.watch import Pending, Watch

QUIET = settings(deadline=None, database=None, max_examples=40)
LEASE_S = 30.0
BEAT_S = 10.0
SWEEP_S = 5.0
STEP_S = 0.5
HOUR_S = 3600.0
ONE = "1-0"


class Stage:
    """A server with a clock of its own and a pending list, our clock, and a watch on the list."""

    def __init__(self) -> None:
        self.watch = Watch(LEASE_S)
        self.now_s = 1000.0
        self.server_ms = 1_764_000_000_000.0
        self.rate = 1.0
        self.delivered: dict[str, tuple[str, int, float]] = {}

    def deliver(self, entry_id: str = ONE, owner: str = "here:w1:a", count: int = 1) -> None:
        self.delivered[entry_id] = (owner, count, self.server_ms)

    def renew(self, *ids: str) -> None:
        for entry_id in ids:
            owner, count, _ = self.delivered[entry_id]
            self.delivered[entry_id] = (owner, count, self.server_ms)

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.server_ms += seconds * 1000 * self.rate

    def jump(self, seconds: float) -> None:
        self.server_ms += seconds * 1000

    def rows(self) -> list[Pending]:
        """Return the pending list as the janitor reads it: the server's idle times are never negative."""
        rows = []
        for entry_id, (owner, count, delivered_ms) in self.delivered.items():
            read_ms = int(self.server_ms)
            idle_ms = max(0, read_ms - int(delivered_ms))
            rows.append(Pending(entry_id, owner, count, read_ms - idle_ms if idle_ms else None, idle_ms / 1000))
        return rows

    def sweep(self) -> set[str]:
        return self.watch.abandoned(self.rows(), asked_s=self.now_s, now_s=self.now_s)

    def beat_on(self, seconds: float, *, renewed: Iterable[str] = ()) -> None:
        """Let time pass, with beats; never in the very moment of a sweep, which is on a whole second."""
        for _ in range(int(seconds / STEP_S)):
            self.pass_time(STEP_S)
            if self.now_s % BEAT_S == STEP_S:
                self.renew(*renewed)

    def live(self, seconds: float, *, renewed: Iterable[str] = ()) -> dict[str, float]:
        """Let time pass, with beats and sweeps; what is abandoned is handed back. Return when, on our clock."""
        taken = {}
        for _ in range(int(seconds / STEP_S)):
            self.beat_on(STEP_S, renewed=renewed)
            if self.now_s % SWEEP_S == 0:
                for entry_id in self.sweep():
                    taken[entry_id] = self.now_s
                    del self.delivered[entry_id]
        return taken


@pytest.fixture
def stage() -> Stage:
    """Set the stage: the janitor has been sweeping for a while."""
    stage = Stage()
    stage.live(60)
    return stage


# -- the server's clock ------------------------------------------------------------------------------------------------

EACH_JUMP = pytest.mark.parametrize(
    "jump_s",
    [0.0, HOUR_S, -HOUR_S, 24 * HOUR_S, -24 * HOUR_S, LEASE_S, -LEASE_S, 20.0, -20.0, 10.0, -10.0, 2.0, -2.0],
    ids=lambda jump_s: f"{jump_s:+.0f} s",
)
EACH_RATE = pytest.mark.parametrize("rate", [0.5, 0.9, 0.999, 1.001, 1.1, 2.0])


@EACH_JUMP
def test_what_is_renewed_is_never_taken_whatever_the_clock_does(stage: Stage, jump_s: float) -> None:
    """F40: also in the hour in which the server can tell nobody's idle time, and after it."""
    stage.deliver()
    assert stage.live(12, renewed=[ONE]) == {}

    stage.jump(jump_s)

    assert stage.live(min(abs(jump_s), HOUR_S) + 4 * LEASE_S, renewed=[ONE]) == {}


@EACH_JUMP
@pytest.mark.parametrize("jump_after_s", [1.0, 6.0, 12.0, 28.0])
def test_what_is_not_renewed_is_taken_after_one_lease_and_one_sweep_on_our_clock(
    stage: Stage, jump_s: float, jump_after_s: float
) -> None:
    """F40: a clock put back by an hour does not freeze it, one put forward hastens it by no more than a sweep."""
    stage.live(4)
    stage.deliver()
    stage.live(1)
    delivered_s = stage.now_s
    stage.live(jump_after_s)

    stage.jump(jump_s)
    taken = stage.live(2 * LEASE_S)

    assert LEASE_S - SWEEP_S <= taken[ONE] - delivered_s <= LEASE_S + SWEEP_S


@EACH_JUMP
def test_what_comes_to_be_seen_after_the_jump_only_is_taken_within_two_leases(stage: Stage, jump_s: float) -> None:
    """F40: where the clock catches up with its delivery before its lease is over, it looks as if renewed just then."""
    stage.deliver()
    delivered_s = stage.now_s
    stage.jump(jump_s)

    taken = stage.live(3 * LEASE_S)

    assert LEASE_S - SWEEP_S <= taken[ONE] - delivered_s <= 2 * LEASE_S + SWEEP_S


@EACH_RATE
def test_a_clock_that_runs_wrong_neither_steals_nor_freezes(stage: Stage, rate: float) -> None:
    """F40: a slow drift, and one that nobody has ever seen."""
    stage.rate = rate
    stage.deliver("renewed")
    stage.deliver("left")
    delivered_s = stage.now_s

    taken = stage.live(20 * LEASE_S, renewed=["renewed"])

    assert set(taken) == {"left"}
    assert LEASE_S - SWEEP_S <= taken["left"] - delivered_s <= LEASE_S + 2 * SWEEP_S


def test_a_clock_that_is_put_right_a_little_every_second_is_no_heartbeat(stage: Stage) -> None:
    """F40: the time of the last renewal seems to move by as much as the clock; that is not taken for a renewal."""
    stage.deliver()
    delivered_s = stage.now_s
    taken: dict[str, float] = {}
    while not taken:
        owner, count, delivered_ms = stage.delivered[ONE]
        stage.delivered[ONE] = (owner, count, delivered_ms + 50 * (-1) ** int(stage.now_s))
        taken = stage.live(SWEEP_S)

    assert taken[ONE] - delivered_s <= LEASE_S + SWEEP_S


IN_TIME_S = st.sampled_from([1.0, 2.0, SWEEP_S, 9.0])
LATE_S = st.sampled_from([LEASE_S, LEASE_S + 1, 4 * LEASE_S])
FORWARD_S = st.sampled_from([0.0, 0.5, HOUR_S, 24 * HOUR_S])
BACK_S = st.sampled_from([-0.5, -HOUR_S, -24 * HOUR_S])
IN_TIME = st.lists(st.tuples(IN_TIME_S, FORWARD_S), max_size=30)
ONCE_BACK = st.tuples(IN_TIME, st.tuples(IN_TIME_S, BACK_S), IN_TIME).map(
    lambda parts: [*parts[0], parts[1], *parts[2]]
)
FORWARD_AT_ANY_PACE = st.lists(st.tuples(IN_TIME_S | LATE_S, FORWARD_S), max_size=60)


@QUIET
@given(ONCE_BACK | FORWARD_AT_ANY_PACE)
@example([(1.0, -HOUR_S)])
@example([(1.0, 0.0), (9.0, -HOUR_S)])
@example([(LEASE_S + 1, HOUR_S), (1.0, 0.0)])
def test_whatever_the_clock_does_and_however_late_the_janitor_comes_only_what_is_not_renewed_is_taken(
    steps: list[tuple[float, float]],
) -> None:
    """F40: one entry is renewed, one is not: that is taken, at the latest when the clock has come to rest."""
    stage = Stage()
    stage.sweep()
    stage.deliver("renewed")
    stage.deliver("left")
    taken = set[str]()
    for pause_s, jump_s in steps:
        stage.beat_on(pause_s, renewed=["renewed"])
        stage.jump(jump_s)
        taken |= stage.sweep()
    taken |= set(stage.live(2 * LEASE_S + SWEEP_S, renewed=["renewed"]))

    assert taken == {"left"}


# -- what counts as a sign of life -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("owner", "count"), [("there:w1:b", 1), ("here:w1:a", 2)], ids=["owner", "count"])
def test_who_takes_it_over_has_a_whole_lease(stage: Stage, owner: str, count: int) -> None:
    """F6: also where the server's clock does not show that anything happened."""
    stage.deliver()
    stage.jump(-HOUR_S)
    stage.live(25)
    assert [row.delivered_ms for row in stage.rows()] == [None]
    _, _, delivered_ms = stage.delivered[ONE]
    stage.delivered[ONE] = (owner, count, delivered_ms)
    taken_over_s = stage.now_s

    taken = stage.live(2 * LEASE_S)

    assert LEASE_S <= taken[ONE] - taken_over_s <= LEASE_S + SWEEP_S


def test_one_renewal_gives_a_whole_lease(stage: Stage) -> None:
    """F8: two beats may be missed."""
    stage.deliver()
    stage.live(25)
    stage.pass_time(2.0)
    stage.renew(ONE)
    renewed_s = stage.now_s
    stage.pass_time(3.0)

    taken = stage.live(2 * LEASE_S)

    assert LEASE_S <= taken[ONE] - renewed_s <= LEASE_S + SWEEP_S


def test_idle_time_shortens_the_wait_for_what_grew_idle_between_two_sweeps(stage: Stage) -> None:
    """F1: the lease began when it was delivered, not when the janitor saw it first."""
    stage.pass_time(1.0)
    stage.deliver()
    stage.pass_time(4.0)
    assert stage.sweep() == set()
    stage.pass_time(LEASE_S - 4.0)

    assert stage.sweep() == {ONE}


def test_idle_time_shortens_the_wait_by_no_more_than_the_time_since_the_last_sweep(stage: Stage) -> None:
    """F40: the last sweep has not seen it, so it cannot have been there for an hour."""
    stage.pass_time(1.0)
    stage.deliver()
    stage.pass_time(4.0)
    stage.jump(HOUR_S)
    assert stage.sweep() == set()
    stage.pass_time(LEASE_S - SWEEP_S - 0.5)
    assert stage.sweep() == set()

    stage.pass_time(0.5)

    assert stage.sweep() == {ONE}


def test_what_was_renewed_while_a_slow_reply_was_on_its_way_is_not_taken(stage: Stage) -> None:
    """F22: a frozen server answers late, and its answer may be as old as the question."""
    stage.deliver()
    stage.live(SWEEP_S)
    stage.pass_time(SWEEP_S)
    asked_s, rows = stage.now_s, stage.rows()
    stage.pass_time(LEASE_S)
    stage.renew(ONE)

    assert stage.watch.abandoned(rows, asked_s=asked_s, now_s=stage.now_s) == set()

    assert stage.live(4 * LEASE_S, renewed=[ONE]) == {}


def test_what_was_delivered_while_a_slow_reply_was_on_its_way_has_a_whole_lease(stage: Stage) -> None:
    """F22: it may be as young as the reply."""
    asked_s = stage.now_s
    stage.pass_time(LEASE_S)
    stage.deliver()
    delivered_s = stage.now_s
    stage.pass_time(STEP_S)
    assert stage.watch.abandoned(stage.rows(), asked_s=asked_s, now_s=stage.now_s) == set()

    assert stage.live(2 * LEASE_S)[ONE] - delivered_s >= LEASE_S


def test_what_the_first_sweep_finds_has_a_whole_lease_however_idle_it_is(stage: Stage) -> None:
    """F12: a janitor that was just born has proof of nothing."""
    stage.deliver()
    stage.pass_time(HOUR_S)
    stage.watch = Watch(LEASE_S)
    began_s = stage.now_s
    assert stage.sweep() == set()

    assert stage.live(2 * LEASE_S)[ONE] - began_s == LEASE_S


def test_nothing_counts_from_before_an_outage(stage: Stage) -> None:
    """F20: nobody could renew while the server was away; and how long that was is no idle time of anybody's."""
    stage.deliver("before")
    stage.live(25)
    stage.watch.forget()
    stage.pass_time(60.0)
    stage.deliver("after")
    stage.pass_time(60.0)
    back_s = stage.now_s
    assert stage.sweep() == set()

    taken = stage.live(2 * LEASE_S)

    assert taken == dict.fromkeys(["before", "after"], back_s + LEASE_S)


def test_a_sweep_when_the_next_lease_runs_out_finds_it_run_out(stage: Stage) -> None:
    """F1: who sweeps then need not wait for the timer; of several leases the first counts, unless it is renewed."""
    assert stage.watch.next_s(stage.now_s) == math.inf
    for entry_id in ("first", "second"):
        stage.pass_time(STEP_S)
        stage.deliver(entry_id)
    stage.pass_time(STEP_S)
    stage.sweep()
    assert stage.watch.next_s(stage.now_s) == stage.now_s - 2 * STEP_S + LEASE_S
    stage.pass_time(BEAT_S)
    stage.renew("first")
    stage.pass_time(STEP_S)
    stage.sweep()
    next_s = stage.watch.next_s(stage.now_s)

    stage.pass_time(next_s - stage.now_s - STEP_S)
    assert stage.sweep() == set()
    stage.pass_time(STEP_S)
    assert stage.sweep() == {"second"}


def test_what_ran_out_and_could_not_be_taken_is_left_to_the_timer(stage: Stage) -> None:
    """F36: an entry that Redis refuses to give would have the janitor sweep without a pause."""
    stage.deliver()
    stage.pass_time(2 * LEASE_S)
    stage.sweep()
    stage.pass_time(LEASE_S)
    assert stage.sweep() == {ONE}

    assert stage.watch.next_s(stage.now_s) == math.inf


def test_entry_that_comes_back_under_its_old_token_is_a_new_one(stage: Stage) -> None:
    """F20: settled, rolled back by a failover, and held as before: what was remembered of it is gone."""
    stage.deliver()
    stage.live(25)
    row = stage.delivered.pop(ONE)
    stage.live(SWEEP_S)
    stage.delivered[ONE] = row
    back_s = stage.now_s

    assert stage.live(2 * LEASE_S)[ONE] - back_s >= LEASE_S


def test_memory_follows_the_pending_list(stage: Stage) -> None:
    """F18: a million entries come and go, and nothing of them is kept."""
    for start in range(0, 20_000, 1000):
        stage.delivered.clear()
        for n in range(1000):
            stage.deliver(f"{start + n}-0")
        stage.pass_time(1.0)
        stage.sweep()
        assert len(stage.watch._seen) == 1000
    stage.delivered.clear()
    stage.sweep()

    assert stage.watch._seen == {}
