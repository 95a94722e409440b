"""What a run is judged to be: what was broken, with the evidence, and what it did not show."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import msgspec
from tests.fleet.chaos.records import ModelCall, Record, told
from tests.fleet.chaos.timeline import Timeline

EVIDENCE_RECORDS_MAX = 8
VIOLATIONS_TOLD_MAX = 5  # of one invariant


class Finding(NamedTuple):
    """An invariant that does not hold: for which events, in words, and by which records."""

    says: str
    ids: tuple[str, ...] = ()
    records: Iterable[Record | ModelCall] = ()


Invariant = Callable[[Timeline], Iterator[Finding]]


class Violation(msgspec.Struct, frozen=True):
    """An invariant by its number and short name, the ids of the events, and a sentence with the evidence."""

    number: int
    name: str
    ids: tuple[str, ...]
    sentence: str

    def __str__(self) -> str:
        return f"{self.number} {self.name}: {self.sentence}"


class Judgement(msgspec.Struct, frozen=True):
    """Three verdicts on a run: what was never to happen, what had to happen in time, and what it did not show."""

    safety: list[Violation]
    liveness: list[Violation]
    coverage: list[str]
    numbers: dict[str, Any]

    @property
    def verdict(self) -> Literal["green", "red", "inconclusive"]:
        """Red if anything was broken; inconclusive if nothing was, but not all was tried."""
        if self.safety or self.liveness:
            return "red"
        return "inconclusive" if self.coverage else "green"

    def __str__(self) -> str:
        lines: list[str] = [self.verdict]
        for heading, violations in (("safety", self.safety), ("liveness", self.liveness)):
            lines += [f"{heading}: {line}" for line in _told(violations)]
        lines += [f"coverage: {missing}" for missing in self.coverage]
        return "\n".join([*lines, *(f"{name}: {value}" for name, value in self.numbers.items())])


def violations(invariants: dict[int, Invariant], run: Timeline) -> list[Violation]:
    """Judge a run by each of these invariants. An invariant's name is that of its function."""
    return [
        Violation(number, holds.__name__.replace("_", " "), finding.ids, _sentence(finding))
        for number, holds in invariants.items()
        for finding in holds(run)
    ]


def _sentence(finding: Finding) -> str:
    records = list(finding.records)
    cut = f" | … {len(records) - EVIDENCE_RECORDS_MAX} more" if len(records) > EVIDENCE_RECORDS_MAX else ""
    evidence = " | ".join(told(record) for record in records[:EVIDENCE_RECORDS_MAX])
    return " ".join(filter(None, (", ".join(finding.ids), finding.says))) + (f": {evidence}{cut}" if evidence else "")


def _told(broken: list[Violation]) -> Iterator[str]:
    for number in sorted({one.number for one in broken}):
        same = [one for one in broken if one.number == number]
        yield from map(str, same[:VIOLATIONS_TOLD_MAX])
        if len(same) > VIOLATIONS_TOLD_MAX:
            yield f"{number} {same[0].name}: {len(same) - VIOLATIONS_TOLD_MAX} more"
