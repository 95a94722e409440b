"""Dead letters as they are read, chosen, foreseen and told, and what `worker-ctl dead` refuses to begin."""

import json
from base64 import b64decode
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from millhand.verdict import Reason
from millhand_fleet import deadletters
from millhand_fleet.ctl import telling
from millhand_fleet.ctl.cli import cli
from millhand_fleet.ctl.visible import visible
from millhand_fleet.deadletters import (
    DIGITS_MAX,
    FIELDS_MAX,
    FOREIGN,
    WITHOUT_LIMIT,
    DeadLetter,
    Pace,
    Requeued,
    Selection,
    foresee,
    parse,
)

QUIET = settings(deadline=None, database=None, max_examples=200)
OURS = (b"failure_reason", b"src", b"original_fields", b"redrives", b"failure_detail", b"errors", b"original_msgpack")
names = st.binary(max_size=8) | st.sampled_from(OURS)
values = st.binary(max_size=20) | st.sampled_from((b"0", b"1", b"2", b"failure_reason"))
originals = st.lists(st.tuples(names, values), max_size=6).map(tuple)
LETTER = DeadLetter("2000-0", "timeout", ((b"data", b"\xff cold"), (b"note", b"x")), detail=b"no answer", redrives=2)


def flat(*pairs: tuple[bytes, bytes]) -> list[bytes]:
    return [part for pair in pairs for part in pair]


def ours(count: int, reason: bytes = b"timeout") -> list[bytes]:
    """Make the pairs that bury adds to `count` original ones."""
    return flat(
        (b"failure_reason", reason),
        (b"src", b"1000-0"),
        (b"original_fields", b"%d" % count),
        (b"redrives", b"2"),
        (b"failure_detail", b"no answer"),
        (b"attempts", b"4"),
        (b"deliveries", b"1"),
        (b"errors", b'["a","b"]'),
        (b"consumer", b"here:w1:a"),
        (b"failed_at", b"2026-11-23T10:26:21.190+00:00"),
    )


@QUIET
@given(originals)
def test_what_bury_has_written_is_read_whatever_the_original_fields_are(pairs: deadletters.Pairs) -> None:
    """F48: names that repeat, or are ours, hide neither the original's values nor ours."""
    assert parse(b"2000-0", flat(*pairs) + ours(len(pairs))) == DeadLetter(
        "2000-0",
        "timeout",
        pairs,
        src="1000-0",
        detail=b"no answer",
        attempts=4,
        deliveries=1,
        redrives=2,
        errors=("a", "b"),
        consumer="here:w1:a",
        failed_at="2026-11-23T10:26:21.190+00:00",
    )


def test_an_original_that_bury_had_to_pack_is_read_unpacked() -> None:
    pairs = tuple((b"f%d" % n, b"\xff") for n in range(4000))

    letter = parse(b"1-0", [b"original_msgpack", b"...", *ours(4000)], flat(*pairs))

    assert letter.fields == pairs
    assert letter.reason == "timeout"


@QUIET
@given(originals)
def test_an_entry_that_bury_has_not_written_is_foreign_and_kept(pairs: deadletters.Pairs) -> None:
    pairs = (*pairs, (b"original_fields", b"7"))
    assert parse(b"1-0", flat(*pairs)) == DeadLetter("1-0", FOREIGN, pairs)


@pytest.mark.parametrize(
    ("record", "unpacked"),
    [
        pytest.param(flat((b"original_fields", b"9" * (DIGITS_MAX + 5000))), [], id="a count that is too long"),
        pytest.param([b"original_msgpack", b"x", *ours(2)], [b"a", 7, [], b"b"], id="packed, but no bytes"),
        pytest.param([b"original_msgpack", b"x", *ours(4000)], [b"a", b"b"], id="packed, but too few"),
        pytest.param([b"original_msgpack", b"x", *ours(4000)], [], id="packed, but not to be unpacked"),
        pytest.param([b"a", b"b", *ours(2)], [], id="one original field where two are claimed"),
    ],
)
def test_a_record_that_contradicts_itself_is_foreign(record: list[bytes], unpacked: list[Any]) -> None:
    assert parse(b"1-0", record, unpacked).reason == FOREIGN


def test_counts_and_errors_that_are_none_stop_nothing() -> None:
    record = [b"a", b"b", *ours(1)]
    record[record.index(b"4")] = b"many"
    record[record.index(b'["a","b"]')] = b"\xff{"

    letter = parse(b"1-0", record)

    assert (letter.attempts, letter.errors) == (0, ("\\xff{",))


@pytest.mark.parametrize(
    ("selection", "matches"),
    [
        (Selection(), True),
        (Selection(reasons=frozenset({"timeout", "malformed"})), True),
        (Selection(reasons=frozenset({"malformed"})), False),
        (Selection(text=b"cold"), True),
        (Selection(text=b"\xff"), True),
        (Selection(text=b"note"), True),
        (Selection(text=b"answer"), True),
        (Selection(text=b"warm"), False),
        (Selection(text=b"timeout"), False),
        (Selection(reasons=frozenset({"malformed"}), text=b"cold"), False),
    ],
)
def test_a_dead_letter_is_matched_by_its_reason_its_fields_and_its_detail(selection: Selection, matches: bool) -> None:  # noqa: FBT001 - a parameter
    assert selection.matches(LETTER) is matches


