"""The examination as a person reads it."""

import textwrap
from collections import Counter
from collections.abc import Iterator

import click

from millhand_fleet.ctl.visible import visible
from millhand_fleet.doctor.finding import Finding, Level, Section, worst

MARKS = {Level.OK: "✓", Level.NOTE: "·", Level.WARNING: "!", Level.ERROR: "✗"}
ASCII_MARKS = {Level.OK: "+", Level.NOTE: "-", Level.WARNING: "!", Level.ERROR: "x"}
COLOURS = {Level.OK: "green", Level.NOTE: "cyan", Level.WARNING: "yellow", Level.ERROR: "red"}
ARROW, ASCII_ARROW = "→", "->"
SUBJECT_CHARS = 16
WIDTH_MIN = 60


def lines(sections: tuple[Section, ...], *, width: int | None, unicode: bool, quiet: bool = False) -> Iterator[str]:
    """Yield the page, styled; click takes the colours off where there is no terminal. No width: nothing is wrapped."""
    for section in sections:
        shown = [finding for finding in section.findings if not quiet or finding.level >= Level.WARNING]
        if shown:
            yield click.style(section.title, bold=True)
            for finding in shown:
                yield from _finding(finding, width, unicode=unicode)
    yield ""
    yield click.style(summary(sections), fg=COLOURS[worst(sections)], bold=True)


def summary(sections: tuple[Section, ...]) -> str:
    """Return the counts in a line."""
    counts = Counter(finding.level for section in sections for finding in section.findings)
    parts = [_counted(counts[level], level.word) for level in (Level.ERROR, Level.WARNING, Level.NOTE) if counts[level]]
    return ", ".join([*parts, f"{counts[Level.OK]} good"])


def _finding(finding: Finding, width: int | None, *, unicode: bool) -> Iterator[str]:
    mark = click.style((MARKS if unicode else ASCII_MARKS)[finding.level], fg=COLOURS[finding.level], bold=True)
    subject = _said(finding.subject, unicode=unicode)
    head = f"  {mark} {subject:{SUBJECT_CHARS}} "
    indent = " " * (4 + SUBJECT_CHARS + 1)
    first, *rest = _wrapped(_said(finding.found, unicode=unicode), width, len(indent))
    yield head + first
    yield from (indent + line for line in rest)
    if finding.remedy:
        arrow = ARROW if unicode else ASCII_ARROW
        first, *rest = _wrapped(_said(finding.remedy, unicode=unicode), width, len(indent) + len(arrow) + 1)
        yield indent + click.style(f"{arrow} {first}", fg=COLOURS[finding.level])
        yield from (indent + " " * (len(arrow) + 1) + click.style(line, fg=COLOURS[finding.level]) for line in rest)


def _wrapped(text: str, width: int | None, indent: int) -> list[str]:
    if width is None:
        return [text]
    room = max(width, WIDTH_MIN) - indent
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]


def _said(text: str, *, unicode: bool) -> str:
    """Return text that may hold a server's words, as one line that no terminal misreads."""
    line = visible(text.encode(errors="backslashreplace"))
    return line if unicode else line.replace("…", "...").encode("ascii", "backslashreplace").decode()


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" + ("s" if count != 1 else "")
