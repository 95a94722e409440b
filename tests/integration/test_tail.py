"""Following the output: everything behind a place, in order, past a restart of Redis; and the command itself."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis import exceptions
from tests.conftest import StartRedis
from tests.integration.race import Race
from tests.rig import RedisServer, config_for, eventually, eventually_async

from millhand.keys import Keys
from millhand.stream import connect
from millhand_fleet.following import BEGINNING, Entry, ago, before, follow, newest

if TYPE_CHECKING:
    from redis.asyncio import Redis

WORKER_CTL = f"{sys.executable} -m millhand_fleet.ctl.main"
END_S_MAX = 30


async def put(redis: "Redis", stream: str, n: int, entry_id: str = "*") -> str:
    event = json.dumps({"text": f"event {n}", "ai_enrichment": {"sentiment": {"label": "mixed"}}})
    written: Any = await redis.xadd(stream, {"data": event, "src": f"{n}-1"}, id=entry_id)
    return str(written.decode())


async def read(redis: "Redis", places: dict[str, str]) -> list[Entry]:
    return [entry async for entry in follow(redis, places, lambda _: None, ends=True)]


async def test_all_behind_a_place_comes_in_the_order_of_time_over_both_streams(race: Race) -> None:
    redis, out, dead = race.redis, race.keys.output, race.keys.dead_letter
    for n, stream in enumerate([out] * 250 + [dead, out] * 25, 1):
        await put(redis, stream, n, f"{n}-1")
    followed = await read(redis, {out: BEGINNING, dead: BEGINNING})
    assert [entry.id for entry in followed] == [f"{n}-1" for n in range(1, 301)]
    assert {entry.stream for entry in followed[250:]} == {out, dead}
    assert [entry.id for entry in await read(redis, {out: before("298-1")})] == ["298-1", "300-1"]
    assert await read(redis, {out: await newest(redis, out)}) == []


async def test_a_place_is_found_for_a_stream_that_is_not_there_and_for_an_age(race: Race) -> None:
    assert await newest(race.redis, race.keys.output) == BEGINNING
    old_ms = int(await race.server_ms()) - 3_600_000
    await put(race.redis, race.keys.output, 1, f"{old_ms}-0")
    await put(race.redis, race.keys.output, 2)
    behind = await read(race.redis, {race.keys.output: await ago(race.redis, 600)})
    assert [entry.fields[b"src"] for entry in behind] == [b"2-1"]
    assert len(await read(race.redis, {race.keys.output: await ago(race.redis, 7200)})) == 2


async def test_following_goes_on_past_a_restart_of_redis_and_says_so(start_redis: StartRedis) -> None:
    server = start_redis({"appendonly": "yes", "appendfsync": "always"})
    keys, redis, told, seen = Keys.of(config_for(server.url)), connect(server.url), list[str](), list[bytes]()

    async def watch() -> None:
        async with aclosing(follow(redis, {keys.output: BEGINNING}, told.append)) as entries:
            async for entry in entries:
                seen.append(entry.fields[b"src"])

    watching = asyncio.create_task(watch())
    await put(redis, keys.output, 1)
    await eventually_async(lambda: len(seen) == 1)
    await asyncio.to_thread(server.kill)
    await eventually_async(lambda: len(told) == 1)
    await asyncio.to_thread(server.start)
    await eventually_async(lambda: len(told) == 2, 20)
    await put(redis, keys.output, 2)
    await eventually_async(lambda: len(seen) == 2)
    watching.cancel()
    await asyncio.wait([watching])
    await redis.aclose()
    assert seen == [b"1-1", b"2-1"]
    assert told[0].startswith("Redis does not answer, waiting for it: ")
    assert told[1] == "Redis is back"


async def test_what_waiting_does_not_cure_is_raised(race: Race) -> None:
    """A name that is no stream's, and a server that never was there."""
    await race.redis.set(race.keys.output, "no stream")
    with pytest.raises(exceptions.ResponseError, match="WRONGTYPE"):
        await read(race.redis, {race.keys.output: BEGINNING})
    nobody = connect("redis://127.0.0.1:1/0")
    with pytest.raises(exceptions.ConnectionError):
        await anext(follow(nobody, {race.keys.output: BEGINNING}, lambda _: None))
    await nobody.aclose()


@pytest.fixture
def environment(redis_url: str) -> dict[str, str]:
    """Name the shared server."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MILLHAND_")}
    return {**inherited, "MILLHAND_REDIS_URL": redis_url}


def fill(server: RedisServer, count: int) -> None:
    keys = Keys.of(config_for(server.url))
    with server.client() as client:
        for n in range(count):
            client.xadd(keys.output, {"data": json.dumps({"text": f"event {n}", "ai_enrichment": {"spam": {"is": n}}})})
        client.xadd(keys.dead_letter, {"data": "{", "failure_reason": "malformed", "failure_detail": "no JSON"})


def typed(environment: dict[str, str], line: str) -> "subprocess.CompletedProcess[str]":
    """Type a line into bash, where `worker-ctl` is ours."""
    script = f'worker-ctl() {{ {WORKER_CTL} "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_command_shows_what_there_is_and_ends_quietly_where_nobody_reads_on(
    redis_server: RedisServer, environment: dict[str, str]
) -> None:
    """More than a pipe holds, so that it breaks."""
    fill(redis_server, 3000)
    all_of_it = typed(environment, "worker-ctl tail --from start --dead --no-follow")
    assert (all_of_it.returncode, all_of_it.stderr) == (0, "")
    lines = all_of_it.stdout.splitlines()
    assert len(lines) == 3001
    assert lines[7].endswith("  spam 7  | event 7")
    assert "dead malformed no JSON" in "".join(lines[-100:]), "ids of one millisecond have no order over two streams"
    for form in ("", "--json"):
        cut = typed(environment, f"worker-ctl tail --from start --no-follow {form} | head -n 2")
        assert cut.stderr == ""
        assert len(cut.stdout.splitlines()) == 2
    counted = typed(environment, "worker-ctl tail --from 10m --count 5 --json")
    assert [json.loads(row)["data"]["text"] for row in counted.stdout.splitlines()] == [f"event {n}" for n in range(5)]


def test_ctrl_c_ends_following_without_a_traceback(
    redis_server: RedisServer, environment: dict[str, str], tmp_path: Path
) -> None:
    shown = tmp_path / "shown"
    with shown.open("wb") as output:
        process = subprocess.Popen(
            [*WORKER_CTL.split(), "tail", "--from", "start"], env=environment, stdout=output, stderr=subprocess.PIPE
        )
    try:
        fill(redis_server, 1)
        eventually(lambda: shown.stat().st_size, END_S_MAX, what="the event is shown")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=END_S_MAX)
    finally:
        process.kill()
    assert (process.returncode, told) == (130, b"interrupted\n")
