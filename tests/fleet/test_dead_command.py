"""worker-ctl dead, as an operator types it, on a mixed bag of two hundred dead letters."""

import asyncio
import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.fleet.chaos.proxy import FaultProxy
from tests.fleet.conftest import BIN, DEAD, INPUT, RunningFleet, Streams
from tests.integration.race import PAIRS_OF, Race
from tests.rig import RedisServer, config_for, eventually

from millhand.keys import Keys
from millhand.settle import Settled, Settler
from millhand.stream import connect
from millhand.verdict import Bury, Reason

DEAD_LETTERS: list[tuple[Reason, list[bytes]]] = [
    *[(Reason.TIMEOUT, [b"data", b'{"n":%d}' % n]) for n in range(60)],
    *[(Reason.MALFORMED, [b"data", b"\xff\x00{%d" % n]) for n in range(40)],
    *[(Reason.MALFORMED, [b"data", b"1", b"data", b"%d" % n, b"data", b"1"]) for n in range(20)],
    *[(Reason.TOO_LARGE, [part for f in range(3600) for part in (b"f%d" % f, b"%d" % n)]) for n in range(5)],
    *[(Reason.DELETED, [b"data", b"%d" % n]) for n in range(15)],
    *[(Reason.CRASH_LOOP, [b"data", b'{"redrives":"spent %d"}' % n]) for n in range(10)],
    *[
        (Reason.MODEL_ERROR, [b"data", b'{"text":"kettle %d \x1b[31m"}' % n, b"event_id", b"k%d" % n])
        for n in range(30)
    ],
    *[(Reason.NO_TEXT, [b"failure_reason", b"mine", b"src", b"%d" % n, b"redrives", b"9"]) for n in range(20)],
]
REDRIVES_SPENT = 3


async def fill(url: str) -> None:
    """Produce the bag's events, and bury each as a worker or the janitor does."""
    redis = connect(url)
    race = await Race(redis, Keys.of(config_for(url))).open()
    settler = Settler(redis, race.keys)
    for _, pairs in DEAD_LETTERS:
        await race.add_pairs(*pairs)
    deliveries = await race.deliver(count=len(DEAD_LETTERS))
    for (reason, _), delivery in zip(DEAD_LETTERS, deliveries, strict=True):
        if reason is Reason.DELETED:
            await redis.xdel(race.keys.input, delivery.id)
        if reason is Reason.CRASH_LOOP:
            await redis.hset(race.keys.redrives, delivery.id, str(REDRIVES_SPENT))
        assert await settler.settle(delivery, Bury(reason, f"detail of {reason}", 4, ("a",))) is Settled.OK
    await redis.aclose()


class Operator:
    """What an operator does, and the streams before and after it."""

    def __init__(self, streams: Streams, fleet: RunningFleet) -> None:
        self.fleet = fleet
        self.client = streams.client

    def does(self, *arguments: str) -> tuple[int, str, str]:
        answer = self.fleet.ctl("dead", *arguments)
        return answer.returncode, answer.stdout.decode(), answer.stderr.decode()

    def pairs(self, stream: str) -> list[list[bytes]]:
        found: list[list[bytes]] = self.client.eval(PAIRS_OF, 1, stream)
        return found

    def added(self) -> list[list[bytes]]:
        """Return what came into the input after the bag's own events."""
        return self.pairs(INPUT)[len(DEAD_LETTERS) - of(Reason.DELETED) :]

    def totals(self) -> dict[bytes, int]:
        return {name: int(value) for name, value in self.client.hgetall("{events}:totals").items()}


@pytest.fixture
def operator(durable_redis: RedisServer, streams: Streams, make_fleet: Callable[..., RunningFleet]) -> Operator:
    """Fill a server with the bag; no fleet runs."""
    asyncio.run(fill(durable_redis.url))
    return Operator(streams, make_fleet(MILLHAND_REDIS_URL=durable_redis.url))


