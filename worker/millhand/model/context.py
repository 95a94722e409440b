"""Keeping prompts within the model's context, and finding out when one was cut on the way."""

import re
import unicodedata
from typing import Any, Literal

import msgspec

from millhand.config import Model
from millhand.errors import Malformed
from millhand.model.answer import Answer

CUTS_MAX = 6  # calls that one event may cost before it is buried
CUT_SHARE = 2 / 3  # of the text is kept by a cut that knows nothing better
WORD_CHARS_MAX = 40  # as far back a cut looks for a blank
TOKENS_PER_BYTE = 0.3  # of text and JSON alike, before a reply has taught better
TOKENS_PER_BYTE_LEAST = 1 / 16  # no text of a natural language has fewer
LEARNED_SHARE = 0.5  # of the least density seen is sure: another language is not thinner by more
SAMPLES_MIN = 8  # before what was seen counts
MEMORY_SHARE = 0.1  # of the mean that each reply makes up
CONTEXT_TOKENS_MIN = 256  # as in the configuration; a count below it is of a prompt whose beginning was cached
RUN = re.compile(r"(.)\1{8,}", re.DOTALL)  # blanks, rulers: one token may hold a hundred

Policy = Literal["bury", "truncate_text"]


class TooLong(Malformed):
    """An event that does not fit the context. `tokens` and `room` are the server's own counts, where it gave them."""

    def __init__(self, detail: str, *, tokens: int | None = None, room: int | None = None) -> None:
        super().__init__("too_long", detail)
        self.tokens = tokens
        self.room = room


class Fitted(msgspec.Struct, frozen=True):
    """An event's text as it is put to the model: whole, or cut to `len(text)` of `whole_chars` characters."""

    text: str
    instructions: str
    whole_chars: int
    cuts: int = 0

    @property
    def prompt_bytes(self) -> int:
        """How long the instructions and the text are together, in UTF-8."""
        return _bytes(self.instructions) + _bytes(self.text)

    @property
    def mark(self) -> dict[str, Any]:
        """What `meta` says of it: nothing, if it is whole."""
        return {"truncated": {"chars": len(self.text), "of": self.whole_chars}} if self.cuts else {}


class ContextGuard:
    """Finds prompts that do not fit `model.num_ctx`, before the call and after it.

    Learns from replies how many tokens a byte of this fleet's prompts makes. One for each worker process.
    """

    def __init__(self, model: Model, policy: Policy) -> None:
        self._model = model
        self._policy = policy
        self._density = TOKENS_PER_BYTE
        self._density_least = TOKENS_PER_BYTE  # and never more: after dense prompts, plain ones must pass
        self._samples = 0

    def fit(self, instructions: str, text: str) -> Fitted:
        """Return the text to ask about: whole wherever it may fit, for the server counts better.

        Where it surely does not: raises TooLong, or cuts, as the policy says.
        """
        whole = Fitted(text, instructions, len(text))
        if not self._surely_has(self._model.num_ctx, whole):
            return whole
        likely = max(self.tokens_least(instructions + text), self.tokens_likely(instructions + text))
        error = TooLong(too_long_detail(f"about {likely}", self._model))
        return self._cut(whole, self._bytes_likely(whole, self._model.num_ctx, self._density), error)

    def refit(self, fitted: Fitted, error: TooLong) -> Fitted:
        """Return a shorter text after a refusal. Raises the refusal where the policy or the count of cuts forbids it.

        The server's own count of the tokens says where to cut, or else the mean of those seen; each further cut takes
        a third at the least.
        """
        text_bytes, prompt_bytes = _bytes(fitted.text), fitted.prompt_bytes
        if error.tokens:
            self._learn(prompt_bytes, error.tokens)
        density = error.tokens / prompt_bytes if error.tokens else self._density
        bytes_max = self._bytes_likely(fitted, min(error.room or self._model.num_ctx, self._model.num_ctx), density)
        counted = error.tokens is not None and not fitted.cuts and bytes_max < text_bytes
        return self._cut(fitted, bytes_max if counted else min(bytes_max, int(CUT_SHARE * text_bytes)), error)

    def check(self, fitted: Fitted, answer: Answer) -> None:
        """Learn from an answer. Raises TooLong where the server has read less than there surely was to read.

        It has then loaded the model with a smaller context than was asked for, and cut the prompt without a word.
        """
        if answer.tokens_in >= CONTEXT_TOKENS_MIN and self._surely_has(answer.tokens_in + 1, fitted):
            likely = self.tokens_likely(fitted.instructions + fitted.text)
            raise TooLong(
                f"{too_long_detail(f'about {likely}', self._model)}; "
                f"the server has read {answer.tokens_in} tokens of them only",
                room=answer.tokens_in,
            )
        self._learn(fitted.prompt_bytes, answer.tokens_in)

    def tokens_likely(self, prompt: str) -> int:
        """Return how many tokens a prompt makes, as a mean of those seen."""
        return int(_bytes(prompt) * self._density)

    def tokens_least(self, prompt: str) -> int:
        """Return how many tokens a prompt makes at the very least."""
        least = int(_bytes(prompt) * self._density_sure)
        if least < CONTEXT_TOKENS_MIN:  # too little to matter
            return least
        return int(_bytes(RUN.sub(lambda run: run[0][:8], prompt)) * self._density_sure)

    def _surely_has(self, tokens: int, fitted: Fitted) -> bool:
        """Whether its prompt makes so many tokens at the very least. Nearly always the bytes alone deny it."""
        if fitted.prompt_bytes * self._density_sure < tokens:
            return False
        return self.tokens_least(fitted.instructions + fitted.text) >= tokens

    @property
    def _density_sure(self) -> float:
        """Tokens per byte that any prompt has, but for its runs of one character."""
        return LEARNED_SHARE * self._density_least if self._samples >= SAMPLES_MIN else TOKENS_PER_BYTE_LEAST

    def _learn(self, prompt_bytes: int, tokens: int) -> None:
        if tokens <= 0 or not prompt_bytes:
            return
        density = tokens / prompt_bytes
        self._samples += 1
        self._density += (density - self._density) * max(MEMORY_SHARE, 1 / self._samples)
        self._density_least = min(self._density_least, density)

    def _bytes_likely(self, fitted: Fitted, room: int, density: float) -> int:
        """Return how much text fits beside the instructions and the longest answer, or half of what is left by them."""
        left = room - _bytes(fitted.instructions) * density
        return int((left - min(self._model.num_predict, left / 2)) / density)

    def _cut(self, fitted: Fitted, bytes_max: int, error: TooLong) -> Fitted:
        if self._policy != "truncate_text" or fitted.cuts == CUTS_MAX or not (text := cut_text(fitted.text, bytes_max)):
            raise error
        return Fitted(text, fitted.instructions, fitted.whole_chars, fitted.cuts + 1)


