"""How the gate stands, from its fields in Redis."""

import math

import pytest

from millhand.config import Config, Model
from millhand.gate import TOKEN_GOOD_S, burst_let_through
from millhand_fleet.gate_view import CALL_ENDS, GateView, gate_view

NOW_MS = 1_800_000_000_000.0


def view(permits: int = 0, model: Model | None = None, **fields: object) -> GateView:
    raw = {name.replace("calls_", "calls:"): str(value).encode() for name, value in fields.items()}
    return gate_view(raw, permits, NOW_MS, Config(model=model or Model()))


def test_a_gate_that_nothing_is_known_of_lets_through() -> None:
    gate = view()
    assert (gate.state, gate.is_open, gate.since_s, gate.says) == ("closed", False, 0, "")
    assert gate.calls == dict.fromkeys(CALL_ENDS, 0)


def test_a_pause_counts_from_the_first_refusal_and_ends_when_it_ends() -> None:
    gate = view(pause_until=NOW_MS + 4500, throttled_since=NOW_MS - 20_000, says="model_busy: HTTP 429")
    assert gate == GateView(state="paused", since_s=20, until_s=4.5, says="model_busy: HTTP 429", permits_max=4)
    assert not gate.is_open


def test_a_pause_that_is_over_is_none() -> None:
    gate = view(pause_until=NOW_MS - 1, throttled_since=NOW_MS - 20_000, says="model_busy: HTTP 429")
    assert (gate.state, gate.says) == ("closed", "")


@pytest.mark.parametrize("kind", ["away", "misconfigured", "throttled"])
def test_an_open_breaker_says_its_kind_since_when_and_when_it_is_tried(kind: str) -> None:
    gate = view(
        open=NOW_MS - 5000, kind=kind, probe_at=NOW_MS + 2000, throttled_since=NOW_MS - 65_000, says="what is wrong"
    )
    assert gate.is_open
    assert (gate.state, gate.until_s, gate.says) == (kind, 2, "what is wrong")
    assert gate.since_s == (65 if kind == "throttled" else 5)


def test_the_limit_is_the_one_that_was_found_or_that_is_set() -> None:
    assert view(limit="17").permits_max == 17
    assert view(limit="17", model=Model(in_flight_max=9)).permits_max == 9


@pytest.mark.parametrize(("full_in_s", "tokens"), [(-5.0, 7.0), (0.0, 7.0), (0.1, 2.0), (0.14, 0.0), (0.2, -3.0)])
def test_tokens_below_nought_are_calls_that_wait_for_theirs(full_in_s: float, tokens: float) -> None:
    model = Model(rate_per_s=50.0, burst=10)
    assert view(tat=(NOW_MS + full_in_s * 1000) * 1000, model=model).tokens == tokens


def test_without_a_rate_there_are_no_tokens() -> None:
    assert view(tat=NOW_MS * 1000).tokens is None


def test_counts_are_read() -> None:
    gate = view(5, strikes=3, calls_ok=90, calls_busy=2)
    assert (gate.permits, gate.strikes, gate.calls["ok"], gate.calls["busy"]) == (5, 3, 90, 2)


@pytest.mark.parametrize(
    ("rate_per_s", "burst", "let_through"),
    [(math.inf, 10, 10), (50.0, 10, 7), (50.0, 1, 1), (1000.0, 10, 1), (1.0, 10, 9)],
)
def test_so_much_of_a_burst_is_kept_back_as_may_come_late(rate_per_s: float, burst: int, let_through: int) -> None:
    assert burst_let_through(Model(rate_per_s=rate_per_s, burst=burst)) == let_through
    if let_through > 1 and math.isfinite(rate_per_s):
        assert let_through + rate_per_s * TOKEN_GOOD_S <= burst
