"""What `status` and `top` draw alike: the headline, the reasons, the facts, a row for each process."""

from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from millhand_fleet.ctl.wording import Document, Fact, Process, headline, plain, process

COLOURS = {"ok": "green", "degraded": "yellow", "down": "red"}
STATES = {"ready": "green", "restarting": "red"}  # all others are on the way to something: yellow
HEADS = {"name": "process", "mib": "MiB"}
BULLET = "*"
GAP = 2  # columns between two cells, and behind the last
DOING = "doing"  # the last cell, and the one that may be long
FROM_COLUMNS = {"pid": 90, "mib": 100, "restarts": 60, "up": 50, "state": 40}  # how wide a screen has room for them


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


def reason_table(document: Document, columns: int, count_max: int, *, wraps: bool) -> Table:
    """Return why the fleet is not as it should be, a row each; of more than `count_max`, how many more there are."""
    said = [plain(reason) for reason in document["health"]["reasons"]]
    if len(said) > count_max > 1:
        said = [*said[: count_max - 1], f"and {len(said) - count_max + 1} more: worker-ctl status"]
    return _grid([(f"  {BULLET}", reason) for reason in said[:count_max]], columns, colour(document), wraps=wraps)


def note_table(notes: Iterable[str], columns: int) -> Table:
    """Return what is worth knowing and nothing wrong, a row each."""
    return _grid([("  -", plain(note)) for note in notes], columns, "dim", wraps=True)


def fact_table(facts: Iterable[Fact], columns: int, *, wraps: bool) -> Table:
    """Return the facts, label beside text; cut to a line each unless they may wrap."""
    return _grid(list(facts), columns, "dim", wraps=wraps)


def process_table(rows: Iterable[dict[str, object]], columns: int, *, wraps: bool) -> Table:
    """Return a row for each child, with as many cells as have room; what it is doing is cut unless it may wrap."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, GAP, 0, 0))
    cells = [process(row) for row in rows]
    shown = [name for name in Process._fields if columns >= FROM_COLUMNS.get(name, 0)]
    left = columns
    for name in shown:
        head = HEADS.get(name, name)
        if name == DOING:
            _add_last(table, head, left, wraps=wraps)
        else:
            width = max(len(head), *(len(getattr(one, name)) for one in cells)) if cells else len(head)
            table.add_column(head, no_wrap=True, width=width)
            left -= width + GAP
    for one in cells:
        table.add_row(*(Text(getattr(one, name), _style(name, one)) for name in shown))
    return table


def print_trimmed(console: Console, what: RenderableType) -> None:
    """Print without the blanks with which tables fill their lines up."""
    with console.capture() as captured:
        console.print(what)
    for line in captured.get().splitlines():
        console.file.write(f"{line.rstrip()}\n")


def _grid(rows: Sequence[tuple[str, str]], columns: int, style: str, *, wraps: bool) -> Table:
    table = Table.grid(padding=(0, GAP, 0, 0))
    width = max((len(label) for label, _ in rows), default=0)
    table.add_column(style=style, no_wrap=True, width=width)
    _add_last(table, "", columns - width - GAP, wraps=wraps)
    for label, text in rows:
        table.add_row(Text(label), Text(text))
    return table


def _add_last(table: Table, head: str, columns: int, *, wraps: bool) -> None:
    """Add the column that gets what room there is."""
    table.add_column(head, no_wrap=not wraps, overflow="fold" if wraps else "ellipsis", max_width=max(1, columns))


def _style(name: str, cells: Process) -> str:
    return STATES.get(cells.state, "yellow") if name == "state" else ""
