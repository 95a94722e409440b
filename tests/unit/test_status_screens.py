"""What `worker-ctl status` and `top` make of the desk's document, at any width and height."""

import io
import math
from typing import Any

import pytest
from rich.console import Console
from tests.unit.documents import document, worker

from millhand.pulse import PAUSED
from millhand_fleet.ctl.panel import ASCII_SPARKS, SPARKS, Rates, View, screen, sparkline
from millhand_fleet.ctl.status import show
from millhand_fleet.ctl.wording import backlog, dead, doing, gate, process, share, span

MINUTE_OF_RATES = [Rates(10 + 8 * math.sin(n / 5), 9 + 3 * math.cos(n / 7)) for n in range(60)]
LONG = "503 from http://127.0.0.1:11434/api/chat, loading the model " * 4


def paper(columns: int, lines: int = 24) -> Console:
    """Make a console that keeps what is written, as a terminal without colours gets it."""
    return Console(
        file=io.StringIO(), width=columns, height=lines, highlight=False, force_terminal=True, color_system=None
    )


def written(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def drawn(view: View, columns: int, lines: int, *, ascii_only: bool = False) -> list[str]:
    console = paper(columns, lines)
    console.print(screen(view, columns, lines, ascii_only=ascii_only))
    return written(console)


def degraded(workers: int, reasons: int = 1) -> dict[str, Any]:
    made = document(workers, health={"status": "degraded", "reasons": [LONG] * reasons})
    made["children"][-1] = worker(workers, "restarting") | {"stats": {}, "restarts": 3, "last_exit": "signal 9"}
    return made


@pytest.mark.parametrize("columns", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("lines", [16, 24, 50])
@pytest.mark.parametrize("workers", [0, 1, 30])
@pytest.mark.parametrize("lost", ["", LONG])
def test_the_screen_of_top_fits_any_terminal(columns: int, lines: int, workers: int, lost: str) -> None:
    """A line too many would scroll the headline away; one too wide would wrap, which is a line too many."""
    made = degraded(workers, 7) if workers else document(0)
    shown = drawn(View(made, MINUTE_OF_RATES, lost, 12.0, "22:10:03Z"), columns, lines)
    assert len(shown) <= lines
    assert max(map(len, shown)) <= columns
    assert "fleet events" in "\n".join(shown)
    assert "q leaves" in shown[-1]


def test_a_full_screen_of_eighty_columns_shows_all_that_is_asked_for() -> None:
    shown = "\n".join(drawn(View(document(4), MINUTE_OF_RATES), 80, 24))
    for part in (
        "fleet events  ok  4 of 4 workers", "1,234 waiting, 16 in hand, 2 parked; oldest 34 s, all done in 2 min",
        "in   12.1/s", "enriched   11.8/s", "dead 0.1/s", "1 min 100%", "5 min 99.12%", "15 min -",
        "event 0.41 s, 0.9 s, 12 s", "model 0.38 s, 0.84 s, -", "16 (timeout 12, malformed 4)",
        "open to calls   permits 14 of 16   calls 4,012 ok, 3 failed", "Valkey 9.1.0   durability durable",
        "worker-4", "8 in hand, 7 asking, oldest 1.3 s", "1763892381190-0  timeout",
    ):  # fmt: skip
        assert part in shown
    assert "\x1b" not in shown, "what a dead letter says is not obeyed"
    assert not [line for line in shown.splitlines() if "…" in line and not line.startswith("worker-")]


def test_workers_that_are_not_well_are_shown_first_where_not_all_fit() -> None:
    """The thirtieth of thirty restarts, and a tenth waits."""
    made = degraded(30)
    made["children"][10] = worker(10, waits_for="redis: OOM")
    shown = drawn(View(made, MINUTE_OF_RATES), 80, 24)
    named = [line.split()[0] for line in shown if line.startswith("worker-")]
    assert {"worker-10", "worker-30"} <= set(named)
    assert any("more processes: worker-ctl status" in line for line in shown)


def test_a_lost_desk_is_said_with_since_when_and_what_was_known_stays() -> None:
    shown = drawn(View(document(2), MINUTE_OF_RATES, "the fleet is not running", 75.0, "22:10:03Z"), 100, 24)
    assert shown[0].startswith("no answer since 22:10:03Z (1 min), what follows is of then: the fleet is not running")
    assert any("worker-2" in line for line in shown)
    never = drawn(View(None, (), "the fleet is not running", 3.0), 80, 24)
    assert never[0].startswith("no answer for 3 s: the fleet is not running")


def test_a_desk_of_an_earlier_version_is_shown_as_far_as_it_tells() -> None:
    """While a fleet is being renewed, the command is newer than what it asks."""
    made = document(2)
    for key in ("latency", "recent_dead", "paused", "rolling", "at", "version"):
        del made[key]
    for key in ("in_per_s", "dead_per_s", "backlog_age_s", "drained_in_s"):
        del made["streams"][key]
    del made["health"]["success_rate_over"]
    assert any("1,234 waiting" in line for line in drawn(View(made, MINUTE_OF_RATES), 80, 24))
    console = paper(80)
    show(made, console)
    assert any("ever 99.61%" in line for line in written(console))


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_status_cuts_nothing_off_and_keeps_to_the_width(columns: int) -> None:
    console = paper(columns)
    show(degraded(3, 2), console)
    shown = written(console)
    assert max(map(len, shown)) <= columns
    assert "…" not in "".join(shown)
    words = " ".join(" ".join(shown).split())
    assert words.count("loading the model") == 8
    assert "restarting" in words


def test_a_curve_has_the_newest_on_the_right_and_its_height_from_the_highest() -> None:
    assert sparkline([0, 0, 4, 8], 60).lstrip() == SPARKS[0] * 2 + SPARKS[4] + SPARKS[7]
    assert sparkline([0.0] * 60, 20) == SPARKS[0] * 20
    assert sparkline([5.0] * 60, 7).strip() == SPARKS[7] * 7
    assert sparkline([], 5) == "     "
    assert set(sparkline([1, 2, 3], 60, ascii_only=True).strip()) <= set(ASCII_SPARKS)


def test_a_terminal_without_unicode_gets_none() -> None:
    shown = drawn(View(document(4), MINUTE_OF_RATES), 120, 24, ascii_only=True)
    assert not [line for line in shown if not line.replace("…", "").isascii()]


def test_a_gate_that_is_not_open_says_for_how_long_still_and_why() -> None:
    throttled = document(gate={"state": "throttled", "since_s": 70.0, "until_s": 3.2, "says": "429 from \x1b[1mthere"})
    assert gate(throttled).startswith("throttled for 1 min, probe in 3.2 s: 429 from \\x1b[1mthere   permits 14 of 16")
    paused = document(gate={"state": "paused", "since_s": 1.0, "until_s": 12.0, "says": ""})
    assert gate(paused).startswith("paused for 12 s more")


def test_what_a_process_is_doing_is_said_in_words() -> None:
    assert doing(worker(1, in_hand=0, done=3, retry=0)) == "idle, done 3"
    assert doing(worker(1, waits_for="the gate: 429")) == "waits for the gate: 429"
    assert doing(worker(1, waits_for=PAUSED)) == "paused by worker-ctl pause"
    assert doing({"name": "janitor", "stats": {"waits_for": None, "sweeps": 2, "sweep": {"examined": 1}}}) == "sweeps 2"
    assert doing({"name": "desk", "stats": None}) == ""


def test_numbers_that_nobody_has_seen_yet_are_not_shown_as_none() -> None:
    """F50: a Redis that has not answered yet holds perhaps a million events, and not 0."""
    made = document(2, redis={"reachable": False, "error": "Connection refused"}) | {"seen": False}
    shown = "\n".join(drawn(View(made), 80, 24))
    assert "not known: Redis has not answered" in shown
    assert "waiting" not in shown


def test_status_says_what_is_worth_knowing_besides_what_is_wrong() -> None:
    notes = ["rolling restart; workers to go: 2", "stopwaitsecs = 10 is shorter than a drain"]
    console = paper(80)
    show(document(2, health={"notes": notes}), console)
    assert written(console)[1:3] == ["  -  stopwaitsecs = 10 is shorter than a drain", ""]


def test_one_screen_on_paper_names_no_key() -> None:
    assert "q leaves" not in "\n".join(drawn(View(document(2), is_live=False), 80, 24))


def test_dead_letters_that_are_gone_are_told_from_those_that_are_there() -> None:
    assert dead(document(2)) == "16 (timeout 12, malformed 4)"
    assert dead(document(2) | {"dead_letter_length": 16}) == "16 (timeout 12, malformed 4)"
    assert dead(document(2) | {"dead_letter_length": 3}) == "3 there, ever 16 (timeout 12, malformed 4)"


def test_a_process_that_was_replaced_on_purpose_is_no_failure() -> None:
    assert process(worker(1) | {"last_exit": "code 0"}).restarts == "0"
    assert process(worker(1) | {"last_exit": "signal 9", "restarts": 2}).restarts == "2, signal 9"


def test_an_operators_pause_and_a_rolling_restart_stand_in_the_headline() -> None:
    made = document(2) | {"paused": True, "rolling": {"what": "restart", "left": 3}}
    assert "restarting, 3 left, paused, 2 of 2 workers" in drawn(View(made), 80, 24)[0]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (0.041, "0.041 s"), (3.21, "3.2 s"), (48.4, "48 s"), (720, "12 min"), (12_000, "3 h 20 min"),
     (7200, "2 h"), (187_200, "2 d 4 h"), (3599.9, "1 h"), (59.96, "1 min"), (86_399, "1 d")],
)  # fmt: skip
def test_a_length_of_time_is_said_as_people_do(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_only_all_of_them_are_a_hundred_percent() -> None:
    assert [share(1.0), share(0.999999), share(0.0), share(None)] == ["100%", "99.99%", "0.00%", "-"]


def test_an_empty_backlog_has_no_age() -> None:
    empty = {"backlog": 0, "pending": 0, "parked": 0, "backlog_age_s": None, "drained_in_s": 0.0}
    assert backlog(document(streams=empty)) == "0 waiting, 0 in hand, 0 parked"
