"""Prompts that do not fit the context: found, and cut where that is wished, never without a word."""

import contextlib
import itertools
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millhand.config import Model
from millhand.model.answer import Answer
from millhand.model.context import (
    CUTS_MAX,
    SAMPLES_MIN,
    ContextGuard,
    Fitted,
    TooLong,
    cut_text,
    tokens_told,
    was_cut,
)

QUIET = settings(deadline=None, database=None, max_examples=50)
MODEL = Model(num_ctx=2048, num_predict=512)
INSTRUCTIONS = "annotate the text " * 20
WORDS = "the kettle is quick but its lid never stays shut "
SHORT, LONG, ENDLESS = WORDS, WORDS * 400, WORDS * 4000  # 20 KB may fit, 200 KB surely do not


def burying() -> ContextGuard:
    return ContextGuard(MODEL, "bury")


def cutting(model: Model = MODEL) -> ContextGuard:
    return ContextGuard(model, "truncate_text")


def answer(tokens_in: int) -> Answer:
    return Answer("{}", tokens_in, 20, 1.0)


def asked(guard: ContextGuard, text: str, density: float, *, counts: bool, room: int = MODEL.num_ctx) -> list[Fitted]:
    """Ask a server of that density and room until it takes the text; return what it was asked."""
    tried = [guard.fit(INSTRUCTIONS, text)]
    while (tokens := int(len((INSTRUCTIONS + tried[-1].text).encode()) * density)) >= room:
        refusal = TooLong("refused", tokens=tokens, room=room) if counts else TooLong("refused")
        tried.append(guard.refit(tried[-1], refusal))
    return tried


# -- before the call ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", [burying(), cutting()])
@pytest.mark.parametrize("text", ["", SHORT, LONG])
def test_a_text_that_may_fit_is_asked_about_whole(guard: ContextGuard, text: str) -> None:
    fitted = guard.fit(INSTRUCTIONS, text)
    assert (fitted.text, fitted.mark) == (text, {})


def test_a_text_that_surely_does_not_fit_is_refused_without_a_call_and_says_what_to_change() -> None:
    with pytest.raises(TooLong) as caught:
        burying().fit(INSTRUCTIONS, ENDLESS)
    tokens = burying().tokens_likely(INSTRUCTIONS + ENDLESS)
    assert caught.value.reason == "too_long"
    assert caught.value.detail == (
        f"about {tokens} tokens, and model.num_ctx has room for 2048, the answer included: raise it, "
        'or set enrich.too_long = "truncate_text"'
    )


def test_a_text_that_surely_does_not_fit_is_cut_before_the_call_and_marked() -> None:
    fitted = cutting().fit(INSTRUCTIONS, ENDLESS)
    assert ENDLESS.startswith(fitted.text)
    assert fitted.mark == {"truncated": {"chars": len(fitted.text), "of": len(ENDLESS)}}
    assert cutting().tokens_likely(INSTRUCTIONS + fitted.text) <= MODEL.num_ctx - MODEL.num_predict


@pytest.mark.parametrize("run", [" ", "=", "\n", "é"])
def test_a_run_of_one_character_is_not_taken_for_many_tokens(run: str) -> None:
    """Tokenizers have a token for sixty-four of them."""
    assert burying().fit(INSTRUCTIONS, "a" + run * 100_000 + "b").cuts == 0


def test_instructions_that_fill_the_context_alone_leave_nothing_to_cut() -> None:
    with pytest.raises(TooLong):
        cutting().fit("x y " * 20_000, SHORT)


TEXTS = st.text("aé漢 =\n", max_size=40).flatmap(lambda part: st.integers(0, 3000).map(lambda times: part * times))


@QUIET
@given(TEXTS, st.floats(0.02, 2.0), st.integers(0, 2 * SAMPLES_MIN), st.integers(0, 3000))
def test_the_quick_look_decides_as_the_close_one_does(text: str, density: float, samples: int, tokens_in: int) -> None:
    guard = burying()
    for _ in range(samples):
        guard.check(guard.fit(INSTRUCTIONS, SHORT), answer(round(density * len(INSTRUCTIONS + SHORT))))
    least = guard.tokens_least(INSTRUCTIONS + text)
    with pytest.raises(TooLong) if least >= MODEL.num_ctx else contextlib.nullcontext():
        guard.fit(INSTRUCTIONS, text)
    with pytest.raises(TooLong) if 256 <= tokens_in < least else contextlib.nullcontext():
        guard.check(Fitted(text, INSTRUCTIONS, len(text)), answer(tokens_in))


