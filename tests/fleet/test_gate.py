"""The gate before the model, of a whole fleet of processes, judged by what arrives at the model."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.fleet.conftest import RunningFleet, Streams
from tests.rig import RedisServer, eventually

from millhand.gate import FRESH_S, TOKEN_GOOD_S
from scripts.fake.arrivals import Limit, open_peak
from scripts.fake.journal import Call
from scripts.fake_ollama import FakeOllama

TOTALS, GATE, PERMITS = "{events}:totals", "{events}:gate", "{events}:permits"
MACHINE_S = 0.25  # that a busy machine may be late with what it was let do
KILLS = 6
KNOWN_S_MAX = 1.0  # until every worker keeps to a pause

MakeFleet = Callable[..., RunningFleet]


@pytest.fixture
def gated(make_fleet: MakeFleet, durable_redis: RedisServer, fake: FakeOllama) -> MakeFleet:
    """Make a fleet of four workers whose gate is set as the test says."""
    return lambda **settings: make_fleet(
        MILLHAND_REDIS_URL=durable_redis.url,
        MILLHAND_MODEL_URL=fake.url,
        MILLHAND_MODEL_NAME=fake.model,
        MILLHAND_FLEET_WORKERS="4",
        MILLHAND_FLEET_DRAIN_S="5",
        MILLHAND_JANITOR_EVERY_S="0.5",
        **{f"MILLHAND_{name}": value for name, value in settings.items()},
    )


def calls_since(fake: FakeOllama, since_s: float) -> list[Call]:
    return [call for call in list(fake.calls) if call.arrival_s >= since_s]


def wait_for_calls(fake: FakeOllama, count: int) -> None:
    """Wait until so many more have arrived."""
    arrived = fake.arrived
    eventually(lambda: fake.arrived >= arrived + count, 30)


def attempts_spent(streams: Streams) -> int:
    return int(streams.client.hget(TOTALS, "retried") or 0)


def gate_of(fleet: RunningFleet) -> dict[str, Any]:
    status = fleet.status()
    assert status is not None, fleet.log
    return dict(status["gate"])


def test_calls_of_a_whole_fleet_keep_to_the_rate_and_use_it(
    gated: MakeFleet, streams: Streams, fake: FakeOllama
) -> None:
    """Promise 5: in every window no more than rate x length + burst arrive, and the rate is not wasted."""
    fleet = gated(MODEL_RATE_PER_S="40", MODEL_BURST="10", MODEL_IN_FLIGHT_MAX="64")
    fleet.up()
    streams.produce(200)
    eventually(lambda: streams.settled_once(200), 60)
    calls = calls_since(fake, 0.0)
    assert len(calls) == 200
    assert Limit(40, 10 + 40 * MACHINE_S).worst_excess(calls).calls <= 0
    assert calls[-1].arrival_s - calls[0].arrival_s >= (200 - 10) / 40 - TOKEN_GOOD_S


def test_no_more_calls_than_permits_are_open_through_kills_of_workers_and_of_redis(
    gated: MakeFleet, streams: Streams, durable_redis: RedisServer, fake: FakeOllama
) -> None:
    """F1, F20: and what a killed worker held is free again at once."""
    fake.latency_s = 0.1
    fleet = gated(MODEL_IN_FLIGHT_MAX="4")
    fleet.up()
    for number in range(KILLS):
        streams.produce(50)
        wait_for_calls(fake, 8)
        if number % 3 == 1:
            durable_redis.restart()
        else:
            os.kill(list(fleet.pids().values())[number % 4], signal.SIGKILL)
    eventually(lambda: streams.settled_once(50 * KILLS), 60)
    assert open_peak(list(fake.calls)).calls <= 4
    assert not streams.dead()


def test_one_workers_429_quiets_the_whole_fleet_for_as_long_as_it_says(
    gated: MakeFleet, streams: Streams, fake: FakeOllama
) -> None:
    """F42: within a second, and nothing is spent for it."""
    fake.latency_s = 0.02
    fleet = gated(MODEL_IN_FLIGHT_MAX="16")
    fleet.up()
    streams.produce(1500)
    eventually(lambda: fake.arrived > 100, 30)
    fake.script({"status": 429, "retry_after": 3, "times": 1})
    refused = eventually(lambda: [call for call in list(fake.calls) if call.status == 429])
    refused_s = refused[0].end_s or 0.0
    eventually(lambda: calls_since(fake, refused_s + 3), 30)
    eventually(lambda: streams.settled_once(1500), 60)
    after = [call.arrival_s - refused_s for call in calls_since(fake, refused_s)]
    assert not [at_s for at_s in after if KNOWN_S_MAX < at_s < 3]
    assert min(at_s for at_s in after if at_s >= 3) < 3 + 1 + KNOWN_S_MAX
    assert attempts_spent(streams) == 0
    assert [record["reason"].partition(":")[0] for record in fleet.told("gate.paused")] == ["model_busy"]


def test_a_model_that_throttles_for_too_long_stops_the_fleet_until_a_probe_gets_through(
    gated: MakeFleet, streams: Streams, fake: FakeOllama
) -> None:
    """F42: health says `throttled`, since when and why; a few calls ask whether it is over; nothing is spent."""
    fleet = gated(GATE_THROTTLED_MAX_S="2", GATE_PROBE_EVERY_MAX_S="1", MODEL_IN_FLIGHT_MAX="16")
    fleet.up()
    fake.outage(503, path="/api/chat")
    began_s = time.monotonic()
    streams.produce(60)
    eventually(lambda: gate_of(fleet)["state"] == "throttled", 30)
    status = fleet.status()
    assert status is not None
    assert not status["health"]["ready"]
    (reason,) = [one for one in status["health"]["reasons"] if one.startswith("throttled for ")]
    assert "model_busy: HTTP 503" in reason
    stopped_s = time.monotonic()
    eventually(lambda: len(calls_since(fake, stopped_s)) >= 3, 30)
    probing_s = time.monotonic() - stopped_s
    assert open_peak(calls_since(fake, stopped_s)).calls == 1
    assert len(calls_since(fake, stopped_s)) <= 1 + probing_s / (1 - FRESH_S)
    assert len(calls_since(fake, began_s)) < 60
    fake.script()
    eventually(lambda: streams.settled_once(60), 30)
    assert attempts_spent(streams) == 0
    assert not streams.dead()
    eventually(lambda: gate_of(fleet)["state"] == "closed", 30)
    assert len(fleet.told("model.away")) == len(fleet.told("model.back")) == 1


def test_a_model_that_dies_under_load_and_comes_back_costs_no_event_an_attempt(
    gated: MakeFleet, streams: Streams, fake: FakeOllama
) -> None:
    """F46: the breaker opens for the whole fleet, one probe at a time finds the model back, the backlog drains."""
    fake.latency_s = 0.05
    fleet = gated(MODEL_IN_FLIGHT_MAX="8", GATE_PROBE_EVERY_MAX_S="1")
    fleet.up()
    streams.produce(300)
    eventually(lambda: fake.arrived > 50, 30)
    fake.die()
    eventually(lambda: gate_of(fleet)["state"] == "away", 30)
    in_hand = len(streams.client.xpending_range("{events}:raw", "enrichers", "-", "+", 1000))
    assert in_hand <= 8 + 4  # as many calls as fail before the door is shut give their permits to others
    died_s = time.monotonic()
    eventually(lambda: time.monotonic() > died_s + 3, 10, what="the model has been dead for a while")
    assert len(streams.client.xpending_range("{events}:raw", "enrichers", "-", "+", 1000)) == in_hand
    fake.revive()
    eventually(lambda: streams.settled_once(300), 60)
    assert attempts_spent(streams) == 0
    assert not streams.dead()
    assert len(fleet.told("model.away")) == len(fleet.told("model.back")) == 1


def test_lost_keys_of_the_gate_let_no_burst_and_no_crowd_through(
    gated: MakeFleet, streams: Streams, fake: FakeOllama
) -> None:
    """F47: a token for each loss at the most, and nobody calls beside those whose permits were lost."""
    fake.latency_s = 0.05
    fleet = gated(MODEL_RATE_PER_S="20", MODEL_BURST="20", MODEL_IN_FLIGHT_MAX="4")
    fleet.up()
    streams.produce(150)
    eventually(lambda: fake.arrived > 20, 30)
    lost = 0
    for key in (GATE, PERMITS, GATE, GATE, PERMITS, GATE):
        lost += streams.client.delete(key)
        wait_for_calls(fake, 3)
    assert lost == 6
    eventually(lambda: streams.settled_once(150), 60)
    assert Limit(20, 20 + lost + 20 * MACHINE_S).worst_excess(list(fake.calls)).calls <= 0
    assert open_peak(list(fake.calls)).calls <= 4
