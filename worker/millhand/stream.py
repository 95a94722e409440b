"""The input stream: how it is connected to, read, and where a delivery comes from. The X-commands are spelled here."""

import hashlib
import math
import time
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import msgspec
from hiredis import pack_command
from redis import asyncio as aioredis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from millhand.address import refusal_of_tls, tls_context
from millhand.errors import Unusable
from millhand.keys import Keys
from millhand.line import Line
from millhand.verdict import Delivery

COMMAND_TIMEOUT_S = 4.0
CONNECT_TIMEOUT_S = 3.0
BLOCK_MS = 300  # bounds how long a reader takes to stop, and how long what is handed back waits for an idle worker
BLOCK_GRACE_S = 5.0
ALONG_BYTES_MAX = 1 << 20  # of entries that are read in one step with the places for them
REDIS_VERSION_MIN = (7, 0)
ALLOW_OOM = " flags=allow-oom"

RedisError = (exceptions.RedisError, OSError)
REFUSED = (exceptions.AuthenticationError, exceptions.AuthorizationError)


def connect(url: str, *, timeout_s: float = COMMAND_TIMEOUT_S, connections_max: int = 16) -> "aioredis.Redis":
    """Return a client that never repeats a command by itself, and speaks bytes. `url` is a `redis_address`.

    A command sent twice after a lost reply is an event written twice; what is safe to repeat, we repeat ourselves.
    Create it after the process has started.
    """
    client = aioredis.Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        health_check_interval=0,
        decode_responses=False,
        protocol=2,
        max_connections=connections_max,
        driver_info=None,  # the client's name is worth neither two commands a connection nor a right to them
    )
    pool: Any = client.connection_pool
    pool.connection_class = _ours(pool.connection_class)
    return client


@cache
def _ours(kind: Any) -> Any:
    """Return a class of connections that calls a reset what it is: uvloop has a RuntimeError for it.

    They share what they need for TLS: read anew for each, certificates would hold up the event loop. Commands are
    packed by hiredis, as replies are read by it, six times as fast as by the client itself.
    """

    class Connection(kind):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            if tls := getattr(self, "ssl_context", None):
                tls.context = tls_context(tls.ca_certs, tls.certfile, tls.keyfile)

        async def send_packed_command(self, *args: Any, **options: Any) -> None:
            try:
                await super().send_packed_command(*args, **options)
            except RuntimeError as error:
                raise exceptions.ConnectionError(f"the connection was reset: {error}") from error

        def pack_command(self, *args: Any) -> list[bytes]:
            name = args[0]
            if type(name) is not str or " " in name:  # of several words, each of which is an argument
                return super().pack_command(*args)  # type: ignore[no-any-return]
            try:
                return [pack_command(args)]
            except TypeError:
                return super().pack_command(*args)  # type: ignore[no-any-return] # which says what is wrong with it

    return Connection


