"""The benchmark's smallest form: millhand, and a loop that runs in this environment, each with few events."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.bench import venvs
from scripts.bench.backlog import NotOnce
from scripts.bench.cases import W0, W1, W2, Cell
from scripts.bench.entrants import MILLHAND, PEERS, Entrant
from scripts.bench.trial import trial

LOOP = PEERS[0]
EVENTS = 400  # CPU time is counted in hundredths of a second


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the loop run in the project's environment, which has all that it needs."""
    monkeypatch.setattr(venvs, "bin_of", lambda _: Path(sys.executable).parent)


@pytest.mark.parametrize("entrant", [MILLHAND, LOOP], ids=lambda entrant: entrant.name)
def test_a_backlog_comes_out_once_and_is_asked_about_once(entrant: Entrant) -> None:
    result = trial(entrant, Cell(W1, 2), "none", EVENTS)
    assert (result.calls, result.events) == (EVENTS, EVENTS)
    assert result.cpu_ms > 0


def test_whoever_has_not_asked_the_model_has_not_done_the_work() -> None:
    (in_bulk,) = (one for one in PEERS if set(one.in_flight) == {W0})
    with pytest.raises(NotOnce, match=f"the model was asked 0 times about {EVENTS} events"):
        trial(replace(in_bulk, in_flight={W1: 1}), Cell(W1, 1), "none", EVENTS)


def test_the_loop_asks_nobody_where_every_answer_is_known() -> None:
    assert trial(LOOP, Cell(W0, 1), "none", EVENTS).calls == 0


def test_millhand_asks_nobody_again_about_texts_that_it_has_seen() -> None:
    assert trial(MILLHAND, Cell(W0, 1), "always", EVENTS).calls == 0


@pytest.mark.parametrize("entrant", [MILLHAND, LOOP], ids=lambda entrant: entrant.name)
def test_an_even_load_tells_latencies_that_hold_the_models_own_time(entrant: Entrant) -> None:
    result = trial(entrant, Cell(W2, 1, load=0.8), "none", EVENTS)
    assert result.latency_ms["p99"] >= result.latency_ms["p50"] >= W2.latency_ms
    assert result.own_ms["p50"] >= W2.latency_ms - 1
