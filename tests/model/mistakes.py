"""Wrong rules that look right: each is a mistake that somebody has made, and that an exploration must find."""

from collections.abc import Mapping
from typing import NamedTuple

from tests.model import server as right
from tests.model.server import COMMANDS, DUE, LUA, NOBODY, UNHUNG, Answer, Call, Hand, Script, Server
from tests.model.state import Bounds, Left
from tests.model.world import Rules, tombstone


class Mistake(NamedTuple):
    """Wrong rules, a world in which they do harm, and the invariant that they break there first."""

    rules: Rules
    bounds: Bounds
    breaks: str


# -- finish ----------------------------------------------------------------------------------------------------------


def add(server: Server, call: Call) -> Answer:
    """XADD to the output, with nothing else."""
    entry = server.entries[call.entry]
    entry = entry._replace(enriched=entry.enriched + 1)
    return Answer(server.with_entry(call.entry, entry), "added", ("enriched",))


def acknowledge(server: Server, call: Call) -> Answer:
    """XACK, with nothing else."""
    entry = server.entries[call.entry]
    if not entry.is_pending:
        return Answer(server, "nothing to acknowledge")
    return Answer(server.with_entry(call.entry, right.settled(entry)), "acknowledged")


def then_acknowledge(call: Call, said: str) -> Call | None:
    """Acknowledge after the output is written."""
    return call._replace(script="acknowledge") if said == "added" else tombstone(call, said)


def then_add(call: Call, said: str) -> Call | None:
    """Write the output after the acknowledgement, which only one can get."""
    return call._replace(script="add") if said == "acknowledged" else tombstone(call, said)


def finish_unasked(server: Server, call: Call) -> Answer:
    """XADD and XACK in one script, without asking whether the entry is pending."""
    entry = server.entries[call.entry]
    entry = right.settled(entry)._replace(enriched=entry.enriched + 1)
    return Answer(server.with_entry(call.entry, entry), "ok", ("enriched",))


def finish_counted_first(server: Server, call: Call) -> Answer:
    """Raise the total before asking whether there is anything to finish."""
    answer = right.finish(server, call)
    return answer._replace(raised=("enriched",))


# -- the strict ones -------------------------------------------------------------------------------------------------


def unfenced(script: Script) -> Script:
    """Believe that whoever asks holds the entry."""

    def believing(server: Server, call: Call) -> Answer:
        entry = server.entries[call.entry]
        return script(server, call._replace(owner=entry.owner, deliveries=entry.deliveries))

    return believing


def fenced_by_owner(script: Script) -> Script:
    """Ask for the owner, but not for the delivery count."""

    def asking_for_the_owner(server: Server, call: Call) -> Answer:
        return script(server, call._replace(deliveries=server.entries[call.entry].deliveries))

    return asking_for_the_owner


def saying_gone(script: Script) -> Script:
    """Tell a caller who has lost its entry that all is done."""

    def soothing(server: Server, call: Call) -> Answer:
        answer = script(server, call)
        return answer._replace(said="gone") if answer.said == "lost" else answer

    return soothing


def claiming_at_once(script: Script) -> Script:
    """Ask nothing about a deleted entry: XCLAIM drops it from the pending list."""

    def dropping(server: Server, call: Call) -> Answer:
        answer = script(server, call)
        dropped = server.entries[call.entry]._replace(owner=NOBODY, deliveries=0)
        return Answer(server.with_entry(call.entry, dropped), "ok") if answer.said == "deleted" else answer

    return dropping


def park_unasked(server: Server, call: Call) -> Answer:
    """Park without asking whether these attempts are written down already."""
    entry = server.entries[call.entry]
    answer = right.park(server.with_entry(call.entry, entry._replace(attempts=0)), call)
    return answer if answer.said == "ok" else answer._replace(server=server)


def park_counting_up(server: Server, call: Call) -> Answer:
    """Count attempts on the server, which cannot tell a call from its repetition."""
    return right.park(server, call._replace(number=server.entries[call.entry].attempts + 1))


def release_forgetting(server: Server, call: Call) -> Answer:
    """Forget the attempts with the delivery."""
    answer = right.release(server, call)
    entry = answer.server.entries[call.entry]._replace(attempts=0)
    return answer._replace(server=answer.server.with_entry(call.entry, entry)) if answer.said == "ok" else answer


def release_for_nothing(server: Server, call: Call) -> Answer:
    """Hand back without spending a delivery: what kills its workers does so for ever."""
    return right.release(server, call._replace(number=call.deliveries))


# -- the others ------------------------------------------------------------------------------------------------------


def renew_bare(server: Server, call: Call) -> Answer:
    """Renew by a bare XCLAIM, which takes from any owner."""
    entry = server.entries[call.entry]
    if not entry.is_pending:
        return Answer(server, "lost")
    return Answer(server.with_entry(call.entry, entry._replace(owner=call.owner)), "kept")


def take_due_by_the_zset(server: Server, call: Call) -> Answer:
    """Believe the zset, and not the pending list, about what is parked."""
    for place, entry in enumerate(server.entries):
        if entry.hung == DUE and entry.is_pending and entry.stands:
            taken = entry._replace(owner=call.owner, hung=UNHUNG)
            hand = Hand(place, call.owner, entry.deliveries, entry.attempts)
            return Answer(server.with_entry(place, taken), "1 taken", given=(hand,))
    return right.take_due(server, call)


