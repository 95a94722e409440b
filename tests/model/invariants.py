"""What must hold, whatever happens: of the server in every state, and of every call that is carried out."""

from collections import Counter
from collections.abc import Callable

from tests.model.server import NOBODY, PARKED, Answer, Call, Entry, Server, is_suspect
from tests.model.world import STRICT

OfState = Callable[[Server], bool]
OfCall = Callable[[Server, Call, Answer], bool]  # the server is that before the call

# -- of every state ---------------------------------------------------------------------------------------------------


def no_entry_has_two_records(server: Server) -> bool:
    """Count enriched, dead and skipped together: promise 2."""
    return all(entry.records <= 1 for entry in server.entries)


def no_entry_is_lost(server: Server) -> bool:
    """See that each is still to be delivered, or pending, or has its record: promise 1."""
    return all(not entry.delivered or entry.is_pending or entry.records for entry in server.entries)


def nothing_is_left_of_a_settled_entry(server: Server) -> bool:
    """See that with its record it is not pending, nor are its attempts remembered. The zset is but a hint."""
    return not any(entry.records and (entry.is_pending or entry.attempts) for entry in server.entries)


# -- of every call ----------------------------------------------------------------------------------------------------


def only_the_token_that_holds_can_be_strict(before: Server, call: Call, answer: Answer) -> bool:
    """See that what bury, park or release changes was held by this owner, with this count."""
    entry = before.entries[call.entry]
    holds = (entry.owner, entry.deliveries) == (call.owner, call.deliveries)
    return call.script not in STRICT or answer.server == before or holds


def nobody_is_robbed(before: Server, call: Call, answer: Answer) -> bool:
    """See that what a worker holds leaves its hands with a record, or by a strict call that names its token."""
    for place, entry, after in _changes(before, answer):
        token = (place, entry.owner, entry.deliveries) == (call.entry, call.owner, call.deliveries)
        allowed = after.records or (token and call.script in STRICT)
        if entry.owner not in (NOBODY, PARKED, after.owner) and not allowed:
            return False
    return True


def what_is_given_is_held(before: Server, call: Call, answer: Answer) -> bool:
    """See that a delivery's token is the entry's, which nobody had in hand before."""
    del call
    owners = {before.entries[hand.entry].owner for hand in answer.given}
    held = [answer.server.entries[hand.entry] for hand in answer.given]
    tokens = [(entry.owner, entry.deliveries, entry.attempts) for entry in held]
    return owners <= {NOBODY, PARKED} and tokens == [hand[1:4] for hand in answer.given]


def a_suspect_comes_alone(before: Server, call: Call, answer: Answer) -> bool:
    """See that what has its last chance after a death is not given out together with anything."""
    del before
    return len(answer.given) == 1 or not any(is_suspect(hand.deliveries, call) for hand in answer.given)


def only_a_hand_back_spends_a_delivery(before: Server, call: Call, answer: Answer) -> bool:
    """See that the count begins at one, is what a hand-back says from then on, and ends with the entry."""
    for _, entry, after in _changes(before, answer):
        first = not entry.delivered and after.delivered
        expected = call.number if call.word == "handed_back" else entry.deliveries + first
        if after.deliveries != expected and not after.records:
            return False
    return True


def attempts_are_remembered_until_the_end(before: Server, call: Call, answer: Answer) -> bool:
    """See that they never fall before there is a record."""
    del call
    return all(after.attempts >= entry.attempts or after.records for _, entry, after in _changes(before, answer))


def totals_agree_with_the_streams(before: Server, call: Call, answer: Answer) -> bool:
    """See that a call raises what it did: records, retries, releases."""
    did: Counter[str] = Counter()
    for _, entry, after in _changes(before, answer):
        reasons = after.dead[len(entry.dead) :]
        did.update(enriched=after.enriched - entry.enriched, skipped=after.skipped - entry.skipped)
        did.update(["dead"] * len(reasons), retried=after.attempts > entry.attempts)
        did.update(f"dead:{reason}" for reason in reasons)
        if call.script == "release":
            did[call.word] += (entry.owner, entry.deliveries) != (after.owner, after.deliveries)
    return Counter(name for name in answer.raised if name != "retired") == +did


# -- of every call, unless Redis went back ----------------------------------------------------------------------------


def an_attempt_counts_once(before: Server, call: Call, answer: Answer) -> bool:
    """See that attempts rise by one, to what parking says is spent: none is left out, and none counted twice."""
    for _, entry, after in _changes(before, answer):
        spent = (call.script, entry.attempts + 1, after.attempts) == ("park", call.number, call.number)
        if after.attempts > entry.attempts and not spent:
            return False
    return True


def gone_means_resolved(before: Server, call: Call, answer: Answer) -> bool:
    """See that who is told so may drop what it holds: there is a record, or these attempts are written down."""
    entry = before.entries[call.entry]
    return answer.said != "gone" or entry.records > 0 or (call.script == "park" and entry.attempts >= call.number)


def _changes(before: Server, answer: Answer) -> list[tuple[int, Entry, Entry]]:
    """Return the entries that a call has changed, with their places, before and after it."""
    both = enumerate(zip(before.entries, answer.server.entries, strict=True))
    return [(place, entry, after) for place, (entry, after) in both if entry != after]


OF_STATES: tuple[OfState, ...] = (
    no_entry_has_two_records,
    no_entry_is_lost,
    nothing_is_left_of_a_settled_entry,
)
OF_CALLS: tuple[OfCall, ...] = (
    only_the_token_that_holds_can_be_strict,
    nobody_is_robbed,
    what_is_given_is_held,
    a_suspect_comes_alone,
    only_a_hand_back_spends_a_delivery,
    attempts_are_remembered_until_the_end,
    totals_agree_with_the_streams,
)
UNLESS_ROLLED_BACK: tuple[OfCall, ...] = (an_attempt_counts_once, gone_means_resolved)