def too_long_detail(tokens: str, model: Model) -> str:
    """Say how much too long, and what to change. `tokens` is a number, or words for it."""
    return (
        f"{tokens} tokens, and model.num_ctx has room for {model.num_ctx}, the answer included: raise it, "
        'or set enrich.too_long = "truncate_text"'
    )


def was_cut(tokens_in: int, tokens_out: int, model: Model, *, ended_by_length: bool) -> bool:
    """Tell by a reply's counts that the context was too small: for the prompt, or for the answer after it.

    A server that does not know `truncate: false` cuts the prompt to the context, one that does not know `shift: false`
    drops its beginning while it answers; both say 200. One that knows them stops in the middle of the answer.
    """
    if ended_by_length:
        return tokens_out < model.num_predict and tokens_in + tokens_out >= model.num_ctx - 1
    return tokens_in >= model.num_ctx or tokens_in + tokens_out > model.num_ctx


def tokens_told(said: str) -> tuple[int | None, int | None]:
    """Return the prompt's tokens and the room for them out of a refusal; None for what it does not say."""
    tokens = re.search(r"n_prompt_tokens\W{1,6}(\d{1,9})|\((\d{1,9}) tokens\) exceeds|length: (\d{1,9}) tokens", said)
    room = re.search(r"n_ctx\W{1,6}(\d{1,9})|context size \((\d{1,9}) tokens|fewer than (\d{1,9}) fit", said)
    return _number(tokens), _number(room)


def cut_text(text: str, bytes_max: int) -> str:
    """Return the beginning of a text, at most so many bytes of UTF-8, up to the end of a word or a whole character."""
    kept = text.encode()[: max(bytes_max, 0)].decode(errors="ignore")
    if len(kept) == len(text):
        return kept
    end = len(kept)
    while end and _belongs_together(text, end):
        end -= 1
    kept = text[:end]
    if kept and not text[end].isspace() and (blank := re.search(r"\s\S*\Z", kept[-WORD_CHARS_MAX:])):
        kept = kept[: end - len(blank[0])]
    return kept.rstrip()


def _belongs_together(text: str, at: int) -> bool:
    """Whether a cut there would split what a reader sees as one character."""
    before, after = text[at - 1], text[at]
    if before == "\u200d" or after in "\u200d\ufe0e\ufe0f" or "\U0001f3fb" <= after <= "\U0001f3ff":
        return True
    if _is_flag_half(before) and _is_flag_half(after):
        halves = at
        while halves and _is_flag_half(text[halves - 1]):
            halves -= 1
        return (at - halves) % 2 == 1
    return unicodedata.category(after).startswith("M")


def _is_flag_half(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _number(found: re.Match[str] | None) -> int | None:
    return next((int(group) for group in found.groups() if group), None) if found else None
