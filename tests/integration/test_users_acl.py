"""Least rights: what each user of `conf/users.acl` may do, and above all what it may not."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.rig import HOST, SERVERS, RedisServer, free_port
from tests.roles import CONFIGURATION, USERS, password_of, write_users

pytestmark = pytest.mark.every_server

ROLES = ("millhand", "operator", "producer", "reader", "monitor")
RAW, OUTPUT, DEAD = "{events}:raw", "{events}:enriched", "{events}:dead_letter"

NOBODYS = [
    "FLUSHALL", "FLUSHDB", "SWAPDB 0 1", "KEYS *", "SCAN 0", "DEBUG SLEEP 0", "CONFIG GET requirepass",
    "CONFIG SET save x", "SHUTDOWN", "MONITOR", "SAVE", "BGREWRITEAOF", "REPLICAOF NO ONE", "ACL LIST", "ACL SETUSER x",
    "CLIENT LIST", "CLIENT KILL TYPE normal", "SCRIPT FLUSH", "FUNCTION FLUSH", "SLOWLOG GET", "MODULE LIST",
    f"DEL {RAW}", f"UNLINK {RAW}", f"EXPIRE {RAW} 1", f"PEXPIRE {RAW} 1", f"SET {RAW} x", f"RENAME {RAW} {OUTPUT}",
    f"COPY {RAW} {OUTPUT}", f"DUMP {RAW}", f"MIGRATE {HOST} 1 {RAW} 0 1", f"XGROUP DESTROY {RAW} enrichers",
    f"XGROUP SETID {RAW} enrichers $", f"XSETID {RAW} 1-1", f"XDEL {RAW} 1-1", f"XDEL {OUTPUT} 1-1",
    "PUBLISH x y", "SUBSCRIBE x", "XADD {other}:raw * data x", "XRANGE {other}:raw - +", "GET {other}:secret",
]  # fmt: skip
FORBIDDEN = {
    "millhand": [f"XADD {RAW} * data x", f"XTRIM {OUTPUT} MAXLEN 0", f"XTRIM {DEAD} MAXLEN 0", f"XDEL {DEAD} 1-1",
                 "DEL {events}:totals", "DEL {events}:attempts", "SET {events}:totals x", "UNLINK {events}:closed"],
    "operator": [f"XREADGROUP GROUP enrichers me STREAMS {RAW} >", f"XACK {RAW} enrichers 1-1",
                 f"XADD {OUTPUT} * data x", f"XCLAIM {RAW} enrichers me 0 1-1",
                 f"XTRIM {RAW} MAXLEN 0", f"XTRIM {DEAD} MAXLEN 0", f"XADD {DEAD} * data x",
                 "HSET {events}:gate tokens 99", "ZADD {events}:permits 1 x",
                 f"XGROUP CREATE {RAW} mine 0"],
    "producer": [f"XRANGE {RAW} - +", f"XREAD STREAMS {RAW} 0", f"XLEN {RAW}", f"XADD {OUTPUT} * data x", "INFO",
                 f"XTRIM {RAW} MAXLEN 0", f"XRANGE {OUTPUT} - +", f"XGROUP CREATE {RAW} mine 0", "EVAL return(1) 0"],
    "reader": [f"XRANGE {RAW} - +", f"XRANGE {DEAD} - +", f"XADD {OUTPUT} * data x", f"XTRIM {OUTPUT} MAXLEN 0",
               f"XADD {RAW} * data x", "HGETALL {events}:totals", "EVAL return(1) 0", "INFO"],
    "monitor": [f"XRANGE {RAW} - +", f"XINFO STREAM {RAW}", f"XREAD STREAMS {OUTPUT} 0", "HGETALL {events}:answers",
                f"XADD {RAW} * data x", "EVAL return(1) 0", "XPENDING {other}:raw enrichers"],
}  # fmt: skip
ALLOWED = {
    "operator": [f"XRANGE {RAW} - +", f"XREVRANGE {OUTPUT} + - COUNT 1", f"XREAD BLOCK 1 STREAMS {OUTPUT} $",
                 f"XTRIM {OUTPUT} MINID 1-1", f"XDEL {DEAD} 1-1", f"XADD {RAW} * data x", "INFO server"],
    "producer": [f"XADD {RAW} * data x", "PING"],
    "reader": [f"XREAD STREAMS {OUTPUT} 0", f"XGROUP CREATE {OUTPUT} mine 0 MKSTREAM", "TIME", f"XLEN {OUTPUT}",
               f"XREADGROUP GROUP mine me COUNT 1 STREAMS {OUTPUT} >", f"XACK {OUTPUT} mine 1-1",
               f"XPENDING {OUTPUT} mine", f"XAUTOCLAIM {OUTPUT} mine me 0 0-0"],
    "monitor": ["INFO", f"XLEN {RAW}", f"XINFO GROUPS {RAW}", "HGETALL {events}:totals", "ZCARD {events}:permits",
                "SLOWLOG LEN", "LATENCY LATEST"],
}  # fmt: skip


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, RedisServer]]:
    """Start a server of each kind that is asked for, with the users, once."""
    running: dict[str, RedisServer] = {}
    yield running
    for server in running.values():
        server.close()


@pytest.fixture
def guarded(servers: dict[str, RedisServer], server_kind: str, tmp_path_factory: pytest.TempPathFactory) -> RedisServer:
    if server_kind not in servers:
        options = write_users(tmp_path_factory.mktemp("users")) | {"enable-debug-command": "local"}
        server = servers[server_kind] = RedisServer(options, binary=SERVERS[server_kind](), admin="admin")
        server.start()
    return servers[server_kind]


def answer(client: Any, command: str) -> str:
    """Return what the server says to a command: the error, if it is one."""
    try:
        return str(client.execute_command(*command.split(" ")))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is looked at
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_refused_what_is_not_its_work(guarded: RedisServer, role: str) -> None:
    with guarded.client(username=role, password=password_of(role)) as client:
        for command in (*NOBODYS, *FORBIDDEN[role]):
            assert answer(client, command).startswith("NoPermissionError"), command


@pytest.mark.parametrize("role", ALLOWED)
def test_a_role_may_do_its_work(guarded: RedisServer, role: str) -> None:
    with guarded.client() as admin:
        admin.xgroup_create(RAW, f"for {role}", 0, mkstream=True)
    with guarded.client(username=role, password=password_of(role)) as client:
        for command in ALLOWED[role]:
            assert not answer(client, command).startswith("NoPermissionError"), command


@pytest.mark.parametrize("role", ["millhand", "operator"])
@pytest.mark.parametrize("key", [RAW, OUTPUT, DEAD, "{events}:totals", "{events}:attempts"])
def test_a_script_may_no_more_than_its_caller(guarded: RedisServer, role: str, key: str) -> None:
    with guarded.client(username=role, password=password_of(role)) as client:
        for command in ("DEL", "UNLINK"):
            said = answer_of_script(client, f"return redis.call('{command}', KEYS[1])", key)
            assert re.search("ACL failure|user executing the script can't", said), said


def answer_of_script(client: Any, script: str, key: str) -> str:
    try:
        return str(client.eval(script, 1, key))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is looked at
        return f"{type(error).__name__}: {error}"


def test_whoever_names_no_user_is_let_in_nowhere(guarded: RedisServer) -> None:
    with guarded.client(username=None, password=None) as client:
        assert answer(client, "PING").startswith("AuthenticationError")


def test_the_file_as_it_ships_lets_nobody_start_with_a_known_password(server_kind: str, tmp_path: Path) -> None:
    command: list[str | Path] = [
        SERVERS[server_kind](),
        "--port",
        str(free_port()),
        "--dir",
        str(tmp_path),
        "--aclfile",
        str(USERS),
    ]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert refused.returncode != 0
    assert "The password hash must be exactly 64 characters" in refused.stdout


def test_the_configuration_that_ships_is_one_that_a_server_takes(server_kind: str, tmp_path: Path) -> None:
    """And what status calls durable."""
    server = RedisServer(write_users(tmp_path), binary=SERVERS[server_kind](), file=CONFIGURATION, admin="admin")
    with server, server.client() as client:
        found = client.config_get("*")
    wanted = {
        "appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": "",
        "no-appendfsync-on-rewrite": "no", "maxmemory": str(1 << 30), "timeout": "0", "tcp-keepalive": "60",
        "protected-mode": "yes", "bind": HOST, "latency-monitor-threshold": "100", "slowlog-log-slower-than": "10000",
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