# -- what replies teach ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("density", "likely", "least"),
    [(0.2, 0.2, 0.1), (2.0, 2.0, 0.15)],  # of what is dense, half would be too sure of what comes next
)
def test_replies_teach_how_many_tokens_a_byte_makes(density: float, likely: float, least: float) -> None:
    guard = cutting()
    prompt = INSTRUCTIONS + LONG
    for _ in range(SAMPLES_MIN):
        guard.check(guard.fit(INSTRUCTIONS, SHORT), answer(round(density * len(INSTRUCTIONS + SHORT))))
    assert guard.tokens_likely(prompt) == pytest.approx(likely * len(prompt), rel=0.01)
    assert guard.tokens_least(prompt) == pytest.approx(least * len(prompt), rel=0.01)


def test_a_few_replies_make_nothing_sure() -> None:
    guard = burying()
    least = guard.tokens_least(LONG)
    for _ in range(SAMPLES_MIN - 1):
        guard.check(guard.fit(INSTRUCTIONS, SHORT), answer(2 * len(INSTRUCTIONS)))
    assert guard.tokens_least(LONG) == least


def test_one_thin_prompt_makes_the_guard_careful_for_good() -> None:
    guard = burying()
    for tokens in (1, *[400] * 100):
        guard.check(guard.fit(INSTRUCTIONS, SHORT), answer(tokens))
    assert guard.fit(INSTRUCTIONS, ENDLESS).cuts == 0


@pytest.mark.parametrize("tokens_in", [0, -1])
def test_a_reply_without_a_count_teaches_nothing(tokens_in: int) -> None:
    guard = burying()
    for _ in range(SAMPLES_MIN):
        guard.check(guard.fit(INSTRUCTIONS, SHORT), answer(tokens_in))
    assert guard.tokens_likely(LONG) == burying().tokens_likely(LONG)


# -- after the call ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens_in", "tokens_out", "ended_by_length", "cut"),
    [
        (1000, 100, False, False),
        (2047, 1, False, False),
        (2048, 0, False, True),  # a server that does not know `truncate` keeps as much as fits, to the token
        (5000, 9, False, True),
        (2000, 48, False, False),
        (2000, 49, False, True),  # one that does not know `shift` drops the beginning while it answers
        (2000, 48, True, True),  # one that does stops where the context ends
        (1000, 512, True, False),  # num_predict is reached: the answer is too long, not the event
        (1536, 512, True, False),
        (11, 7, True, False),
        (0, 0, False, False),  # no counts
    ],
)
def test_the_counts_of_a_reply_tell_whether_the_context_was_too_small(
    tokens_in: int, tokens_out: int, *, ended_by_length: bool, cut: bool
) -> None:
    assert was_cut(tokens_in, tokens_out, MODEL, ended_by_length=ended_by_length) is cut


def test_a_server_that_has_read_less_than_there_is_has_cut_the_prompt() -> None:
    """It loads a model trained on 512 tokens with no more than those, whatever is asked for."""
    guard = cutting()
    whole = guard.fit(INSTRUCTIONS, LONG)
    with pytest.raises(TooLong, match="has read 512 tokens") as caught:
        guard.check(whole, answer(512))
    shorter = guard.refit(whole, caught.value)
    assert guard.tokens_likely(INSTRUCTIONS + shorter.text) < 512


def test_a_count_without_what_was_cached_is_not_taken_for_a_cut() -> None:
    """Old servers count only what they had to read anew."""
    guard = burying()
    guard.check(guard.fit("x" * 20_000, SHORT), answer(12))


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        ("the input length exceeds the context length", (None, None)),
        ("request (8889 tokens) exceeds the available context size (4096 tokens), try increasing it", (8889, 4096)),
        ('{"error":{"message":"too long","n_prompt_tokens":8889,"n_ctx":4096}}', (8889, 4096)),
        (r"{\"n_prompt_tokens\": 8889, \"n_ctx\": 4096}", (8889, 4096)),
        ("the input length exceeds the context length: 700 tokens, and fewer than 512 fit", (700, 512)),
        ("request (99999999999999999999 tokens) exceeds", (None, None)),
    ],
)
def test_a_refusal_may_tell_the_counts(said: str, counts: tuple[int | None, int | None]) -> None:
    assert tokens_told(said) == counts


# -- cutting -----------------------------------------------------------------------------------------------------------


def test_where_cutting_is_not_wished_a_refusal_stands() -> None:
    guard, refusal = burying(), TooLong("refused", tokens=3000)
    with pytest.raises(TooLong) as caught:
        guard.refit(guard.fit(INSTRUCTIONS, LONG), refusal)
    assert caught.value is refusal


