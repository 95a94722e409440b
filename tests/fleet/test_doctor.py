"""`worker-ctl doctor` beside a running fleet: well, and on a machine with five things wrong."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from tests.fleet.conftest import DEAD, RunningFleet, Streams
from tests.rig import RedisServer, eventually

from scripts.fake_ollama import FakeOllama

EXAMINED_S_MAX = 40.0
WELL, WARNED, WRONG = 0, 1, 3


def examination(fleet: RunningFleet) -> dict[str, Any]:
    """Run the doctor; its exit code must be what it says it is."""
    answer = fleet.ctl("doctor", "--json")
    found: dict[str, Any] = json.loads(answer.stdout)
    assert answer.returncode == found["exit_code"], answer.stderr
    return found


def remedies(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the remedy of each error and warning, by its section and subject."""
    wrong = [f for f in found["findings"] if f["level"] in {"error", "warning"}]
    return {f"{f['section']} {f['subject']}": f["remedy"] for f in wrong}


def test_a_healthy_machine_has_nothing_wrong(fleet: RunningFleet, streams: Streams) -> None:
    """A busy machine may be slow for a moment, so it may look again."""
    fleet.environment["MILLHAND_DELIVERY_LEASE_S"] = "30"
    fleet.up()
    streams.produce(5)
    eventually(lambda: streams.settled_once(5))  # a model is loaded by its first call
    eventually(lambda: examination(fleet)["exit_code"] == WELL, EXAMINED_S_MAX, what=str(remedies(examination(fleet))))
    page = fleet.ctl("doctor").stdout.decode()
    for title in ("Programs", "Redis", "Streams", "Model", "Fleet", "Files", "Supervision"):
        assert f"\n{title}\n" in f"\n{page}"
    assert "\x1b" not in page  # no colour where there is no terminal


def test_a_machine_with_five_things_wrong_gets_a_remedy_for_each(
    make_fleet: Callable[..., RunningFleet], durable_redis: RedisServer, fake: FakeOllama
) -> None:
    fleet = make_fleet(MILLHAND_REDIS_URL=durable_redis.url, MILLHAND_MODEL_URL=fake.url, MILLHAND_MODEL_NAME="fake:2b")
    fleet.folder.joinpath("supervisord.conf").write_text("[program:millhand]\ncommand=worker-ctl up\n")
    fleet.up(ready=False)
    eventually(lambda: fleet.status() is not None, EXAMINED_S_MAX, what="the desk answers")
    with durable_redis.client() as client:
        client.config_set("appendfsync", "everysec")
        client.config_set("maxmemory-policy", "allkeys-lru", "maxmemory", "1gb")
        client.rpush(DEAD, "not a stream")
    fleet.state_dir.chmod(0o755)
    found = examination(fleet)
    expected = {
        "redis durability": "appendfsync always",
        "redis eviction": "maxmemory-policy noeviction",
        "streams type": "redis.dead_letter_stream",
        "model model": "ollama pull fake:2b",
        "files state directory": "chmod 700",
        "supervision stop": "set stopwaitsecs to 24",
    }
    told = remedies(found)
    assert {name for name, text in expected.items() if text not in told.get(name, "")} == set(), told
    assert found["exit_code"] == WRONG
    page = fleet.ctl("doctor", "--quiet")
    assert page.returncode == WRONG
    assert all(text in page.stdout.decode() for text in expected.values())


def test_a_fleet_that_is_not_what_is_installed_here_is_noticed(fleet: RunningFleet) -> None:
    """Settings of the fleet's environment are compared by name; their values are not shown."""
    fleet.up()
    fleet.environment["MILLHAND_DELIVERY_RETRIES"] = "9"
    differing = next(f for f in examination(fleet)["findings"] if "other values of" in f["found"])
    assert "MILLHAND_DELIVERY_RETRIES" in differing["found"]
    assert differing["level"] == "warning"


def test_the_doctor_speaks_ascii_where_the_locale_does(make_fleet: Callable[..., RunningFleet]) -> None:
    fleet = make_fleet(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PATH=os.environ["PATH"])
    answer = fleet.ctl("doctor")
    assert answer.returncode in {WELL, WARNED}
    assert answer.stdout.isascii()
    assert b" -> worker-ctl up" in answer.stdout
