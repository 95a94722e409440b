"""Starts that cannot work say why and leave; those that can heal say what they wait for."""

import socket
from collections.abc import Callable
from pathlib import Path

from tests.fleet.conftest import START_S_MAX, RunningFleet, Streams
from tests.rig import RedisServer, eventually, free_port, old_redis

from scripts.fake_ollama import FakeOllama

MakeFleet = Callable[..., RunningFleet]
LINES_MAX = 12


def refused(fleet: RunningFleet, *options: str) -> str:
    """Start a fleet that must refuse; return what it says, which fits on a screen."""
    answer = fleet.ctl(*options, "up")
    said = answer.stderr.decode()
    assert answer.returncode == 78, said
    assert "Traceback" not in said
    return said


def test_an_unknown_key_stops_the_start_with_a_guess(make_fleet: MakeFleet, tmp_path: Path) -> None:
    file = tmp_path / "millhand.toml"
    file.write_text('[fleet]\nworkrs = 3\n[modle]\nname = "x"\n')
    said = refused(make_fleet(), "--config", str(file))
    assert f"fleet.workrs ({file}): there is no such key; did you mean workers?" in said
    assert f"modle ({file}): there is no such section; did you mean model?" in said
    assert len(said.splitlines()) <= LINES_MAX


def test_a_redis_that_is_too_old_is_refused(make_fleet: MakeFleet, fake: FakeOllama) -> None:
    with RedisServer(binary=old_redis()) as old:
        said = refused(make_fleet(MILLHAND_REDIS_URL=old.url, MILLHAND_MODEL_URL=fake.url))
    assert "Redis 6.2" in said
    assert "needs 7.0 or newer" in said


def test_a_wrong_password_is_refused(
    make_fleet: MakeFleet, fake: FakeOllama, start_redis: Callable[[dict[str, str]], RedisServer]
) -> None:
    server = start_redis({})
    with server.client() as client:
        client.config_set("requirepass", "secret")
    said = refused(make_fleet(MILLHAND_REDIS_URL=server.url.replace("//", "//:wrong@"), MILLHAND_MODEL_URL=fake.url))
    assert "Redis refuses the login" in said
    assert "wrong@" not in said


def test_a_taken_desk_port_is_refused(make_fleet: MakeFleet) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = refused(make_fleet(MILLHAND_DESK_PORT=str(taken.getsockname()[1])))
    assert "desk.port" in said
    assert "cannot be had" in said


def test_a_taken_port_for_the_embedded_redis_is_refused(make_fleet: MakeFleet, redis_server: RedisServer) -> None:
    """Or the fleet would work on somebody else's Redis."""
    said = refused(make_fleet(MILLHAND_REDIS_EMBEDDED_PORT=str(redis_server.port)))
    assert "redis.embedded_port" in said
    assert "is taken" in said


def test_an_unknown_task_is_refused(make_fleet: MakeFleet) -> None:
    said = refused(make_fleet(MILLHAND_ENRICH_TASKS="sentimnt"))
    assert "there is no task 'sentimnt'; did you mean sentiment?" in said


def test_an_unreachable_redis_is_waited_for(
    make_fleet: MakeFleet, fake: FakeOllama, start_redis: Callable[[dict[str, str]], RedisServer]
) -> None:
    server = start_redis({})
    server.kill()
    fleet = make_fleet(MILLHAND_REDIS_URL=server.url, MILLHAND_MODEL_URL=fake.url, MILLHAND_MODEL_NAME=fake.model)
    fleet.up(ready=False)
    waiting = eventually(lambda: fleet.told("redis.waiting"))
    assert "Connection refused" in waiting[0]["error"]
    health = eventually(lambda: (status := fleet.status()) and status["health"])
    assert health["status"] == "down"
    assert any("redis does not answer" in reason for reason in health["reasons"])
    server.start()
    fleet.eventually_ready()


def test_a_missing_model_is_waited_for_and_named(fleet: RunningFleet, streams: Streams, fake: FakeOllama) -> None:
    fleet.environment["MILLHAND_MODEL_NAME"] = "nothere:7b"
    fleet.up(ready=False)
    away = eventually(lambda: fleet.told("model.away"), START_S_MAX)
    assert "ollama pull nothere:7b" in away[0]["detail"]
    streams.produce(1)
    eventually(lambda: (status := fleet.status()) and "ollama pull nothere:7b" in str(status["health"]["reasons"]))
    assert not fake.calls
    assert not streams.dead()


def test_an_unreachable_model_is_waited_for_and_nothing_is_read(fleet: RunningFleet, streams: Streams) -> None:
    port = free_port()
    fleet.environment["MILLHAND_MODEL_URL"] = f"http://127.0.0.1:{port}"
    fleet.up(ready=False)
    streams.produce(5)
    eventually(lambda: fleet.told("model.away"), START_S_MAX)
    assert streams.client.xpending("{events}:raw", "enrichers")["pending"] == 0
    with FakeOllama(port=port).in_thread():
        eventually(lambda: streams.settled_once(5), 40)
    assert not streams.dead()
