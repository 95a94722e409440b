"""What a call of the model comes to instead of an answer, row by row, against a server that sends bytes as told."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import httpx
import pytest
from tests.rig import HOST, NOBODY

from millhand.config import Model
from millhand.errors import BadAnswer, Malformed, Misconfigured, ModelAway, ModelBusy, Reasoned
from millhand.model.context import TooLong
from millhand.model.failures import STATUSES, TABLE, Seen, failure, seen_in
from millhand.model.ollama import OllamaModel
from millhand.tasks.task import Prompt
from millhand.verdict import Bury, Delivery, Failed, Policy, Reason, Retry, judge

PROMPT = Prompt(system="describe", user="hello", schema={"type": "object"})
NAME = "tiny:1b"
NO_TLS = "https:"
SHORT_S, LONG_S = 0.3, 20.0  # of what must run out, and of what must not
REPLY_BYTES_MAX = 65_536
POLICY = Policy(retries=3, backoff_s=1.0, backoff_max_s=60.0, age_max_s=3600.0)
GOOD: dict[str, Any] = {"message": {"content": "{}"}, "done": True, "done_reason": "stop"}
RELOAD = "request (8889 tokens) exceeds the available context size (2048 tokens), try increasing it"
TYPED = json.dumps({"error": {"code": 400, "message": RELOAD, "n_prompt_tokens": 8889, "n_ctx": 2048}})
DIED = "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error"

Conduct = Callable[[asyncio.StreamWriter], Awaitable[None]]


def wire(status: int, body: object = b"", *headers: str, length: int | None = None) -> bytes:
    """Spell a reply. A body that is not bytes is sent as JSON, under its true length if no other is given."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(content) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + content


def said(status: int, error: str, *headers: str) -> bytes:
    return wire(status, {"error": error}, *headers)


def page(status: int, *headers: str) -> bytes:
    return wire(status, b"<html>not what you wanted</html>", "Content-Type: text/html", *headers)


def good(**other: Any) -> bytes:
    return wire(200, GOOD | other)


def reset_after(beginning: bytes) -> Conduct:
    async def conduct(writer: asyncio.StreamWriter) -> None:
        writer.write(beginning)
        await writer.drain()
        at_once = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        writer.transport.abort()

    return conduct


def stall_after(beginning: bytes) -> Conduct:
    async def conduct(writer: asyncio.StreamWriter) -> None:
        writer.write(beginning)
        await writer.drain()
        await asyncio.Event().wait()

    return conduct


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(wire(200, length=60_000))
    while not writer.is_closing():
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(SHORT_S / 20)


def caused(error: httpx.TransportError, cause: OSError | UnicodeError) -> httpx.TransportError:
    error.__cause__ = cause
    return error


class Case(NamedTuple):
    """What a server does, and all that follows from it."""

    name: str
    does: bytes | Conduct | str | httpx.TransportError
    seen: Seen
    kind: type[Reasoned]
    reason: str
    marks: str  # of strikes, lost
    spent: str  # nothing, attempt, event
    told: str  # the gate: nothing, strike, pause, open
    wait_s: float | None = None
    timeout_s: float = LONG_S


UNREACHABLE = (ModelAway, "model_unreachable", "", "nothing", "strike")
LOST = (ModelAway, "model_unreachable", "lost", "nothing", "strike")
DEAD = (ModelAway, "model_error", "lost", "nothing", "strike")
LATE = (BadAnswer, "timeout", "strikes", "attempt", "strike")
ENVELOPE = (BadAnswer, "invalid_answer", "strikes", "attempt", "strike")
CONTENT = (BadAnswer, "invalid_answer", "", "attempt", "nothing")
ENDLESS = (BadAnswer, "answer_too_long", "", "attempt", "nothing")
ERROR = (BadAnswer, "model_error", "strikes", "attempt", "strike")
LENGTH = (TooLong, "too_long", "", "event", "nothing")
REFUSED = (Malformed, "rejected", "", "event", "nothing")
BUSY = (ModelBusy, "model_busy", "", "nothing", "pause")
MISSING = (Misconfigured, "model_missing", "", "nothing", "open")
NO_KEY = (Misconfigured, "model_refuses", "", "nothing", "open")
WRONG = (Misconfigured, "model_refuses", "lost", "nothing", "open")

