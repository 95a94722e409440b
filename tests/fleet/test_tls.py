"""A fleet that speaks to Redis in secret, and keeps its secrets."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from tests.certificates import Authority, require_openssl, tls_options
from tests.fleet.conftest import RunningFleet, Streams
from tests.rig import HOST, RedisServer, eventually, free_port, system_redis

from millhand_fleet.ctl.settings import EX_UNAVAILABLE
from millhand_fleet.state import ENDPOINTS, StateDir

SECRET = "Kq7#vT2@wz/9"  # noqa: S105 - the test looks for it everywhere; needs escaping in an address
ESCAPED = "Kq7%23vT2%40wz%2F9"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    require_openssl()
    return Authority(tmp_path)


@pytest.fixture
def tls_redis(authority: Authority) -> Iterator[RedisServer]:
    """Run a server that asks for a password and for a certificate."""
    durable = {"appendonly": "yes", "appendfsync": "always", "requirepass": SECRET}
    tls = tls_options(free_port(), authority, authority.sign("server"), clients="yes")
    with RedisServer(durable | tls, binary=system_redis()) as server:
        yield server


@pytest.fixture
def secret_fleet(fleet: RunningFleet, tls_redis: RedisServer, authority: Authority) -> RunningFleet:
    """Make a fleet that knows the password from a file alone."""
    file, client = fleet.folder / "redis_password", authority.sign("client", "DNS:client")
    file.touch(mode=0o600)
    file.write_text(SECRET + "\n", encoding="utf-8")
    fleet.environment |= {
        "MILLHAND_REDIS_URL": f"rediss://{HOST}:{tls_redis._options['tls-port']}/0",
        "MILLHAND_REDIS_PASSWORD_FILE": str(file),
        "MILLHAND_REDIS_TLS_CA_FILE": str(authority.certificate),
        "MILLHAND_REDIS_TLS_CERT_FILE": str(client.certificate),
        "MILLHAND_REDIS_TLS_KEY_FILE": str(client.key),
        "MILLHAND_LOG_LEVEL": "debug",
    }
    return fleet


def test_a_fleet_works_over_tls_and_tells_its_password_to_nobody(
    secret_fleet: RunningFleet, tls_redis: RedisServer
) -> None:
    """The whole of what a run says and shows is searched: log at level debug, desk, commands, command lines."""
    fleet = secret_fleet
    fleet.up()
    lines = b'{"text": "good"}\n{"x": 1}\n' * 10
    said = [fleet.ctl("produce", stdin=lines)]
    with tls_redis.client() as client:
        eventually(lambda: Streams(client).settled_once(20), 30)
        os.kill(fleet.pids()["worker-1"], 9)
        eventually(fleet.is_ready, 20)
        client.config_set("requirepass", "another")
        client.client_kill_filter(_type="normal")
        eventually(lambda: fleet.told("redis.waiting"), 20)
        client.auth("another")
        client.config_set("requirepass", SECRET)
    eventually(fleet.is_ready, 20)
    said += [fleet.ctl(*command) for command in (
        ("status",), ("status", "--json"), ("config", "show"), ("config", "check"), ("dead", "list"),
        ("dead", "export"), ("dead", "show", "1-1"), ("compare", "--repeats"),
        ("tail", "--from", "start", "--no-follow"), ("doctor",), ("trim", "--yes"), ("config", "show", "--json"),
        ("verify", "--min-rate", "0.4", "--json"),
    )]  # fmt: skip
    assert b"no_text" in said[5].stdout
    assert b"PING takes" in said[10].stdout, "the doctor gets in as the fleet does"
    assert json.loads(said[-1].stdout)["enriched_count"] == 10
    desk = StateDir(fleet.state_dir).read(ENDPOINTS)["desk_url"]
    pages = [httpx.get(desk + path).text for path in ("/healthz", "/readyz", "/status", "/metrics")]
    processes = [psutil.Process(fleet.process.pid if fleet.process else 0), *fleet.family()]
    lines_of_commands = [" ".join(process.cmdline()) for process in processes]
    assert len(lines_of_commands) >= 5
    assert fleet.terminate() == 0
    state = [file.read_text(errors="replace") for file in fleet.state_dir.iterdir() if file.is_file()]
    shown = [text.decode() for answer in said for text in (answer.stdout, answer.stderr)]
    for text in (fleet.log, *shown, *pages, *lines_of_commands, *state):
        assert SECRET not in text
        assert ESCAPED not in text


def test_a_password_in_the_address_or_the_environment_is_told_to_nobody_either(
    fleet: RunningFleet, tls_redis: RedisServer
) -> None:
    """Where the fleet cannot even start: every message on that way."""
    plain = f"{HOST}:{tls_redis.port}/0"
    for environment in (
        {"MILLHAND_REDIS_URL": f"redis://default:{ESCAPED}x@{plain}"},
        {"MILLHAND_REDIS_URL": f"redis://{plain}", "MILLHAND_REDIS_PASSWORD": SECRET + "x"},
        {"MILLHAND_REDIS_URL": f"redis://default:{ESCAPED}@{plain}", "MILLHAND_REDIS_PASSWORD": SECRET},
        {"MILLHAND_REDIS_URL": f"redis://default:{ESCAPED}@{plain}?x=1"},
    ):
        fleet.environment |= {"MILLHAND_REDIS_PASSWORD": "", **environment}
        fleet.up(ready=False)
        assert fleet.process is not None
        assert fleet.process.wait(30) == os.EX_CONFIG
        answer = fleet.ctl("produce", stdin=b"{}\n")
        assert answer.returncode in {os.EX_CONFIG, EX_UNAVAILABLE}
        assert not re.search(f"{re.escape(SECRET)}|{ESCAPED}".encode(), answer.stdout + answer.stderr)
    assert fleet.log.count("Redis refuses the login") >= 2
    assert "keep one of them" in fleet.log
    assert SECRET not in fleet.log
    assert ESCAPED not in fleet.log
