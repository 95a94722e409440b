"""One picture of the table: bars of events a second, with the lowest and highest run of each."""

from collections.abc import Mapping, Sequence
from html import escape

from scripts.bench.summary import GOAL_DURABILITY, MILLHAND, Key, Summary

PANELS = (
    ("W0 2p", "every answer is known"),
    ("W1 2p", "the model answers at once"),
    ("W2 2p", "50 ms, 16 slots: 320/s is all there is"),
    ("W3 2p", "50 ms, 64 slots: 1,280/s is all there is"),
)
WIDTH, NAME, VALUE = 420, 150, 60  # of a panel, of its names, of its figures: in pixels
BAR, GAP, HEAD, COLUMNS = 16, 6, 34, 2
OURS, THEIRS, INK, PAPER = "#b45309", "#94a3b8", "#1f2937", "#ffffff"


def picture(found: Mapping[Key, Summary], title: str) -> str:
    """Return an SVG; panels that were not measured are left out."""
    there = [(cell, what, _ranked(found, cell)) for cell, what in PANELS]
    panels = [(f"{cell}: {what}", rows) for cell, what, rows in there if rows]
    height = HEAD + max((len(rows) for _, rows in panels), default=0) * (BAR + GAP) + GAP
    lines = -(-len(panels) // COLUMNS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * COLUMNS}" height="{HEAD + lines * height}">',
        f'<g font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="100%" height="100%" fill="{PAPER}"/>',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
    ]
    for position, (name, rows) in enumerate(panels):
        x, y = position % COLUMNS * WIDTH, HEAD + position // COLUMNS * height
        parts.append(f'<g transform="translate({x} {y})">{_panel(name, rows)}</g>')
    return "\n".join([*parts, "</g></svg>\n"])


def _ranked(found: Mapping[Key, Summary], cell: str) -> list[Summary]:
    there = [one for (_, durability, name), one in found.items() if (durability, name) == (GOAL_DURABILITY, cell)]
    return sorted(there, key=lambda one: -one.events_per_s.median)


def _panel(name: str, rows: Sequence[Summary]) -> str:
    scale = (WIDTH - NAME - VALUE) / max(one.events_per_s.high for one in rows)
    parts = [f'<text x="10" y="{HEAD - 14}" font-weight="bold">{escape(name)}, events/s</text>']
    for position, one in enumerate(rows):
        y, rate = HEAD + position * (BAR + GAP), one.events_per_s
        middle, colour = y + BAR / 2, OURS if one.row == MILLHAND else THEIRS
        low, high, end = (NAME + value * scale for value in (rate.low, rate.high, rate.median))
        parts += [
            f'<text x="{NAME - 6}" y="{y + BAR - 4}" text-anchor="end">{escape(one.row)}</text>',
            f'<rect x="{NAME}" y="{y}" width="{end - NAME:.1f}" height="{BAR}" fill="{colour}"/>',
            f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="{INK}"/>',
            f'<text x="{high + 5:.1f}" y="{y + BAR - 4}">{rate.median:,.0f}</text>',
        ]
    return "".join(parts)
