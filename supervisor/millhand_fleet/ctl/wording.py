"""The desk's status document in words, as a person reads them. Pure; what the document does not have is left out."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from millhand_fleet.ctl.visible import visible

Document = dict[str, Any]

MINUTE_S, HOUR_MIN, DAY_MIN = 60, 60, 1440
SHORT_S = 10  # below it, two figures are worth saying
OVER = {"1m": "1 min", "5m": "5 min", "15m": "15 min"}
ROLLING = {"restart": "restarting", "reload": "taking in the new configuration", "recycle": "recycling"}
PLACED = {"in_hand", "oldest_s", "waits_for", "asking"}  # of a worker's stats: said in words of their own
UNKNOWN = "-"
GOOD_EXIT = "code 0"
SENTENCES = ("waits", "paused")  # what already says what a child does, and is no mere reason


class Fact(NamedTuple):
    """One line: what it is about, and what there is to say."""

    label: str
    text: str


class Process(NamedTuple):
    """A child process, as the cells of a row."""

    name: str
    state: str
    pid: str
    up: str
    mib: str
    restarts: str
    doing: str


def facts(document: Document) -> Iterator[Fact]:
    """Yield what an operator asks for, in the order of the asking."""
    if not document.get("seen", True):
        yield Fact("streams", "not known: Redis has not answered since the desk began")
        yield Fact("redis", redis(document))
        return
    yield Fact("backlog", backlog(document))
    yield Fact("rates", rates(document))
    yield Fact("success", success(document))
    if document.get("latency"):
        yield Fact("latency", latency(document))
    yield Fact("dead", dead(document))
    yield Fact("gate", gate(document))
    yield Fact("redis", redis(document))


def headline(document: Document) -> str:
    """Return what stands behind the fleet's name and its health."""
    health = document["health"]
    desired = health.get("workers_desired", document.get("desired", 0))
    parts = [f"{health.get('workers_ready', 0)} of {desired} workers", plain(document["model"])]
    if document.get("paused"):
        parts.insert(0, "paused")
    if rolling := document.get("rolling"):
        parts.insert(0, f"{ROLLING.get(rolling['what'], plain(rolling['what']))}, {rolling['left']} left")
    return ", ".join(parts)


def backlog(document: Document) -> str:
    """Return what is still to be done, for how long the oldest of it has been there, and when all will be done."""
    streams = document["streams"]
    in_hand = streams["pending"] - streams["parked"]
    text = f"{streams['backlog']:,} waiting, {in_hand:,} in hand, {streams['parked']:,} parked"
    if (age_s := streams.get("backlog_age_s")) is not None:
        text += f"; oldest {span(age_s)}"
        drained_in_s = streams.get("drained_in_s")
        text += "" if drained_in_s is None else f", all done in {span(drained_in_s)}"
    return text


def rates(document: Document) -> str:
    """Return the events a second that come, leave and are buried."""
    streams = document["streams"]
    named = (("in", "in_per_s"), ("enriched", "enriched_per_s"), ("dead", "dead_per_s"))
    return "   ".join(f"{word} {per_second(streams.get(key))}" for word, key in named if key in streams)


def success(document: Document) -> str:
    """Return the success rate, lately and since ever, and what it is made of."""
    health, streams = document["health"], document["streams"]
    over = health.get("success_rate_over", {})
    parts = [f"{words} {share(over[key])}" for key, words in OVER.items() if key in over]
    parts.append(f"ever {share(health['success_rate'])} ({streams['enriched']:,} enriched)")
    return "   ".join(parts)


def latency(document: Document) -> str:
    """Return the percentiles of the last minutes: of an event from its arrival to its record, and of a call."""
    told = (
        f"{what} {seconds(of['p50_s'])}, {seconds(of['p95_s'])}, {seconds(of['p99_s'])}"
        for what in ("event", "model")
        if (of := document["latency"].get(what))
    )
    return "   ".join(("p50 p95 p99:", *told))


def dead(document: Document) -> str:
    """Return how many dead letters there are, and how many there ever were, by reason, the most frequent first."""
    streams, length = document["streams"], document.get("dead_letter_length")
    reasons = sorted(streams.get("dead_by_reason", {}).items(), key=lambda item: -item[1])
    named = ", ".join(f"{plain(reason)} {count:,}" for reason, count in reasons)
    there = "" if length is None or length == streams["dead"] else f"{length:,} there, ever "
    return f"{there}{streams['dead']:,}" + (f" ({named})" if named else "")


