"""The screen of `worker-ctl top`, as a pure function of what is known."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from millhand_fleet.ctl.screen import fact_table, process_table, reason_table, title
from millhand_fleet.ctl.wording import Document, Fact, clock, facts, per_second, recent_dead, span

MINUTE = 60  # refreshes
REASONS_MAX = 3
LOST_LINES_MAX = 2
SPARKS, ASCII_SPARKS = "▁▂▃▄▅▆▇█", "_.:-=+*#"
SPARK_COLUMNS_MIN, SPARK_COLUMNS_MAX = 6, MINUTE
RATES_COLUMNS = 60  # what the line of the rates needs beside its two curves
FRAME_LINES = 4  # two blank ones, the head of the table, the foot
RECENT_FRAME_LINES = 2  # a blank one and the heading


class Rates(NamedTuple):
    """What came and left a second, at one refresh."""

    came: float
    left: float


class View(NamedTuple):
    """All that the screen shows: the last document, the rates of the last minute, and since when nothing came."""

    document: Document | None
    history: Sequence[Rates] = ()
    lost: str = ""  # why the desk does not answer; what the document says is old then
    lost_for_s: float = 0.0
    lost_at: str = ""
    is_live: bool = True


def screen(view: View, columns: int, lines: int, *, ascii_only: bool = False) -> RenderableType:
    """Return the whole screen, of no more than so many columns and lines."""
    document = view.document
    head = _lost(view, columns) if view.lost else []
    if document is None:
        return Group(*head or [Text("asking the desk")], Text("q leaves", "dim"))
    head.append(title(document))
    why = document["health"]["reasons"]
    told = [_with_curves(fact, view, columns, ascii_only=ascii_only) for fact in facts(document)]
    room = lines - len(head) - len(told) - FRAME_LINES
    reasons_max = max(1, min(REASONS_MAX, room - 1))
    room -= min(len(why), reasons_max)
    rows, tail = _fitting(document["children"], room)
    tail = tail or _recent(document, room - len(rows))
    parts: list[RenderableType] = [*map(_one_line, head)]
    if why:
        parts.append(reason_table(document, columns, reasons_max, wraps=False))
    parts += [
        Text(),
        fact_table(told, columns, wraps=False),
        Text(),
        process_table(rows, columns, wraps=False),
        *map(
            _one_line,
            [*tail, Text(f"{clock(document.get('at'))}  {'q leaves' if view.is_live else ''}".strip(), "dim")],
        ),
    ]
    return Group(*parts)


def _fitting(rows: Sequence[Document], room: int) -> tuple[Sequence[Document], list[Text]]:
    """Return as many rows as fit, those first that are not well or wait; and the line that says what is left out."""
    if len(rows) <= room:
        return rows, []
    ranked = sorted(range(len(rows)), key=lambda at: (rows[at]["state"] == "ready" and not _waits(rows[at]), at))
    shown = [rows[at] for at in sorted(ranked[: max(0, room - 1)])]
    return shown, [Text(f"and {len(rows) - len(shown)} more processes: worker-ctl status", "dim")]


def sparkline(values: Sequence[float], columns: int, *, ascii_only: bool = False) -> str:
    """Return a curve of so many columns, each the mean of its share of the last minute; the newest is on the right."""
    signs = ASCII_SPARKS if ascii_only else SPARKS
    share = -(-MINUTE // columns)
    newest_first = list(reversed(values))[: share * columns]
    parts = [newest_first[at : at + share] for at in range(0, len(newest_first), share)]
    means = [sum(part) / len(part) for part in parts]
    highest = max(means, default=0.0)
    marks = [signs[min(len(signs) - 1, int(mean / highest * len(signs)))] if highest else signs[0] for mean in means]
    return "".join(reversed(marks)).rjust(columns)


def _with_curves(fact: Fact, view: View, columns: int, *, ascii_only: bool) -> Fact:
    """Put a curve behind each of the two rates, where they are known and there is room."""
    room = min(SPARK_COLUMNS_MAX, (columns - RATES_COLUMNS) // 2)
    if fact.label != "rates" or not view.history or room < SPARK_COLUMNS_MIN or view.document is None:
        return fact
    came = sparkline([rates.came for rates in view.history], room, ascii_only=ascii_only)
    left = sparkline([rates.left for rates in view.history], room, ascii_only=ascii_only)
    streams = view.document["streams"]
    text = f"in {per_second(streams.get('in_per_s')):>8} {came}"
    text += f"   enriched {per_second(streams['enriched_per_s']):>8} {left}"
    return Fact(fact.label, f"{text}   dead {per_second(streams.get('dead_per_s'))}")


def _lost(view: View, columns: int) -> list[Text]:
    """Return why nothing new comes, in as many lines as it needs."""
    for_ = span(round(view.lost_for_s))
    since = f"since {view.lost_at} ({for_}), what follows is of then" if view.document else f"for {for_}"
    return [
        Text(line, "bold red") for line in textwrap.wrap(f"no answer {since}: {view.lost}", columns)[:LOST_LINES_MAX]
    ]


def _recent(document: Document, room: int) -> list[Text]:
    """Return the last dead letters, where there are lines left over."""
    letters = document.get("recent_dead") or []
    if not letters or room <= RECENT_FRAME_LINES:
        return []
    return [
        Text(),
        Text("last dead letters", "dim"),
        *(Text(recent_dead(one)) for one in letters[: room - RECENT_FRAME_LINES]),
    ]


def _waits(row: Document) -> bool:
    return bool((row.get("stats") or {}).get("waits_for"))


def _one_line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
