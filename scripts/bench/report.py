"""Tables for a person, in a form that can be pasted into a page."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from scripts.bench.cases import CASES, Cell
from scripts.bench.figures import Spread
from scripts.bench.summary import Goal, Key, Summary

LEGEND = f"""\
{"; ".join(f"{case.name}: {case.what}" for case in CASES)}.
1p, 2p: worker processes; but Celery has one for each call under way, and each product what else it runs beside them.
Backlogs: events/s ±half the spread of the runs (CPU ms an event, of the workers with all their kin; of the server).
W2 and W3: first the share of what the model can do. At 80% of its load: latency p50 / p99 ms from raw to enriched.
Durability is the server's appendonly and appendfsync; all goals are judged where it keeps nothing."""


def figures_table(found: Mapping[Key, Summary], cells: Sequence[Cell]) -> Table:
    """Return all rows and cells."""
    table = Table("", "durability", *(cell.name for cell in cells), box=box.MARKDOWN)
    for row, durability in dict.fromkeys(key[:2] for key in found):
        told = (found.get((row, durability, cell.name)) for cell in cells)
        table.add_row(row, durability, *(_cell(summary) for summary in told))
    return table


def goals_table(goals: Sequence[Goal]) -> Table:
    """Return the goals, met or not."""
    table = Table("goal", "wanted", "reached", "", "beside", box=box.MARKDOWN)
    words = {True: "met", False: "NOT met", None: "not measured"}
    for goal in goals:
        reached = "-" if goal.reached is None else f"{goal.reached:.3g}"
        table.add_row(
            goal.name, f"{'≤' if goal.at_most else '≥'} {goal.wanted:g}", reached, words[goal.met], goal.remark
        )
    return table


def _cell(summary: Summary | None) -> str:
    if summary is None:
        return "-"
    cpu = f"({summary.cpu_ms.median:.2g}; {summary.server_cpu_ms.median:.2g})"
    if summary.latency_p50_ms and summary.latency_p99_ms:
        return f"{summary.latency_p50_ms.median:.1f} / {summary.latency_p99_ms.median:.1f} {cpu}"
    share = f"{summary.share.median:.3f}: " if summary.share else ""
    return f"{share}{summary.events_per_s.median:,.0f} {_half(summary.events_per_s)} {cpu}"


def _half(spread: Spread) -> str:
    return f"±{(spread.high - spread.low) / 2 / spread.median:.0%}"
