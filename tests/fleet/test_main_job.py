"""The main job, with real processes: in, enriched, out, once."""

import json
import signal

import httpx
import pytest
from tests.fleet.conftest import RunningFleet, Streams, gone
from tests.rig import RedisServer, eventually

from millhand_fleet.state import ENDPOINTS, StateDir


def test_every_event_ends_once_and_the_fleet_stops_cleanly(fleet: RunningFleet, streams: Streams) -> None:
    fleet.up()
    streams.produce(200)
    eventually(lambda: streams.settled_once(200), 30)
    family = fleet.family()
    assert fleet.terminate() == 0
    eventually(lambda: gone(family), 3)
    assert streams.client.xpending("{events}:raw", "enrichers")["pending"] == 0
    assert len(streams.enriched()) == 200


def test_an_enriched_event_tells_where_it_came_from_and_how(fleet: RunningFleet, streams: Streams) -> None:
    fleet.up()
    raw = b'{"id": 7, "price": 1.10, "text": "good phone"}'
    source = streams.client.xadd("{events}:raw", {"data": raw, "event_id": "e-7", "traceparent": "00-ab"})
    record = eventually(streams.enriched)[0]
    assert record[b"src"] == source
    assert record[b"event_id"] == b"e-7"
    assert record[b"data"].startswith(raw[:-1])
    enrichment = json.loads(record[b"data"])["ai_enrichment"]
    assert set(enrichment) == {"sentiment", "meta"}
    meta = enrichment["meta"]
    assert meta["model"] == "fake:1b"
    assert meta["attempts"] == 1
    assert meta["tokens_in"] > 0
    assert meta["model_digest"]
    assert meta["worker"].split(":")[1] in {"w1", "w2"}


def test_bad_lines_are_refused_by_number_and_bad_events_buried_with_their_reason(
    fleet: RunningFleet, streams: Streams
) -> None:
    fleet.up()
    lines = b'{"text": "fine"}\nnot json\n\n[1, 2]\n{"x": 1}\n{"message": "[[fake garbage]]"}\n'
    answer = fleet.ctl("produce", stdin=lines)
    assert answer.returncode == 1
    assert b"written: 3, refused: 2" in answer.stdout
    assert b"line 2: refused" in answer.stderr
    assert b"line 4: refused" in answer.stderr
    eventually(lambda: streams.settled_once(3), 30)
    reasons = {record[b"failure_reason"] for record in streams.dead()}
    assert reasons == {b"no_text", b"invalid_answer"}
    garbage = next(record for record in streams.dead() if record[b"failure_reason"] == b"invalid_answer")
    assert garbage[b"attempts"] == b"4"
    assert garbage[b"data"] == b'{"message": "[[fake garbage]]"}'


def test_the_desk_answers_health_readiness_status_and_metrics(fleet: RunningFleet, streams: Streams) -> None:
    fleet.up()
    streams.produce(10)
    streams.client.xadd("{events}:raw", {"data": "hopeless"})
    eventually(lambda: streams.settled_once(11), 30)
    desk = StateDir(fleet.state_dir).read(ENDPOINTS)["desk_url"]
    health = eventually(lambda: _with(httpx.get(f"{desk}/healthz").json(), enriched=10, dead_letters=1))
    assert health["status"] == "ok"
    assert health["backlog"] == 0
    assert health["success_rate"] == pytest.approx(10 / 11, abs=1e-4)
    assert httpx.get(f"{desk}/readyz").status_code == 200
    assert 'millhand_dead_letters_total{reason="malformed"} 1.0' in httpx.get(f"{desk}/metrics").text
    assert httpx.post(f"{desk}/scale", json={"workers": 5}).status_code == 404


def _with(document: dict[str, object], **wanted: object) -> dict[str, object] | None:
    return document if document | wanted == document else None


def test_scaling_keeps_the_processes_that_stay_and_survives_a_restart(fleet: RunningFleet, streams: Streams) -> None:
    fleet.up()
    before = fleet.pids()
    streams.produce(400, "event {n} [[fake delay=0.05]]")
    assert b"workers: 2 -> 4" in fleet.ctl("scale", "4").stdout
    eventually(lambda: len(fleet.pids()) == 4 and fleet.is_ready(), 20)
    four = fleet.pids()
    assert {name: pid for name, pid in four.items() if name in before} == before
    assert b"workers: 4 -> 1" in fleet.ctl("scale", "1").stdout
    eventually(lambda: len(fleet.pids()) == 1, 20)
    assert fleet.pids().items() <= four.items()  # whichever was the busiest
    assert fleet.terminate() == 0
    fleet.up()
    assert list(fleet.pids()) == ["worker-1"]
    fleet.ctl("scale", "3")
    eventually(lambda: streams.settled_once(400), 60)
    assert not streams.dead()


@pytest.mark.parametrize("wrong", ["-257", "257", "many", "1.5"])
def test_an_impossible_scale_is_refused(fleet: RunningFleet, wrong: str) -> None:
    answer = fleet.ctl("scale", "--", wrong)
    assert answer.returncode == 2
    assert b"Invalid value" in answer.stderr


def test_ctrl_c_lets_what_is_in_hand_finish(fleet: RunningFleet, streams: Streams) -> None:
    """A terminal sends SIGINT to every process of the fleet at once."""
    fleet.up()
    streams.produce(4, "event {n} [[fake delay=1]]")
    eventually(lambda: streams.client.xpending("{events}:raw", "enrichers")["pending"] == 4)
    for child in fleet.family():
        child.send_signal(signal.SIGINT)
    assert fleet.terminate(signal.SIGINT) == 0
    assert len(streams.enriched()) == 4


def test_stop_waits_until_the_fleet_has_stopped(fleet: RunningFleet) -> None:
    fleet.up()
    assert fleet.ctl("stop").stdout == b"stopped\n"
    assert fleet.process is not None
    assert fleet.process.wait(5) == 0
    again = fleet.ctl("stop")
    assert again.returncode == 69
    assert b"is not running" in again.stderr


def test_a_fleet_on_a_restarted_redis_goes_on(
    fleet: RunningFleet, streams: Streams, durable_redis: RedisServer
) -> None:
    """F20: kill -9 of Redis under load."""
    fleet.up()
    streams.produce(300, "event {n} [[fake delay=0.02]]")
    for done in (50, 120, 200):
        eventually(lambda done=done: len(streams.enriched()) >= done, 30)  # type: ignore[misc]
        durable_redis.restart()
    eventually(lambda: streams.settled_once(300), 60)
    assert not streams.dead()


def test_a_task_of_the_toml_file_alone_is_asked(fleet: RunningFleet) -> None:
    file = fleet.folder / "millhand.toml"
    file.write_text(
        '[enrich]\ntasks = ["sentiment", "urgency"]\n[task.urgency]\nprompt = "how soon"\n'
        '[task.urgency.fields]\nlevel = { type = "enum", values = ["now", "later"] }\n'
    )
    fleet.environment["MILLHAND_CONFIG"] = str(file)
    fleet.up()
    fleet.ctl("produce", stdin=b'{"text": "the server is on fire"}\n')
    report = eventually(lambda: _proven(fleet), 20)
    assert report["enriched_count"] == 1


def _proven(fleet: RunningFleet) -> dict[str, object] | None:
    answer = fleet.run("scripts/verify_enrichment.py")
    return json.loads(answer.stdout) if answer.returncode == 0 else None
