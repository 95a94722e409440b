"""What a call of the model comes to instead of an answer, sorted once: a row for each thing that can be seen.

Three questions sort them. Can this event be the cause (then an attempt is spent, or the call counts as lost)? Is the
server at fault for everybody (then it is a strike, or the fleet pauses)? Does only a person cure it (then the door
closes at once)? Whatever was sent and *may* be this event's doing is `lost` at the least: an event that is always
refused while its neighbours pass is buried in the end, and does not close the door for ever.
"""

import re
from collections.abc import Mapping
from enum import StrEnum, auto

import msgspec

from millhand.errors import BadAnswer, Malformed, Misconfigured, ModelAway, ModelBusy, Reasoned
from millhand.model.context import TooLong

SERVER_ERROR = 500
ERROR_INSIDE_200 = SERVER_ERROR  # an error that comes after the status line reads as it would have before it


class Seen(StrEnum):
    """What was seen of a call that came to no answer."""

    # the connection
    UNREACHABLE = auto()
    UNKNOWN_HOST = auto()
    CONNECT_TIMEOUT = auto()
    POOL_FULL = auto()
    NO_TLS = auto()
    RESET = auto()
    NO_HTTP = auto()
    TIMEOUT = auto()
    # a reply with status 200
    BROKEN_OFF = auto()
    ENCODED = auto()
    TOO_MANY_BYTES = auto()
    NOT_OLLAMAS = auto()
    NOT_DONE = auto()
    ONLY_LOADED = auto()
    NOT_STOPPED = auto()
    CUT_OFF = auto()
    PROMPT_CUT = auto()
    ERROR_INSIDE = auto()
    # another status
    TOO_LONG = auto()
    REJECTED = auto()
    SETTINGS = auto()
    NO_KEY = auto()
    FORBIDDEN = auto()
    MODEL_MISSING = auto()
    PATH_MISSING = auto()
    REDIRECT = auto()
    OTHER_SERVER = auto()
    ABANDONED = auto()
    BUSY = auto()
    LOADING = auto()
    FAILED = auto()
    REPEATING = auto()
    NO_MEMORY = auto()
    RUNNER_DIED = auto()
    GATEWAY = auto()


class Row(msgspec.Struct, frozen=True):
    """How a thing is sorted: the kind of error and its reason, why so, and what a person may change."""

    kind: type[Reasoned]
    reason: str
    why: str
    strikes: bool = False
    lost: bool = False
    change: str = ""


TABLE: Mapping[Seen, Row] = {
    Seen.UNREACHABLE: Row(ModelAway, "model_unreachable", "nobody listens there, so nothing was sent"),
    Seen.UNKNOWN_HOST: Row(
        ModelAway, "model_unreachable", "a name server may come back", change="check the host in model.url"
    ),
    Seen.CONNECT_TIMEOUT: Row(ModelAway, "model_unreachable", "nothing was sent"),
    Seen.POOL_FULL: Row(ModelAway, "model_unreachable", "our own connections are all taken; nothing was sent"),
    Seen.NO_TLS: Row(
        Misconfigured, "model_unreachable", "certificates do not mend themselves", change="check model.url: TLS fails"
    ),
    Seen.RESET: Row(ModelAway, "model_unreachable", "the server died, perhaps of this event", lost=True),
    Seen.NO_HTTP: Row(
        Misconfigured, "model_refuses", "another service listens there", lost=True, change="check model.url"
    ),
    Seen.TIMEOUT: Row(BadAnswer, "timeout", "this event is slow, or the server hangs", strikes=True),
    Seen.BROKEN_OFF: Row(BadAnswer, "invalid_answer", "the envelope is the server's", strikes=True),
    Seen.ENCODED: Row(BadAnswer, "invalid_answer", "the envelope is the server's", strikes=True),
    Seen.TOO_MANY_BYTES: Row(BadAnswer, "answer_too_long", "the content is the model's"),
    Seen.NOT_OLLAMAS: Row(BadAnswer, "invalid_answer", "the envelope is the server's", strikes=True),
    Seen.NOT_DONE: Row(BadAnswer, "invalid_answer", "the envelope is the server's", strikes=True),
    Seen.ONLY_LOADED: Row(BadAnswer, "invalid_answer", "the server did not take the question", strikes=True),
    Seen.NOT_STOPPED: Row(BadAnswer, "invalid_answer", "the content is the model's"),
    Seen.CUT_OFF: Row(BadAnswer, "answer_too_long", "the content is the model's", change="raise model.num_predict"),
    Seen.PROMPT_CUT: Row(TooLong, "too_long", "an answer about a part of the event passes for one about all of it"),
    Seen.ERROR_INSIDE: Row(BadAnswer, "model_error", "as a 500", strikes=True),
    Seen.TOO_LONG: Row(TooLong, "too_long", "no retry makes it shorter"),
    Seen.REJECTED: Row(Malformed, "rejected", "the same request is refused again"),
    Seen.SETTINGS: Row(
        Misconfigured,
        "model_refuses",
        "it stands in every request, and would bury every event",
        lost=True,
        change="check [model] and the tasks",
    ),
    Seen.NO_KEY: Row(
        Misconfigured, "model_refuses", "it asks for a key or for money", change="model.url wants credentials"
    ),
    Seen.FORBIDDEN: Row(
        Misconfigured, "model_refuses", "no permission, or a filter that dislikes this text", lost=True
    ),
    Seen.MODEL_MISSING: Row(Misconfigured, "model_missing", "no event is the cause of it"),
    Seen.PATH_MISSING: Row(
        Misconfigured, "model_refuses", "no Ollama", lost=True, change="check model.url: this is no Ollama"
    ),
    Seen.REDIRECT: Row(
        Misconfigured,
        "model_refuses",
        "events go to the configured address only",
        lost=True,
        change="set model.url to where it redirects",
    ),
    Seen.OTHER_SERVER: Row(
        Misconfigured, "model_refuses", "no Ollama says so", lost=True, change="check model.url: this is no Ollama"
    ),
    Seen.ABANDONED: Row(
        ModelAway, "model_unreachable", "the server gave this call up, perhaps for its size", lost=True
    ),
    Seen.BUSY: Row(ModelBusy, "model_busy", "it turns callers away, whoever they are"),
    Seen.LOADING: Row(ModelBusy, "model_busy", "as a 503, which is what it should have been"),
    Seen.FAILED: Row(BadAnswer, "model_error", "this event, or the server, is at fault", strikes=True),
    Seen.REPEATING: Row(BadAnswer, "invalid_answer", "the content is the model's; another seed may help"),
    Seen.NO_MEMORY: Row(
        ModelAway,
        "model_error",
        "the model was not loaded, so no event was read",
        change="free memory, or choose a smaller model or model.num_ctx",
    ),
    Seen.RUNNER_DIED: Row(ModelAway, "model_error", "as a reset: the server died, perhaps of this event", lost=True),
    Seen.GATEWAY: Row(ModelAway, "model_unreachable", "as a reset, in a proxy's words", lost=True),
}

