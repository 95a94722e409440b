"""What follows from the states of the workers: who is started, who is sent away, and when all is lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millhand_fleet.states import CRASHES_MAX, Change, State, Worker, converge, in_crash_loop, least_busy, state_of

QUIET = settings(deadline=None, database=None, max_examples=200)
READY, STARTING, RESTARTING, STOPPING = State.READY, State.STARTING, State.RESTARTING, State.STOPPING


def at_work(*numbers: int, old: tuple[int, ...] = ()) -> list[Worker]:
    return [Worker(number, READY, 0, number in old) for number in numbers]


@pytest.mark.parametrize(
    ("alive", "ready", "stopping", "expected"),
    [
        (False, False, False, RESTARTING),
        (True, False, False, STARTING),
        (True, True, False, READY),
        (True, True, True, STOPPING),
        (True, False, True, STOPPING),
    ],
)
def test_a_slot_is_in_one_state(alive: bool, ready: bool, stopping: bool, expected: State) -> None:  # noqa: FBT001
    assert state_of(alive=alive, ready=ready, stopping=stopping) is expected


# -- scaling -----------------------------------------------------------------------------------------------------------


def test_a_fleet_that_is_as_it_should_be_is_left_alone() -> None:
    assert converge(at_work(1, 3, 4), 3) == Change()


def test_more_workers_get_the_lowest_free_numbers() -> None:
    assert converge(at_work(1, 3, 4), 6) == Change(opened=(2, 5, 6))


def test_fewer_workers_are_those_with_least_in_hand() -> None:
    workers = [Worker(1, READY, 4), Worker(2, READY, 0), Worker(3, READY, 2), Worker(4, READY, 8)]
    assert converge(workers, 2) == Change(closed=(2, 3))


def test_of_equally_busy_workers_the_latest_slot_goes() -> None:
    assert converge(at_work(1, 2, 3, 10), 2) == Change(closed=(10, 3))


def test_who_does_not_work_goes_before_who_does() -> None:
    workers = [Worker(1, READY, 0), Worker(2, STARTING), Worker(3, RESTARTING), Worker(4, READY, 9)]
    assert [worker.number for worker in least_busy(workers)] == [3, 2, 1, 4]


def test_who_still_drains_keeps_its_place_until_it_is_gone() -> None:
    """8 → 1 → 8 in a hurry must not make fifteen processes."""
    draining = [Worker(number, STOPPING) for number in range(2, 9)]
    assert converge([*at_work(1), *draining], 8) == Change()
    assert converge([*at_work(1), *draining[1:]], 8) == Change(opened=(2,))


def test_a_fleet_of_none_sends_everybody_away() -> None:
    assert set(converge(at_work(1, 2, old=(1,)), 0).closed) == {1, 2}


# -- replacing ---------------------------------------------------------------------------------------------------------


def test_the_new_one_comes_before_the_old_one_goes() -> None:
    assert converge(at_work(1, 2, 3, old=(1, 2, 3)), 3) == Change(opened=(4,))


@pytest.mark.parametrize("state", [STARTING, RESTARTING])
def test_nobody_goes_before_its_successor_is_ready(state: State) -> None:
    """A configuration that checks out and still does not work must leave the old ones at work."""
    assert converge([*at_work(1, 2, old=(1, 2)), Worker(3, state)], 2) == Change()


def test_when_its_successor_is_ready_the_first_of_the_old_goes() -> None:
    assert converge(at_work(1, 2, 3, old=(1, 2)), 2) == Change(closed=(1,))


def test_one_is_replaced_at_a_time() -> None:
    """The last one replaced is gone before the next successor comes."""
    workers = [Worker(1, STOPPING, old=True), *at_work(2, 3, old=(2,))]
    assert converge(workers, 2) == Change()
    assert converge(workers[1:], 2) == Change(opened=(1,))


def test_an_old_one_that_does_not_work_makes_room_at_once() -> None:
    """A second reload corrects what the first one made wait for ever."""
    workers = [*at_work(1, 2, old=(1, 2)), Worker(3, STARTING, old=True)]
    assert converge(workers, 2) == Change(closed=(3,))


def test_the_spare_place_goes_with_the_last_of_the_old() -> None:
    """An old one that died by itself has a successor in its own slot, so the spare one is one too many."""
    assert converge(at_work(1, 2, 3), 2) == Change(closed=(3,))


STATES = st.sampled_from(list(State))
WORKERS = st.lists(
    st.builds(Worker, st.integers(1, 12), STATES, st.integers(0, 3), st.booleans()),
    max_size=9,
    unique_by=lambda worker: worker.number,
)


@QUIET
@given(WORKERS, st.integers(0, 9))
def test_no_step_leaves_too_few_or_makes_too_many(workers: list[Worker], desired: int) -> None:
    """Promise 8, from any state whatever."""
    opened, closed = converge(workers, desired)
    staying = {worker.number for worker in workers if worker.state is not STOPPING}
    assert not (opened and closed)
    assert set(closed) <= staying
    assert not set(opened) & {worker.number for worker in workers}
    assert len(staying) - len(closed) >= min(len(staying), desired)
    assert not opened or len(workers) + len(opened) <= desired + 1


@QUIET
@given(WORKERS, st.integers(0, 9))
def test_every_fleet_becomes_what_it_should_be(workers: list[Worker], desired: int) -> None:
    """Promise 8: where whoever starts gets ready and whoever drains leaves, it ends, with nobody old."""
    for _ in range(60):
        workers = [Worker(w.number, READY, w.in_hand, w.old) for w in workers if w.state is not STOPPING]
        opened, closed = converge(workers, desired)
        if not opened and not closed:
            break
        workers = [w._replace(state=STOPPING) if w.number in closed else w for w in workers]
        workers += [Worker(number, STARTING) for number in opened]
    assert len(workers) == desired
    assert not any(worker.old for worker in workers)


# -- crash loops -------------------------------------------------------------------------------------------------------


def test_a_fleet_whose_every_worker_dies_is_in_a_crash_loop() -> None:
    assert in_crash_loop([CRASHES_MAX, CRASHES_MAX + 9], 0)


def test_one_worker_that_lives_is_no_crash_loop() -> None:
    """An event that kills workers kills one after the other, not all."""
    assert not in_crash_loop([CRASHES_MAX, CRASHES_MAX - 1], 0)


def test_without_workers_it_is_the_janitor_that_counts() -> None:
    """It clears the way: as long as it dies, no worker is started."""
    assert in_crash_loop([], CRASHES_MAX)
    assert not in_crash_loop([], 0)
    assert not in_crash_loop([0], CRASHES_MAX)
