"""The product with one mistake in it, each one that others have made: the history checker must catch every one."""

import asyncio
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from millhand import lease, settle, stream, worker
from millhand.model import ollama
from millhand.settle import Settled, Settler
from millhand.verdict import Delivery, Enriched, Verdict
from millhand_fleet import child, janitor, restore, watch

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from millhand.keys import Keys


class Mutant(NamedTuple):
    """A mistake, and the faults under which it shows."""

    says: str
    faults: tuple[str, ...]
    put_in: Callable[[], None]
    breaks: tuple[int, ...]  # the invariants of which at least one must be found broken
    settings: Mapping[str, str] = {}  # of the fleet, where the mistake needs them to show
    events: tuple[str, ...] = ()  # texts to mix in beside the usual ones
    producer: str = ""  # "retries" or "maxlen": a mistake of the producer's


def _edit(script: str, *edits: tuple[str, str]) -> None:
    """Change a script's text wherever it is loaded."""
    original = stream.script_text

    def edited(name: str) -> str:
        text = original(name)
        if name == script:
            for right, wrong in edits:
                if right not in text:
                    raise LookupError(f"{script}.lua no longer holds {right!r}")
                text = text.replace(right, wrong)
        return text

    stream.script_text = edited


def _add_then_acknowledge() -> None:
    async def write(self: Settler, delivery: Delivery, enriched: Enriched) -> Settled:
        fields: Any = {"data": enriched.data, "src": delivery.id, "hash": enriched.hash}
        await self._redis.xadd(self._keys.output, fields)
        await self._redis.xack(self._keys.input, self._keys.group, delivery.id)
        return Settled.OK

    Settler._write = write  # type: ignore[method-assign]


def _acknowledge_first() -> None:
    add = "    local added = redis.pcall('XADD',"
    acknowledge = "      redis.call('XACK', key, group, id)\n"
    _edit("finish", (acknowledge, ""), (add, acknowledge + add))


def _repeat_every_command() -> None:
    connect = stream.connect

    def repeating(*args: Any, **options: Any) -> Any:
        client = connect(*args, **options)
        client.connection_pool.connection_kwargs["retry"] = Retry(NoBackoff(), 10)
        return client

    stream.connect = repeating
    for module in (worker, janitor):
        module.connect = repeating  # type: ignore[attr-defined]


def _renew_all_under_ones_name() -> None:
    renew = lease.Leases.renew

    async def renew_all(self: lease.Leases) -> None:
        await renew(self)
        redis, keys = self._renew._redis, self._keys
        rows = await redis.xpending_range(keys.input, keys.group, "-", "+", 1000, consumername=self._consumer)
        ids: Any = [row["message_id"] for row in rows]
        if ids:
            await redis.xclaim(keys.input, keys.group, self._consumer, 0, ids, justid=True)

    lease.Leases.renew = renew_all  # type: ignore[method-assign]


def _renew_bare() -> None:
    _edit(
        "renew",
        ("if not pending or pending[2] ~= consumer or pending[4] ~= tonumber(ARGV[i + 1]) then", "if false then"),
        ("elseif #redis.call('XRANGE', key, id, id) == 1 then", "else"),
    )


def _reuse_names() -> None:
    child.__dict__["secrets"] = SimpleNamespace(token_hex=lambda _: "again")


def _bury_without_fence() -> None:
    _edit("bury", ("if pending[2] ~= owner or pending[4] ~= count then", "if false then"))


def _group_at_the_end() -> None:
    async def nothing_before(redis: "Redis", keys: "Keys") -> tuple[str, list[bytes]]:
        del redis, keys
        return "$", []

    restore._place = nothing_before


def _forget_consumers_at_once() -> None:
    hear_and_sweep = janitor.Janitor.sweep

    async def sweep(self: janitor.Janitor) -> janitor.Sweep:
        for consumer in self._dead:
            await self._redis.xgroup_delconsumer(self._keys.input, self._keys.group, consumer)
        return await hear_and_sweep(self)

    janitor.Janitor.sweep = sweep  # type: ignore[method-assign]


