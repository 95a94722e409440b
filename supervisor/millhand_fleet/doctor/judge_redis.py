"""What is wrong with the Redis server: pure, from its facts."""

from collections.abc import Iterator

from millhand.stream import REDIS_VERSION_MIN
from millhand_fleet.doctor.facts import LOGIN_REFUSED, SILENT, STILL_LOADING, RedisFacts
from millhand_fleet.doctor.finding import Finding, Judgement, error, note, ok, warning
from millhand_fleet.doctor.judge_durability import KEEPING
from millhand_fleet.doctor.server_versions import flaws_of, parsed

CLOCK_S_MAX = 1.0
PING_S_MAX = 0.02  # each settle and each read costs one
CLIENTS_SHARE_MAX = 0.9
IDLE_S_MIN = 30.0  # below it the server drops connections that a quiet fleet keeps
REFUSED_SHOWN_MAX = 6


def answers(facts: RedisFacts) -> Iterator[Finding]:
    """Whether it is there at all."""
    if not facts.error:
        return
    if facts.error == STILL_LOADING:
        yield warning("answers", f"{facts.url}: {facts.error}", "wait, and look again")
        return
    remedy = "start it, or change redis.url"
    if facts.error.startswith(LOGIN_REFUSED):
        remedy = "give the right user in redis.url, and its password there, in redis.password or redis.password_file"
    elif facts.error.startswith(SILENT) and facts.url.startswith("rediss:"):
        remedy = "see whether this port speaks TLS: a server without it says nothing to rediss://"
    elif "redis." in facts.error:
        remedy = "correct what it names: `worker-ctl config show` tells where that is set"
    elif facts.is_embedded:
        remedy = "start the fleet with `worker-ctl up`; if it runs, see valkey/valkey.log in the state directory"
    yield error("answers", f"{facts.url}: {facts.error}", remedy)


def asleep(facts: RedisFacts) -> Iterator[Finding]:
    """Whether the embedded one could be started, where none runs."""
    if facts.fault:
        yield error("embedded", *facts.fault)
    elif facts.is_asleep:
        yield note("embedded", "starts and stops with the fleet, which does not run: nothing to ask", "worker-ctl up")


def version(facts: RedisFacts) -> Iterator[Finding]:
    """Whether it is new enough."""
    name, number = server_of(facts)
    program = facts.info.get("executable") or "its program is not told"
    if parsed(str(facts.info.get("redis_version", "0"))) < REDIS_VERSION_MIN:
        needed = ".".join(map(str, REDIS_VERSION_MIN))
        yield error("version", f"{name} {number} ({program}): too old", f"install Redis {needed} or newer, or Valkey")
    else:
        brought = "embedded, " if facts.is_embedded else ""
        yield ok("version", f"{name} {number} at {facts.url} ({brought}{program})")


def known_flaws(facts: RedisFacts) -> Iterator[Finding]:
    """Whether this version is known to be bad."""
    name, number = server_of(facts)
    for flaw in flaws_of(name, number):
        yield Finding(flaw.level, "known flaw", f"{name} {number}: {flaw.what}", flaw.remedy)


def role(facts: RedisFacts) -> Iterator[Finding]:
    """Whether it takes writes, and whether a fleet's keys are all with it."""
    if facts.info.get("role", "master") != "master":
        primary = f"{facts.info.get('master_host')}:{facts.info.get('master_port')}"
        yield error("role", f"a replica of {primary}: it takes no writes", "point redis.url at the primary")
    if int(facts.info.get("cluster_enabled", 0)):
        yield warning(
            "role", "a node of a cluster: millhand follows no redirection to another node",
            "point redis.url at the node that has the slot of the fleet's keys, and do not move that slot",
        )  # fmt: skip


def clock(facts: RedisFacts) -> Iterator[Finding]:
    """Whether two clocks agree: ids of events are the server's time, logs are this host's."""
    ahead = facts.clock_ahead_s
    if abs(ahead) > CLOCK_S_MAX:
        way = "ahead of" if ahead > 0 else "behind"
        yield warning(
            "clock", f"the server's clock is {abs(ahead):.1f} s {way} this host's: ids, ages and logs do not agree",
            "let both hosts keep time (chrony or systemd-timesyncd)",
        )  # fmt: skip
    else:
        yield ok("clock", f"within {abs(ahead) * 1000:.0f} ms of this host's")


