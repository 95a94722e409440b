"""What the settle scripts do to the streams, as pure functions: the model that the real Lua is held against.

Left out is what no script decides by: payloads, histories, how long something is idle. A due time is due or it is not.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

PARKED = "@parked"
NOBODY = ""
DUE, LATER, UNHUNG = "due", "later", ""


class Entry(NamedTuple):
    """One entry of the input, and all that Redis holds about it."""

    delivered: bool = False  # not after the group's last delivered id
    stands: bool = True  # in the input: nobody has deleted it
    owner: str = NOBODY  # in the pending list
    deliveries: int = 0  # the pending list's count
    hung: str = UNHUNG  # its due time in the zset
    attempts: int = 0
    enriched: int = 0  # records in the output
    dead: tuple[str, ...] = ()  # the reasons of its dead letters
    skipped: int = 0  # remembered as closed: the record is that of the entry it repeats

    @property
    def is_pending(self) -> bool:
        """Whether the group waits for its acknowledgement."""
        return self.owner != NOBODY

    @property
    def records(self) -> int:
        """How often its end is written down."""
        return self.enriched + len(self.dead) + self.skipped


class Server(NamedTuple):
    """What Redis holds: the input's entries, in their order."""

    entries: tuple[Entry, ...]

    def with_entry(self, place: int, entry: Entry) -> "Server":
        """Put an entry in its place."""
        return Server((*self.entries[:place], entry, *self.entries[place + 1 :]))


class Call(NamedTuple):
    """A call of a script, or of a command that actors send. `entry` is a place in the input."""

    script: str
    maker: str  # who sent it
    entry: int = -1
    owner: str = NOBODY  # the token's, or the consumer that takes or is retired
    deliveries: int = 0  # the token's; take_due: the last chance
    number: int = 0  # park: attempts spent; release: count from now on; take_due: how many at most
    word: str = ""  # bury: reason; release: the total to raise


class Hand(NamedTuple):
    """A delivery in a worker's hands, as the worker believes; `sent` is a verdict without a reply, to be sent again."""

    entry: int
    owner: str
    deliveries: int
    attempts: int
    sent: Call | None = None


class Answer(NamedTuple):
    """What a call comes back with, and the server after it."""

    server: Server
    said: str
    raised: tuple[str, ...] = ()  # totals, each by one
    given: tuple[Hand, ...] = ()
    touched: tuple[int, ...] = ()  # entries whose idle time begins anew


Script = Callable[[Server, Call], Answer]


def settled(entry: Entry) -> Entry:
    """Return an entry acknowledged, with nothing left behind."""
    return entry._replace(owner=NOBODY, deliveries=0, hung=UNHUNG, attempts=0)


def finish(server: Server, call: Call) -> Answer:
    """Write it out and acknowledge it; the first finisher wins."""
    entry = server.entries[call.entry]
    if not entry.is_pending:
        return Answer(server, "gone")
    entry = settled(entry)._replace(enriched=entry.enriched + 1)
    return Answer(server.with_entry(call.entry, entry), "ok", ("enriched",))


def skip(server: Server, call: Call) -> Answer:
    """Acknowledge a repetition; whoever comes first may."""
    entry = server.entries[call.entry]
    if not entry.is_pending:
        return Answer(server, "gone")
    entry = settled(entry)._replace(skipped=entry.skipped + 1)
    return Answer(server.with_entry(call.entry, entry), "ok", ("skipped",))


def bury(server: Server, call: Call) -> Answer:
    """Write a dead letter and acknowledge; only for the token that holds."""
    entry = server.entries[call.entry]
    if refused := fence(entry, call):
        return Answer(server, refused)
    entry = settled(entry)._replace(dead=(*entry.dead, call.word))
    return Answer(server.with_entry(call.entry, entry), "ok", ("dead", f"dead:{call.word}"))


