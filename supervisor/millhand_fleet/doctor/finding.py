"""What the doctor says of one thing: how bad, about what, what was found, and what to do."""

import enum
from collections.abc import Callable, Iterator
from typing import Any

import msgspec


class Level(enum.IntEnum):
    """How bad a finding is."""

    OK = 0
    NOTE = 1
    WARNING = 2
    ERROR = 3

    @property
    def word(self) -> str:
        """Its name for `--json`."""
        return self.name.lower()


class Finding(msgspec.Struct, frozen=True):
    """One line of the examination, and its remedy where one is needed."""

    level: Level
    subject: str
    found: str
    remedy: str = ""


Judgement = Callable[[Any], Iterator[Finding]]


class Section(msgspec.Struct, frozen=True):
    """The findings of one part of the machine."""

    title: str
    findings: tuple[Finding, ...]


def ok(subject: str, found: str) -> Finding:
    """Say that something is as it should be."""
    return Finding(Level.OK, subject, found)


def note(subject: str, found: str, remedy: str = "") -> Finding:
    """Say something that a person may want to know, and that is nobody's fault."""
    return Finding(Level.NOTE, subject, found, remedy)


def warning(subject: str, found: str, remedy: str) -> Finding:
    """Say that something works, and not as it should."""
    return Finding(Level.WARNING, subject, found, remedy)


def error(subject: str, found: str, remedy: str) -> Finding:
    """Say that a promise is broken or that nothing works until a person acts."""
    return Finding(Level.ERROR, subject, found, remedy)


def worst(sections: tuple[Section, ...]) -> Level:
    """Return the worst level there is."""
    levels = (finding.level for section in sections for finding in section.findings)
    return max(levels, default=Level.OK)
