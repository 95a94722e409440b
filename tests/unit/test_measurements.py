"""What the further measurements are made of, and how they are shown."""

from io import StringIO

import msgspec
import pytest
from rich.console import Console

from scripts.bench.memory import Weights, growth
from scripts.bench.rows import Report
from scripts.bench.sizes import SIZES, sized
from scripts.bench.summary import Goal


def shown(report: Report) -> str:
    told = StringIO()
    Console(width=100, file=told).print(*report.shown("scale"))
    return told.getvalue()


def test_a_report_shows_rows_how_they_were_made_and_the_goals() -> None:
    text = shown(
        Report("on paper", [{"workers": 2, "events_per_s": 1234.5, "share": 0.98765}], [Goal("share", 0.95, 0.98)])
    )
    for said in ("events per s", "1,234", "0.988", "on paper", "met"):
        assert said in text


def test_a_report_without_goals_shows_none() -> None:
    assert "wanted" not in shown(Report("on paper", [{"workers": 2}]))


@pytest.mark.parametrize("size", SIZES)
def test_events_of_a_size_have_that_size_and_texts_that_come_again(size: int) -> None:
    events = [*sized(0, 101, size)]
    assert {len(event) for event in events} == {size}
    first, second, again = (msgspec.json.decode(events[place])["text"] for place in (0, 1, 100))
    assert first == again != second


def test_growth_is_the_last_quarter_over_the_first() -> None:
    weights = [
        Weights("at work", 0.0, 0, mib, mib, 0.0, 0.0, 0.0, 0.0)
        for mib in (20.0, 20.0, 25.0, 20.0, 30.0, 20.0, 21.0, 21.0)
    ]
    assert growth(weights) == pytest.approx(1.05)
