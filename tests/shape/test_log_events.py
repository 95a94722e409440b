"""The fixed list of log events: the sources and `conf/log-events.md` say the same."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).resolve().parents[2]
LIST = PROJECT / "conf" / "log-events.md"
SOURCES = [*(PROJECT / "worker" / "millhand").rglob("*.py"), *(PROJECT / "supervisor" / "millhand_fleet").rglob("*.py")]
LEVELS = {"debug", "info", "warning", "error", "critical"}
CHOSEN = {"say", "tell"}  # what calls at a level that is chosen first are named
NAME = r"[a-z_]+\.[a-z_]+"


class Told(NamedTuple):
    """A place in the sources where an event is told."""

    place: str
    event: str
    level: str
    fields: set[str]


def told() -> Iterator[Told]:
    for file in SOURCES:
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not call.args:
                continue
            level = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if level in LEVELS | CHOSEN:
                given = {keyword.arg for keyword in call.keywords if keyword.arg}
                fields = {"exception" if name == "exc_info" else name for name in given}
                yield from (Told(f"{file.name}:{call.lineno}", event, level, fields) for event in events(call.args[0]))


def events(name: ast.expr) -> Iterator[str]:
    """Yield the names of events that stand there: one, or two of which one is chosen."""
    match name:
        case ast.Constant(value=str(text)) if re.fullmatch(NAME, text):
            yield text
        case ast.IfExp(body=first, orelse=second):
            yield from events(first)
            yield from events(second)


def listed() -> dict[str, tuple[set[str], set[str]]]:
    """Return the levels and the fields of each event of the list."""
    rows = re.findall(
        rf"^\| `({NAME})` \| ([^|]*) \| [^|]+ \| ([^|]*)\|$", LIST.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) == len({event for event, _, _ in rows}), "an event stands there twice"
    return {event: (set(levels.split(", ")), set(fields.strip().split(", ")) - {""}) for event, levels, fields in rows}


TOLD = list(told())


def test_every_event_of_the_list_is_told_somewhere_and_every_other_way_round() -> None:
    assert {one.event for one in TOLD} == set(listed())


@pytest.mark.parametrize("one", TOLD, ids=lambda one: f"{one.place} {one.event}")
def test_an_event_is_told_at_the_level_and_with_the_fields_of_the_list(one: Told) -> None:
    levels, fields = listed()[one.event]
    assert levels <= LEVELS
    assert one.level in CHOSEN or one.level in levels
    assert one.fields <= fields


def test_no_record_has_a_field_for_payloads() -> None:
    names = {field for _, fields in listed().values() for field in fields}
    assert not names & {
        "data",
        "payload",
        "text",
        "prompt",
        "content",
        "fields",
        "answer",
        "password",
        "url_with_password",
    }