def gate(document: Document) -> str:
    """Return what the gate lets through, and why it does not."""
    view = document["gate"]
    parts = [_gate_state(view)]
    parts.append(f"permits {view['permits']} of {view['permits_max']}")
    if view["tokens"] is not None:
        parts.append(f"tokens {view['tokens']:g}")
    failed = sum(count for end, count in view["calls"].items() if end != "ok")
    parts.append(f"calls {view['calls'].get('ok', 0):,} ok, {failed:,} failed")
    streams = document["streams"]
    saved = streams.get("cache_hits", 0) + streams.get("cache_joined", 0)
    if asked := saved + streams.get("cache_misses", 0):
        parts.append(f"cache {saved / asked:.0%}")
    return "   ".join(parts)


def _gate_state(view: dict[str, Any]) -> str:
    if view["state"] == "closed":
        return "open to calls"  # the breaker is closed, which reads like the contrary
    why = f": {plain(view['says'])}" if view["says"] else ""
    if view["state"] == "paused":
        return f"paused for {span(view['until_s'])} more{why}"
    return f"{plain(view['state'])} for {span(view['since_s'])}, probe in {span(view['until_s'])}{why}"


def redis(document: Document) -> str:
    """Return which server it is and what its word is worth, or why it does not answer."""
    view = document["redis"]
    if view.get("error") or not view.get("server"):
        return plain(view.get("error") or "not asked yet")
    return f"{plain(view['server'])}   durability {plain(view['durability'])}"


def process(row: dict[str, Any]) -> Process:
    """Return a child's row. A worker's counters come last: they are the first that may be cut off."""
    restarts = str(row.get("restarts", 0))
    if row.get("last_exit") not in {None, GOOD_EXIT}:  # a child that was replaced on purpose ended well
        restarts += f", {plain(row['last_exit'])}"
    up = span(row["for_s"]) if "for_s" in row else ""
    mib = "" if row.get("rss_mib") is None else f"{row['rss_mib']:.0f}"
    return Process(plain(row["name"]), plain(row["state"]), str(row.get("pid", "")), up, mib, restarts, doing(row))


def doing(row: dict[str, Any]) -> str:
    """Return what a child is at."""
    stats = row.get("stats") or {}
    if waits_for := stats.get("waits_for"):
        return plain(waits_for) if str(waits_for).startswith(SENTENCES) else f"waits for {plain(waits_for)}"
    parts = []
    if "in_hand" in stats:
        in_hand, oldest_s = stats["in_hand"], stats.get("oldest_s")
        parts.append(f"{in_hand} in hand" if in_hand else "idle")
        if in_hand and stats.get("asking"):
            parts.append(f"{stats['asking']} asking")
        if in_hand and oldest_s:
            parts.append(f"oldest {seconds(oldest_s)}")
    counters = {name: value for name, value in stats.items() if type(value) in {int, float} and name not in PLACED}
    parts.append("  ".join(f"{plain(name)} {value:g}" for name, value in counters.items() if value))
    return ", ".join(filter(None, parts))


def recent_dead(letter: dict[str, Any]) -> str:
    """Return a dead letter of late in a line."""
    return plain(f"{clock(letter['at'])}  {letter['id']}  {letter['reason']}  {letter['detail']}")


def clock(at: Any) -> str:
    """Return the time of day of an ISO time in UTC, such as "22:10:03Z"; "" where there is none."""
    return f"{str(at)[11:19]}Z" if at else ""


def span(of_s: float) -> str:
    """Return a length of time with two figures or so: 3.2 s, 48 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if of_s < SHORT_S:
        return seconds(of_s)
    if round(of_s) < MINUTE_S:
        return f"{of_s:.0f} s"
    minutes = round(of_s / MINUTE_S)
    if minutes < HOUR_MIN:
        return f"{minutes} min"
    if minutes < DAY_MIN:
        return _two(minutes, HOUR_MIN, "h", 1, "min")
    return _two(round(minutes / HOUR_MIN) * HOUR_MIN, DAY_MIN, "d", HOUR_MIN, "h")


def _two(minutes: int, of_large: int, large: str, of_small: int, small: str) -> str:
    whole, rest = divmod(minutes, of_large)
    return f"{whole} {large}" + (f" {rest // of_small} {small}" if rest else "")


def seconds(of_s: float | None) -> str:
    """Return seconds as 0.041 s, 3.2 s or 48 s."""
    if of_s is None:
        return UNKNOWN
    return f"{of_s:.0f} s" if of_s >= SHORT_S else f"{of_s:.2g} s"


def per_second(rate: float | None) -> str:
    """Return a rate as 12.3/s."""
    return UNKNOWN if rate is None else f"{rate:,.0f}/s" if rate == int(rate) else f"{rate:,.1f}/s"


def share(of_one: float | None) -> str:
    """Return a share as a percentage that is 100 % only if it is whole."""
    if of_one is None:
        return UNKNOWN
    return "100%" if of_one == 1 else f"{min(of_one, 0.9999):.2%}"


def plain(text: Any) -> str:
    """Return foreign text in one line, with nothing in it that a terminal would obey."""
    return visible(str(text).encode(errors="replace"))
