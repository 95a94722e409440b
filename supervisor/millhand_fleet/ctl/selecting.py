"""The arguments by which a command's dead letters are chosen."""

import difflib
import functools
import re
from collections.abc import Callable
from typing import Any

import click

from millhand.verdict import Reason
from millhand_fleet.deadletters import Selection

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def age(value: str) -> float:
    """Return a length of time, as a person writes it, in seconds."""
    parts = re.fullmatch(r"([0-9]{1,9})([smhd])", value)
    if parts is None:
        raise click.BadParameter(f"{value!r} is no length of time such as 90s, 10m, 2h or 3d.")
    return float(parts[1]) * UNITS_S[parts[2]]


def reason_name(value: str) -> str:
    """Check that there is such a reason, and guess at what was meant where there is not."""
    names = [reason.value for reason in Reason]
    if value not in names:
        near = difflib.get_close_matches(value, names, n=1)
        meant = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(names)}."
        raise click.BadParameter(f"There is no reason {value!r}. {meant}")
    return value


def letter_id(value: str) -> str:
    """Check that this may be the id of a dead letter."""
    if re.fullmatch(r"[0-9]{1,20}-[0-9]{1,20}", value) is None:
        raise click.BadParameter(f"{value!r} is no id such as 1763892381190-0; `worker-ctl dead list` shows them.")
    return value


OPTIONS = (
    click.argument("ids", nargs=-1, type=letter_id),
    click.option(
        "--reason",
        "reasons",
        multiple=True,
        metavar="REASON",
        type=reason_name,
        shell_complete=lambda _ctx, _param, begun: [reason.value for reason in Reason if reason.startswith(begun)],
        help="Buried for this reason. May be repeated.",
    ),
    click.option("--older-than", metavar="AGE", type=age, help="Buried longer ago than 90s, 10m, 2h, 3d."),
    click.option("--newer-than", metavar="AGE", type=age, help="Buried less long ago than that."),
    click.option("--text", default="", help="Holding this in an original field or in the detail, exactly so."),
    click.option("--limit", type=click.IntRange(1), help="The oldest so many of them."),
)


def selecting(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the arguments that choose dead letters; it gets them as one `selection`."""

    @functools.wraps(command)
    def with_selection(
        *,
        ids: tuple[str, ...],
        reasons: tuple[str, ...],
        older_than: float | None,
        newer_than: float | None,
        text: str,
        limit: int | None,
        **others: Any,
    ) -> None:
        wanted = text.encode(errors="surrogateescape")  # bytes that are no UTF-8 come from the shell as surrogates
        chosen = Selection(tuple(dict.fromkeys(ids)), frozenset(reasons), older_than, newer_than, wanted, limit)
        if ids and (chosen.is_filtered or limit):
            raise click.UsageError("Name ids or give filters, not both.")
        command(selection=chosen, **others)

    for option in reversed(OPTIONS):
        option(with_selection)
    return with_selection
