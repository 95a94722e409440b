"""Stopping under one deadline."""

import asyncio
import math
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from millhand.stop import Stop

AT_ONCE_S = 2.0  # generous: what is meant is microseconds
LONG_S = 600.0


async def requested(stop: Stop, within_s: float | None = None) -> None:
    stop.request(within_s)


async def meanwhile(waiting: Awaitable[Any], *others: Awaitable[Any]) -> Any:
    """Start to wait, let the others happen, and return what the wait came to."""
    async with asyncio.timeout(AT_ONCE_S):
        return (await asyncio.gather(waiting, *others))[0]


def test_nobody_who_was_not_asked_must_stop() -> None:
    stop = Stop(drain_s=20)
    assert not stop.requested
    assert stop.remaining_s() == math.inf


@pytest.mark.parametrize(("within_s", "expected_s"), [(None, 20), (5, 5), (0, 0), (100, 20)])
def test_a_stop_lasts_no_longer_than_the_drain_time(within_s: float | None, expected_s: float) -> None:
    stop = Stop(drain_s=20)
    stop.request(within_s)
    assert stop.requested
    assert expected_s - 1 < stop.remaining_s() <= expected_s


@pytest.mark.parametrize("asked", [(5, 10), (10, 5), (None, 5), (5, None), (5, 5)])
def test_of_several_deadlines_the_earliest_holds(asked: tuple[float | None, ...]) -> None:
    stop = Stop(drain_s=20)
    for within_s in asked:
        stop.request(within_s)
    assert 4 < stop.remaining_s() <= 5


def test_a_stop_asked_for_again_does_not_start_its_time_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("millhand.stop.time.monotonic", lambda: now[0])
    stop = Stop(drain_s=20)
    stop.request()
    now[0] += 15
    stop.request()
    assert stop.remaining_s() == 5
    now[0] += 15
    assert stop.remaining_s() == 0


async def test_who_waits_for_a_stop_hears_of_it() -> None:
    stop = Stop(drain_s=LONG_S)
    await meanwhile(stop.wait(), requested(stop))
    assert stop.requested


async def test_a_sleep_ends_at_once_with_a_stop() -> None:
    stop = Stop(drain_s=LONG_S)
    assert await meanwhile(stop.sleep(LONG_S), requested(stop)) is True


async def test_a_sleep_after_a_stop_is_none() -> None:
    stop = Stop(drain_s=LONG_S)
    stop.request()
    assert await meanwhile(stop.sleep(LONG_S)) is True


async def test_a_sleep_that_nobody_disturbs_says_so() -> None:
    assert await meanwhile(Stop(drain_s=LONG_S).sleep(0.001)) is False


async def test_the_deadline_comes_only_after_a_stop_was_requested() -> None:
    stop = Stop(drain_s=0)
    await meanwhile(stop.deadline(), requested(stop))
    assert stop.remaining_s() == 0


async def test_the_deadline_hears_a_nearer_one() -> None:
    stop = Stop(drain_s=LONG_S)
    stop.request()
    await meanwhile(stop.deadline(), requested(stop, 0))
    assert stop.remaining_s() == 0


async def test_the_deadline_is_not_moved_by_a_later_one() -> None:
    stop = Stop(drain_s=LONG_S)
    stop.request(0.01)
    await meanwhile(stop.deadline(), requested(stop, LONG_S), requested(stop))
    assert stop.remaining_s() == 0


async def test_several_may_await_the_same_deadline() -> None:
    stop = Stop(drain_s=LONG_S)
    stop.request()
    await meanwhile(stop.deadline(), stop.deadline(), stop.deadline(), requested(stop, 0))
    assert stop.remaining_s() == 0


async def test_work_that_ends_before_a_stop_gives_its_result() -> None:
    async def work() -> str:
        return "flour"

    assert await meanwhile(Stop(drain_s=LONG_S).or_result(work())) == "flour"


async def test_work_is_cancelled_by_a_stop() -> None:
    stop = Stop(drain_s=LONG_S)
    cancelled = asyncio.Event()

    async def work() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "flour"

    assert await meanwhile(stop.or_result(work()), requested(stop)) is None
    assert cancelled.is_set()


async def test_work_that_fails_before_a_stop_raises_its_own_error() -> None:
    async def work() -> str:
        raise OSError("no grain")

    with pytest.raises(OSError, match="no grain"):
        await meanwhile(Stop(drain_s=LONG_S).or_result(work()))


async def test_a_result_that_is_there_when_the_stop_comes_is_not_lost() -> None:
    """A semaphore that was acquired must be released by whoever learns of it."""
    stop = Stop(drain_s=LONG_S)
    done: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def both_at_once() -> None:
        done.set_result("flour")
        stop.request()

    assert await meanwhile(stop.or_result(done), both_at_once()) == "flour"


async def test_cancelling_the_wait_cancels_the_work() -> None:
    stop = Stop(drain_s=LONG_S)
    work: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(stop.or_result(work))

    async def cancel() -> None:
        waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await meanwhile(waiting, cancel())
    assert work.cancelled()


def test_a_signal_that_comes_after_the_end_of_the_loop_spoils_no_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second SIGTERM, or that of the kernel, while the interpreter is going down."""
    handlers: dict[int, Callable[[], None]] = {}
    monkeypatch.setattr("millhand.stop.signal.signal", handlers.__setitem__)

    async def life() -> None:
        Stop(drain_s=20).listen()

    asyncio.run(life())
    handlers[signal.SIGTERM]()