@pytest.mark.parametrize("density", [0.1, 0.25, 0.4, 1.0])
@pytest.mark.parametrize("room", [1024, 2048])
def test_a_server_that_counts_is_asked_twice_at_most(density: float, room: int) -> None:
    tried = asked(cutting(), LONG, density, counts=True, room=room)
    assert len(tried) <= 2
    assert [fitted.cuts for fitted in tried] == [0, 1][: len(tried)]


def test_a_cut_leaves_room_for_the_longest_answer_and_wastes_none() -> None:
    last = asked(cutting(), LONG, 0.25, counts=True)[-1]
    tokens = len((INSTRUCTIONS + last.text).encode()) * 0.25
    assert 0.95 * (MODEL.num_ctx - MODEL.num_predict) < tokens <= MODEL.num_ctx - MODEL.num_predict


@QUIET
@given(st.floats(0.05, 1.2), st.sampled_from([LONG, ENDLESS, "漢字" * 9000, "Zm9vYmFy" * 3000]))
def test_a_server_that_does_not_count_takes_the_text_within_the_limit_of_cuts(density: float, text: str) -> None:
    tried = asked(cutting(), text, density, counts=False)
    assert len(tried) <= 1 + CUTS_MAX
    for longer, shorter in itertools.pairwise(tried):
        assert text.startswith(shorter.text)
        assert len(shorter.text) <= len(longer.text) * 2 / 3
        assert shorter.mark == {"truncated": {"chars": len(shorter.text), "of": len(text)}}


def test_a_server_that_is_never_content_gets_a_text_that_often_and_no_more() -> None:
    guard, refusal = cutting(), TooLong("refused")
    fitted = guard.fit(INSTRUCTIONS, LONG)
    for _ in range(CUTS_MAX):
        fitted = guard.refit(fitted, refusal)
    with pytest.raises(TooLong) as caught:
        guard.refit(fitted, refusal)
    assert caught.value is refusal


def test_a_text_of_one_character_is_not_cut_to_nothing() -> None:
    guard, refusal = cutting(), TooLong("refused")
    with pytest.raises(TooLong) as caught:
        guard.refit(guard.fit(INSTRUCTIONS, "a"), refusal)
    assert caught.value is refusal


def test_a_long_answer_does_not_take_all_the_room_from_the_text() -> None:
    guard = cutting(Model(num_ctx=2048, num_predict=2000))
    assert guard.fit(INSTRUCTIONS, ENDLESS).text


@pytest.mark.parametrize(
    ("text", "bytes_max", "kept"),
    [
        ("one two three", 99, "one two three"),
        ("one two three", 13, "one two three"),
        ("one two three", 9, "one two"),
        ("one two three", 7, "one two"),
        ("one two three", 8, "one two"),
        ("one two three", 2, "on"),
        ("one two three", 0, ""),
        ("one two three", -5, ""),
        ("x" * 100, 50, "x" * 50),
        ("äöü", 3, "ä"),
        ("漢字漢字", 7, "漢字"),
        ("e\u0301e\u0301", 4, "e\u0301"),
        ("👍🏽👍🏽", 12, "👍🏽"),
        ("👨\u200d👩\u200d👧👨\u200d👩\u200d👧", 25, "👨\u200d👩\u200d👧"),
        ("👨\u200d👩\u200d👧", 12, ""),
        ("❤\ufe0f❤\ufe0f", 9, "❤\ufe0f"),
        ("🇩🇪🇫🇷", 12, "🇩🇪"),
        ("🇩🇪🇫🇷", 8, "🇩🇪"),
        ("🇩🇪", 4, ""),
    ],
)
def test_a_text_is_cut_after_a_word_or_at_least_a_whole_character(text: str, bytes_max: int, kept: str) -> None:
    assert cut_text(text, bytes_max) == kept


@QUIET
@given(st.text() | st.text("a \n\u0301\u200d👍🏽🇩🇪漢"), st.integers(-5, 200))
def test_whatever_is_cut_is_a_beginning_within_the_limit_and_splits_no_character(text: str, bytes_max: int) -> None:
    kept = cut_text(text, bytes_max)
    assert text.startswith(kept)
    assert len(kept.encode()) <= max(bytes_max, 0)
    if kept and not text[len(kept) :][:1].isspace() and len(kept) < len(text):
        assert not unicodedata.category(text[len(kept)]).startswith("M")
        assert kept[-1] != "\u200d"