def of(*reasons: Reason) -> int:
    return sum(reason in reasons for reason, _ in DEAD_LETTERS)


def events(*reasons: Reason) -> list[list[bytes]]:
    return [pairs for reason, pairs in DEAD_LETTERS if reason in reasons]


def test_an_operator_looks_at_dead_letters_and_changes_nothing(operator: Operator) -> None:
    """The table, the filters, one in full, JSON and the export name the same dead letters."""
    before = operator.pairs(INPUT), operator.pairs(DEAD), operator.totals()
    code, table, said = operator.does("list")
    head, *rows, total = table.splitlines()
    assert (code, said, len(rows)) == (0, "", len(DEAD_LETTERS))
    assert head.split()[:4] == ["id", "age", "reason", "a/d/r"]
    assert [row.split()[2] for row in rows] == [reason for reason, _ in DEAD_LETTERS]
    assert "kettle 7 \\x1b[31m" in table
    assert "\\xff\\x00{39" in table
    assert "\x1b" not in table
    assert total.startswith("dead letters: 200 (timeout 60, malformed 60, model_error 30, no_text 20, deleted 15")

    lines = [json.loads(line) for line in operator.does("list", "--json")[1].splitlines()]
    assert [line["id"] for line in lines] == [row.split()[0] for row in rows]
    assert lines[60]["fields"] == [["data", {"base64": "/wB7MA=="}]]
    assert [len(line["fields"]) for line in lines if line["reason"] == "too_large"] == [3600] * 5

    def count(*filters: str) -> int:
        return len(operator.does("list", "--json", *filters)[1].splitlines())

    assert count("--reason", "model_error", "--reason", "timeout") == of(Reason.MODEL_ERROR, Reason.TIMEOUT)
    assert count("--text", "kettle") == of(Reason.MODEL_ERROR)
    assert count("--text", "\udcff") == 40
    assert count("--newer-than", "1h") == len(DEAD_LETTERS)
    assert count("--reason", "malformed", "--limit", "7") == 7
    assert count(lines[3]["id"], lines[1]["id"]) == 2

    code, shown, _ = operator.does("show", lines[110]["id"])
    assert code == 0
    assert shown.splitlines()[:3] == [
        f"id          {lines[110]['id']}",
        "reason      malformed",
        f"src         {lines[110]['src']}",
    ]
    assert shown.splitlines()[-4:] == ["fields      3", "  data: 1", "  data: 10", "  data: 1"]
    assert operator.does("show", "1-1")[0] == 1

    copy = operator.fleet.folder / "dead.jsonl"
    assert operator.does("export", "--output", str(copy))[1].startswith("exported: 200 (")
    assert [json.loads(line) for line in copy.read_text(encoding="ascii").splitlines()] == lines
    assert operator.does("export", "--output", str(copy))[0] == 2
    assert (operator.pairs(INPUT), operator.pairs(DEAD), operator.totals()) == before


