"""What `status` and `top` draw alike: the headline, the reasons, the facts, a row for each process."""

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from millhand_fleet.ctl.wording import Document, Fact, Process, headline, plain, process

COLOURS = {"ok": "green", "degraded": "yellow", "down": "red"}
STATES = {"ready": "green", "restarting": "red"}  # all others are on the way to something: yellow
MARKS = {"wide": "•", "ascii": "-"}
PID_FROM_COLUMNS, RESTARTS_FROM_COLUMNS, UP_FROM_COLUMNS = 70, 60, 50


def title(document: Document) -> Text:
    """Return the line that says which fleet it is, and how it is."""
    status = document["health"]["status"]
    return Text.assemble(
        "fleet ", (plain(document["fleet"]), "bold"), "  ", (status, f"bold {colour(document)}"), "  ",
        (headline(document), ""),
    )  # fmt: skip


def colour(document: Document) -> str:
    """Return the colour of the fleet's health."""
    return COLOURS.get(document["health"]["status"], "red")


def reasons(document: Document) -> list[Text]:
    """Return why the fleet is not as it should be, a line each."""
    return [Text.assemble(("  • ", colour(document)), plain(reason)) for reason in document["health"]["reasons"]]


def fact_table(facts: Iterable[Fact], *, wraps: bool) -> Table:
    """Return the facts, label beside text; cut to a line each unless they may wrap."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=not wraps, overflow="fold" if wraps else "ellipsis")
    for fact in facts:
        table.add_row(Text(fact.label), Text(fact.text))
    return table


def process_table(rows: Sequence[dict[str, object]], columns: int, *, wraps: bool) -> Table:
    """Return a row for each child, with as many cells as have room."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    shown = _shown(columns)
    for name in shown:
        last = name == "doing"
        table.add_column(
            "process" if name == "name" else name,
            no_wrap=not (wraps and last),
            overflow="fold" if wraps and last else "ellipsis",
        )
    for row in rows:
        cells = process(row)
        table.add_row(*(Text(getattr(cells, name), _style(name, cells)) for name in shown))
    return table


def _shown(columns: int) -> list[str]:
    needs = {"pid": PID_FROM_COLUMNS, "restarts": RESTARTS_FROM_COLUMNS, "up": UP_FROM_COLUMNS}
    return [name for name in Process._fields if columns >= needs.get(name, 0)]


def _style(name: str, cells: Process) -> str:
    return STATES.get(cells.state, "yellow") if name == "state" else ""
