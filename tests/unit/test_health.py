"""Whether the fleet is well, from a picture of it."""

from typing import Any

import pytest

from millhand.pulse import PAUSED
from millhand_fleet.gate_view import GateView
from millhand_fleet.health import OLD_AFTER_S, STALE_AFTER_S, Health, judge_health
from millhand_fleet.snapshot import RedisView, Snapshot, StreamsView

NOW = 1_700_000_000.0
UP = RedisView(reachable=True, server="Redis 7.0.15", durability="durable")
AWAY = "model_busy: HTTP 503"


def row(name: str, state: str = "ready", waits_for: str | None = None) -> dict[str, Any]:
    stats = {"in_hand": 1, "waits_for": waits_for}
    return {"name": name, "restarts": 0, "last_exit": None, "state": state, "pid": 7, "stats": stats}


def dead(name: str) -> dict[str, Any]:
    return {"name": name, "restarts": 3, "last_exit": "signal 9", "state": "restarting"}


OTHERS = (row("janitor"), row("desk"), row("valkey"))
W1, W2 = row("worker-1"), row("worker-2")
W1_WAITS, W2_WAITS = row("worker-1", waits_for=AWAY), row("worker-2", waits_for=AWAY)


def picture(*workers: dict[str, Any], desired: int = 2, age_s: float = 0.5, **other: Any) -> Snapshot:
    fields = {"supervisor_pid": 7, "heard_at": NOW, "redis": UP, **other}
    return Snapshot("events", NOW - age_s, "tiny:1b", desired=desired, children=(*OTHERS, *workers), **fields)


