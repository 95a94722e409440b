"""The doctor's probes, against real servers, and against servers that are away, hung, or say too little."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from tests.conftest import StartRedis
from tests.rig import NOBODY, RedisServer, free_port
from tests.roles import address_of, password_of, write_users

from millhand.config import Config
from millhand.keys import Keys
from millhand.stream import connect
from millhand_fleet.doctor import examination
from millhand_fleet.doctor.examination import examine
from millhand_fleet.doctor.finding import Finding, Level
from millhand_fleet.doctor.permissions import refused_to
from scripts.fake_ollama import FakeOllama

if TYPE_CHECKING:
    from redis.asyncio import Redis

KEYS = Keys.of(Config())
DURABLE = {"appendonly": "yes", "appendfsync": "always"}
AN_HOUR_MS = 3_600_000


class Examined:
    """What was found."""

    def __init__(self, findings: dict[str, tuple[Finding, ...]]) -> None:
        self.findings = findings

    def at(self, level: Level) -> set[str]:
        """Name the findings of a level, as "section subject"."""
        return {f"{title} {f.subject}" for title, found in self.findings.items() for f in found if f.level is level}

    def one(self, title: str, subject: str) -> Finding:
        """Return the worst finding about a subject."""
        return max((f for f in self.findings[title] if f.subject == subject), key=lambda f: f.level)


Examine = Callable[..., Awaitable[Examined]]


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch, short_path: Path, redis_url: str, fake: FakeOllama) -> Examine:
    """Examine a machine whose servers are the test's; `variables` change its environment."""

    async def run(file: Path | None = None, *, measured: bool = False, **variables: str) -> Examined:
        given = {"FLEET_STATE_DIR": str(short_path), "DESK_PORT": "0", "REDIS_URL": redis_url, "MODEL_URL": fake.url}
        given |= {"MODEL_NAME": fake.model, **variables}
        for name, value in given.items():
            if value:
                monkeypatch.setenv(f"MILLHAND_{name}", value)
        return Examined({section.title: section.findings for section in await examine(file, measured=measured)})

    return run


@pytest.mark.every_server
async def test_a_server_of_every_kind_is_examined_whole(start_redis: StartRedis, examined: Examine) -> None:
    found = await examined(REDIS_URL=start_redis(DURABLE).url)
    wrong = {name for name in found.at(Level.ERROR) | found.at(Level.WARNING) if name.startswith(("Redis", "Streams"))}
    assert wrong <= {"Redis latency"}  # a busy machine may be slow
    assert found.one("Redis", "durability").found.startswith("durable")
    assert "may do all" in found.one("Redis", "permissions").found


async def test_a_server_that_keeps_nothing_is_found_out(examined: Examine) -> None:
    found = await examined()
    assert found.one("Redis", "durability").level is Level.ERROR
    assert "appendonly yes" in found.one("Redis", "durability").remedy


