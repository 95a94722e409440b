"""A fake Ollama that does as it is told, for tests and benchmarks.

It speaks Ollama's API over raw sockets on loopback: half bodies, drips and headers that lie are what it is for. What
it answers follows from the user's text and the schema asked for (`instance`); a call may bring several texts. Orders
(`Script` lists them) come in the text, `[[fake status=503 retry_after=5 times=2]]`, from Python (`script`, `outage`,
`die`, `deafen`), or over HTTP: `POST /fake/script`, `/fake/release`, `/fake/die` and `/fake/deafen` with
`{"for_s": 5}`, `GET /fake/calls?last=100`. `fake.arrivals` judges what it saw.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import msgspec
import uvloop

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's root, to find the rest of the fake

from scripts.fake.answers import instance
from scripts.fake.door import HOST, Door
from scripts.fake.journal import Call, Journal
from scripts.fake.look_ups import LOOK_UPS, look_up
from scripts.fake.model import CONTEXT_TOKENS, Ask, answer, members_of
from scripts.fake.orders import HOLD_S_MAX, DurationS, Orders, Script, parse_script
from scripts.fake.wire import Connection, Reply, Request, error_reply, json_reply, mangled, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["Call", "FakeOllama", "Script", "instance", "parse_script"]

CALLS_KEPT_MAX = 20_000  # in memory; a journal on disk has them all
WAIT_S = 10.0
REPLY_S = 0.05  # until the reply to an order to go is out


class _Absence(msgspec.Struct, forbid_unknown_fields=True):
    for_s: DurationS


class FakeOllama:
    """A fake server: `async with FakeOllama() as fake`, or from synchronous code `with FakeOllama().in_thread()`.

    May be entered again in the same loop; port and calls stay. `in_flight` counts queued calls too, and
    `concurrency_max` is its peak; `running` calls have a slot, `held` ones wait for `release`; `probes` counts by path
    the requests that were no model calls; `refused` is how many of both were turned away. What the model is loaded with
    is the last call's `ctx_tokens`, and `gpu_share` of it says to be on the GPU. Loading the model takes
    `load_s` from the first call after a start, and every call that long waits for it.
    """

    def __init__(
        self,
        *,
        model: str = "fake:1b",
        port: int = 0,
        latency_s: float = 0.0,
        latency_per_event_s: float = 0.0,
        load_s: float = 0.0,
        slots: int = 4,
        journal: Path | None = None,
    ) -> None:
        self.model, self.port = model, port
        self.latency_s, self.latency_per_event_s, self.load_s = latency_s, latency_per_event_s, load_s
        self.calls: deque[Call] = deque(maxlen=CALLS_KEPT_MAX)
        self.probes: Counter[str] = Counter()
        self.arrived = self.refused = self.in_flight = self.concurrency_max = self.running = self.held = 0
        self.peers: set[Connection] = set()
        self.changed, self._released = _Bell(), _Bell()
        self._slots = asyncio.Semaphore(slots)
        self._orders = Orders()
        self._journal_path = journal
        self.ctx_tokens, self.gpu_share = CONTEXT_TOKENS, 1.0
        self._loaded_s: float | None = None
        self._return: asyncio.TimerHandle | None = None

    @property
    def url(self) -> str:
        """Where it listens, once it does."""
        return f"http://{HOST}:{self.port}"

    async def __aenter__(self) -> Self:
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._journal = Journal(self._journal_path) if self._journal_path else None
        self._door = Door(self.port, lambda: Connection(self))
        self.port = self._door.port
        self._loaded_s = None
        self._door.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Vanish as a killed server does: connections are reset, open calls count as disconnected."""
        self.die()
        try:
            await self.until(lambda: not self.peers and not self.in_flight)
        finally:
            self._door.close()
            if self._journal is not None:
                self._journal.close()

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[Self]:
        """Serve from a thread; all but the coroutines may be called from the caller's."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, contextlib.ExitStack() as stack:
            loop = runner.get_loop()
            thread = threading.Thread(target=loop.run_forever, name="fake-ollama", daemon=True)
            thread.start()
            stack.callback(thread.join, WAIT_S)
            stack.callback(loop.call_soon_threadsafe, loop.stop)
            asyncio.run_coroutine_threadsafe(self.__aenter__(), loop).result(WAIT_S)
            stack.callback(lambda: asyncio.run_coroutine_threadsafe(self.__aexit__(), loop).result(WAIT_S))
            yield self

    def script(self, default: Mapping[str, object] | None = None) -> None:
        """Do so with every call whose text orders nothing; without a script be honest again.

        A default that refuses is an outage: it holds on every path of `path`, whatever the text says.
        """
        self._orders.give(default or {})

    def outage(
        self, status: int = 503, retry_after: int | str | None = None, for_s: float | None = None, path: str = "/api/"
    ) -> None:
        """Refuse everything under a path, for a time or until `script` says otherwise."""
        self.script({"status": status, "retry_after": retry_after, "for_s": for_s, "path": path})

    def die(self, for_s: float | None = None) -> None:
        """Vanish as a killed server does, for a time or until `revive`: connections are reset, and then refused."""
        self._at_once(lambda: self._turn(for_s, self._vanish))

    def deafen(self, for_s: float | None = None, *, connects: bool = True) -> None:
        """Accept no new connection, for a time or until `revive`; where none `connects`, even the attempt hangs.

        Connections that are open go on.
        """
        self._at_once(lambda: self._turn(for_s, lambda: self._door.deafen(connects=connects)))

    def revive(self) -> None:
        """Be there again on the same port, dead or deaf before; who has waited in the kernel's queue is served now."""
        self._at_once(lambda: self._turn(None, self._door.open))

    def release(self) -> None:
        """Let those calls go on that are held now."""
        self._loop.call_soon_threadsafe(self._released.ring)

    async def until(self, condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        """Wait for a fact about the calls; raises TimeoutError that says what was true instead."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    await self.changed.wait()
        except TimeoutError:
            raise TimeoutError(f"not within {timeout_s} s: {self._counts()}") from None

    async def seen(self, count: int, timeout_s: float = WAIT_S) -> None:
        """Wait until so many model calls have arrived."""
        await self.until(lambda: self.arrived >= count, timeout_s)

    def block_until(self, condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        """Do as `until`, outside the server's thread."""
        asyncio.run_coroutine_threadsafe(self.until(condition, timeout_s), self._loop).result(timeout_s + WAIT_S)

    def _at_once(self, act: Callable[[], None]) -> None:
        async def do() -> None:
            act()

        if threading.get_ident() == self._thread:
            act()
        else:
            asyncio.run_coroutine_threadsafe(do(), self._loop).result(WAIT_S)

    def _turn(self, for_s: float | None, go: Callable[[], None]) -> None:
        if self._return is not None:
            self._return.cancel()
        go()
        self._return = None if for_s is None else self._loop.call_later(for_s, self.revive)

    def _vanish(self) -> None:
        self._door.shut()
        self._loaded_s = None
        for peer in list(self.peers):
            peer.transport.abort()

    def join(self, peer: Connection) -> int:
        """Note a new connection; return how many there are."""
        self.peers.add(peer)
        return len(self.peers)

    def leave(self, peer: Connection) -> None:
        """Forget a connection that is lost."""
        self.peers.discard(peer)
        self.changed.ring()

    async def serve(self, request: Request, transport: asyncio.Transport) -> bool:
        """Answer one request; tells whether the connection must close then."""
        if request.path in {"/api/chat", "/api/generate"}:
            return await self._serve_call(request, transport)
        script = self._orders.for_look_up(request.path)
        self.refused += script.refuses
        await self._pause(script, script.delay)
        reply = refusal(script) if script.refuses else self._probe(request, script)
        pieces, must_close = mangled(reply, script)
        for piece in pieces[:-1]:
            transport.write(piece)
            await self._between(script)
        transport.write(pieces[-1])
        return must_close

    async def _serve_call(self, request: Request, transport: asyncio.Transport) -> bool:
        call, status = Call(time.monotonic(), request.path), cast("int | str", "disconnected")
        self.calls.append(call)
        self.arrived += 1
        self.in_flight += 1
        self.concurrency_max = max(self.concurrency_max, self.in_flight)
        self.changed.ring()
        try:
            reply, script = await self._perform(call, request.body)
            pieces, must_close = mangled(reply, script)
            for piece in pieces[:-1]:
                transport.write(piece)
                await self._between(script)
            status = "dropped" if script.drop else reply.status
        finally:
            call.end_s, call.status = time.monotonic(), status
            self.in_flight -= 1
            if self._journal is not None:
                self._journal.write(call)
            self.changed.ring()
        transport.write(pieces[-1])  # after the journal, so that whoever has the reply finds the call finished
        return must_close

    async def _perform(self, call: Call, body: bytes) -> tuple[Reply, Script]:
        try:
            call.request = msgspec.json.decode(body, type=dict[str, Any])
            ask = msgspec.convert(call.request, Ask)
            call.text = ask.text
            members = members_of(ask)
            orders = self._orders.for_call(call.path, call.text, members)
            script = orders.script
            if script.refuses:
                self.refused += 1
                await self._work(call, script, script.delay)
                return refusal(script), script
            if ask.model != self.model or script.missing:
                return error_reply(404, f"model '{ask.model}' not found"), script
            self.ctx_tokens = ask.options.num_ctx
            loaded_s = await self._loaded()
            async with self._slots:
                latency_s = self.latency_s + self.latency_per_event_s * max(1, len(members))
                await self._work(call, script, script.delay + latency_s)
            return answer(call, ask, orders, loaded_s), script
        except (ValueError, RecursionError) as error:
            return error_reply(400, str(error)), Script()

    async def _loaded(self) -> float:
        """Wait for the model, whose loading the first call begins; return when it was there."""
        now_s = time.monotonic()
        if self._loaded_s is None:
            self._loaded_s = now_s + self.load_s
        loaded_s = self._loaded_s
        if loaded_s > now_s:
            await asyncio.sleep(loaded_s - now_s)
        return loaded_s

    async def _work(self, call: Call, script: Script, pause_s: float) -> None:
        call.started_s = time.monotonic()
        self.running += 1
        try:
            self.changed.ring()
            await self._pause(script, pause_s)
        finally:
            self.running -= 1

    async def _pause(self, script: Script, pause_s: float) -> None:
        if script.hold:
            await self._hold()
        if pause_s:
            await asyncio.sleep(pause_s)

    async def _between(self, script: Script) -> None:
        if script.stall is None:
            await asyncio.sleep(script.drip)
        else:
            await self._hold()

    async def _hold(self) -> None:
        self.held += 1
        self.changed.ring()
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._released.wait(), HOLD_S_MAX)
        finally:
            self.held -= 1

    def _counts(self) -> dict[str, Any]:
        names = ("arrived", "in_flight", "concurrency_max", "running", "held", "probes")
        return {name: getattr(self, name) for name in names}

    def _probe(self, request: Request, script: Script) -> Reply:
        try:
            if request.path.startswith("/fake/"):
                return json_reply(self._control(request))
            self.probes[request.path if request.path in LOOK_UPS else "unknown"] += 1
            loaded = not self.load_s or (self._loaded_s is not None and self._loaded_s <= time.monotonic())
            return look_up(
                request,
                self.model,
                listed=not script.missing,
                loaded=loaded,
                ctx_tokens=self.ctx_tokens,
                gpu_share=self.gpu_share,
            )
        except ValueError as error:
            return error_reply(400, str(error))

    def _control(self, request: Request) -> dict[str, Any]:
        match request.path:
            case "/fake/script":
                self.script(msgspec.json.decode(request.body, type=dict[str, Any]))
            case "/fake/release":
                self.release()
            case "/fake/die" | "/fake/deafen":
                for_s = msgspec.json.decode(request.body, type=_Absence).for_s
                go = self.die if request.path == "/fake/die" else self.deafen
                self._loop.call_later(REPLY_S, go, for_s)
        last = int(request.query.removeprefix("last=") or CALLS_KEPT_MAX)
        return self._counts() | {"calls": list(self.calls)[-last:]}


class _Bell:
    """Wakes all who wait now; who comes later waits for the next stroke."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()

    def ring(self) -> None:
        self._event.set()
        self._event = asyncio.Event()


async def _run(options: argparse.Namespace) -> None:
    fake = FakeOllama(
        model=options.model,
        port=options.port,
        latency_s=options.latency_ms / 1000,
        latency_per_event_s=options.latency_per_event_ms / 1000,
        load_s=options.load_ms / 1000,
        slots=options.slots,
        journal=options.journal,
    )
    async with fake:
        print(json.dumps({"url": fake.url, "model": fake.model}), flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """Serve until interrupted; the first line of output is JSON with the URL."""
    parser = argparse.ArgumentParser(description="A fake Ollama on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--model", default="fake:1b")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="of each call")
    parser.add_argument("--latency-per-event-ms", type=float, default=0.0, help="on top, for each text in a call")
    parser.add_argument("--load-ms", type=float, default=0.0, help="what the first call waits for, and all meanwhile")
    parser.add_argument("--slots", type=int, default=4, help="calls answered at once; more are queued")
    parser.add_argument("--journal", type=Path, help="a file to which finished calls are appended, as JSON Lines")
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