def take_due_spending(server: Server, call: Call) -> Answer:
    """XCLAIM without JUSTID, which raises the count, and answer with the count before it."""
    answer = right.take_due(server, call)
    for hand in answer.given:
        entry = answer.server.entries[hand.entry]
        answer = answer._replace(
            server=answer.server.with_entry(hand.entry, entry._replace(deliveries=hand.deliveries + 1))
        )
    return answer


def take_due_together(server: Server, call: Call) -> Answer:
    """Give out suspects together with all else."""
    given: list[Hand] = []
    while len(given) < call.number:
        answer = right.take_due(server, call._replace(number=1))
        if answer.server == server:
            break
        server, given = answer.server, [*given, *answer.given]
    return Answer(server, f"{len(given)} taken", given=tuple(given))


def retire_unasked(server: Server, call: Call) -> Answer:
    """XGROUP DELCONSUMER at once: it destroys what the consumer holds."""
    for place, entry in enumerate(server.entries):
        if entry.owner == call.owner:
            server = server.with_entry(place, entry._replace(owner=NOBODY, deliveries=0))
    return Answer(server, "ok", ("retired",))


def hang_nothing_up(server: Server, call: Call) -> Answer:
    """Take the zset for the truth, and repair nothing."""
    del call
    return Answer(server, "there")


def send_no_more(call: Call, said: str) -> Call | None:
    """Drop a delivery after any answer, although a deleted entry needs its tombstone."""
    del call, said
    return None


def _with(**scripts: Script) -> Rules:
    return Rules({**LUA, **COMMANDS, **scripts})


SMALL = Bounds()
CRASH = Bounds(Left(crashes=1))
LOSS = Bounds(Left(losses=1))
DELETION = Bounds(Left(deletions=1))
ZSET = Bounds(Left(zset_losses=1), sights=2)
RETIRING = Bounds(retiring=True)
TWO_ENTRIES = Bounds(entries=2, sights=0)
IN_STEPS: Mapping[str, Script] = {**LUA, **COMMANDS, "add": add, "acknowledge": acknowledge}

TWO, LOST = "no_entry_has_two_records", "no_entry_is_lost"
TOKEN, ROBBED = "only_the_token_that_holds_can_be_strict", "nobody_is_robbed"
ONCE, REMEMBERED = "an_attempt_counts_once", "attempts_are_remembered_until_the_end"
COUNT, GIVEN, ALONE = "only_a_hand_back_spends_a_delivery", "what_is_given_is_held", "a_suspect_comes_alone"
TOTALS, GONE, TRAP = "totals_agree_with_the_streams", "gone_means_resolved", "every_entry_comes_to_its_end"
LEFT = "nothing_is_left_of_a_settled_entry"

MISTAKES: Mapping[str, Mistake] = {
    "XADD, then XACK": Mistake(Rules({**IN_STEPS, "finish": add}, then_acknowledge), CRASH, TWO),
    "XADD, and XACK later": Mistake(Rules({**IN_STEPS, "finish": add}, then_acknowledge), SMALL, LEFT),
    "XACK, then XADD": Mistake(Rules({**IN_STEPS, "finish": acknowledge}, then_add), CRASH, TRAP),
    "finish unasked, by a zombie": Mistake(_with(finish=finish_unasked), SMALL, TWO),
    "finish unasked, sent again": Mistake(_with(finish=finish_unasked), LOSS, TWO),
    "finish counted before it is done": Mistake(_with(finish=finish_counted_first), SMALL, TOTALS),
    "bury by anybody": Mistake(_with(bury=unfenced(right.bury)), SMALL, TOKEN),
    "park by anybody": Mistake(_with(park=unfenced(right.park)), SMALL, ROBBED),
    "release by anybody": Mistake(_with(release=unfenced(right.release)), SMALL, ROBBED),
    "bury without the count": Mistake(_with(bury=fenced_by_owner(right.bury)), SMALL, TOKEN),
    "park without the count": Mistake(_with(park=fenced_by_owner(right.park)), SMALL, TOKEN),
    "release without the count": Mistake(_with(release=fenced_by_owner(right.release)), SMALL, TOKEN),
    "lost told as gone": Mistake(_with(bury=saying_gone(right.bury)), SMALL, GONE),
    "park what is deleted": Mistake(_with(park=claiming_at_once(right.park)), DELETION, LOST),
    "release what is deleted": Mistake(_with(release=claiming_at_once(right.release)), DELETION, LOST),
    "park, whatever was spent before": Mistake(_with(park=park_unasked), LOSS, TOTALS),
    "park counting up": Mistake(_with(park=park_counting_up), LOSS, ONCE),
    "release forgetting attempts": Mistake(_with(release=release_forgetting), SMALL, REMEMBERED),
    "hand back for nothing": Mistake(_with(release=release_for_nothing), SMALL, COUNT),
    "renew by a bare XCLAIM": Mistake(_with(renew=renew_bare), SMALL, ROBBED),
    "take by the zset": Mistake(_with(take_due=take_due_by_the_zset), ZSET, ROBBED),
    "take without JUSTID": Mistake(_with(take_due=take_due_spending), SMALL, GIVEN),
    "take suspects with others": Mistake(_with(take_due=take_due_together), TWO_ENTRIES, ALONE),
    "retire by a bare DELCONSUMER": Mistake(_with(retire_consumer=retire_unasked), RETIRING, LOST),
    "no due time put back": Mistake(_with(hang_up=hang_nothing_up), ZSET, TRAP),
    "no tombstone": Mistake(Rules(then=send_no_more), DELETION, TRAP),
}
