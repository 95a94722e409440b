"""One picture of the table: bars, the best first, with the lowest and highest run of each."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from scripts.bench.figures import Spread
from scripts.bench.summary import GOAL_DURABILITY, MILLHAND, Key, Summary

WIDTH, NAME, VALUE = 470, 195, 60  # of a panel, of its names, of its figures: in pixels
BAR, GAP, HEAD, COLUMNS = 16, 6, 34, 2
OURS, THEIRS, INK, PAPER = "#b45309", "#94a3b8", "#1f2937", "#ffffff"

Bars = list[tuple[str, Spread]]


class Panel(NamedTuple):
    """What one part of the picture shows of a cell."""

    cell: str
    what: str
    figure: Callable[[Summary], Spread]
    digits: int = 0
    least_first: bool = False


PANELS = (
    Panel("W0 2p", "every answer is known: events/s", lambda one: one.events_per_s),
    Panel("W1 2p", "the model answers at once: events/s", lambda one: one.events_per_s),
    Panel("W2 2p", "50 ms, 16 slots: CPU ms an event", lambda one: one.cpu_ms, digits=2, least_first=True),
    Panel("W3 1p", "50 ms, 64 slots, 1,280/s at most: events/s", lambda one: one.events_per_s),
)


def picture(found: Mapping[Key, Summary], title: str) -> str:
    """Return an SVG; panels that were not measured are left out."""
    panels = [(panel, bars) for panel in PANELS if (bars := _ranked(found, panel))]
    height = HEAD + max((len(bars) for _, bars in panels), default=0) * (BAR + GAP) + GAP
    lines = -(-len(panels) // COLUMNS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * COLUMNS}" height="{HEAD + lines * height}">',
        f'<g font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="100%" height="100%" fill="{PAPER}"/>',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
    ]
    for position, (panel, bars) in enumerate(panels):
        x, y = position % COLUMNS * WIDTH, HEAD + position // COLUMNS * height
        parts.append(f'<g transform="translate({x} {y})">{_drawn(panel, bars)}</g>')
    return "\n".join([*parts, "</g></svg>\n"])


def _ranked(found: Mapping[Key, Summary], panel: Panel) -> Bars:
    there = [one for (_, *where), one in found.items() if where == [GOAL_DURABILITY, panel.cell]]
    bars = [(one.row, panel.figure(one)) for one in there]
    return sorted(bars, key=lambda bar: bar[1].median, reverse=not panel.least_first)


def _drawn(panel: Panel, bars: Bars) -> str:
    scale = (WIDTH - NAME - VALUE) / max(spread.high for _, spread in bars)
    parts = [f'<text x="10" y="{HEAD - 14}" font-weight="bold">{escape(f"{panel.cell}: {panel.what}")}</text>']
    for position, (row, spread) in enumerate(bars):
        y = HEAD + position * (BAR + GAP)
        parts += _bar(row, y, _scaled(spread, scale), f"{spread.median:,.{panel.digits}f}")
    return "".join(parts)


def _scaled(spread: Spread, scale: float) -> Sequence[float]:
    return [value * scale for value in (spread.low, spread.median, spread.high)]


def _bar(row: str, y: int, ends: Sequence[float], figure: str) -> list[str]:
    (low, median, high), text_y, colour = ends, y + BAR - 4, OURS if row.startswith(MILLHAND) else THEIRS
    return [
        f'<text x="{NAME - 6}" y="{text_y}" text-anchor="end">{escape(row)}</text>',
        f'<rect x="{NAME}" y="{y}" width="{median:.1f}" height="{BAR}" fill="{colour}"/>',
        f'<path d="M{NAME + low:.1f} {y + BAR / 2}H{NAME + high:.1f}" stroke="{INK}"/>',
        f'<text x="{NAME + high + 5:.1f}" y="{text_y}">{figure}</text>',
    ]