def park(server: Server, call: Call) -> Answer:
    """Put it aside for a retry; not if these attempts are written down already."""
    entry = server.entries[call.entry]
    if not entry.is_pending or entry.attempts >= call.number:
        return Answer(server, "gone")
    if refused := fence(entry, call):
        return Answer(server, refused)
    if not entry.stands:
        return Answer(server, "deleted")
    entry = entry._replace(owner=PARKED, hung=LATER, attempts=call.number)
    return Answer(server.with_entry(call.entry, entry), "ok", ("retried",), touched=(call.entry,))


def release(server: Server, call: Call) -> Answer:
    """Let go of it, due now; so the janitor hands back too, with one delivery spent."""
    entry = server.entries[call.entry]
    if refused := fence(entry, call):
        return Answer(server, refused)
    if not entry.stands:
        return Answer(server, "deleted")
    entry = entry._replace(owner=PARKED, deliveries=call.number, hung=DUE)
    return Answer(server.with_entry(call.entry, entry), "ok", (call.word,), touched=(call.entry,))


def renew(server: Server, call: Call) -> Answer:
    """Keep a lease: nothing but the idle time changes."""
    entry = server.entries[call.entry]
    if fence(entry, call):
        return Answer(server, "lost")
    return Answer(server, "kept", touched=(call.entry,) if entry.stands else ())


def take_due(server: Server, call: Call) -> Answer:
    """Give out what is parked and due; a suspect alone, and a deleted one without taking it from `@parked`."""
    given: list[Hand] = []
    due = [place for place, entry in enumerate(server.entries) if entry.hung == DUE]
    for place in due[: call.number]:
        entry = server.entries[place]
        suspect = entry.owner == PARKED and is_suspect(entry.deliveries, call)
        if suspect and given:
            break
        if entry.owner == PARKED:
            entry = entry._replace(owner=call.owner if entry.stands else PARKED)
            given.append(Hand(place, entry.owner, entry.deliveries, entry.attempts))
        server = server.with_entry(place, entry._replace(hung=UNHUNG))
        if suspect:
            break
    touched = tuple(hand.entry for hand in given if hand.owner != PARKED)
    return Answer(server, f"{len(given)} taken", given=tuple(given), touched=touched)


def retire_consumer(server: Server, call: Call) -> Answer:
    """Forget a consumer that holds nothing. Its name alone is no state here: whoever takes something has one again."""
    if any(entry.owner == call.owner for entry in server.entries):
        return Answer(server, "lost")
    return Answer(server, "ok", ("retired",))


def read_new(server: Server, call: Call) -> Answer:
    """Deliver the first new entry, as XREADGROUP does."""
    new = [place for place, entry in enumerate(server.entries) if not entry.delivered]
    if not new:
        return Answer(server, "0 read")
    entry = server.entries[new[0]]._replace(delivered=True, owner=call.owner, deliveries=1)
    return Answer(
        server.with_entry(new[0], entry), "1 read", given=(Hand(new[0], call.owner, 1, 0),), touched=(new[0],)
    )


def hang_up(server: Server, call: Call) -> Answer:
    """Put an id into the zset again, due now, unless it is there; the janitor does so where it saw it missing."""
    entry = server.entries[call.entry]
    if entry.hung != UNHUNG:
        return Answer(server, "there")
    return Answer(server.with_entry(call.entry, entry._replace(hung=DUE)), "hung")


def is_suspect(deliveries: int, call: Call) -> bool:
    """Whether an entry came back from workers that died, and has its last chance."""
    return deliveries > 1 and deliveries >= call.deliveries


def fence(entry: Entry, call: Call) -> str:
    """Return why a strict script refuses a token, or nothing."""
    if not entry.is_pending:
        return "gone"
    return "" if (entry.owner, entry.deliveries) == (call.owner, call.deliveries) else "lost"


LUA: Mapping[str, Script] = {
    "finish": finish,
    "skip": skip,
    "bury": bury,
    "park": park,
    "release": release,
    "renew": renew,
    "take_due": take_due,
    "retire_consumer": retire_consumer,
}
COMMANDS: Mapping[str, Script] = {"read_new": read_new, "hang_up": hang_up}