def test_an_operator_empties_a_mixed_bag_and_every_event_comes_back_once(
    operator: Operator, durable_redis: RedisServer
) -> None:
    """F4, F38, F48: dry runs change nothing, a lost reply doubles nothing, spent and empty ones are refused alone."""
    before = operator.pairs(INPUT), operator.pairs(DEAD)
    code, foreseen, refused = operator.does("requeue", "--all", "--dry-run")
    assert (code, foreseen) == (1, "dry run, nothing is changed; it would be requeued: 175, refused: 25, gone: 0\n")
    assert len(refused.splitlines()) == 20
    assert operator.does("drop", "--reason", "deleted", "--dry-run")[1].endswith("dropped: 15 (deleted 15)\n")
    assert operator.does("drop", "--reason", "deleted")[0] == 2  # there is nobody to ask
    assert (operator.pairs(INPUT), operator.pairs(DEAD)) == before

    assert operator.does("drop", "--reason", "deleted", "--yes")[:2] == (0, "dropped: 15\n")
    assert len(operator.pairs(DEAD)) == 185

    victim = operator.does("list", "--json", "--text", "kettle 9 ")[1]
    with FaultProxy(durable_redis.port).in_thread() as proxy:
        operator.fleet.environment["MILLHAND_REDIS_URL"] = proxy.redis_url
        pattern = b"\r\n%s\r\n" % json.loads(victim)["id"].encode()
        proxy.swallow(pattern)
        code, done, said = operator.does("requeue", "--reason", "model_error", "--rate", "1000")
        assert proxy.swallowed[pattern] == 1
    operator.fleet.environment["MILLHAND_REDIS_URL"] = durable_redis.url
    assert (code, done) == (0, "requeued: 29, refused: 0, gone: 1\n")
    assert "trying again" in said
    assert operator.added() == events(Reason.MODEL_ERROR)

    code, done, refused = operator.does("requeue", "--all", "--rate", "10000")
    assert (code, done) == (1, "requeued: 145, refused: 10, gone: 0\n")
    assert refused.count("requeued 3 times before") == 10
    assert operator.does("list")[1].endswith("dead letters: 10 (crash_loop 10)\n")
    assert operator.does("requeue", "--all", "--force")[:2] == (0, "requeued: 10, refused: 0, gone: 0\n")

    others = (Reason.TIMEOUT, Reason.MALFORMED, Reason.TOO_LARGE, Reason.NO_TEXT)
    assert operator.added() == events(Reason.MODEL_ERROR) + events(*others) + events(Reason.CRASH_LOOP)
    assert operator.pairs(DEAD) == []
    assert operator.totals()[b"requeued"] == 185
    assert operator.totals()[b"dropped"] == 15
    assert Counter(operator.client.hvals("{events}:redrives")) == {b"1": 175, b"4": 10}


@pytest.fixture
def slow_requeue(operator: Operator) -> Iterator["subprocess.Popen[bytes]"]:
    """Begin a requeue that takes a while, and let it get going."""
    command: list[Any] = [BIN / "worker-ctl", "dead", "requeue", "--reason", "timeout", "--rate", "20"]
    with subprocess.Popen(
        command,
        env=operator.fleet.environment,
        cwd=operator.fleet.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            eventually(operator.added, what="the first event was requeued")
            yield process
        finally:
            process.kill()


def test_ctrl_c_stops_a_requeue_and_the_same_command_goes_on(
    operator: Operator, slow_requeue: "subprocess.Popen[bytes]"
) -> None:
    """It says how far it came, but for a call under way; nothing is lost between the streams, and nothing doubled."""
    slow_requeue.send_signal(signal.SIGINT)
    _, said = slow_requeue.communicate(timeout=10)

    done = len(operator.added())
    assert slow_requeue.returncode == 130
    assert said.decode().splitlines()[0] == "error: interrupted"
    assert said.decode().splitlines()[1] in [f"  requeued: {n}, refused: 0, gone: 0" for n in (done - 1, done)]
    assert "the same command again" in said.decode()
    assert len(operator.pairs(DEAD)) == len(DEAD_LETTERS) - done
    rest = of(Reason.TIMEOUT) - done
    assert operator.does("requeue", "--reason", "timeout")[1] == f"requeued: {rest}, refused: 0, gone: 0\n"
    assert operator.added() == events(Reason.TIMEOUT)


def test_a_requeue_goes_on_after_redis_was_killed(
    operator: Operator, durable_redis: RedisServer, slow_requeue: "subprocess.Popen[bytes]"
) -> None:
    """F20: it waits as long as a person would, and doubles nothing."""
    durable_redis.restart()
    done, said = slow_requeue.communicate(timeout=30)

    assert slow_requeue.returncode == 0, said
    assert done.decode().startswith(("requeued: 60, refused: 0, gone: 0", "requeued: 59, refused: 0, gone: 1"))
    assert operator.added() == events(Reason.TIMEOUT)
