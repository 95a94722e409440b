"""What is wrong in the streams: pure, from their facts."""

import re
from collections.abc import Iterator

from millhand.keys import PARKED_CONSUMER
from millhand_fleet.doctor.facts import Consumer, Pending, StreamFacts
from millhand_fleet.doctor.finding import Finding, Judgement, error, note, ok, warning

STALE_AFTER_S = 3600.0
STALE_MAX = 50  # consumers that hold nothing; the janitor retires those whose process is gone
OLD_S = 3600.0
LONG_MAX = 1_000_000  # entries of an output that nobody trims
CONSUMER = re.compile(r"(?P<host>.+):w\d+:[0-9a-f]+")


def types(facts: StreamFacts) -> Iterator[Finding]:
    """Whether a key is something else than it must be: every command on it fails with WRONGTYPE."""
    for key, wanted in facts.wrong_types:
        yield error(
            "type", f"{key} is no {wanted}: every command on it fails",
            f"RENAME it, or give the fleet other names (fleet.name, redis.{_setting(key, facts)})",
        )  # fmt: skip


def group(facts: StreamFacts) -> Iterator[Finding]:
    """Whether the group is there."""
    if _is_wrong(facts.input, facts):
        return
    if facts.group_exists:
        yield ok("group", f"{facts.group} of {facts.input}, delivered up to {facts.last_delivered}")
    elif facts.is_running:
        yield error(
            "group", f"{facts.input} has no group {facts.group}: somebody destroyed it",
            "the janitor puts it back within seconds; if not, see its log and its permissions",
        )  # fmt: skip
    else:
        what = f"{facts.input} has no group {facts.group} yet" if facts.input_exists else f"no {facts.input} yet"
        yield note("group", f"{what}: the fleet makes it at its first start")
    if facts.other_groups:
        yield note(
            "group", f"others read the input too: {', '.join(facts.other_groups)}; it is trimmed only behind them all",
            "XGROUP DESTROY one that nobody reads with",
        )  # fmt: skip


def backlog(facts: StreamFacts) -> Iterator[Finding]:
    """Whether events wait."""
    if not facts.group_exists and not facts.length:
        return
    count = "more events than could be counted in time" if facts.backlog is None else f"{facts.backlog} events"
    waits = "" if facts.oldest_waiting_s is None else f", the oldest for {_span(facts.oldest_waiting_s)}"
    if facts.backlog == 0:
        yield ok("backlog", "no event waits")
    elif not facts.is_running:
        yield warning("backlog", f"{count} wait{waits}, and no fleet runs here", "worker-ctl up")
    elif (facts.oldest_waiting_s or 0.0) > OLD_S:
        yield warning(
            "backlog", f"{count} wait{waits}",
            "see `worker-ctl status` for what holds the fleet up; more workers help only if the model has room",
        )  # fmt: skip
    else:
        yield ok("backlog", f"{count} wait{waits}")


def pending(facts: StreamFacts) -> Iterator[Finding]:
    """Whether what was delivered is being worked on."""
    if not facts.group_exists:
        return
    text = f"{facts.pending} events in hand or parked ({facts.parked} parked)"
    oldest = facts.oldest_pending
    yield ok("pending", text + (f"; the oldest, {oldest.id}, is {_owner(oldest)}'s" if oldest else ""))
    if not facts.abandoned:
        return
    worst = max(facts.abandoned, key=lambda one: one.idle_s)
    found = (
        f"{worst.id} has been {_owner(worst)}'s for {_span(worst.idle_s)} without a sign of life, count {worst.count}"
    )
    if facts.is_running:
        yield warning(
            "pending", f"{found}: the janitor should have handed it on after one lease",
            "see the janitor's row in `worker-ctl status`, and its log",
        )  # fmt: skip
    else:
        yield note("pending", found, "the next fleet hands it on when it starts: worker-ctl up")