STATUSES: Mapping[int, Seen] = {
    **dict.fromkeys((301, 302, 303, 307, 308), Seen.REDIRECT),
    **dict.fromkeys((400, 413, 422), Seen.REJECTED),
    **dict.fromkeys((401, 402, 407), Seen.NO_KEY),
    403: Seen.FORBIDDEN,
    404: Seen.PATH_MISSING,
    **dict.fromkeys((408, 425, 499), Seen.ABANDONED),
    **dict.fromkeys((429, 503, 529), Seen.BUSY),
    **dict.fromkeys((501, 505, 511, 525, 526), Seen.OTHER_SERVER),
    **dict.fromkeys((502, 504, 520, 521, 522, 523, 524), Seen.GATEWAY),
}

_REQUEST = frozenset({400, 413, 422, SERVER_ERROR})
_TOO_LONG = (
    r"exceed_context|context_length_exceeded|(exceeds|longer than) the (available |model's |maximum )?context"
    r"|maximum context length|context the overflows"
)
_SETTINGS = (
    r"^time: |invalid duration|does not support|^option \"|invalid (options?|format|model name)\b"
    r"|cannot unmarshal|json schema|grammar"
)
_DIED = (
    r"has terminated|no longer running|unexpectedly stopped|unexpected EOF|forcibly closed|out of memory"
    r"|cudaMalloc|(unable|failed) to allocate"
)
_SAYINGS = tuple(
    (statuses, re.compile(pattern, re.IGNORECASE), seen)
    for statuses, pattern, seen in (
        (_REQUEST, _TOO_LONG, Seen.TOO_LONG),
        (_REQUEST, _SETTINGS, Seen.SETTINGS),
        ({404}, r"model .*not found|no such model", Seen.MODEL_MISSING),
        ({SERVER_ERROR}, r"requires more (system )?memory|out-of-memory during startup", Seen.NO_MEMORY),
        ({SERVER_ERROR}, r"loading model|not responding|waiting for \S+( \S+)? to start", Seen.LOADING),
        ({SERVER_ERROR}, r"token repeat limit", Seen.REPEATING),
        ({SERVER_ERROR}, _DIED, Seen.RUNNER_DIED),
    )
)


def seen_in(status: int, said: str, *, in_json: bool) -> Seen:
    """Return what a status and the words with it mean. `in_json`: they came as Ollama's own errors do."""
    for statuses, pattern, seen in _SAYINGS:
        if status in statuses and in_json and pattern.search(said):
            return seen
    if status == 400 and not in_json:  # noqa: PLR2004 - "plain HTTP was sent to an HTTPS port", and its like
        return Seen.OTHER_SERVER
    return STATUSES.get(status, Seen.FAILED if status >= SERVER_ERROR else Seen.OTHER_SERVER)


def failure(
    seen: Seen, detail: str, *, wait_s: float | None = None, tokens: int | None = None, room: int | None = None
) -> Reasoned:
    """Make the error for what was seen. The numbers are the server's: how long it is busy, and what was too long."""
    row = TABLE[seen]
    detail = f"{detail}; {row.change}" if row.change else detail
    if row.kind is ModelBusy:
        return ModelBusy(detail, wait_s)
    if row.kind is TooLong:
        return TooLong(detail, tokens=tokens, room=room)
    return row.kind(row.reason, detail, **_marks(row))


def _marks(row: Row) -> dict[str, bool]:
    if issubclass(row.kind, BadAnswer):
        return {"strikes": row.strikes}
    return {"lost": row.lost} if issubclass(row.kind, ModelAway) else {}
