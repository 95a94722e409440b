"""What the fast model can do at most, asked by a client that does nothing else: it must be far above all figures."""

import asyncio
import time
from typing import cast

import uvloop

from scripts.bench.rig import fast_model

CONNECTIONS = 64
FOR_S = 1.0
BODY_BYTES = 1500  # as long as a question about one of the events
REQUEST = b"POST /api/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b" % (
    BODY_BYTES,
    b"x" * BODY_BYTES,
)


class _Asker(asyncio.Protocol):
    """Asks again as soon as it is answered: a reply on loopback comes in one piece."""

    def __init__(self) -> None:
        self.calls = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(REQUEST)

    def data_received(self, _data: bytes) -> None:
        self.calls += 1
        self._transport.write(REQUEST)


def model_limit_per_s() -> float:
    """Return how many calls a second the fast model answers at once."""
    with fast_model(CONNECTIONS, 0.0) as model:
        return uvloop.run(_calls_per_s(model.url.removeprefix("http://")))


async def _calls_per_s(address: str) -> float:
    host, port = address.split(":")
    loop = asyncio.get_running_loop()
    askers = [(await loop.create_connection(_Asker, host, int(port)))[1] for _ in range(CONNECTIONS)]
    before, began_s = sum(asker.calls for asker in askers), time.monotonic()
    await asyncio.sleep(FOR_S)
    return (sum(asker.calls for asker in askers) - before) / (time.monotonic() - began_s)
