"""The fake Ollama in its fast form, for benchmarks: it answers as quickly as one core lets it, and keeps time exactly.

It speaks as much of Ollama's API as a client in good order needs, on loopback, and says the same about every text. A
call takes one of `slots` for `latency_ms`; who finds none waits in line. A slot that becomes free while somebody waits
goes on from the moment it was due, not from the moment the timer woke: what the timers lose does not add up, so that
`slots / latency_ms` is really what it can do. `GET /fast/stats` says what it saw since `POST /fast/reset`.

    python scripts/fake/fast.py --slots 16 --latency-ms 50      # prints {"url": …}
"""

import argparse
import asyncio
import json
import signal
from array import array
from collections import deque
from collections.abc import Mapping
from time import monotonic
from typing import Any, cast

import msgspec
import uvloop

HOST = "127.0.0.1"
MODEL = "fake:1b"
CONTENT = '{"sentiment":{"label":"neutral","confidence":50}}'
EARLY_S = 0.0003  # a reply this near to its due time goes out: the loop's timers count in milliseconds
TIMER_S_MIN = 0.001  # the same: less would spin
SAMPLES_MAX = 2_000_000
NS_PER_S = 1_000_000_000
HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length:"
CHAT = b"POST /api/chat "


def _spelled(status: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


def _json(document: object) -> bytes:
    return _spelled(b"200 OK", msgspec.json.encode(document))


def _chat_reply() -> bytes:
    """Return the reply with blanks of a fixed width for two durations: of the whole call, and of the model's work."""
    body = msgspec.json.encode(
        {
            "model": MODEL,
            "created_at": "2026-01-01T00:00:00Z",
            "message": {"role": "assistant", "content": CONTENT},
            "done": True,
            "done_reason": "stop",
            "total_duration": 100_000_000_001,
            "load_duration": 0,
            "prompt_eval_count": 220,
            "prompt_eval_duration": 0,
            "eval_count": 14,
            "eval_duration": 100_000_000_002,
        }
    )
    spelled = _spelled(b"200 OK", body).replace(b"%", b"%%")
    return spelled.replace(b"100000000001", b"%12d").replace(b"100000000002", b"%12d")


CHAT_REPLY = _chat_reply()
LOOK_UPS = {
    b"GET /api/tags ": _json({"models": [{"name": MODEL, "model": MODEL, "digest": "f" * 64, "size": 1}]}),
    b"GET /api/version ": _json({"version": "0.13.0"}),
    b"GET /api/ps ": _json({"models": []}),
}
NOT_FOUND = _spelled(b"404 Not Found", b'{"error":"not found"}')


class FastModel:
    """The model behind all connections: its slots, its line, and what it saw."""

    def __init__(self, slots: int, latency_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._slots, self._latency_s = slots, latency_s
        self._line: deque[tuple[Connection, float]] = deque()  # who waits for a slot, and since when
        self._due: deque[tuple[float, Connection, float]] = deque()  # in order, as all calls take the same time
        self._timer: asyncio.TimerHandle | None = None
        self.reset()

    def reset(self) -> None:
        """Forget what was seen."""
        self._calls = self._in_flight_max = 0
        self._own_s = array("d")

    def ask(self, connection: "Connection") -> None:
        """Take a call in."""
        now_s = monotonic()
        if not self._latency_s:
            self._in_flight_max = max(self._in_flight_max, 1)
            self._reply(connection, now_s, now_s)
            return
        if len(self._due) < self._slots:
            self._begin(now_s, connection, now_s)
        else:
            self._line.append((connection, now_s))
        self._in_flight_max = max(self._in_flight_max, len(self._due) + len(self._line))

    def stats(self) -> Mapping[str, Any]:
        """Return what was seen; times in milliseconds, from the arrival of a call to the writing of its reply."""
        times = sorted(self._own_s)
        own_ms = {f"p{p}": times[min(len(times) - 1, len(times) * p // 100)] * 1000 if times else 0.0 for p in (50, 99)}
        return {"calls": self._calls, "in_flight_max": self._in_flight_max, "own_ms": own_ms}

    def _begin(self, start_s: float, connection: "Connection", arrived_s: float) -> None:
        self._due.append((start_s + self._latency_s, connection, arrived_s))
        if self._timer is None:
            self._set_timer()

    def _set_timer(self) -> None:
        self._timer = None
        if self._due:
            delay_s = max(TIMER_S_MIN, self._due[0][0] - monotonic())
            self._timer = self._loop.call_later(delay_s, self._wake)

    def _wake(self) -> None:
        """Write what is due; whoever waits longest has the slot from when it was due."""
        due, line = self._due, self._line
        while due and due[0][0] <= monotonic() + EARLY_S:
            due_s, connection, arrived_s = due.popleft()
            if line:
                following, since_s = line.popleft()
                due.append((max(due_s, since_s) + self._latency_s, following, since_s))
            self._reply(connection, arrived_s, monotonic())
        self._set_timer()

    def _reply(self, connection: "Connection", arrived_s: float, now_s: float) -> None:
        own_s = now_s - arrived_s
        self._calls += 1
        if len(self._own_s) < SAMPLES_MAX:
            self._own_s.append(own_s)
        work_s = min(own_s, self._latency_s)
        connection.write(CHAT_REPLY % (own_s * NS_PER_S, work_s * NS_PER_S))


class Connection(asyncio.Protocol):
    """One keep-alive connection: whole requests by their Content-Length, in order."""

    def __init__(self, model: FastModel) -> None:
        self._model = model
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what replies are written to."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take in each request that is complete."""
        data = self._rest + data if self._rest else data
        while (end := data.find(HEAD_END)) >= 0:
            whole = end + len(HEAD_END) + content_length(data[:end])
            if len(data) < whole:
                break
            self._take(data[:end])
            data = data[whole:]
        self._rest = data

    def write(self, reply: bytes) -> None:
        """Send a reply, if there is still somebody to send it to."""
        if not self._transport.is_closing():
            self._transport.write(reply)

    def _take(self, head: bytes) -> None:
        if head.startswith(CHAT):
            self._model.ask(self)
        elif head.startswith(b"GET /fast/stats "):
            self.write(_json(self._model.stats()))
        elif head.startswith(b"POST /fast/reset "):
            self._model.reset()
            self.write(_json({}))
        else:
            self.write(next((said for line, said in LOOK_UPS.items() if head.startswith(line)), NOT_FOUND))


def content_length(head: bytes) -> int:
    """Return how many bytes follow a request's head; 0 where it does not say."""
    lower = head.lower()
    at = lower.find(LENGTH)
    if at < 0:
        return 0
    end = lower.find(b"\r\n", at)
    return int(lower[at + len(LENGTH) : end if end >= 0 else len(lower)])


async def serve(slots: int, latency_s: float) -> None:
    """Serve until SIGTERM; print the address first."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    model = FastModel(slots, latency_s)
    server = await loop.create_server(lambda: Connection(model), HOST, 0, backlog=1024)
    print(json.dumps({"url": f"http://{HOST}:{server.sockets[0].getsockname()[1]}", "model": MODEL}), flush=True)
    await ended.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="0 = answer at once; slots do not count then")
    options = parser.parse_args()
    uvloop.run(serve(options.slots, options.latency_ms / 1000))