@pytest.mark.parametrize(
    ("letter", "redrives_max", "answer"),
    [
        (LETTER, 3, Requeued.OK),
        (LETTER, 2, Requeued.REFUSED),
        (LETTER, WITHOUT_LIMIT, Requeued.OK),
        (DeadLetter("1-0", "deleted", ()), 3, Requeued.EMPTY),
        (DeadLetter("1-0", FOREIGN, ((b"a", b"b"),)), WITHOUT_LIMIT, Requeued.FOREIGN),
        (DeadLetter("1-0", "malformed", ((b"a", b"b"),) * (FIELDS_MAX + 1)), 3, Requeued.TOO_WIDE),
    ],
)
def test_a_dry_run_foresees_the_answer(letter: DeadLetter, redrives_max: int, answer: Requeued) -> None:
    assert foresee(letter, redrives_max) is answer


async def test_a_pace_keeps_a_gap_and_saves_none_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long one step took, the next two are a gap apart."""
    now, slept = 100.0, list[float]()

    async def sleep(seconds: float) -> None:
        slept.append(round(seconds, 6))

    monkeypatch.setattr(deadletters, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(deadletters, "asyncio", SimpleNamespace(sleep=sleep))
    pace = Pace(10.0)

    await pace.turn()
    await pace.turn()
    now = 200.0
    await pace.turn()
    await pace.turn()

    assert slept == [0.1, 0.1]


@QUIET
@given(st.binary(max_size=50) | st.text(max_size=50).map(lambda text: text.encode(errors="replace")))
def test_nothing_that_is_shown_can_move_the_cursor(value: bytes) -> None:
    letter = msgspec.structs.replace(LETTER, fields=((value, value),), detail=value, reason=visible(value))
    lines = [telling.row(letter, 5000, with_source=True), *telling.details(letter)]
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"plain", "plain"),
        ("schön 漢字".encode(), "schön 漢字"),
        (b"\x1b[31m\r\n\x00", "\\x1b[31m\\r\\n\\x00"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("\u202eright to left\u2028".encode(), "\\u202eright to left\\u2028"),
        (b"[bold]no markup[/]", "[bold]no markup[/]"),
    ],
)
def test_bytes_are_shown_in_one_line_with_escapes(value: bytes, shown: str) -> None:
    assert visible(value) == shown


@pytest.mark.parametrize(
    ("age_s", "shown"),
    [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (7199, "119m"),
        (7200, "2h"),
        (172_799, "47h"),
        (172_800, "2d"),
        (-5, "0s"),
    ],
)
def test_an_age_is_shown_as_a_filter_takes_it(age_s: int, shown: str) -> None:
    """A clock that went back makes nothing younger than now."""
    assert telling.row(LETTER, 2000 + age_s * 1000, with_source=False).split()[1] == shown


@QUIET
@given(originals, st.binary(max_size=10))
def test_an_export_line_is_ascii_and_gives_back_every_byte(pairs: deadletters.Pairs, detail: bytes) -> None:
    def bytes_of(value: Any) -> bytes:
        return b64decode(value["base64"]) if isinstance(value, dict) else value.encode()

    line = telling.json_line(msgspec.structs.replace(LETTER, fields=pairs, detail=detail))

    assert line.isascii()
    assert "\n" not in line
    restored = json.loads(line)
    assert tuple((bytes_of(name), bytes_of(value)) for name, value in restored["fields"]) == pairs
    assert bytes_of(restored["detail"]) == detail
    assert restored["redrives"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["requeue"], "Give either ids, or filters, or --all."),
        (["requeue", "--limit", "5"], "Give either ids, or filters, or --all."),
        (["requeue", "--text", ""], "Give either ids, or filters, or --all."),
        (["drop", "--yes"], "Give either ids, or filters, or --all."),
        (["drop", "--all", "--reason", "timeout"], "Give either ids, or filters, or --all."),
        (["drop", "--all"], "There is nobody to ask whether to drop them: give --yes."),
        (["requeue", "1-0", "--reason", "timeout"], "Name ids or give filters, not both."),
        (["list", "1-0", "--limit", "1"], "Name ids or give filters, not both."),
        (["list", "--reason", "timeot"], "There is no reason 'timeot'. Did you mean 'timeout'?"),
        (["list", "--reason", "qqq"], f"There is no reason 'qqq'. There are: {', '.join(Reason)}."),
        (["list", "--older-than", "10"], "'10' is no length of time such as 90s, 10m, 2h or 3d."),
        (["list", "--older-than", "1e9d"], "'1e9d' is no length of time such as 90s, 10m, 2h or 3d."),
        (["show", "1-0-0"], "'1-0-0' is no id such as 1763892381190-0; `worker-ctl dead list` shows them."),
        (["requeue", "--all", "--rate", "0"], "0.0 is not in the range"),
    ],
)
def test_a_command_that_leaves_its_meaning_open_is_refused_before_anything_is_asked(
    arguments: list[str], said: str
) -> None:
    answer = CliRunner().invoke(cli, ["dead", *arguments], env={"MILLHAND_REDIS_URL": "redis://127.0.0.1:9/0"})

    assert answer.exit_code == 2
    assert said in " ".join(answer.output.split())