def consumers(facts: StreamFacts) -> Iterator[Finding]:
    """Whether consumers pile up, and whether another host works here too."""
    if not facts.group_exists:
        return
    own = [one for one in facts.consumers if one.name != PARKED_CONSUMER]
    stale = [one for one in own if not one.pending and one.idle_s > STALE_AFTER_S]
    if len(stale) > STALE_MAX:
        yield warning(
            "consumers", f"{len(own)}, of which {len(stale)} hold nothing and have been silent for an hour",
            "the janitor retires its own; see its log for why it does not, or XGROUP DELCONSUMER those that are empty",
        )  # fmt: skip
    else:
        yield ok("consumers", f"{len(own)}" + (f", of which {len(stale)} are silent" if stale else ""))
    elsewhere = sorted({host for one in own if (host := _host(one)) and not one.name.startswith(facts.host_prefix)})
    if elsewhere:
        yield note(
            "consumers", f"a fleet of this name also works on: {', '.join(elsewhere)}",
            "give it another fleet.name if that is not meant; hosts that share a fleet need different hostnames",
        )  # fmt: skip
    strangers = [one.name for one in own if not _host(one)]
    if strangers:
        yield note(
            "consumers", f"not millhand's own: {', '.join(strangers[:5])}",
            "whatever reads in this group takes events away from the fleet: give it a group of its own",
        )  # fmt: skip


def trimming(facts: StreamFacts) -> Iterator[Finding]:
    """Whether somebody deletes what was not yet worked on. A producer's MAXLEN itself cannot be seen.

    Redis before 7.2.7 and 7.4.2 remembers what XDEL deleted, but not what was trimmed (redis/redis#13473).
    """
    remedy = "take MAXLEN and MINID from the producers' XADD: the janitor trims, by input.keep_s"
    if facts.group_exists and _order(facts.max_deleted) > _order(facts.last_delivered):
        yield warning(
            "trimming", f"{facts.max_deleted} was deleted from the input before it was delivered "
            f"(delivered up to {facts.last_delivered}): such events are lost without a trace", remedy,
        )  # fmt: skip
    if deleted := facts.totals.get("dead:deleted", 0):
        yield warning("trimming", f"{deleted} events were deleted from the input while they were pending", remedy)
    if lost := facts.totals.get("lost", 0):
        yield warning("trimming", f"{lost} events went with a stream or a group that somebody deleted", remedy)


def dead_letters(facts: StreamFacts) -> Iterator[Finding]:
    """Whether events end as dead letters."""
    reasons = {name.removeprefix("dead:"): n for name, n in facts.totals.items() if name.startswith("dead:") and n}
    listed = ", ".join(f"{name} {count}" for name, count in sorted(reasons.items(), key=lambda pair: -pair[1]))
    dead, enriched = facts.totals.get("dead", 0), facts.totals.get("enriched", 0)
    text = f"{facts.dead_length} kept" + (f"; of all {dead} ever: {listed}" if listed else "")
    remedy = "worker-ctl dead list; after the cause is gone: worker-ctl dead requeue"
    if dead > enriched:
        yield warning("dead letters", f"{text}: more than were enriched ({enriched})", remedy)
    elif facts.dead_length:
        yield note("dead letters", text, remedy)
    else:
        yield ok("dead letters", "none")


def growth(facts: StreamFacts) -> Iterator[Finding]:
    """Whether an output grows without end: millhand trims its input alone."""
    for name, length in ((facts.output, facts.output_length), (facts.dead_letter, facts.dead_length)):
        if length > LONG_MAX:
            yield note("growth", f"{name} holds {length} entries, and nobody trims it", "worker-ctl trim")


JUDGEMENTS: tuple[Judgement, ...] = (types, group, backlog, pending, consumers, trimming, dead_letters, growth)


def judge_streams(facts: StreamFacts) -> Iterator[Finding]:
    """Judge what stands in the fleet's keys."""
    for judgement in JUDGEMENTS:
        yield from judgement(facts)


def _setting(key: str, facts: StreamFacts) -> str:
    names = {facts.input: "input_stream", facts.output: "output_stream", facts.dead_letter: "dead_letter_stream"}
    return names.get(key, "group")


def _is_wrong(key: str, facts: StreamFacts) -> bool:
    return any(key == wrong for wrong, _ in facts.wrong_types)


def _owner(entry: Pending) -> str:
    return "the parking" if entry.owner == PARKED_CONSUMER else entry.owner


def _host(consumer: Consumer) -> str:
    parts = CONSUMER.fullmatch(consumer.name)
    return parts["host"] if parts else ""


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def _span(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