CONNECTIONS = [
    Case("connection refused", NOBODY, Seen.UNREACHABLE, *UNREACHABLE),
    Case("unknown host", caused(httpx.ConnectError("x"), socket.gaierror()), Seen.UNKNOWN_HOST, *UNREACHABLE),
    Case("no host's name", caused(httpx.ConnectError("x"), UnicodeError()), Seen.UNKNOWN_HOST, *UNREACHABLE),
    Case("no connection in time", httpx.ConnectTimeout("x"), Seen.CONNECT_TIMEOUT, *UNREACHABLE),
    Case("all connections taken", httpx.PoolTimeout("x"), Seen.POOL_FULL, *UNREACHABLE),
    Case("TLS with a plain server", NO_TLS, Seen.NO_TLS, Misconfigured, "model_unreachable", "", "nothing", "open"),
    Case("hung up without a byte", b"", Seen.RESET, *LOST),
    Case("reset without a byte", reset_after(b""), Seen.RESET, *LOST),
    Case("reset in the head", reset_after(b"HTTP/1.1 200"), Seen.RESET, *LOST),
    Case("reset in the body", reset_after(wire(200, b"{", length=99)), Seen.RESET, *LOST),
    Case("reset while sending", httpx.WriteError("x"), Seen.RESET, *LOST),
    Case("not HTTP at all", b"220 mail.test ready\r\n\r\n", Seen.NO_HTTP, *WRONG),
    Case("a header of 200 KB", wire(200, GOOD, "X: " + "x" * 200_000), Seen.NO_HTTP, *WRONG),
    Case("silence", stall_after(b""), Seen.TIMEOUT, *LATE, timeout_s=SHORT_S),
    Case("a stall in the body", stall_after(wire(200, b"{", length=99)), Seen.TIMEOUT, *LATE, timeout_s=SHORT_S),
    Case("a byte now and then", drip, Seen.TIMEOUT, *LATE, timeout_s=SHORT_S),
    Case("sending does not end", httpx.WriteTimeout("x"), Seen.TIMEOUT, *LATE),
    Case("only 'continue', for ever", stall_after(b"HTTP/1.1 100 Go\r\n\r\n"), Seen.TIMEOUT, *LATE, timeout_s=SHORT_S),
]
REPLIES = [
    Case("no body", wire(200), Seen.NOT_OLLAMAS, *ENVELOPE),
    Case("no JSON", page(200), Seen.NOT_OLLAMAS, *ENVELOPE),
    Case("JSON of another shape", wire(200, [1]), Seen.NOT_OLLAMAS, *ENVELOPE),
    Case("half a body, then closed", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{", Seen.NOT_OLLAMAS, *ENVELOPE),
    Case("Content-Length too short", wire(200, GOOD, length=9), Seen.NOT_OLLAMAS, *ENVELOPE),
    Case("Content-Length too long", wire(200, GOOD, length=9999), Seen.BROKEN_OFF, *ENVELOPE),
    Case("bad gzip", wire(200, b"\x1f\x8b", "Content-Encoding: gzip"), Seen.ENCODED, *ENVELOPE),
    Case("ten megabytes of blanks", wire(200, b" " * 10_000_000), Seen.TOO_MANY_BYTES, *ENDLESS),
    Case("an empty object", wire(200, {}), Seen.NOT_DONE, *ENVELOPE),
    Case("done: false", good(done=False), Seen.NOT_DONE, *ENVELOPE),
    Case("done_reason load", good(done_reason="load"), Seen.ONLY_LOADED, *ENVELOPE),
    Case("done_reason unload", good(done_reason="unload"), Seen.ONLY_LOADED, *ENVELOPE),
    Case("done_reason of another kind", good(done_reason="content_filter"), Seen.NOT_STOPPED, *CONTENT),
    Case("cut off by num_predict", good(done_reason="length", eval_count=512), Seen.CUT_OFF, *ENDLESS),
    Case(
        "cut off by num_ctx",
        good(done_reason="length", prompt_eval_count=2000, eval_count=48),
        Seen.PROMPT_CUT,
        *LENGTH,
    ),
    Case("prompt cut to num_ctx", good(prompt_eval_count=2048, eval_count=9), Seen.PROMPT_CUT, *LENGTH),
    Case("prompt pushed out by the answer", good(prompt_eval_count=2000, eval_count=90), Seen.PROMPT_CUT, *LENGTH),
    Case("an error in a 200", wire(200, {"error": "oh no"}), Seen.ERROR_INSIDE, *ERROR),
    Case("a dead runner in a 200", wire(200, {"error": DIED}), Seen.RUNNER_DIED, *DEAD),
    Case("too long, in a 200", wire(200, {"error": RELOAD}), Seen.TOO_LONG, *LENGTH),
]
REFUSALS = [
    *(Case(f"{s}", page(s, "Location: /else"), Seen.REDIRECT, *WRONG) for s in (301, 302, 303, 307, 308)),
    Case("400", said(400, "invalid message"), Seen.REJECTED, *REFUSED),
    Case("400, length", said(400, "the input length exceeds the context length"), Seen.TOO_LONG, *LENGTH),
    Case("400, length and counts", said(400, TYPED), Seen.TOO_LONG, *LENGTH),
    Case(
        "400, length without shift",
        said(400, "the prompt is longer than the context length currently available to the model"),
        Seen.TOO_LONG,
        *LENGTH,
    ),
    Case("400, keep_alive", said(400, 'time: unknown unit " min" in duration "5 min"'), Seen.SETTINGS, *WRONG),
    Case("400, no chat model", said(400, '"embed:1b" does not support chat'), Seen.SETTINGS, *WRONG),
    Case("400, schema", said(400, "invalid JSON schema in format"), Seen.SETTINGS, *WRONG),
    Case(
        "400 of an HTTPS port", wire(400, b"Client sent an HTTP request to an HTTPS server."), Seen.OTHER_SERVER, *WRONG
    ),
    Case("401", said(401, "unauthorized"), Seen.NO_KEY, *NO_KEY),
    Case("402", page(402), Seen.NO_KEY, *NO_KEY),
    Case("407", page(407), Seen.NO_KEY, *NO_KEY),
    Case("403", page(403), Seen.FORBIDDEN, *WRONG),
    Case("404, model", said(404, f"model '{NAME}' not found"), Seen.MODEL_MISSING, *MISSING),
    Case(
        "404, older words", said(404, f"model {NAME!r} not found, try pulling it first"), Seen.MODEL_MISSING, *MISSING
    ),
    Case("404, page", wire(404, b"404 page not found"), Seen.PATH_MISSING, *WRONG),
    Case("404, JSON of others", said(404, "no such route"), Seen.PATH_MISSING, *WRONG),
    *(Case(f"{s}", page(s), Seen.ABANDONED, *LOST) for s in (408, 425, 499)),
    *(Case(f"{s}", page(s), Seen.REJECTED, *REFUSED) for s in (413, 422)),
    Case("429", page(429), Seen.BUSY, *BUSY),
    Case("429, Retry-After", page(429, "Retry-After: 17"), Seen.BUSY, *BUSY, wait_s=17),
    Case(
        "503, Retry-After",
        page(503, "Retry-After: Sunday, 06-Nov-94 08:49:37 GMT", "Date: Sun Nov  6 08:49:07 1994"),
        Seen.BUSY,
        *BUSY,
        wait_s=30,
    ),
    Case("503", said(503, "server busy, please try again.  maximum pending requests exceeded"), Seen.BUSY, *BUSY),
    Case("529", page(529), Seen.BUSY, *BUSY),
    Case("500", said(500, "something failed"), Seen.FAILED, *ERROR),
    Case("500, page", page(500), Seen.FAILED, *ERROR),
    Case("500, length", said(500, "the input length exceeds the context length"), Seen.TOO_LONG, *LENGTH),
    Case(
        "500, memory",
        said(500, "model requires more system memory (10.9 GiB) than is available (5.1 GiB)"),
        Seen.NO_MEMORY,
        ModelAway,
        "model_error",
        "",
        "nothing",
        "strike",
    ),
    Case("500, dead runner", said(500, DIED), Seen.RUNNER_DIED, *DEAD),
    Case("500, killed", said(500, "llama runner process has terminated: signal: killed"), Seen.RUNNER_DIED, *DEAD),
    Case("500, GPU memory", said(500, "CUDA error: out of memory"), Seen.RUNNER_DIED, *DEAD),
    Case("500, loading", said(500, "unexpected server status: llm server loading model"), Seen.LOADING, *BUSY),
    Case("500, start", said(500, "timed out waiting for llama runner to start - progress 0.28"), Seen.LOADING, *BUSY),
    Case("500, loop", said(500, "prediction aborted, token repeat limit reached"), Seen.REPEATING, *CONTENT),
    *(Case(f"{s}", page(s), Seen.GATEWAY, *LOST) for s in (502, 504, 520, 521, 522, 523, 524)),
    *(Case(f"{s}", page(s), Seen.FAILED, *ERROR) for s in (507, 508)),
    *(Case(f"{s}", page(s), Seen.OTHER_SERVER, *WRONG) for s in (501, 505, 511, 525, 526)),
    *(
        Case(f"{s}", page(s), Seen.OTHER_SERVER, *WRONG)
        for s in (405, 406, 409, 410, 411, 414, 415, 421, 426, 431, 451)
    ),
    *(Case(f"{s}", wire(s, GOOD), Seen.OTHER_SERVER, *WRONG) for s in (201, 202, 206, 300)),
    *(Case(f"{s}", wire(s), Seen.OTHER_SERVER, *WRONG) for s in (204, 205, 304)),
]
CASES = [*CONNECTIONS, *REPLIES, *REFUSALS]
EACH_CASE = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])

