"""What Redis's user must be allowed, by the roles of a fleet; asked of the server by ACL DRYRUN, which runs nothing."""

import shlex
from typing import TYPE_CHECKING

from redis import exceptions

from millhand.keys import PARKED_CONSUMER, Keys

if TYPE_CHECKING:
    from redis.asyncio import Redis

NOTHING = "0-1"  # the id of no entry
# The scripts run under the caller's rights, so what they call is here too.
NEEDED = (
    "PING", "TIME", "INFO server", "EVAL '' 1 {input}", "EVALSHA abc 1 {input}",
    "XGROUP CREATE {input} {group} 0 MKSTREAM", "XGROUP DELCONSUMER {input} {group} doctor",
    "XREADGROUP GROUP {group} doctor COUNT 1 STREAMS {input} >", "XACK {input} {group} {nothing}",
    "XCLAIM {input} {group} {parking} 0 {nothing} JUSTID", "XPENDING {input} {group}", "XRANGE {input} - + COUNT 1",
    "XTRIM {input} MINID 0", "XINFO STREAM {input}", "XINFO GROUPS {input}",
    "XINFO CONSUMERS {input} {group}", "EXISTS {input}",
    "XADD {output} * data x", "XRANGE {output} - + COUNT 1",
    "XADD {dead_letter} * data x", "XRANGE {dead_letter} - + COUNT 1",
    "ZADD {parked} 1 x", "ZREM {parked} x", "ZRANGE {parked} 0 1", "ZSCORE {parked} x",
    "HSET {attempts} x y", "HGET {attempts} x", "HDEL {attempts} x", "HSET {redrives} x y", "ZADD {closed} 1 x",
    "HINCRBY {totals} x 1", "HGETALL {totals}", "HSET {gate} x y", "HGETALL {gate}",
    "ZADD {permits} 1 x", "ZCARD {permits}", "ZREMRANGEBYSCORE {permits} 0 1",
    "HSET {answers} x y", "ZADD {answer_times} 1 x", "SET {seen_prefix}x y", "GET {asking_prefix}x",
    "DEL {asking_prefix}x",
)  # fmt: skip


def needed(keys: Keys) -> list[list[str]]:
    """Return the commands, with their arguments."""
    names = {name: shlex.quote(str(getattr(keys, name))) for name in keys.__struct_fields__}
    names |= {"nothing": NOTHING, "parking": PARKED_CONSUMER}
    return [shlex.split(command.format(**names)) for command in NEEDED]


async def who_may(redis: "Redis", keys: Keys) -> tuple[str, tuple[str, ...] | None]:
    """Return the user's name, and which of the commands it may not give; None where that is not told."""
    try:
        user = str((await redis.execute_command("ACL", "WHOAMI")).decode())  # type: ignore[no-untyped-call]
    except exceptions.ResponseError:
        return "", None
    try:
        return user, await refused_to(redis, user, keys)
    except exceptions.NoPermissionError:
        return user, None


async def refused_to(redis: "Redis", user: str, keys: Keys) -> tuple[str, ...]:
    """Return which of the commands a user may not give. Raises NoPermissionError where that may not be asked."""
    refused = []
    for command in needed(keys):
        try:
            answer = await redis.execute_command("ACL", "DRYRUN", user, *command)  # type: ignore[no-untyped-call]
        except exceptions.NoPermissionError:
            raise
        except exceptions.ResponseError:
            continue  # a server that does not know the command has no rule for it
        if answer not in (b"OK", True, "OK"):
            refused.append(_short(command))
    return tuple(dict.fromkeys(refused))


def _short(command: list[str]) -> str:
    """Name a command and its key, if it has one; the rest does not matter."""
    key = next((part for part in command[1:] if ":" in part and "{" in part), "")
    return f"{command[0]} {key}".strip()