async def test_servers_that_are_away_spoil_nothing_else(examined: Examine) -> None:
    found = await examined(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0", MODEL_URL=NOBODY)
    assert {"Redis answers", "Model answers"} == found.at(Level.ERROR)
    assert "start it" in found.one("Redis", "answers").remedy
    assert "ollama serve" in found.one("Model", "answers").remedy
    assert {"Programs", "Redis", "Streams", "Model", "Fleet", "Files"} <= set(found.findings)


async def test_a_server_that_hangs_is_given_up(start_redis: StartRedis, examined: Examine, fake: FakeOllama) -> None:
    server = start_redis({})
    server.pause()
    fake.deafen()
    try:
        found = await examined(REDIS_URL=server.url)
    finally:
        server.resume()
    assert "no answer within" in found.one("Redis", "answers").found
    assert "no answer within" in found.one("Model", "answers").found
    assert "Files" in found.findings


async def test_a_wrong_password_is_named_and_not_shown(start_redis: StartRedis, examined: Examine) -> None:
    server = start_redis({"requirepass": "right"})
    found = await examined(REDIS_URL=server.url.replace("//", "//:wr0ng@"))
    assert "the right user" in found.one("Redis", "answers").remedy
    assert "wr0ng" not in str(found.findings)


@pytest.mark.parametrize("url", ["redis://h:notaport/0", "htp://x", "redis://[::1"])
async def test_an_address_that_is_none_is_a_finding(examined: Examine, url: str) -> None:
    found = await examined(REDIS_URL=url)
    assert "redis.url" in found.one("Programs", "configuration").found
    assert found.one("Redis", "answers").level is Level.ERROR


async def test_a_server_that_speaks_no_tls_is_named(examined: Examine, redis_url: str) -> None:
    found = await examined(REDIS_URL=redis_url.replace("redis://", "rediss://"))
    assert "TLS" in found.one("Redis", "answers").remedy


async def test_a_password_file_that_cannot_be_used_is_named(examined: Examine, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("s3cret\n")
    file.chmod(0o644)
    found = await examined(REDIS_PASSWORD_FILE=str(file))
    assert "can be read by everybody" in found.one("Programs", "configuration").found
    assert "redis.password_file" in found.one("Redis", "answers").found
    assert "s3cret" not in str(found.findings)


async def test_what_a_user_may_not_do_is_listed(start_redis: StartRedis, examined: Examine) -> None:
    """F36: a right that is missing shows before an event meets it."""
    server = start_redis(DURABLE)
    with server.client() as client:
        rules = ["on", ">pw", f"%R~{KEYS.output}", "~*", "+@all", "-config", "-xtrim"]
        client.execute_command("ACL", "SETUSER", "fleet", *rules)
        client.execute_command("ACL", "SETUSER", "deaf", "on", ">pw", "~*", "+@all", "-acl|dryrun")
    found = await examined(REDIS_URL=server.url.replace("//", "//fleet:pw@"))
    assert found.one("Redis", "permissions").level is Level.ERROR
    assert f"XTRIM {KEYS.input}" in found.one("Redis", "permissions").found
    assert "forbidden" in found.one("Redis", "CONFIG").found
    assert "appendfsync is unknown" in found.one("Redis", "durability").found
    found = await examined(REDIS_URL=server.url.replace("//", "//deaf:pw@"))
    assert found.one("Redis", "permissions").level is Level.NOTE


async def test_the_rights_of_the_shipped_users_are_all_that_a_fleet_needs(examined: Examine, tmp_path: Path) -> None:
    """The list that the doctor asks for, and conf/users.acl, are written by hand, each in its place."""
    with RedisServer({**DURABLE, **write_users(tmp_path)}, admin="admin") as server:
        admin = connect(address_of(f"admin:{quote(password_of('admin'))}", server.url))
        assert await refused_to(admin, "millhand", KEYS) == ()
        assert await refused_to(admin, "producer", KEYS) != ()
        await admin.aclose()
        for user in ("millhand", "operator"):
            found = await examined(REDIS_URL=address_of(user, server.url), REDIS_PASSWORD=password_of(user))
            wrong = {name for name in found.at(Level.ERROR) | found.at(Level.WARNING) if name[:3] in {"Red", "Str"}}
            assert wrong <= {"Redis latency"}
            assert found.one("Redis", "permissions").level is Level.NOTE
            assert "unknown" in found.one("Redis", "durability").found
            assert password_of(user) not in str(found.findings)


async def test_a_replica_is_told_from_its_primary(
    start_redis: StartRedis, redis_server: RedisServer, examined: Examine
) -> None:
    """F35: a server that takes no writes answers whoever reads."""
    replica = start_redis({"replicaof": f"127.0.0.1 {redis_server.port}"})
    found = await examined(REDIS_URL=replica.url)
    assert str(redis_server.port) in found.one("Redis", "role").found


async def test_a_broken_file_is_told_and_the_rest_of_it_used(examined: Examine, tmp_path: Path, redis_url: str) -> None:
    file = tmp_path / "millhand.toml"
    file.write_text(f'[redis]\nurl = "{redis_url}"\n[fleet]\nworkrs = 3\n[modle]\n[enrich]\ntasks = ["sentimnt"]\n')
    found = await examined(file, REDIS_URL="")
    problems = [f.found for f in found.findings["Programs"] if f.level is Level.ERROR]
    assert any("did you mean workers?" in problem for problem in problems)
    assert any("did you mean model?" in problem for problem in problems)
    assert found.one("Programs", "tasks").level is Level.ERROR
    assert redis_url in found.one("Redis", "version").found


async def test_keys_of_the_wrong_type_are_named(redis: "Redis", examined: Examine) -> None:
    """F36: every command on them fails."""
    await redis.set(KEYS.input, "x")
    await redis.set(KEYS.totals, "x")
    await redis.rpush(KEYS.dead_letter, "x")
    found = await examined()
    wrong = [f.found for f in found.findings["Streams"] if f.subject == "type"]
    assert len(wrong) == 3
    assert "redis.input_stream" in found.one("Streams", "type").remedy


async def test_events_that_were_deleted_before_anybody_saw_them_leave_a_trace(
    redis: "Redis", examined: Examine
) -> None:
    """F38: a producer's trimming cannot be seen, but what it took can."""
    ids = [await redis.xadd(KEYS.input, {"data": "{}"}) for _ in range(3)]
    await redis.xgroup_create(KEYS.input, KEYS.group, id="0")
    await redis.xdel(KEYS.input, ids[1])
    found = await examined()
    assert "MAXLEN" in found.one("Streams", "trimming").remedy
    assert "2 events wait" in found.one("Streams", "backlog").found


async def test_an_event_that_nobody_renews_is_named_with_its_owner(redis: "Redis", examined: Examine) -> None:
    entry = await redis.xadd(KEYS.input, {"data": "{}"})
    await redis.xgroup_create(KEYS.input, KEYS.group, id="0")
    await redis.xreadgroup(KEYS.group, "gone:w1:0a0a0a0a", {KEYS.input: ">"})
    await redis.xclaim(KEYS.input, KEYS.group, "gone:w1:0a0a0a0a", 0, [entry], idle=AN_HOUR_MS)
    found = [f.found for f in (await examined()).findings["Streams"] if f.subject == "pending"]
    assert any("gone:w1:0a0a0a0a's for 60 min" in text for text in found)


async def test_a_model_that_is_half_on_the_gpu_and_loaded_otherwise_is_seen(
    examined: Examine, fake: FakeOllama
) -> None:
    fake.gpu_share = 0.5
    found = await examined()
    assert "50%" in found.one("Model", "GPU").found
    assert "4096 tokens, model.num_ctx is 2048" in found.one("Model", "context").found
    assert fake.arrived == 0  # no call was made for that


async def test_a_missing_model_comes_with_the_command_that_gets_it(examined: Examine) -> None:
    found = await examined(MODEL_NAME="fake:2b")
    assert found.one("Model", "model").remedy == "ollama pull fake:2b; or did you mean fake:1b? set model.name"


async def test_parallelism_is_measured_only_when_asked_for(examined: Examine, fake: FakeOllama) -> None:
    fake.latency_s = 0.4
    assert "not measured" in (await examined()).one("Model", "parallelism").found
    assert fake.arrived == 0
    found = await examined(measured=True)
    assert fake.arrived == 10
    assert "4 of 8 calls ran at once" in found.one("Model", "parallelism").found


async def test_a_rated_model_is_not_measured(examined: Examine, fake: FakeOllama) -> None:
    found = await examined(measured=True, MODEL_RATE_PER_S="1")
    assert "would break model.rate_per_s" in found.one("Model", "parallelism").found
    assert fake.arrived == 0


async def test_a_model_server_that_says_nonsense_is_a_finding(examined: Examine, fake: FakeOllama) -> None:
    fake.outage(status=500)
    assert "HTTP 500" in (await examined()).one("Model", "answers").found


async def test_a_probe_that_fails_is_a_finding_and_the_others_go_on(
    examined: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(examination, "look_at_files", broken)
    found = await examined()
    assert found.one("Files", "probe").found == "failed with ZeroDivisionError: oh"
    assert found.one("Redis", "version").level is Level.OK
