"""A fleet, its producer and its operator, each with the rights of `conf/users.acl` and no others."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.fleet.conftest import DEAD, INPUT, RunningFleet, Streams
from tests.rig import RedisServer, eventually, system_redis
from tests.roles import CONFIGURATION, address_of, password_of, write_users

if TYPE_CHECKING:
    import subprocess


@pytest.fixture
def guarded_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """Run the oldest server with the two files that ship, in which nothing but the passwords is put in."""
    options = write_users(tmp_path)
    with RedisServer(options, binary=system_redis(), file=CONFIGURATION, admin="admin") as server:
        yield server


class Cast:
    """Everybody who has to do with a fleet, each by its own login."""

    def __init__(self, fleet: RunningFleet, server: RedisServer) -> None:
        self.fleet = fleet
        self._server = server
        fleet.environment |= self._login("millhand") | {
            "MILLHAND_INPUT_KEEP_S": "0",
            "MILLHAND_INPUT_DEDUPE_EVENT_ID_S": "60",
            "MILLHAND_CACHE_TTL_S": "60",
            "MILLHAND_DELIVERY_RETRIES": "1",
            "MILLHAND_DELIVERY_RETRY_BACKOFF_S": "0.1",
            "MILLHAND_MODEL_RATE_PER_S": "1000",
        }

    def _login(self, user: str) -> dict[str, str]:
        return {"MILLHAND_REDIS_URL": address_of(user, self._server.url), "MILLHAND_REDIS_PASSWORD": password_of(user)}

    def ctl(self, user: str, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        own, self.fleet.environment = self.fleet.environment, {**self.fleet.environment, **self._login(user)}
        try:
            return self.fleet.ctl(*arguments, stdin=stdin)
        finally:
            self.fleet.environment = own

    def client(self, user: str) -> Any:
        return self._server.client(username=user, password=password_of(user))

    def refusals(self) -> set[tuple[str, str]]:
        """Return who was refused what, by the server's own book."""
        with self.client("admin") as client:
            return {(row["username"], row["object"]) for row in client.acl_log()}


@pytest.mark.timeout(180)
def test_the_whole_job_needs_no_more_than_the_rights_that_ship(fleet: RunningFleet, guarded_redis: RedisServer) -> None:
    """F1, F32, F36, F49: kill, retry, burial, requeue, drop, trim, repetition and a lost group; nobody is refused."""
    cast = Cast(fleet, guarded_redis)
    fleet.up()
    with cast.client("admin") as admin, cast.client("producer") as producer:
        streams = Streams(admin)
        lines = [json.dumps({"n": n, "text": f"event {n % 40} [[fake delay=0.1]]"}) for n in range(80)]
        made = cast.ctl("producer", "produce", stdin="\n".join(lines).encode())
        assert made.returncode == 0, made.stderr
        for _ in range(2):
            producer.xadd(INPUT, {"data": '{"text": "once"}', "event_id": "e-1"})
        producer.xadd(INPUT, {"data": '{"text": "[[fake garbage]]"}', "event_id": "e-2"})
        producer.xadd(INPUT, {"data": "hopeless"})
        os.kill(fleet.pids()["worker-1"], signal.SIGKILL)
        eventually(lambda: streams.settled_once(83), 60)
        assert (len(streams.enriched()), len(streams.dead())) == (81, 2)

        requeued = cast.ctl("operator", "dead", "requeue", "--reason", "invalid_answer")
        assert b"requeued: 1" in requeued.stdout, requeued.stderr
        eventually(lambda: any(record[b"redrives"] == b"1" for record in streams.dead()), 30)
        for command in (
            ("dead", "list"), ("dead", "export"), ("compare", "--repeats"),
            ("trim", "--stream", "enriched", "--older-than", "1h", "--yes"),
            ("tail", "--from", "start", "--no-follow"), ("tail", "--dead", "--from", "start", "--no-follow"),
            ("verify", "--min-rate", "0.9"),
        ):  # fmt: skip
            answer = cast.ctl("operator", *command)
            assert answer.returncode in {0, 1}, (command, answer.stderr)
        dropped = cast.ctl("operator", "dead", "drop", "--all", "--yes")
        assert dropped.returncode == 0, dropped.stderr
        eventually(lambda: admin.xlen(DEAD) == 0)
        eventually(lambda: admin.xlen(INPUT) == 0, 20, what="the janitor trims what is finished")

        admin.xgroup_destroy(INPUT, "enrichers")
        eventually(lambda: fleet.told("group.recreated"), 20)
        producer.xadd(INPUT, {"data": '{"text": "after the loss"}'})
        eventually(lambda: len(streams.enriched()) == 82, 30)
        assert admin.hget("{events}:totals", "cache_hits") or admin.hget("{events}:totals", "cache_joined")

    status = eventually(lambda: (found := fleet.status()) and found["health"]["status"] == "ok" and found, 20)
    assert status["redis"]["reachable"]
    assert status["redis"]["error"] is None
    assert status["redis"]["durability"] == "unknown", "nobody may ask for it, which is no error"
    with cast.client("monitor") as monitor:
        assert monitor.xinfo_groups(INPUT)
    findings = json.loads(fleet.ctl("doctor", "--json").stdout)["findings"]
    assert not [one for one in findings if one["level"] == "error"]
    for user, stream in (("millhand", "input"), ("operator", "enriched")):
        trimmed = cast.ctl(user, "trim", "--stream", stream, "--older-than", "0s", "--yes")
        assert trimmed.returncode == 0, trimmed.stderr
    assert fleet.terminate() == 0
    assert cast.refusals() <= {("millhand", "config|get"), ("millhand", "acl|dryrun")}, (
        "the doctor asks, and says that it may not"
    )


def test_a_fleet_whose_user_lacks_a_right_says_which_and_where_rights_are_given(
    fleet: RunningFleet, guarded_redis: RedisServer
) -> None:
    """F36: it waits, and goes on once the right is there."""
    cast = Cast(fleet, guarded_redis)
    with cast.client("admin") as admin:
        admin.execute_command("ACL", "SETUSER", "millhand", "-info")
        fleet.up(ready=False)
        told = eventually(lambda: fleet.told("redis.waiting"), 20)
        assert "info" in told[0]["error"]
        assert "conf/users.acl" in told[0]["remedy"]
        admin.execute_command("ACL", "SETUSER", "millhand", "+info")
        fleet.eventually_ready()