Fail = Callable[[Case], Awaitable[Reasoned]]


@contextlib.asynccontextmanager
async def served(does: bytes | Conduct, *, unasked: bool = False) -> AsyncIterator[str]:
    """Do so with every request, or without one; what still goes on in the end is broken off."""
    at_work: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at_work.add(task := asyncio.current_task() or pytest.fail("not in a task"))
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            if not unasked:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
            if isinstance(does, bytes):
                writer.write(does)
                await writer.drain()
            else:
                await does(writer)
        writer.close()
        at_work.discard(task)

    async with await asyncio.start_server(serve, HOST, 0) as server:
        yield f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
        for task in at_work:
            task.cancel()
        await asyncio.gather(*at_work, return_exceptions=True)


@pytest.fixture
def fail() -> Fail:
    """Ask a server that does as the case says, and return what the call comes to."""

    async def asked(url: str, timeout_s: float, transport: httpx.AsyncBaseTransport | None = None) -> Reasoned:
        settings = Model(url=url, name=NAME, timeout_s=timeout_s, reply_bytes_max=REPLY_BYTES_MAX)
        model = OllamaModel(settings, transport)
        with pytest.raises(Reasoned) as caught:
            await model.generate(PROMPT)
        await model.close()
        return caught.value

    async def failed(case: Case) -> Reasoned:
        if isinstance(case.does, httpx.TransportError):
            error = case.does

            def raising(_: httpx.Request) -> httpx.Response:
                raise error

            return await asked(NOBODY, case.timeout_s, httpx.MockTransport(raising))
        if case.does is NOBODY:
            return await asked(NOBODY, case.timeout_s)
        if case.does is NO_TLS:
            async with served(b"220 mail.test ready\r\n", unasked=True) as url:
                return await asked(url.replace("http:", NO_TLS), case.timeout_s)
        assert not isinstance(case.does, str)
        async with served(case.does) as url:
            return await asked(url, case.timeout_s)

    return failed


