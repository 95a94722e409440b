"""What the fake's model says to a request: one answer, or one for each text of a batch."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from scripts.fake.answers import instance
from scripts.fake.orders import HONEST, ForCall, Script
from scripts.fake.wire import NDJSON, Reply, error_reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scripts.fake.journal import Call

TOKEN_CHARS = 4
CONTEXT_TOKENS = 4096  # Ollama's own default for num_ctx
GARBAGE = "Sure! Here is your JSON: {"
UNEXPECTED = '{"unexpected": [1, 2, 3]}'
PROSE = {"type": "string", "minLength": 20}


class _Message(msgspec.Struct):
    role: str
    content: str = ""


class _Options(msgspec.Struct):
    num_ctx: int = CONTEXT_TOKENS
    num_predict: int = -1


class Ask(msgspec.Struct):
    """The members of a request that decide its answer."""

    model: str
    messages: list[_Message] = []
    prompt: str = ""
    stream: bool = True
    format: dict[str, Any] | str | None = None
    options: _Options = msgspec.field(default_factory=_Options)
    truncate: bool = True

    @property
    def text(self) -> str:
        """What the user said first: the rest is about it."""
        return self.prompt or next((m.content for m in self.messages if m.role == "user"), "")

    @property
    def schema(self) -> dict[str, Any]:
        """What the answer must fit."""
        return self.format if isinstance(self.format, dict) else PROSE


class _Batch(msgspec.Struct, forbid_unknown_fields=True):
    texts: dict[str, str]


def members_of(ask: Ask) -> dict[str, str]:
    """Return the texts of a batch by their numbers; none unless the schema has a property for each, and no other."""
    try:
        texts = msgspec.json.decode(ask.text, type=_Batch).texts
    except (ValueError, RecursionError):
        return {}
    numbers = {str(number) for number in range(1, len(texts) + 1)}
    return texts if set(texts) == set(ask.schema.get("properties", {})) == numbers else {}


def answer(call: Call, ask: Ask, orders: ForCall, loaded_s: float) -> Reply:
    """Answer a call that has had its slot, with Ollama's durations in nanoseconds.

    `load_duration` lasts from its arrival until the model was loaded, evaluation as long as it had the slot, and
    `total_duration` from its arrival until now: what is missing between them was the wait for the slot.
    """
    script = orders.script
    prompt_tokens = 1 + sum(len(m.content) for m in ask.messages) // TOKEN_CHARS + len(ask.prompt) // TOKEN_CHARS
    if prompt_tokens > ask.options.num_ctx and not (ask.truncate or script.truncates):
        return error_reply(400, "the input length exceeds the context length")
    content = _content(ask, orders)
    tokens = 1 + len(content) // TOKEN_CHARS
    tokens_max = tokens // 2 if script.length else ask.options.num_predict
    cut = 0 <= tokens_max < tokens
    content = content[: tokens_max * TOKEN_CHARS] if cut else content
    now_s = time.monotonic()
    work_ns = int((now_s - (call.started_s or now_s)) * 1e9)
    final: dict[str, object] = {"done": True, "done_reason": "length" if cut else "stop"}
    final |= {"total_duration": int((now_s - call.arrival_s) * 1e9)}
    final |= {"load_duration": int(max(0.0, loaded_s - call.arrival_s) * 1e9)}
    final |= {"prompt_eval_count": min(prompt_tokens, ask.options.num_ctx), "prompt_eval_duration": work_ns // 5}
    final |= {"eval_count": tokens_max if cut else tokens, "eval_duration": work_ns - work_ns // 5}
    return _told(call.path, ask, script, content, final)


def _told(path: str, ask: Ask, script: Script, content: str, final: Mapping[str, object]) -> Reply:
    def part(words: str, end: Mapping[str, object]) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": words}} if path == "/api/chat" else {"response": words}
        return {"model": ask.model, "created_at": datetime.now(UTC).isoformat(), **said, **end}

    going_on = {"done": False}
    words = re.findall(r"\s*\S+\s*", content) if ask.stream else []
    parts = [part(word, going_on) for word in words]
    parts.append(part("" if ask.stream else content, going_on if script.not_done else final))
    if script.error_in_200:
        parts[-1] = {"error": "the model runner has stopped"}
    lines = b"\n".join(msgspec.json.encode(each) for each in parts)
    return Reply(200, lines, NDJSON) if ask.stream else Reply(200, lines)


def _content(ask: Ask, orders: ForCall) -> str:
    """Orders of the call itself are about all that the model says, those of a member about its value alone."""
    script, texts = orders.script, members_of(ask)
    if script.empty:
        return ""
    if script.garbage:
        return GARBAGE
    if script.wrong_schema:
        return UNEXPECTED
    if isinstance(script.reply, str):
        return script.reply
    if texts and script.reply is None:
        told = {number: orders.members.get(number, HONEST) for number in texts}
        schemas = {number: _alone(ask.schema, number) for number in texts}
        value: Any = {n: _value(schemas[n], text, told[n]) for n, text in texts.items() if not told[n].empty}
    else:
        value = _value(ask.schema, ask.text, script)
    return str(value) if ask.format is None and isinstance(value, str) else msgspec.json.encode(value).decode()


def _value(schema: Mapping[str, Any], text: str, script: Script) -> Any:
    if script.garbage:
        return GARBAGE
    if script.wrong_schema:
        return json.loads(UNEXPECTED)
    return instance(schema, text) if script.reply is None else script.reply


def _alone(schema: Mapping[str, Any], number: str) -> dict[str, Any]:
    """Return a member's schema as it would be sent for its text alone: with the definitions that it refers to."""
    definitions = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    return {**definitions, **schema["properties"][number]}