def latency(facts: RedisFacts) -> Iterator[Finding]:
    """Whether it answers fast."""
    text = f"PING takes {facts.ping_s * 1000:.2g} ms"
    if facts.ping_s > PING_S_MAX:
        yield warning(
            "latency", f"{text}: each event costs at least two of them",
            "move it nearer, or look for what holds it up: SLOWLOG GET, LATENCY DOCTOR",
        )  # fmt: skip
    else:
        yield ok("latency", text)


def timeouts(facts: RedisFacts) -> Iterator[Finding]:
    """Whether somebody hangs up on a read that only waits."""
    if facts.reader_timeout_s <= facts.block_s:
        yield error(
            "time-outs", f"a read waits {facts.block_s:g} s, but is given up after {facts.reader_timeout_s:g} s",
            "this is an error of millhand's own: report it",
        )  # fmt: skip
    settings = facts.settings or {}
    idle_s = int(settings.get("timeout", 0))
    if 0 < idle_s < IDLE_S_MIN:
        yield warning(
            "time-outs", f"the server drops connections that were idle for {idle_s} s", "set `timeout 0`"
        )  # fmt: skip
    else:
        yield ok(
            "time-outs", f"a read waits {facts.block_s:g} s at most and is given up after {facts.reader_timeout_s:g} s"
        )
    if settings.get("tcp-keepalive") == "0":
        yield note("time-outs", "tcp-keepalive is 0: it never notices a client that is gone", "set `tcp-keepalive 300`")


def connections(facts: RedisFacts) -> Iterator[Finding]:
    """Whether all processes get in."""
    most, now = int(facts.info.get("maxclients", 0)), int(facts.info.get("connected_clients", 0))
    if most and (now > most * CLIENTS_SHARE_MAX or facts.connections_wanted > most):
        yield warning(
            "connections", f"{now} of maxclients {most}; the fleet may want {facts.connections_wanted}",
            "raise maxclients",
        )  # fmt: skip
    if rejected := int(facts.info.get("rejected_connections", 0)):
        yield note("connections", f"it has turned away {rejected} connections since it was started", "raise maxclients")


def permissions(facts: RedisFacts) -> Iterator[Finding]:
    """Whether the user may do what worker, janitor and desk do."""
    if facts.settings is None:
        yield note("CONFIG", "forbidden to this user: appendfsync, timeout and tcp-keepalive are unknown")
    if facts.refused is None:
        yield note("permissions", f"user {facts.user}; ACL DRYRUN is forbidden, so what it may do is unknown")
    elif facts.refused:
        shown = ", ".join(facts.refused[:REFUSED_SHOWN_MAX])
        more = len(facts.refused) - REFUSED_SHOWN_MAX
        yield error(
            "permissions", f"user {facts.user} may not: {shown}" + (f" and {more} more" if more > 0 else ""),
            "give it the rights of conf/users.acl",
        )  # fmt: skip
    else:
        yield ok("permissions", f"user {facts.user} may do all that the fleet does")


def exposure(facts: RedisFacts) -> Iterator[Finding]:
    """Whether events or passwords lie open."""
    settings = facts.settings or {}
    if facts.is_remote and not facts.is_encrypted:
        say = warning if facts.has_password else note
        secret = "password and events" if facts.has_password else "events"
        yield say("exposure", f"{secret} cross the network in clear", "use TLS: redis.url = rediss://…")
    elsewhere = [host for host in settings.get("bind", "").split() if host.lstrip("-") not in {"127.0.0.1", "::1"}]
    if elsewhere and settings.get("protected-mode") == "no" and facts.user == "default" and not facts.has_password:
        yield warning(
            "exposure", f"whoever reaches {', '.join(elsewhere)} gets in without a password",
            "set a password or `protected-mode yes`, or `bind 127.0.0.1`",
        )  # fmt: skip


ALIVE: tuple[Judgement, ...] = (
    version, known_flaws, role, *KEEPING, clock, latency, timeouts,
    connections, permissions, exposure,
)  # fmt: skip


def judge_redis(facts: RedisFacts) -> Iterator[Finding]:
    """Judge the server; one that is not there, or does not answer, is judged by that alone."""
    for judgement in (asleep, answers) if facts.error or facts.is_asleep else ALIVE:
        yield from judgement(facts)


def server_of(facts: RedisFacts) -> tuple[str, str]:
    """Return the server's name and version. Valkey also tells which Redis it is compatible with."""
    if "valkey_version" in facts.info:
        return "Valkey", str(facts.info["valkey_version"])
    return "Redis", str(facts.info.get("redis_version", "of unknown version"))