def told(error: Reasoned) -> str:
    """Return what the gate makes of an error."""
    match error:
        case Misconfigured():
            return "open"
        case ModelBusy():
            return "pause"
        case ModelAway() | BadAnswer(strikes=True):
            return "strike"
    return "nothing"


def spent(error: Reasoned) -> str:
    """Return what an error costs its event; what costs something has its reason in the dead letter."""
    if isinstance(error, ModelAway):
        return "nothing"
    first, last = (Delivery("1-0", {}, "host:w1:ab", 1, attempts) for attempts in (0, POLICY.retries))
    buried = judge(last, Failed(error), POLICY, 0.5)
    assert isinstance(buried, Bury)
    assert buried.reason is Reason(error.reason)
    verdict = judge(first, Failed(error), POLICY, 0.5)
    assert isinstance(verdict, Retry | Bury)
    assert verdict.attempts == isinstance(verdict, Retry)
    return "attempt" if isinstance(verdict, Retry) else "event"


@EACH_CASE
async def test_whatever_a_model_server_does_is_sorted(case: Case, fail: Fail) -> None:
    """F42 F43 F44 F45: who is at fault, what it costs, and what the whole fleet is told."""
    error = await fail(case)
    assert (type(error), error.reason) == (case.kind, case.reason), error.detail
    assert " ".join(mark for mark in ("strikes", "lost") if getattr(error, mark, False)) == case.marks
    assert getattr(error, "wait_s", None) == case.wait_s
    assert (spent(error), told(error)) == (case.spent, case.told)
    assert TABLE[case.seen].change in error.detail


