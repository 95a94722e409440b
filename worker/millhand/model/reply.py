"""Ollama's reply to a question, read strictly: only what is complete is an answer."""

from typing import Any

import msgspec

from millhand.config import Model
from millhand.errors import clip
from millhand.model.answer import Answer
from millhand.model.context import too_long_detail, was_cut
from millhand.model.failures import ERROR_INSIDE_200, Seen, failure, seen_in

NS_PER_S = 1e9
WIRE_S = 0.05  # of connecting, sending and receiving, which is no waiting for a turn


class Message(msgspec.Struct, frozen=True):
    """What the model says."""

    content: str = ""


class Reply(msgspec.Struct, frozen=True):
    """The members of a reply that matter here; Ollama sends more. Durations in ns."""

    message: Message = Message()
    done: bool = False
    done_reason: str = ""
    error: Any = None
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0


def answer_in(body: bytes, model: Model, wall_s: float) -> Answer:
    """Return the answer in the body of a 200 that took `wall_s`. Raises what `failures` makes of anything else."""
    try:
        reply = msgspec.json.decode(body, type=Reply)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise failure(Seen.NOT_OLLAMAS, f"the reply is not Ollama's: {error}") from error
    if reply.error is not None:
        said = clip(str(reply.error))
        seen = seen_in(ERROR_INSIDE_200, said, in_json=True)
        raise failure(Seen.ERROR_INSIDE if seen is Seen.FAILED else seen, f"an error inside a 200: {said}")
    if not reply.done:
        raise failure(Seen.NOT_DONE, "done is not true")
    if reply.done_reason in {"stop", "length"}:
        _require_whole(reply, model)
        return Answer(
            reply.message.content,
            reply.prompt_eval_count,
            reply.eval_count,
            reply.total_duration / NS_PER_S,
            queue_s(reply, wall_s),
        )
    seen = Seen.ONLY_LOADED if reply.done_reason in {"load", "unload"} else Seen.NOT_STOPPED
    raise failure(seen, f"done_reason {clip(reply.done_reason, 40)!r}, not stop")


def queue_s(reply: Reply, wall_s: float) -> float:
    """Return how long a call waited for its turn, by its reply; 0 where the reply does not tell.

    Ollama's total runs from the arrival of the request, its other durations are the work: between them lies the wait
    for one of its places. A proxy that queues shows only in the time on our side. Some releases leave the sampling out
    of the work: the gate learns how much that is (lua/leave.lua).
    """
    total_s = reply.total_duration / NS_PER_S
    if total_s <= 0:
        return 0.0
    waits_s = [0.0, wall_s - total_s - WIRE_S]
    if reply.prompt_eval_duration or reply.eval_duration:
        waits_s.append(total_s - (reply.load_duration + reply.prompt_eval_duration + reply.eval_duration) / NS_PER_S)
    return max(waits_s)


def _require_whole(reply: Reply, model: Model) -> None:
    tokens_in, tokens_out = reply.prompt_eval_count, reply.eval_count
    ended_by_length = reply.done_reason == "length"
    if was_cut(tokens_in, tokens_out, model, ended_by_length=ended_by_length):
        counted = tokens_in if tokens_in < model.num_ctx else None
        what = f"{tokens_in} tokens and an answer" if counted else f"{tokens_in} or more"
        raise failure(Seen.PROMPT_CUT, too_long_detail(what, model), tokens=counted)
    if ended_by_length:
        raise failure(Seen.CUT_OFF, f"cut off after {tokens_out} tokens")
