"""Asks Redis about itself."""

import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from redis import exceptions

from millhand.address import refusal_of_tls, told
from millhand.errors import Unusable, clip
from millhand.keys import Keys
from millhand.stream import BLOCK_GRACE_S, BLOCK_MS, RedisError, connect
from millhand_fleet.doctor.facts import LOGIN_REFUSED, SILENT, STILL_LOADING, RedisFacts
from millhand_fleet.doctor.permissions import who_may
from millhand_fleet.doctor.setup import Setup
from millhand_fleet.embedded.preflight import EmbeddedUnavailable, valkey_binary

if TYPE_CHECKING:
    from redis.asyncio import Redis

ANSWER_S = 2.0
PINGS = 5
CONNECTIONS_EACH = 6  # of a worker: it reads, settles, renews, and has its calls' leave
CONNECTIONS_OTHERS = 16  # janitor, desk, worker-ctl
NO_ADDRESS = "redis.url is no address of a Redis"
LOOPBACK = {"localhost", "127.0.0.1", "::1", ""}
SETTINGS = (
    "appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory-policy", "timeout", "tcp-keepalive", "save",
    "stop-writes-on-bgsave-error", "bind", "protected-mode",
)  # fmt: skip


async def ask_redis(setup: Setup) -> RedisFacts:
    """Return what there is to know; a server that does not answer is a fact too."""
    facts = RedisFacts(told(setup.config.redis.url), is_embedded=setup.is_redis_embedded)
    try:
        url = setup.redis_url
    except (Unusable, ValueError) as error:
        return msgspec.structs.replace(facts, error=clip(str(error)))
    facts = msgspec.structs.replace(facts, url=told(url))
    if not url:
        return msgspec.structs.replace(facts, is_asleep=True, fault=_fault())
    try:
        redis = connect(url, timeout_s=ANSWER_S)
    except (ValueError, *RedisError):  # whose words may hold a part of the password
        return msgspec.structs.replace(facts, error=NO_ADDRESS)
    try:
        return await _ask(redis, facts, setup)
    except RedisError as error:
        return msgspec.structs.replace(facts, error=_why(error))
    finally:
        await redis.aclose()


def _why(error: Exception) -> str:
    """Say why it does not answer."""
    match error:
        case exceptions.AuthenticationError() | exceptions.AuthorizationError():
            return f"{LOGIN_REFUSED}: {error}"
        case exceptions.NoPermissionError():
            return f"this user may not even look at it: {error}"
        case exceptions.BusyLoadingError():
            return STILL_LOADING
        case exceptions.TimeoutError():
            return f"{SILENT} within {ANSWER_S:g} s"
    return refusal_of_tls(error) or clip(str(error)) or type(error).__name__


async def _ask(redis: "Redis", facts: RedisFacts, setup: Setup) -> RedisFacts:
    ping_s = await _ping_s(redis)
    ahead_s = await _clock_ahead_s(redis)
    info = await redis.info()
    user, refused = await who_may(redis, Keys.of(setup.config))
    parts = urlsplit(setup.redis_url)
    return msgspec.structs.replace(
        facts,
        ping_s=ping_s,
        clock_ahead_s=ahead_s,
        info={name: value for name, value in info.items() if not isinstance(value, dict)},
        settings=await _settings(redis),
        user=user or parts.username or "default",
        refused=refused,
        is_remote=parts.scheme != "unix" and (parts.hostname or "") not in LOOPBACK,
        is_encrypted=parts.scheme == "rediss",
        has_password=bool(parts.password),
        block_s=BLOCK_MS / 1000,
        reader_timeout_s=BLOCK_MS / 1000 + BLOCK_GRACE_S,
        connections_wanted=setup.workers * CONNECTIONS_EACH + CONNECTIONS_OTHERS,
    )


async def _ping_s(redis: "Redis") -> float:
    """Return how long a PING usually takes, on a connection that is there."""
    took = []
    for _ in range(PINGS):
        started = time.monotonic()
        await redis.execute_command("PING")  # type: ignore[no-untyped-call]
        took.append(time.monotonic() - started)
    return sorted(took)[PINGS // 2]


async def _clock_ahead_s(redis: "Redis") -> float:
    """Return how far the server's clock is ahead of ours, taking its answer to be from the middle of the round trip."""
    before = time.time()
    seconds, microseconds = await redis.time()
    return float(seconds + microseconds / 1e6 - (before + time.time()) / 2)


async def _settings(redis: "Redis") -> dict[str, str] | None:
    try:
        found: dict[Any, Any] = await redis.config_get(*SETTINGS)
    except exceptions.ResponseError:
        return None
    return {_text(name): _text(value) for name, value in found.items()}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _fault() -> tuple[str, str] | None:
    try:
        valkey_binary()
    except EmbeddedUnavailable as error:
        return error.fault, error.remedy
    return None