async def require_streams(redis: "aioredis.Redis") -> str:
    """Return the server's name and version. Raises Unusable if it is too old or lets us not in."""
    try:
        info: dict[str, Any] = await redis.info("server")
    except REFUSED as error:
        raise Unusable(f"Redis refuses the login: {error}; see redis.url and redis.password") from error
    except exceptions.ConnectionError as error:
        if refusal := refusal_of_tls(error):
            raise Unusable(f"Redis cannot be trusted, or does not trust us: {refusal}") from error
        raise
    version = str(info["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < REDIS_VERSION_MIN:
        needed = ".".join(map(str, REDIS_VERSION_MIN))
        raise Unusable(
            f"Redis {version} is too old: millhand needs {needed} or newer (or Valkey), for scripts that still "
            "commit when memory is full; see redis.url"
        )
    return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {version}"


class Script:
    """A script of `lua/`, called by its hash, and with its text where the server has forgotten it.

    Not by SCRIPT LOAD: a server that is full refuses that, but lets a script run that may. One that is not to run
    `when_full` is refused there, whatever its flags say.
    """

    def __init__(self, redis: "aioredis.Redis", name: str, *, when_full: bool = True) -> None:
        self._redis = redis
        text = script_text(name)
        self.text = text if when_full else text.replace(ALLOW_OOM, "", 1)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run it. Raises RedisError."""
        try:
            return await self._redis.evalsha(self.sha, len(keys), *keys, *args)
        except exceptions.NoScriptError:
            return await self._redis.eval(self.text, len(keys), *keys, *args)


def script_text(name: str) -> str:
    """Return the text of a script of `lua/`."""
    return resources.files("millhand").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")


class Reading(NamedTuple):
    """How admit.lua is to read new entries: for whom, how many a place, and how many beyond."""

    consumer: str
    each: int
    ahead: int


class Stream:
    """A consumer's view of the input stream."""

    def __init__(self, redis_url: str, keys: Keys, consumer: str, deliveries_max: int) -> None:
        self._keys = keys
        self._deliveries_max = deliveries_max
        self._consumer = consumer
        self._reader = connect(redis_url, timeout_s=BLOCK_MS / 1000 + BLOCK_GRACE_S, connections_max=2)
        self._line = Line(self._reader)
        self._bytes_mean = math.inf  # of an entry, by those read last
        self._take_due = Script(self._reader, "take_due")
        self._due_look_s: float | None = None  # when to look for what is due; None before the first look
        self._clock_ms, self._clock_read_at = 0, time.monotonic()

    async def read(self, count: int) -> list[Delivery]:
        """Return up to `count` new entries, after waiting for the first until it is time to look for what is due."""
        look_in_ms = BLOCK_MS if self._due_look_s is None else (self._due_look_s - time.monotonic()) * 1000
        block_ms = round(max(1.0, min(BLOCK_MS, look_in_ms)))
        reply = await self._line.call(
            "XREADGROUP", "GROUP", self._keys.group, self._consumer,
            "COUNT", count, "BLOCK", block_ms, "STREAMS", self._keys.input, ">",
        )  # fmt: skip
        return [delivery for _, entries in reply or () for delivery in self.deliveries(entries)]

    def reading(self, places: int, each: int, ahead: int) -> Reading | None:
        """Return how so many new entries for each place, and so many beyond, may be read in one step with the places.

        None where they are large, by the size of those found last, or the last read failed: a reply of theirs would
        hold up all that shares the connection.
        """
        if self._bytes_mean * (places * each + ahead) > ALONG_BYTES_MAX:
            return None
        return Reading(self._consumer, each, ahead)

    def read_failed(self) -> None:
        """Read on a connection of its own next time."""
        self._bytes_mean = math.inf

    def deliveries(self, entries: Sequence[Any]) -> list[Delivery]:
        """Return new entries, as the server gives them, as deliveries."""
        if entries:
            self._bytes_mean = sum(len(value) for _, pairs in entries for value in pairs) / len(entries)
        return [Delivery(entry_id.decode(), _fields(pairs), self._consumer, 1) for entry_id, pairs in entries]

    async def take_due(self, count: int) -> list[Delivery]:
        """Return up to `count` parked entries that are due. Raises OutOfMemoryError where Redis is full."""
        keys = self._keys
        next_due_ms, self._clock_ms, taken = await self._take_due(
            keys=[keys.input, keys.parked, keys.attempts],
            args=[keys.group, self._consumer, count, self._deliveries_max],
        )
        self._clock_read_at = time.monotonic()
        wait_ms = BLOCK_MS if next_due_ms < 0 else min(BLOCK_MS, next_due_ms)
        self._due_look_s = self._clock_read_at + wait_ms / 1000
        return [_due(*entry) for entry in taken]

    def may_take_due(self) -> bool:
        """Whether it is time to look for what is due: something is, or may have been parked by somebody meanwhile."""
        return self._due_look_s is None or time.monotonic() >= self._due_look_s

    def expect_due(self, in_s: float) -> None:
        """Look for what is due after so many seconds at the latest: something has been parked for so long."""
        if self._due_look_s is not None:
            self._due_look_s = min(self._due_look_s, time.monotonic() + in_s)

    def is_suspect(self, delivery: Delivery) -> bool:
        """Whether a delivery came back from workers that died and has its last chance. It is given out alone."""
        return delivery.count > 1 and delivery.count >= self._deliveries_max

    def age_s(self, delivery: Delivery) -> float:
        """Return how long ago an entry was added, both ends by Redis's own clock."""
        now_ms = self._clock_ms + (time.monotonic() - self._clock_read_at) * 1000
        return (now_ms - delivery.added_ms) / 1000

    async def reconnect(self) -> None:
        """Drop the connections: the next command makes new ones, to whatever the address leads to by then."""
        await self._reader.connection_pool.disconnect()

    async def close(self) -> None:
        """Close the connections."""
        await self._reader.aclose()


class EventIds:
    """Which entry has which event_id."""

    def __init__(self, redis: "aioredis.Redis", keys: Keys, window_s: float) -> None:
        self._keys = keys
        self._window_ms = max(1, round(window_s * 1000))
        self._claim = Script(redis, "claim_event_id")

    async def first_with(self, event_id: bytes, delivery: Delivery) -> str:
        """Return the entry that has an event_id: this one, unless another has had it for less than the window."""
        first: bytes = await self._claim(keys=[self._keys.seen(event_id)], args=[delivery.id, self._window_ms])
        return first.decode()


def is_stale(error: BaseException) -> bool:
    """Whether an error says that the connections lead to a server that no longer takes writes."""
    return isinstance(error, exceptions.ReadOnlyError)


class _Record(msgspec.Struct):
    attempts: int = 0
    errors: tuple[str, ...] = ()


def attempts_record(attempts: int, history: Sequence[str]) -> bytes:
    """Return what the hash of attempts holds for an event."""
    return msgspec.json.encode(_Record(attempts, tuple(history)))


async def attempts_of(
    redis: "aioredis.Redis", keys: Keys, ids: Sequence[str]
) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Return the attempts spent on each event, and their errors."""
    records: Any = await redis.hmget(keys.attempts, list(ids)) if ids else []
    return {entry_id: _spent(record) for entry_id, record in zip(ids, records, strict=True)}


def _spent(record: bytes | None) -> tuple[int, tuple[str, ...]]:
    spent = msgspec.json.decode(record, type=_Record) if record else _Record()
    return spent.attempts, spent.errors


def _due(entry_id: bytes, owner: bytes, count: int, record: bytes, pairs: list[bytes]) -> Delivery:
    return Delivery(entry_id.decode(), _fields(pairs), owner.decode(), count, *_spent(record))


def _fields(pairs: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(pairs[::2], pairs[1::2], strict=True))
