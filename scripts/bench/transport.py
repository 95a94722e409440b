"""What a call of the model costs this process in CPU time: the client alone, against a server that answers at once.

python scripts/bench/transport.py [calls] [in flight, ...]
"""

import asyncio
import json
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from typing import cast

import uvloop

from millhand.config import Config, Model
from millhand.model.context import ContextGuard
from millhand.model.ollama import OllamaModel
from millhand.tasks.catalogue import chosen_tasks
from millhand.tasks.task import Questions

CALLS = 20_000
IN_FLIGHT = (1, 8, 32, 64)
TEXT = "The kettle is quick but its lid never stays shut, and the handle gets hot within a minute. " * 3
CONTENT = '{"sentiment": {"label": "mixed", "confidence": 80}}'
REPLY = {
    "model": "tiny:1b",
    "created_at": "2026-01-01T00:00:00.000000Z",
    "message": {"role": "assistant", "content": CONTENT},
    "done": True,
    "done_reason": "stop",
    "total_duration": 1_000_000,
    "load_duration": 10_000,
    "prompt_eval_count": 300,
    "prompt_eval_duration": 490_000,
    "eval_count": 20,
    "eval_duration": 500_000,
}
BODY = json.dumps(REPLY).encode()
HEAD = "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
WHOLE = f"{HEAD}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY


class Server(asyncio.Protocol):
    """Answers each request with the same bytes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's are of no such class
        self._bytes = bytearray()

    def data_received(self, data: bytes) -> None:
        """Answer once the request is whole."""
        self._bytes += data
        head, end, rest = self._bytes.partition(b"\r\n\r\n")
        if end and len(rest) >= int(head.lower().partition(b"content-length:")[2].split()[0]):
            self._bytes.clear()
            self._transport.write(WHOLE)


async def serve(port: Connection) -> None:
    """Serve for ever; tell at which port."""
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    port.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def measure(url: str, calls: int, in_flight: int) -> tuple[float, float]:
    """Return microseconds of CPU for each call, and calls a second."""
    config = Config(model=Model(url=url, concurrency=in_flight))
    model = OllamaModel(config.model)
    guard = ContextGuard(config.model, "bury")
    questions = Questions(chosen_tasks(config))
    text = f"{TEXT}"

    async def ask(count: int) -> None:
        for _ in range(count):
            fitted = guard.fit(questions.system, text)
            answer = await model.generate(questions.prompt(fitted.text))
            guard.check(fitted, answer)

    await asyncio.gather(*(ask(20) for _ in range(in_flight)))
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    await asyncio.gather(*(ask(calls // in_flight) for _ in range(in_flight)))
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    await model.close()
    return cpu_s / calls * 1e6, calls / wall_s


def main() -> None:
    """Measure and print."""
    numbers = [int(argument) for argument in sys.argv[1:]]
    calls, in_flights = numbers[0] if numbers else CALLS, numbers[1:] or IN_FLIGHT
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("fork").Process(target=lambda: uvloop.run(serve(there)), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}"
    for in_flight in in_flights:
        cpu_us, per_s = uvloop.run(measure(url, calls - calls % in_flight, in_flight))
        print(f"{in_flight:3} in flight: {cpu_us:7.1f} us of CPU a call, {per_s:7.0f} calls/s")
    server.kill()


if __name__ == "__main__":
    main()