@pytest.mark.parametrize(
    ("snapshot", "health"),
    [
        pytest.param(picture(W1, W2), Health(status="ok", ready=True, reasons=()), id="all well"),
        pytest.param(
            picture(W1, dead("worker-2")),
            Health(status="degraded", ready=True, reasons=("1 of 2 workers are ready",)),
            id="one down",
        ),
        pytest.param(
            picture(W1, row("worker-2", "starting")),
            Health(status="degraded", ready=True, reasons=("1 of 2 workers are ready",)),
            id="one starting",
        ),
        pytest.param(
            picture(W1, row("worker-2", "stopping"), desired=1),
            Health(status="ok", ready=True, reasons=()),
            id="one leaving by order",
        ),
        pytest.param(
            picture(), Health(status="degraded", ready=False, reasons=("0 of 2 workers are ready",)), id="none yet"
        ),
        pytest.param(
            picture(W1_WAITS, W2_WAITS),
            Health(status="degraded", ready=False, reasons=(f"waits for {AWAY}",)),
            id="the model is away",
        ),
        pytest.param(
            picture(W1_WAITS, W2),
            Health(status="degraded", ready=True, reasons=(f"waits for {AWAY}",)),
            id="the model is away for one",
        ),
        pytest.param(
            picture(W1_WAITS, W2, gate=GateView(state="throttled", since_s=72.4, until_s=3.25, says=AWAY)),
            Health(status="degraded", ready=False, reasons=(f"throttled for 72 s, next probe in 3.2 s: {AWAY}",)),
            id="throttled for too long",
        ),
        pytest.param(
            picture(W1_WAITS, W2_WAITS, gate=GateView(state="misconfigured", since_s=5, says="model_missing: no tiny")),
            Health(
                status="degraded",
                ready=False,
                reasons=(
                    "misconfigured for 5 s, next probe in 0.0 s: model_missing: no tiny",
                    f"waits for {AWAY}",
                ),
            ),
            id="the model is not there, and was busy before",
        ),
        pytest.param(
            picture(W1_WAITS, W2, gate=GateView(state="paused", since_s=1, until_s=4.5, says=AWAY)),
            Health(status="degraded", ready=True, reasons=(f"paused for 4.5 s more: {AWAY}",)),
            id="paused",
        ),
        pytest.param(
            picture(W1_WAITS, row("worker-2", waits_for="model_missing: no model")),
            Health(
                status="degraded",
                ready=False,
                reasons=(f"waits for {AWAY}", "waits for model_missing: no model"),
            ),
            id="the model is away for two reasons",
        ),
        pytest.param(
            picture(W1_WAITS, row("worker-2", "starting", waits_for=AWAY)),
            Health(status="degraded", ready=False, reasons=("1 of 2 workers are ready", f"waits for {AWAY}")),
            id="the only ready one waits",
        ),
        pytest.param(
            picture(desired=0),
            Health(status="degraded", ready=False, reasons=("scaled to 0 workers",)),
            id="scaled to nothing",
        ),
        pytest.param(
            picture(row("worker-1", waits_for=PAUSED), desired=1, paused=True),
            Health(
                status="degraded", ready=False, reasons=("paused by an operator; `worker-ctl resume` lets it go on",)
            ),
            id="paused, and said once",
        ),
        pytest.param(
            picture(row("worker-1", waits_for=PAUSED), desired=1),
            Health(status="ok", ready=True, reasons=()),
            id="just resumed: never unready without a reason",
        ),
        pytest.param(
            picture(
                row("worker-1", waits_for="redis: Connection refused"),
                desired=1,
                redis=RedisView(error="Connection refused"),
            ),
            Health(status="down", ready=False, reasons=("redis does not answer: Connection refused",)),
            id="Redis is away, and said once",
        ),
        pytest.param(
            picture(W1, W2, redis=RedisView(error="Connection refused")),
            Health(status="down", ready=False, reasons=("redis does not answer: Connection refused",)),
            id="Redis is away",
        ),
        pytest.param(
            picture(W1, W2, redis=RedisView()),
            Health(status="down", ready=False, reasons=("redis has not been asked yet: the desk has just begun",)),
            id="Redis was not asked yet",
        ),
        pytest.param(
            picture(W1, W2, age_s=STALE_AFTER_S + 5),
            Health(status="down", ready=False, reasons=("redis was asked 15 s ago for the last time",)),
            id="an old picture",
        ),
        pytest.param(
            picture(W1, W2, heard_at=NOW - STALE_AFTER_S - 5),
            Health(status="down", ready=False, reasons=("the supervisor has been silent for 15 s",)),
            id="a silent supervisor",
        ),
        pytest.param(
            picture(row("worker-1", "starting", waits_for=AWAY), desired=1),
            Health(status="degraded", ready=False, reasons=("0 of 1 workers are ready", f"waits for {AWAY}")),
            id="the model is missing at the start",
        ),
        pytest.param(
            picture(W1, W2, age_s=STALE_AFTER_S),
            Health(status="ok", ready=True, reasons=()),
            id="a picture just fresh enough",
        ),
        pytest.param(
            Snapshot("events", NOW, "tiny:1b", redis=UP),
            Health(status="degraded", ready=False, reasons=("the supervisor has not reported yet",)),
            id="no word from the supervisor",
        ),
        pytest.param(
            Snapshot("events", 0.0, "tiny:1b"),
            Health(
                status="down",
                ready=False,
                reasons=(
                    "redis has not been asked yet: the desk has just begun",
                    "the supervisor has not reported yet",
                ),
            ),
            id="the first moment",
        ),
        pytest.param(
            picture(dead("worker-1"), dead("worker-2"), crash_loop=True),
            Health(
                status="degraded",
                ready=False,
                reasons=(
                    "crash loop: the workers die one after another; the log says why, at child.died",
                    "0 of 2 workers are ready",
                ),
            ),
            id="a crash loop",
        ),
        pytest.param(
            picture(W1, W2, paused=True),
            Health(
                status="degraded",
                ready=False,
                reasons=("paused by an operator; `worker-ctl resume` lets it go on",),
            ),
            id="paused by an operator",
        ),
        pytest.param(
            picture(W1, W2, streams=StreamsView(backlog_age_s=OLD_AFTER_S + 60)),
            Health(
                status="degraded",
                ready=True,
                reasons=("the oldest event has waited for 960 s, and no end of the backlog is in sight",),
            ),
            id="a backlog that grows",
        ),
        pytest.param(
            picture(W1, W2, streams=StreamsView(backlog_age_s=OLD_AFTER_S + 60, drained_in_s=5000.0)),
            Health(status="ok", ready=True, reasons=()),
            id="an old backlog that shrinks",
        ),
        pytest.param(
            picture(W1, W2, streams=StreamsView(backlog_age_s=OLD_AFTER_S)),
            Health(status="ok", ready=True, reasons=()),
            id="a backlog not yet old",
        ),
        pytest.param(
            picture(W1, W2, rolling={"what": "reload", "left": 1}),
            Health(status="ok", ready=True, reasons=(), notes=("rolling reload; processes to go: 1",)),
            id="a rolling reload is work, and no fault",
        ),
        pytest.param(
            picture(W1, W2, stop_wait_note="stopwaitsecs is 10, below the drain deadline of 20 s"),
            Health(
                status="ok", ready=True, reasons=(), notes=("stopwaitsecs is 10, below the drain deadline of 20 s",)
            ),
            id="whoever starts the fleet will not wait for it",
        ),
    ],
)
def test_a_picture_has_one_judgement(snapshot: Snapshot, health: Health) -> None:
    assert judge_health(snapshot, NOW) == health


@pytest.mark.parametrize(
    ("durability", "noted"), [("durable", False), ("unknown", False), ("none", True), ("weak: everysec", True)]
)
def test_a_redis_that_forgets_is_noted_and_is_no_alarm(durability: str, noted: bool) -> None:  # noqa: FBT001
    """F29: somebody chose that, and whoever is woken at night cannot change it then; the alert rules warn by day."""
    redis = RedisView(reachable=True, server="Redis 7.0.15", durability=durability)
    health = judge_health(picture(W1, W2, redis=redis), NOW)
    assert health.status == "ok"
    assert bool(health.notes) == noted
    assert all(durability in note for note in health.notes)


def test_only_workers_count_as_workers() -> None:
    assert [one["name"] for one in picture(W1, W2).workers] == ["worker-1", "worker-2"]
