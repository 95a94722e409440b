"""What becomes of a delivery: every branch of the one pure decision."""

import ast
import math
from functools import cache
from math import inf
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import millhand
import millhand_fleet
from millhand.errors import DETAIL_CHARS_MAX, BadAnswer, Malformed, Reasoned
from millhand.model.failures import TABLE
from millhand.verdict import (
    HISTORY_ERRORS_MAX,
    Bury,
    Delivery,
    Done,
    Enriched,
    Expired,
    Failed,
    Interrupted,
    Outcome,
    Policy,
    Reason,
    Release,
    Repeated,
    Retry,
    Skip,
    Verdict,
    backoff_s,
    judge,
    tell,
    word_of,
)

QUIET = settings(deadline=None, database=None, max_examples=50)
POLICY = Policy(retries=3, backoff_s=1.0, backoff_max_s=60.0, age_max_s=3600.0)
HALF = 0.5
ENRICHED = Enriched(data=b"{}", hash="h")
LATE = BadAnswer("timeout", "no complete answer within 60 s")
TOO_OLD = "7200 s old, delivery.age_max_s is 3600"
NO_JSON = Malformed("malformed", "`data` is not JSON")


def delivered(attempts: int = 0, history: tuple[str, ...] = ()) -> Delivery:
    return Delivery("1-0", {b"data": b"{}"}, "host:w1:ab", 1, attempts, history)


@pytest.mark.parametrize(
    ("delivery", "outcome", "verdict"),
    [
        (delivered(), ENRICHED, Done(ENRICHED)),
        (delivered(attempts=99), ENRICHED, Done(ENRICHED)),
        (delivered(), Interrupted(), Release()),
        (delivered(attempts=99), Interrupted(), Release()),
        (delivered(), Failed(NO_JSON), Bury(Reason.MALFORMED, "`data` is not JSON")),
        (delivered(2, ("a", "b")), Failed(NO_JSON), Bury(Reason.MALFORMED, "`data` is not JSON", 2, ("a", "b"))),
        (delivered(), Failed(LATE), Retry(0.5, 1, (str(LATE),))),
        (delivered(1, ("a",)), Failed(LATE), Retry(1.0, 2, ("a", str(LATE)))),
        (delivered(2, ("a", "b")), Failed(LATE), Retry(2.0, 3, ("a", "b", str(LATE)))),
        (delivered(3, ("a", "b", "c")), Failed(LATE), Bury(Reason.TIMEOUT, LATE.detail, 4, ("a", "b", "c", str(LATE)))),
        (delivered(7), Failed(LATE), Bury(Reason.TIMEOUT, LATE.detail, 8, (str(LATE),))),
        (delivered(), Repeated("0-7"), Skip("0-7")),
        (delivered(99), Repeated("0-7"), Skip("0-7")),
        (delivered(), Expired(7200.4), Bury(Reason.EXPIRED, TOO_OLD)),
        (delivered(2, ("a", "b")), Expired(7200.4), Bury(Reason.EXPIRED, TOO_OLD, 2, ("a", "b"))),
    ],
)
def test_an_outcome_has_one_verdict(delivery: Delivery, outcome: Outcome, verdict: Verdict) -> None:
    assert judge(delivery, outcome, POLICY, HALF) == verdict


def attempts_until_buried(policy: Policy) -> Bury:
    delivery = delivered()
    while isinstance(verdict := judge(delivery, Failed(LATE), policy, HALF), Retry):
        delivery = delivered(verdict.attempts, verdict.history)
    assert isinstance(verdict, Bury)
    return verdict


@pytest.mark.parametrize("retries", [0, 1, 3, 100])
def test_an_event_is_tried_once_and_then_as_often_as_the_policy_says(retries: int) -> None:
    assert attempts_until_buried(Policy(retries, 0.0, 0.0, inf)).attempts == 1 + retries


def test_attempts_are_counted_beyond_what_the_history_holds() -> None:
    buried = attempts_until_buried(Policy(100, 0.0, 0.0, inf))
    assert (buried.attempts, len(buried.history)) == (101, HISTORY_ERRORS_MAX)


def test_the_history_holds_the_last_errors() -> None:
    history = tuple(f"error {number}" for number in range(HISTORY_ERRORS_MAX))
    verdict = judge(delivered(50, history), Failed(LATE), Policy(100, 0.0, 0.0, inf), HALF)
    assert isinstance(verdict, Retry)
    assert verdict.history == (*history[1:], str(LATE))


def test_a_long_error_is_short_in_the_history() -> None:
    """A model may answer with an unknown member of any length, whose name stands in the error."""
    long = BadAnswer("invalid_answer", "x" * 200_000)
    verdict = judge(delivered(), Failed(long), POLICY, HALF)
    assert isinstance(verdict, Retry)
    assert len(verdict.history[0]) <= len("invalid_answer: ") + DETAIL_CHARS_MAX


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_can_be_the_reason_of_a_dead_letter(reason: Reason) -> None:
    verdict = judge(delivered(), Failed(Malformed(reason.value, "d")), POLICY, HALF)
    assert verdict == Bury(reason, "d")


