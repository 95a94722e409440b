"""The gate, on a clock that moves only when somebody sleeps."""

import asyncio

import pytest
from structlog.testing import capture_logs

from millhand.errors import ModelAway
from millhand.gate import JITTER_SHARE, PAUSE_MAX_S, PAUSE_MIN_S, Gate
from millhand.log import logger
from millhand.stop import Stop

AT_ONCE_S = 1.0  # generous: what is meant is microseconds
GONE = ModelAway("model_unreachable", "http://model.test: refused")


class SleepingStop(Stop):
    """A stop whose sleeps pass at once, on its own clock, and are written down."""

    def __init__(self) -> None:
        super().__init__(drain_s=20)
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> bool:
        self.slept.append(seconds)
        self.now += seconds
        return self.requested


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> SleepingStop:
    """Make the gate read its time from the stop that it sleeps with."""
    sleeping = SleepingStop()
    monkeypatch.setattr("millhand.gate.time", sleeping)
    return sleeping


@pytest.fixture
def gate(stop: SleepingStop) -> Gate:
    return Gate(stop, logger())


async def pause_s(gate: Gate, stop: SleepingStop, away: ModelAway = GONE) -> float:
    """Close the gate and wait it out; return for how long, less the jitter's largest share."""
    gate.close(away)
    stop.slept.clear()
    assert await gate.admit()
    (slept_s,) = stop.slept
    return slept_s


async def test_an_open_gate_admits_without_a_wait(gate: Gate, stop: SleepingStop) -> None:
    assert await gate.admit()
    assert stop.slept == []
    assert gate.away is None


async def test_a_closed_gate_says_why(gate: Gate) -> None:
    gate.close(GONE)
    assert gate.away is GONE


async def test_pauses_double_up_to_a_limit(gate: Gate, stop: SleepingStop) -> None:
    for expected_s in (PAUSE_MIN_S, 1.0, 2.0, 4.0, 8.0, PAUSE_MAX_S, PAUSE_MAX_S):
        assert expected_s <= await pause_s(gate, stop) <= expected_s * (1 + JITTER_SHARE) + 1e-6


async def test_the_wait_that_the_model_asks_for_is_kept(gate: Gate, stop: SleepingStop) -> None:
    asked = ModelAway("model_busy", "HTTP 503", wait_s=120)
    assert 120 <= await pause_s(gate, stop, asked) <= 120 * (1 + JITTER_SHARE) + 1e-6


async def test_calls_that_failed_together_count_as_one_pause(gate: Gate, stop: SleepingStop) -> None:
    for _ in range(8):
        gate.close(GONE)
    assert await gate.admit()
    assert sum(stop.slept) <= PAUSE_MIN_S * (1 + JITTER_SHARE) + 1e-6


async def test_a_longer_wait_asked_for_while_closed_is_kept(gate: Gate, stop: SleepingStop) -> None:
    """Of two calls that fail together, only the second may have been told how long to wait."""
    gate.close(GONE)
    gate.close(ModelAway("model_busy", "HTTP 429", wait_s=120))
    assert await gate.admit()
    assert sum(stop.slept) >= 120 - 1e-6


async def test_an_answer_opens_the_gate_and_forgets_the_pauses(gate: Gate, stop: SleepingStop) -> None:
    for _ in range(5):
        await pause_s(gate, stop)
    gate.open()
    assert gate.away is None
    assert await pause_s(gate, stop) <= PAUSE_MIN_S * (1 + JITTER_SHARE) + 1e-6


async def test_a_requested_stop_admits_nobody(gate: Gate, stop: SleepingStop) -> None:
    stop.request()
    assert not await gate.admit()


async def test_a_stop_wakes_who_waits_at_a_closed_gate() -> None:
    stop = Stop(drain_s=20)
    gate = Gate(stop, logger())
    gate.close(ModelAway("model_busy", "HTTP 503", wait_s=600))

    async def request() -> None:
        stop.request()

    async with asyncio.timeout(AT_ONCE_S):
        admitted, _ = await asyncio.gather(gate.admit(), request())
    assert not admitted


async def test_an_outage_is_told_once_and_its_end_too(gate: Gate, stop: SleepingStop) -> None:
    with capture_logs() as told:
        for _ in range(3):
            await pause_s(gate, stop)
        gate.open()
        gate.open()
    assert [(event["event"], event["log_level"]) for event in told] == [("model.away", "error"), ("model.back", "info")]


async def test_an_outage_of_another_kind_is_told_anew(gate: Gate, stop: SleepingStop) -> None:
    with capture_logs() as told:
        await pause_s(gate, stop)
        await pause_s(gate, stop, ModelAway("model_missing", "no model"))
    assert [event["reason"] for event in told] == ["model_unreachable", "model_missing"]