def test_each_thing_that_can_be_seen_has_its_row_and_its_case() -> None:
    assert set(TABLE) == set(Seen) == {case.seen for case in CASES}
    assert set(STATUSES) <= {int(case.name[:3]) for case in REFUSALS}


@pytest.mark.parametrize("seen", list(Seen))
def test_each_row_says_why_and_only_what_its_kind_can_mean(seen: Seen) -> None:
    row = TABLE[seen]
    assert row.why
    assert not row.strikes or row.kind is BadAnswer
    assert not row.lost or row.kind in {ModelAway, Misconfigured}
    if row.kind is ModelBusy:
        assert failure(seen, "x").reason == row.reason


def test_only_three_statuses_blame_the_event_and_only_a_failing_server_spends_an_attempt() -> None:
    """A fleet that talks to the wrong server, or without the right to, buries nothing."""
    kinds = {status: TABLE[seen_in(status, "", in_json=True)].kind for status in range(100, 600) if status != 200}
    assert {status for status, kind in kinds.items() if issubclass(kind, Malformed)} == {400, 413, 422}
    assert min(status for status, kind in kinds.items() if issubclass(kind, BadAnswer)) == 500


@pytest.mark.parametrize("words", ["num_ctx must be positive", "context is a deprecated parameter", "length required"])
def test_words_that_only_sound_like_it_are_not_taken_for_a_text_too_long(words: str) -> None:
    assert seen_in(400, words, in_json=True) is Seen.REJECTED


@pytest.mark.parametrize("case", [case for case in REFUSALS if case.kind is TooLong], ids=lambda case: case.name)
async def test_a_refusal_for_length_says_what_to_change(case: Case, fail: Fail) -> None:
    error = await fail(case)
    assert isinstance(error, TooLong)
    assert "model.num_ctx" in error.detail
    assert "enrich.too_long" in error.detail
    assert (error.tokens, error.room) == ((8889, 2048) if "counts" in case.name else (None, None))