# -- backoff -----------------------------------------------------------------------------------------------------------

POLICIES = st.builds(
    lambda first, more: Policy(3, first, first + more, inf), st.just(0.0) | st.floats(0.001, 600), st.floats(0, 3000)
)
JITTERS = st.floats(0, 1, exclude_max=True)
ATTEMPTS = st.integers(1, 101)


@QUIET
@given(ATTEMPTS, POLICIES, JITTERS)
def test_a_wait_is_never_negative_and_never_above_the_limit(attempt: int, policy: Policy, jitter: float) -> None:
    assert 0 <= backoff_s(attempt, policy, jitter) <= policy.backoff_max_s


@QUIET
@given(ATTEMPTS, POLICIES, JITTERS)
def test_a_wait_is_the_jitters_share_of_its_ceiling(attempt: int, policy: Policy, jitter: float) -> None:
    ceiling_s = min(policy.backoff_s * 2 ** (attempt - 1), policy.backoff_max_s)
    assert math.isclose(backoff_s(attempt, policy, jitter), jitter * ceiling_s)


def test_waits_double_up_to_the_limit() -> None:
    policy = Policy(9, 1.0, 10.0, inf)
    assert [backoff_s(attempt, policy, HALF) * 2 for attempt in range(1, 7)] == [1, 2, 4, 8, 10, 10]


# -- telling -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "fields"),
    [
        (Done(ENRICHED), {}),
        (Release(), {}),
        (Retry(1.23456, 2, ("a: x", "b: secret")), {"in_s": 1.235, "attempts": 2, "reason": "b"}),
        (Bury(Reason.TIMEOUT, "secret", 4, ("a",)), {"reason": "timeout", "attempts": 4}),
        (Skip("0-7"), {"repeats": "0-7"}),
    ],
)
def test_the_log_gets_what_a_person_asks_first(verdict: Verdict, fields: dict[str, object]) -> None:
    assert tell(verdict) == fields


@pytest.mark.parametrize(
    ("verdict", "word"),
    [
        (Done(ENRICHED), "done"),
        (Release(), "release"),
        (Retry(1.0, 1, ("a",)), "retry"),
        (Bury(Reason.TIMEOUT, "d"), "bury"),
        (Skip("0-7"), "skip"),
    ],
)
def test_a_verdict_has_one_word_in_the_log_and_in_the_counters(verdict: Verdict, word: str) -> None:
    assert word_of(verdict) == word


# -- when an event was added -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry_id", "added_ms"),
    [("0-1", 0), ("1764000000123-0", 1764000000123), ("18446744073709551615-18446744073709551615", 2**64 - 1)],
)
def test_an_events_id_tells_when_it_was_added(entry_id: str, added_ms: int) -> None:
    assert Delivery(entry_id, {}, "host:w1:ab", 1).added_ms == added_ms


# -- the fixed list of reasons -----------------------------------------------------------------------------------------


@cache
def sources() -> list[tuple[Path, list[ast.AST]]]:
    """Return every source file with all nodes of its syntax tree."""
    roots = [Path(root) for package in (millhand, millhand_fleet) for root in package.__path__]
    paths = [path for root in roots for path in root.rglob("*.py")]
    return [(path, list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))) for path in paths]


def reasons_raised() -> set[tuple[str, str]]:
    """Return (place, reason) of every error in the sources whose reason ends up in a dead letter."""
    kinds = {Malformed.__name__, BadAnswer.__name__}
    found = {(str(seen), row.reason) for seen, row in TABLE.items() if issubclass(row.kind, Malformed | BadAnswer)}
    for path, nodes in sources():
        for node in nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds:
                reason = node.args[0]
                assert isinstance(reason, ast.Constant), f"{path}:{node.lineno}: the reason is not spelled out"
                found.add((f"{path.name}:{node.lineno}", str(reason.value)))
    return found


def reasons_named() -> set[str]:
    """Return the members of Reason that the sources name, in `Reason.X`."""
    return {
        Reason[node.attr].value
        for _, nodes in sources()
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == Reason.__name__
    }


def test_every_reason_that_is_raised_is_on_the_list() -> None:
    raised = reasons_raised()
    assert len(raised) > len(Reason) / 2, "the scan finds hardly anything: is it broken?"
    assert {(place, reason) for place, reason in raised if reason not in set(Reason)} == set()


def test_every_reason_on_the_list_is_given_by_something() -> None:
    assert {reason for _, reason in reasons_raised()} | reasons_named() == {reason.value for reason in Reason}


def test_only_errors_with_a_reason_can_fail_a_delivery() -> None:
    assert issubclass(Malformed, Reasoned)
    assert issubclass(BadAnswer, Reasoned)