def _take_by_idle_time_alone() -> None:
    def idle(self: watch.Watch, rows: Any, **_: float) -> set[str]:
        return {row.id for row in rows if row.idle_s >= self._lease_s}

    watch.Watch.abandoned = idle  # type: ignore[method-assign]


def _refill_what_was_lost() -> None:
    _edit("admit", ("or now_us + tolerance)", "or 0)"))


def _gone_is_a_failure() -> None:
    surely = settle.settle_surely

    async def unsure(settler: Settler, delivery: Delivery, verdict: Verdict, log: Any) -> Settled:
        settled = await surely(settler, delivery, verdict, log)
        if settled is Settled.GONE:
            keys = settler._keys
            pairs: Any = dict(delivery.fields) | {"failure_reason": "model_error", "src": delivery.id}
            await settler._redis.xadd(keys.dead_letter, pairs | {"original_fields": len(delivery.fields)})
        return settled

    worker.settle_surely = unsure  # type: ignore[attr-defined]


def _no_total_deadline() -> None:
    class Endless:
        """Stands for asyncio where time-outs are asked for."""

        def __getattr__(self, name: str) -> Any:
            return getattr(asyncio, name)

        def timeout(self, _: float) -> Any:
            return asyncio.timeout(None)

    ollama.__dict__["asyncio"] = Endless()


def _nothing() -> None:
    """Change nothing: the mistake is the producer's."""


MUTANTS: dict[str, Mutant] = {
    "m1": Mutant("XADD and XACK as two commands", ("swallow_acknowledge",), _add_then_acknowledge, (2,)),
    "m2": Mutant("XACK before XADD", ("revoke_permission",), _acknowledge_first, (1,)),
    "m3": Mutant(
        "clients that repeat commands, the producer's too",
        ("swallow_produce",),
        _repeat_every_command,
        (3,),
        producer="retries",
    ),
    "m4": Mutant("renewing all under one's name", ("swallow_read",), _renew_all_under_ones_name, (1, 15, 17)),
    "m5": Mutant("renewing by a bare XCLAIM", ("delete_entries", "freeze_worker"), _renew_bare, (1, 7, 8)),
    "m6": Mutant(
        "consumer names used again",
        ("kill_worker",) * 4 + ("rest",),  # shows where a birth is heard before the dead are looked for
        _reuse_names,
        (8, 18),
        {"MILLHAND_DELIVERY_LEASE_S": "8"},
        ("[[fake delay=1]]",) * 20,
    ),
    "m7": Mutant(
        "burying without the fence",
        ("freeze_worker",),
        _bury_without_fence,
        (5, 6, 8),
        {"MILLHAND_DELIVERY_RETRIES": "0"},
        ("[[fake garbage delay=2]]",) * 20,
    ),
    "m8": Mutant("a vanished group begun at its end", ("destroy_group",), _group_at_the_end, (1,)),
    "m9": Mutant("consumers forgotten with what they hold", ("kill_worker",), _forget_consumers_at_once, (1,)),
    "m10": Mutant("an input with MAXLEN", ("model_down",), _nothing, (1,), producer="maxlen"),
    "m11": Mutant("taking by idle time alone", ("clock_back", "swallow_read"), _take_by_idle_time_alone, (1, 15, 17)),
    "m12": Mutant(
        "a bucket that is full where it was lost",
        ("lose_gate",),
        _refill_what_was_lost,
        (11,),
        {"MILLHAND_MODEL_RATE_PER_S": "20", "MILLHAND_MODEL_BURST": "40"},
    ),
    "m13": Mutant("GONE taken for a failure", ("swallow",), _gone_is_a_failure, (2,)),
    "m14": Mutant(
        "no deadline for a whole call",
        ("kill_worker",),
        _no_total_deadline,
        (1, 15, 17),
        {"MILLHAND_MODEL_TIMEOUT_S": "2"},
        ("[[fake drip=0.9]]",) * 2,
    ),
}
