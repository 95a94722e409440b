"""How much goes into one call: batches that the context holds, and whose answers `num_predict` holds.

All of it is estimated, since only the model's tokenizer knows. Too low a guess costs a refused call, which is then made
text by text; too high a guess costs smaller batches. For scripts that a model splits finely it can be too low.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from millhand.tasks.task import Prompt, Questions

TOKEN_BYTES = 3  # English has 4 a token, as JSON too; what is seen of answers is 3.2
MESSAGE_TOKENS = 8  # what a chat template puts around a message
NUMBER_BYTES = 24  # of a number without bounds: no double is written longer
TEXT_OVERHEAD_BYTES = len('"32":,')
MEMBER_OVERHEAD_BYTES = len('"":,')


def fits(prompt: Prompt, num_ctx: int, num_predict: int) -> bool:
    """Say whether the context has room for the prompt and a reply of `num_predict` tokens, cautiously."""
    return _prompt_tokens(prompt) + num_predict <= num_ctx


def fitting(
    questions: Questions, texts: Sequence[str], events_per_call: int, num_ctx: int, num_predict: int
) -> list[range]:
    """Cut texts, in their order, into ranges of at most `events_per_call` that can each be asked about in one call.

    A range of one text is for a call of its own, `Questions.prompt`: it may hold a text that fits nowhere.
    """
    count_max = min(events_per_call, int(num_predict / _answer_tokens(questions)))
    empty_tokens = _prompt_tokens(questions.batch([]))
    ranges: list[range] = []
    start, tokens = 0, math.inf
    for at, text in enumerate(texts):
        text_tokens = (len(msgspec.json.encode(text)) + TEXT_OVERHEAD_BYTES) / TOKEN_BYTES
        if at - start >= count_max or tokens + text_tokens + num_predict > num_ctx:
            start, tokens = at, empty_tokens
            ranges.append(range(at, at))
        tokens += text_tokens
        ranges[-1] = range(start, at + 1)
    return ranges


def answer_bytes_max(schema: Mapping[str, Any]) -> float:  # noqa: PLR0911 - a row for each kind of schema
    """Return the length of the longest answer that fits the schema, as compact JSON in ASCII; inf if there is none."""
    match schema:
        case {"enum": values}:
            return max(len(msgspec.json.encode(value)) for value in values)
        case {"anyOf": kinds}:
            return max(answer_bytes_max(kind) for kind in kinds)
        case {"type": "object", "properties": members}:
            sizes = (len(name) + MEMBER_OVERHEAD_BYTES + answer_bytes_max(member) for name, member in members.items())
            return len("{}") + sum(sizes)
        case {"type": "array", "items": dict(member), "maxItems": count}:
            return len("[]") + float(count) * (answer_bytes_max(member) + len(","))
        case {"type": "string", "maxLength": chars}:
            return len('""') + float(chars)
        case {"type": "integer", "minimum": low, "maximum": high}:
            return max(len(str(low)), len(str(high)))
        case {"type": "integer" | "number"}:
            return NUMBER_BYTES
        case {"type": "boolean" | "null"}:
            return len("false")
    return math.inf


def _answer_tokens(questions: Questions) -> float:
    return (answer_bytes_max(questions.schema) + TEXT_OVERHEAD_BYTES) / TOKEN_BYTES


def _prompt_tokens(prompt: Prompt) -> float:
    return sum(len(message.content.encode()) / TOKEN_BYTES + MESSAGE_TOKENS for message in prompt.messages)
