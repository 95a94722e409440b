"""The error tree and the shortening of foreign text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millhand.errors import (
    DETAIL_CHARS_MAX,
    BadAnswer,
    ConfigError,
    Malformed,
    MillhandError,
    ModelAway,
    ModelBusy,
    Reasoned,
    Unusable,
    clip,
)

QUIET = settings(deadline=None, database=None, max_examples=50)


@QUIET
@given(st.text(max_size=60), st.integers(1, 40))
def test_clipped_text_is_one_line_of_bounded_length(text: str, chars_max: int) -> None:
    clipped = clip(text, chars_max)
    assert len(clipped) <= chars_max
    assert len(clipped.splitlines()) <= 1


@QUIET
@given(st.text(max_size=60), st.integers(1, 40))
def test_clipping_twice_changes_nothing_more(text: str, chars_max: int) -> None:
    assert clip(clip(text, chars_max), chars_max) == clip(text, chars_max)


def test_what_fits_is_kept_whole() -> None:
    assert clip("a" * DETAIL_CHARS_MAX) == "a" * DETAIL_CHARS_MAX


def test_what_is_cut_shows_that_it_was_cut() -> None:
    assert clip("a" * (DETAIL_CHARS_MAX + 1)) == "a" * (DETAIL_CHARS_MAX - 1) + "…"


def test_line_breaks_and_runs_of_blanks_become_one_blank() -> None:
    assert clip(" a\r\n\tb\u2028c  ") == "a b c"


@pytest.mark.parametrize("kind", [Malformed, BadAnswer, ModelAway])
def test_the_detail_of_an_error_is_clipped(kind: type[Reasoned]) -> None:
    error = kind("malformed", "x\n" * 10_000)
    assert error.reason == "malformed"
    assert len(error.detail) == DETAIL_CHARS_MAX
    assert "\n" not in error.detail


def test_a_model_that_does_not_say_how_long_has_no_wait() -> None:
    assert ModelBusy("HTTP 503").wait_s is None


@pytest.mark.parametrize("kind", [Unusable, ConfigError, Malformed, BadAnswer, ModelAway])
def test_every_error_of_ours_has_one_root(kind: type[Exception]) -> None:
    assert issubclass(kind, MillhandError)


def test_the_kinds_that_callers_treat_differently_are_no_kinds_of_each_other() -> None:
    kinds = (Unusable, Malformed, BadAnswer, ModelAway)
    assert not [(a, b) for a in kinds for b in kinds if a is not b and issubclass(a, b)]
