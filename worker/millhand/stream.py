"""The input stream: how it is connected to, read, and where a delivery comes from. The X-commands are spelled here."""

from collections.abc import Sequence
from importlib import resources
from typing import Any

import msgspec
from redis import asyncio as aioredis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript

from millhand.errors import Unusable
from millhand.keys import Keys
from millhand.verdict import Delivery

COMMAND_TIMEOUT_S = 4.0
CONNECT_TIMEOUT_S = 3.0
BLOCK_MS = 1000  # a reader that stops waits for its reply, so this bounds how long
BLOCK_GRACE_S = 5.0
REDIS_VERSION_MIN = (7, 0)

RedisError = (exceptions.RedisError, OSError)
REFUSED = (exceptions.AuthenticationError, exceptions.AuthorizationError)


def connect(url: str, *, timeout_s: float = COMMAND_TIMEOUT_S, connections_max: int = 16) -> "aioredis.Redis":
    """Return a client that never repeats a command by itself, and speaks bytes.

    A command sent twice after a lost reply is an event written twice; what is safe to repeat, we repeat ourselves.
    Create it after the process has started.
    """
    return aioredis.Redis.from_url(
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
    )


async def require_streams(redis: "aioredis.Redis") -> str:
    """Return the server's name and version. Raises Unusable if it is too old or lets us not in."""
    try:
        info: dict[str, Any] = await redis.info("server")
    except REFUSED as error:
        raise Unusable(f"Redis refuses the login: {error}; see redis.url") from error
    version = str(info["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < REDIS_VERSION_MIN:
        needed = ".".join(map(str, REDIS_VERSION_MIN))
        raise Unusable(
            f"Redis {version} is too old: millhand needs {needed} or newer (or Valkey), for scripts that still "
            "commit when memory is full; see redis.url"
        )
    return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {version}"


def script(redis: "aioredis.Redis", name: str) -> AsyncScript:
    """Return a script of `lua/`; it loads itself again where the server has forgotten it."""
    text = resources.files("millhand").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    return redis.register_script(text)


class Stream:
    """A consumer's view of the input stream."""

    def __init__(self, redis_url: str, keys: Keys, consumer: str) -> None:
        self._keys = keys
        self._consumer = consumer
        self._reader = connect(redis_url, timeout_s=BLOCK_MS / 1000 + BLOCK_GRACE_S, connections_max=2)
        self._take_due = script(self._reader, "take_due")
        self.next_due_ms = -1

    async def read(self, count: int) -> list[Delivery]:
        """Return up to `count` new entries, after waiting for the first until something parked falls due."""
        block_ms = BLOCK_MS if self.next_due_ms < 0 else min(BLOCK_MS, max(1, self.next_due_ms))
        reply = await self._reader.execute_command(  # type: ignore[no-untyped-call]
            "XREADGROUP", "GROUP", self._keys.group, self._consumer,
            "COUNT", count, "BLOCK", block_ms, "STREAMS", self._keys.input, ">",
        )  # fmt: skip
        entries = _only_stream(reply)
        return [Delivery(entry_id.decode(), fields, self._consumer, 1) for entry_id, fields in entries]

    async def take_due(self, count: int) -> list[Delivery]:
        """Return up to `count` parked entries whose time has come."""
        keys = self._keys
        self.next_due_ms, taken = await self._take_due(
            keys=[keys.input, keys.parked, keys.attempts], args=[keys.group, self._consumer, count]
        )
        return [_due(*entry) for entry in taken]

    async def ensure_group(self) -> bool:
        """Create the group, and the stream, where they are not. True if that was needed.

        From 0, never `$`: what stands in the stream already is work.
        """
        return await ensure_group(self._reader, self._keys)

    async def close(self) -> None:
        """Close the connections."""
        await self._reader.aclose()


async def ensure_group(redis: "aioredis.Redis", keys: Keys) -> bool:
    """Create the group at 0 where it is not. True if that was needed."""
    try:
        await redis.xgroup_create(keys.input, keys.group, id="0", mkstream=True)
    except exceptions.ResponseError as error:
        if str(error).startswith("BUSYGROUP"):
            return False
        raise
    return True


def group_is_missing(error: BaseException) -> bool:
    """Whether an error says that the stream or the group has vanished."""
    return str(error).startswith(("NOGROUP", "UNBLOCKED"))


class _Record(msgspec.Struct):
    attempts: int = 0
    errors: tuple[str, ...] = ()


def attempts_record(attempts: int, history: Sequence[str]) -> bytes:
    """Return what the hash of attempts holds for an event."""
    return msgspec.json.encode(_Record(attempts, tuple(history)))


async def attempts_of(redis: "aioredis.Redis", keys: Keys, entry_id: str) -> tuple[int, tuple[str, ...]]:
    """Return the attempts spent on an event, and their errors."""
    record: Any = await redis.hget(keys.attempts, entry_id)
    spent = msgspec.json.decode(record, type=_Record) if record else _Record()
    return spent.attempts, spent.errors


def _due(entry_id: bytes, owner: bytes, count: int, record: bytes, pairs: list[bytes]) -> Delivery:
    spent = msgspec.json.decode(record, type=_Record) if record else _Record()
    fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
    return Delivery(entry_id.decode(), fields, owner.decode(), count, spent.attempts, spent.errors)


def _only_stream(reply: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Take the entries of the one stream that was asked for out of XREADGROUP's reply."""
    if not reply:
        return []
    ((_, entries),) = reply.items() if isinstance(reply, dict) else reply
    return list(entries)
