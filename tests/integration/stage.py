"""A real server put into a state of the model: a call on it as the product spells it, and what can be seen after it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from tests.integration.race import DONE
from tests.model.server import DUE, LATER, NOBODY, UNHUNG, Answer, Call, Entry, Server

from millhand.courier import Courier, Part
from millhand.keys import Keys
from millhand.settle import Settler
from millhand.stream import Script, attempts_record
from millhand.verdict import Bury, Delivery, Reason, Release, Retry, Skip, Verdict

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.client import Pipeline

Command = tuple[Any, ...]

BATCH = 250  # cases a round trip
UNTOUCHED_MS = 3_600_000  # how long everything has been idle before a call
DELAY_S = 3600.0
FAR_MS = 1e15  # a due time that no test lives to see
HISTORY = ("timeout: slow",)


class Case(NamedTuple):
    """A call on a server, and what the model says comes of it."""

    server: Server
    call: Call
    answer: Answer


class View(NamedTuple):
    """What is seen after a call. Entries are told by their places; `said` is the reply as its caller reads it."""

    said: Any
    pending: dict[int, tuple[str, int]]
    touched: set[int]  # whose idle time has begun anew
    stands: list[int]
    enriched: list[int]
    dead: list[tuple[int, str]]
    hung: dict[int, str]
    attempts: dict[int, int]
    redrives: set[int]
    closed: list[int]
    totals: dict[str, int]
    consumers: set[str]


class _Dictation(Courier):
    """Takes down what would be sent."""

    async def send(self, script: Script, keys: list[str], args: list[Any]) -> Any:
        self.taken_down = (script, keys, args)
        return b"ok"

    async def send_parts(self, script: Script, keys: list[str], args: list[Any], parts: Sequence[Part]) -> list[Any]:
        return [await self.send(script, keys, [*args, *part]) for part in parts]


class Stage:
    """One fleet's keys on a real server, set anew for every case."""

    def __init__(self, redis: "Redis", keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._dictation = _Dictation(redis)
        self._settler = Settler(redis, keys, self._dictation)
        self._others = {name: Script(redis, name) for name in ("renew", "take_due", "retire_consumer")}
        self._spelled: dict[Call, Command] = {}

    async def play(self, cases: list[Case]) -> list[tuple[Case, View, View]]:
        """Carry out each call on its server. Return the first that differ: what is seen, and what the model expects."""
        now_s, _ = await self._redis.time()
        for start in range(0, len(cases), BATCH):
            batch = cases[start : start + BATCH]
            seen = await self._seen(batch, later_ms=(now_s + DELAY_S / 2) * 1000)
            both = zip(batch, seen, map(expected, batch), strict=True)
            if wrong := [(case, view, right) for case, view, right in both if view != right]:
                return wrong
        return []

    async def _seen(self, cases: list[Case], later_ms: float) -> list[View]:
        calls = [await self._spell(case.call) for case in cases]
        async with self._redis.pipeline(transaction=False) as pipeline:
            places = []
            for case, call in zip(cases, calls, strict=True):
                for command in [*self._put(case), call]:
                    pipeline.execute_command(*command)
                places.append(len(pipeline) - 1)
                self._look(pipeline)
            replies = await pipeline.execute()
        return [_view(case.call, replies[place:], later_ms) for case, place in zip(cases, places, strict=True)]

    # -- before the call --------------------------------------------------------------------------------------------

    def _put(self, case: Case) -> Iterator[Command]:
        """Yield what makes a server what it is before a call."""
        keys = self._keys
        entries = case.server.entries
        yield "DEL", keys.output, keys.dead_letter, keys.parked, keys.attempts, keys.redrives, keys.closed, keys.totals
        yield "DEL", keys.input
        for place in range(len(entries)):
            yield "XADD", keys.input, _id(place), "data", "{}"
        yield "XGROUP", "CREATE", keys.input, keys.group, f"{sum(entry.delivered for entry in entries)}-0"
        if case.call.script == "retire_consumer":
            yield "XGROUP", "CREATECONSUMER", keys.input, keys.group, case.call.owner
        for place, entry in enumerate(entries):
            yield from self._put_entry(_id(place), entry)

    def _put_entry(self, entry_id: str, entry: Entry) -> Iterator[Command]:
        keys = self._keys
        if entry.is_pending:
            how = ("IDLE", UNTOUCHED_MS, "RETRYCOUNT", entry.deliveries, "FORCE")
            yield "XCLAIM", keys.input, keys.group, entry.owner, 0, entry_id, *how
        if not entry.stands:
            yield "XDEL", keys.input, entry_id
        if entry.hung:
            yield "ZADD", keys.parked, 1 if entry.hung == DUE else FAR_MS, entry_id
        if entry.attempts:
            yield "HSET", keys.attempts, entry_id, attempts_record(entry.attempts, HISTORY)
        if not entry.records:
            yield "HSET", keys.redrives, entry_id, 1
        if entry.enriched:
            yield "XADD", keys.output, "*", "src", entry_id
        if entry.skipped:
            yield "ZADD", keys.closed, 1, entry_id
        for reason in entry.dead:
            yield "XADD", keys.dead_letter, "*", "failure_reason", reason, "src", entry_id

    # -- the call ---------------------------------------------------------------------------------------------------

    async def _spell(self, call: Call) -> Command:
        """Return a call as the product sends it, once the server knows the script."""
        if call not in self._spelled:
            script, keys, args = await self._dictate(call)
            await self._redis.script_load(script.text)
            self._spelled[call] = ("EVALSHA", script.sha, len(keys), *keys, *args)
        return self._spelled[call]

    async def _dictate(self, call: Call) -> tuple[Script, list[str], list[Any]]:
        keys = self._keys
        match call.script:
            case "renew":
                token = [call.owner, _id(call.entry), call.deliveries]
                return self._others[call.script], [keys.input], [keys.group, *token]
            case "take_due":
                args = [keys.group, call.owner, call.number, call.deliveries]
                return self._others[call.script], [keys.input, keys.parked, keys.attempts], args
            case "retire_consumer":
                return self._others[call.script], [keys.input, keys.totals], [keys.group, call.owner]
        delivery = Delivery(_id(call.entry), {}, call.owner, call.deliveries)
        if call.word == "handed_back":
            await self._settler.hand_back(delivery, spent=call.number > call.deliveries)
        else:
            await self._settler.settle(delivery, _verdict(call))
        return self._dictation.taken_down

    # -- after the call ---------------------------------------------------------------------------------------------

    def _look(self, pipeline: "Pipeline") -> None:
        keys = self._keys
        pipeline.xpending_range(keys.input, keys.group, min="-", max="+", count=10)
        pipeline.xrange(keys.input)
        pipeline.xrange(keys.output)
        pipeline.xrange(keys.dead_letter)
        pipeline.zrange(keys.parked, 0, -1, withscores=True)
        pipeline.hgetall(keys.attempts)
        pipeline.hkeys(keys.redrives)
        pipeline.zrange(keys.closed, 0, -1)
        pipeline.hgetall(keys.totals)
        pipeline.xinfo_consumers(keys.input, keys.group)


def _verdict(call: Call) -> Verdict:
    verdicts: dict[str, Verdict] = {
        "finish": DONE,
        "park": Retry(DELAY_S, call.number, HISTORY),
        "release": Release(),
        "skip": Skip("9-0"),
    }
    return Bury(Reason(call.word), "", 1, HISTORY) if call.script == "bury" else verdicts[call.script]


def expected(case: Case) -> View:
    """Return what the model says is to be seen."""
    call, answer = case.call, case.answer
    before, after = case.server.entries, list(enumerate(answer.server.entries))
    consumers = {entry.owner for entry in (*before, *answer.server.entries)} - {NOBODY}
    retired = {call.owner} if call.script == "retire_consumer" else set()
    return View(
        said=_said(answer),
        pending={place: (entry.owner, entry.deliveries) for place, entry in after if entry.is_pending},
        touched=set(answer.touched),
        stands=[place for place, entry in after if entry.stands],
        enriched=[place for place, entry in after for _ in range(entry.enriched)],
        dead=[(place, reason) for place, entry in after for reason in entry.dead],
        hung={place: entry.hung for place, entry in after if entry.hung},
        attempts={place: entry.attempts for place, entry in after if entry.attempts},
        redrives={place for place, entry in after if not entry.records},
        closed=[place for place, entry in after if entry.skipped],
        totals=dict(Counter(answer.raised)),
        consumers=consumers - retired if answer.said == "ok" else consumers | retired,
    )


def _said(answer: Answer) -> Any:
    if not answer.said.endswith(" taken"):
        return answer.said
    hung = {entry.hung for entry in answer.server.entries}
    stands = [answer.server.entries[hand.entry].stands for hand in answer.given]
    given = [(*hand[:4], has_fields) for hand, has_fields in zip(answer.given, stands, strict=True)]
    return next(when for when in (DUE, LATER, UNHUNG) if when in {*hung, UNHUNG}), given


def _view(call: Call, replies: list[Any], later_ms: float) -> View:
    reply, pending, stands, output, dead, parked, attempts, redrives, closed, totals, consumers = replies[:11]
    return View(
        said=_read(call, reply),
        pending={_place(row["message_id"]): (row["consumer"].decode(), row["times_delivered"]) for row in pending},
        touched={_place(row["message_id"]) for row in pending if row["time_since_delivered"] < UNTOUCHED_MS},
        stands=[_place(entry_id) for entry_id, _ in stands],
        enriched=sorted(_place(record[b"src"]) for _, record in output),
        dead=sorted((_place(record[b"src"]), record[b"failure_reason"].decode()) for _, record in dead),
        hung={_place(entry_id): DUE if due_ms < later_ms else LATER for entry_id, due_ms in parked},
        attempts={_place(entry_id): _attempts(record) for entry_id, record in attempts.items()},
        redrives={_place(entry_id) for entry_id in redrives},
        closed=sorted(map(_place, closed)),
        totals={name.decode(): int(number) for name, number in totals.items()},
        consumers={row["name"].decode() for row in consumers},
    )


def _read(call: Call, reply: Any) -> Any:
    """Return a reply as its caller reads it."""
    if call.script == "renew":
        return "lost" if reply == [_id(call.entry).encode()] else "kept"
    if call.script == "finish":
        return reply[0].decode()
    if call.script != "take_due":
        return reply.decode()
    next_due_ms, _, taken = reply
    given = [
        (_place(entry_id), owner.decode(), count, _attempts(record), bool(fields))
        for entry_id, owner, count, record, fields in taken
    ]
    return {-1: UNHUNG, 0: DUE}.get(next_due_ms, LATER), given


def _attempts(record: bytes) -> int:
    return int(msgspec.json.decode(record)["attempts"]) if record else 0


def _id(place: int) -> str:
    return f"{place + 1}-0"


def _place(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0]) - 1
