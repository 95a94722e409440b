"""Whether Redis keeps what it has acknowledged: pure, from its facts."""

from collections.abc import Iterator

from millhand_fleet.doctor.facts import RedisFacts
from millhand_fleet.doctor.finding import Finding, Judgement, error, note, ok, warning

CONF = "conf/redis.conf has the lines that are needed"
MEMORY_SHARE_MAX = 0.9
EVICTS_ANY = "allkeys-"


def durability(facts: RedisFacts) -> Iterator[Finding]:
    """Say what an acknowledged write survives."""
    appends = bool(int(facts.info.get("aof_enabled", 0)))
    fsync = (facts.settings or {}).get("appendfsync")
    if not appends:
        yield error(
            "durability", "none: appendonly is off, a crash loses every event since the last snapshot",
            f"set `appendonly yes` and `appendfsync always` in its configuration file, and restart it; {CONF}",
        )  # fmt: skip
    elif fsync is None:
        yield note("durability", "appendonly is on; appendfsync is unknown, for CONFIG GET is forbidden")
    elif fsync != "always":
        lost = "a second" if fsync == "everysec" else "half a minute"
        yield warning(
            "durability", f"weak: appendfsync is {fsync}, a power cut may lose {lost} of acknowledged events",
            f"redis-cli CONFIG SET appendfsync always, and the same in its configuration file; {CONF}",
        )  # fmt: skip
    elif (facts.settings or {}).get("no-appendfsync-on-rewrite") == "yes":
        yield warning(
            "durability", "appendfsync is always, but no-appendfsync-on-rewrite is yes: not while a rewrite runs",
            "set `no-appendfsync-on-rewrite no`",
        )  # fmt: skip
    else:
        yield ok("durability", "durable: appendonly, appendfsync always")


def persistence(facts: RedisFacts) -> Iterator[Finding]:
    """Whether its last writes to disk went well."""
    space = "see its log, and whether its disk is full"
    if facts.info.get("aof_last_write_status", "ok") != "ok":
        yield error("persistence", "the last write to the append-only file failed: it refuses writes (MISCONF)", space)
    if facts.info.get("rdb_last_bgsave_status", "ok") != "ok":
        settings = facts.settings or {}
        stops = settings.get("stop-writes-on-bgsave-error", "yes") == "yes" and settings.get("save", "?") != ""
        say = error if stops else warning
        yield say("persistence", "the last snapshot failed" + (": it refuses writes (MISCONF)" if stops else ""), space)
    if facts.info.get("aof_last_bgrewrite_status", "ok") != "ok":
        yield warning("persistence", "the last rewrite of the append-only file failed: it grows without end", space)


def eviction(facts: RedisFacts) -> Iterator[Finding]:
    """Whether it may throw events away."""
    policy = (facts.settings or {}).get("maxmemory-policy") or str(facts.info.get("maxmemory_policy", "unknown"))
    remedy = f"redis-cli CONFIG SET maxmemory-policy noeviction, and the same in its configuration file; {CONF}"
    if policy == "noeviction":
        yield ok("eviction", "maxmemory-policy noeviction")
    elif policy == "unknown":
        yield note("eviction", "maxmemory-policy is unknown, for INFO does not tell and CONFIG GET is forbidden")
    elif policy.startswith(EVICTS_ANY) and int(facts.info.get("maxmemory", 0)):
        yield error("eviction", f"maxmemory-policy is {policy}: when memory is full it throws events away", remedy)
    else:
        yield warning("eviction", f"maxmemory-policy is {policy}: it may throw away what the fleet needs", remedy)
    if evicted := int(facts.info.get("evicted_keys", 0)):
        yield warning("eviction", f"it has thrown away {evicted} keys since it was started", remedy)


def memory(facts: RedisFacts) -> Iterator[Finding]:
    """Whether there is room for more events."""
    used, most = int(facts.info.get("used_memory", 0)), int(facts.info.get("maxmemory", 0))
    if not most:
        yield ok("memory", f"{_mib(used)} used, no maxmemory")
    elif used >= most * MEMORY_SHARE_MAX:
        say = error if used >= most else warning
        yield say(
            "memory", f"{_mib(used)} used of maxmemory {_mib(most)}: full, nothing more is read",
            "raise maxmemory, or shrink input.keep_s and trim the output and dead letters",
        )  # fmt: skip
    else:
        yield ok("memory", f"{_mib(used)} used of maxmemory {_mib(most)}")


KEEPING: tuple[Judgement, ...] = (durability, persistence, eviction, memory)


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"
