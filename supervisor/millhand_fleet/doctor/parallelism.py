"""How many calls a model works on at once: measured by short calls that are made together."""

import asyncio
import time
from typing import Any

import msgspec

from millhand.address import model_authorization
from millhand.config import Model
from millhand_fleet.doctor.documents import document
from millhand_fleet.doctor.facts import Parallel

CALLS = 8
TOKENS = 16  # an answer's length: long enough to overlap, short enough to be cheap
MEASURE_S = 120.0
QUESTION = "Count from one to one hundred in words."
NS_PER_S = 1e9
WAVE = 1.5  # of calls of equal work, those that end within this many times the first one's duration ran with it
SLACK = 0.1  # of a call's work: clocks and HTTP at its edges


class Call(msgspec.Struct, frozen=True):
    """One call. `work_s` is how long the model had it in work by its own account, None where it gives none."""

    began_s: float
    ended_s: float
    work_s: float | None = None


async def measure(url: str, model: Model) -> Parallel:
    """Make one call to warm up, one alone, and some at once. Raises NoDocument."""
    await _call(url, model, 0)
    lone = await _call(url, model, 1)
    began_s = time.monotonic()
    calls = await asyncio.gather(*(_call(url, model, number) for number in range(2, CALLS + 2)))
    return Parallel(CALLS, at_once(calls), lone.ended_s - lone.began_s, max(c.ended_s for c in calls) - began_s)


def at_once(calls: list[Call]) -> int:
    """Return how many of the calls were in work at the same time.

    By the model's own account of its work where every reply has one; otherwise the first wave is counted.
    """
    works = [call.work_s for call in calls]
    if all(work_s for work_s in works):
        spans = [(c.ended_s - (c.work_s or 0.0) * (1 - SLACK), c.ended_s - (c.work_s or 0.0) * SLACK) for c in calls]
        return max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans)
    first_s = min(call.ended_s - call.began_s for call in calls)
    return sum(call.ended_s - call.began_s <= WAVE * first_s for call in calls)


async def _call(url: str, model: Model, number: int) -> Call:
    began_s = time.monotonic()
    reply = await document(
        url, "/api/chat", timeout_s=MEASURE_S, body=_request(model, number), login=model_authorization(model)
    )
    ended_s = time.monotonic()
    work_ns = [reply.get(name) for name in ("prompt_eval_duration", "eval_duration")]
    told = sum(part for part in work_ns if isinstance(part, int))
    return Call(began_s, ended_s, told / NS_PER_S if told > 0 else None)


def _request(model: Model, number: int) -> dict[str, Any]:
    """Ask with the fleet's own num_ctx, or the model would be loaded anew for this; each call a little differently."""
    return {
        "model": model.name,
        "messages": [{"role": "user", "content": f"{QUESTION} ({number})"}],
        "stream": False,
        "options": {"num_ctx": model.num_ctx, "num_predict": TOKENS, "temperature": 0.0, "seed": number},
        **({"keep_alive": model.keep_alive} if model.keep_alive else {}),
    }
