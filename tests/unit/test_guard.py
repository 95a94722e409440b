"""What the guard says of a difference, and how it counts."""

import pytest

from scripts.bench.guard import Seen, beside, bytecodes_of, part_ratios, table_of
from scripts.bench.parts import parts

WORDS = "less", "more"


@pytest.mark.parametrize(
    ("value", "recorded", "shown"),
    [
        (1.0, 1.0, ("1.0 (1.0)", "")),
        (1.2, 1.0, ("1.2 (1.0)", "")),
        (1.3, 1.0, ("1.3 (1.0)", "more")),
        (0.7, 1.0, ("0.7 (1.0)", "less")),
        (1.0, None, ("1.0", "new")),
        (None, 1.0, ("", "")),
    ],
)
def test_a_notable_difference_has_a_word(value: float | None, recorded: float | None, shown: tuple[str, str]) -> None:
    assert beside(value, recorded, 0.25, WORDS, "{:.1f}") == shown


def test_what_another_python_has_counted_is_compared_with_nothing() -> None:
    now, before = (Seen(python, {"decode": 1.0}, {"decode": 10}) for python in ("3.12", "3.11"))
    assert list(table_of(now, before).columns[3].cells) == ["10"]
    assert list(table_of(before, before).columns[3].cells) == ["10 (10)"]


def test_every_call_of_a_part_carries_out_as_many_bytecodes() -> None:
    for part in parts().values():
        assert bytecodes_of(part) == bytecodes_of(part) > 0


def test_all_parts_together_take_more_bytecodes_than_any_of_them() -> None:
    *counts, together = map(bytecodes_of, parts().values())
    assert together > max(counts)


def test_times_are_ratios_of_the_parts_that_were_given() -> None:
    assert part_ratios({"decode": parts()["decode"]})["decode"] > 0
