"""What a measurement has to say: rows of named figures, for a table and for JSON."""

from collections.abc import Iterator, Mapping, Sequence

import msgspec
from rich.console import RenderableType
from rich.table import Table

from scripts.bench.report import goals_table
from scripts.bench.summary import Goal

Figure = float | int | str
Row = Mapping[str, Figure]


class Report(msgspec.Struct, frozen=True):
    """The rows of one measurement, all with the same names, the unit last; `about` is how they were made."""

    about: str
    rows: Sequence[Row]
    goals: Sequence[Goal] = ()

    def shown(self, title: str) -> Iterator[RenderableType]:
        """Yield all of it for the eye."""
        yield self.table(title)
        yield self.about
        if self.goals:
            yield goals_table(self.goals)

    def table(self, title: str) -> Table:
        """Return the rows for the eye."""
        names = list(self.rows[0])
        table = Table(*(name.replace("_", " ") for name in names), title=title, title_justify="left")
        for row in self.rows:
            table.add_row(*(_shown(row[name]) for name in names))
        return table


def _shown(figure: Figure) -> str:
    """Return a figure with as many digits as it is good for."""
    if isinstance(figure, float):
        return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"  # noqa: PLR2004 - three digits
    return f"{figure:,}" if isinstance(figure, int) else figure
