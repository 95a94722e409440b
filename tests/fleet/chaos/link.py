"""One connection through the fault proxy: two ends, and what happens on the ways between them."""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import msgspec
from tests.fleet.chaos.end import END, GONE, End
from tests.fleet.chaos.trap import PATTERN_BYTES_MAX, Catch, Trap
from tests.rig import HOST

if TYPE_CHECKING:
    from tests.fleet.chaos.proxy import FaultProxy

QUEUE_BYTES_MAX = 16 << 20  # in one direction; a delay throttles nobody who has less on the way
QUIET_S = 0.05  # a reply is whole when nothing has moved on its connection for so long
QUIET_S_MAX = 2.0  # of waiting for that
PIECE_GAP_S = 0.001  # or the kernel would hand pieces over together
SPACED_PIECES = 32  # at the beginning of what is sliced, where the lengths stand; more would be a throttle

Item = bytes | Trap | None  # what is on its way: bytes, END, GONE, or a trap for the reply that follows


class Mode(msgspec.Struct, frozen=True):
    """What is done to every connection; the defaults do nothing."""

    delay_s: float = 0.0
    piece_bytes: int = 0  # 0: whole
    swallows: bool = False
    half_closes: bool = False
    refuses: bool = False


class Way:
    """One direction of a connection."""

    def __init__(self, proxy: "FaultProxy", link: "Link") -> None:
        self.discards = False
        self._proxy, self._link = proxy, link
        self._queue: deque[tuple[float, Item]] = deque()
        self._queued_bytes = 0
        self._filled = asyncio.Event()
        self._now_s = asyncio.get_running_loop().time

    def join(self, sender: End, receiver: End) -> None:
        """Lead from one end to the other."""
        self._sender, self._receiver = sender, receiver

    def put(self, item: Item) -> None:
        """Set something on its way."""
        self._link.moved_s = self._now_s()
        self._queue.append((self._now_s() + self._proxy.mode.delay_s, item))
        self._filled.set()
        if isinstance(item, bytes):
            self._queued_bytes += len(item)
            if self._queued_bytes > QUEUE_BYTES_MAX:
                self._sender.listen(on=False)

    async def carry(self) -> None:
        """Pass on what comes, in order and when it is due, until the sender has ended."""
        while True:
            item = await self._take()
            if isinstance(item, Trap):
                await self._stop_reply(item)
            elif self._proxy.mode.swallows:
                self._link.is_spoiled = True
                self._proxy.bytes_lost += len(item or END)
            elif item is GONE:
                self._link.part(self._receiver)
                return
            elif item == END:
                self._receiver.end()
                return
            elif not self.discards:
                await self._pass(item)

    async def _take(self) -> Item:
        await self._filled.wait()
        due_s, item = self._queue[0]
        if (early_s := due_s - self._now_s()) > 0:
            await asyncio.sleep(early_s)
        self._queue.popleft()
        if not self._queue:
            self._filled.clear()
        if isinstance(item, bytes):
            self._queued_bytes -= len(item)
            if self._queued_bytes <= QUEUE_BYTES_MAX < self._queued_bytes + len(item):
                self._sender.listen(on=True)
        return item

    async def _pass(self, data: bytes) -> None:
        raise NotImplementedError

    async def _write(self, data: bytes) -> None:
        sent = 0
        while sent < len(data):
            piece = data[sent : sent + (self._proxy.mode.piece_bytes or len(data))]
            await self._receiver.send(piece)
            sent += len(piece)
            if sent < len(data):
                await asyncio.sleep(PIECE_GAP_S if sent < SPACED_PIECES * len(piece) else 0)

    async def _stop_reply(self, trap: Trap) -> None:
        """Stop what is put behind this trap, when it is whole."""
        if not await self._until_whole():
            return  # the server has ended instead
        if trap.catch is Catch.SWALLOW_REPLY:
            self._proxy.swallowed[trap.pattern] += 1
            self._link.break_off()
        elif not await trap.held.stop():
            self._link.break_off()

    async def _until_whole(self) -> bytes | None:
        """Wait until something is there and nothing more follows; return its first part."""
        while not (there := [item for _, item in self._queue if not isinstance(item, Trap)]):
            self._filled.clear()
            await self._filled.wait()
        latest_s = self._now_s() + QUIET_S_MAX
        while (early_s := min(self._link.moved_s + QUIET_S, latest_s) - self._now_s()) > 0:  # noqa: ASYNC110 - for time
            await asyncio.sleep(early_s)
        return there[0]


class Requests(Way):
    """The way to the server, with the traps."""

    def __init__(self, proxy: "FaultProxy", link: "Link") -> None:
        super().__init__(proxy, link)
        self._tail = b""

    async def _pass(self, data: bytes) -> None:
        """Pass requests on, up to one that is to be held and then from there."""
        window, fresh = self._tail + data, len(self._tail)
        self._tail = window[-PATTERN_BYTES_MAX + 1 :]
        sent = fresh
        searched: dict[Trap, int] = {}
        while found := self._first(window, fresh, searched):
            start, trap = found
            searched[trap] = start + 1
            if not trap.springs():
                continue
            if trap.is_spent:
                self._proxy.traps.remove(trap)
            if trap.catch is Catch.HOLD_REQUEST:
                cut = max(start, sent)
                await self._write(window[sent:cut])
                sent = cut
                if not await trap.held.stop():
                    self._link.reset()
                    return
            else:
                self._link.replies.put(trap)
                self._link.is_doomed |= trap.catch is Catch.SWALLOW_REPLY
        await self._write(window[sent:])

    def _first(self, window: bytes, fresh: int, searched: dict[Trap, int]) -> tuple[int, Trap] | None:
        """Find the first bytes that a trap waits for and that are not wholly of the past."""
        found: list[tuple[int, Trap]] = []
        for trap in self._proxy.traps:
            if self._link.is_doomed and trap.catch is Catch.SWALLOW_REPLY:
                continue  # this connection has been struck
            start = window.find(trap.pattern, searched.get(trap, max(0, fresh - len(trap.pattern) + 1)))
            if start >= 0:
                found.append((start, trap))
        return min(found, key=lambda one: one[0], default=None)

    async def _write(self, data: bytes) -> None:
        self._proxy.bytes_up += len(data)
        await super()._write(data)


class Replies(Way):
    """The way to the client."""

    async def _pass(self, data: bytes) -> None:
        self._proxy.bytes_down += len(data)
        await self._write(data)


class Link:
    """A connection of a client, and ours to the server for it."""

    def __init__(self, proxy: "FaultProxy") -> None:
        self.is_spoiled = False  # something of it is lost in a black hole
        self.is_doomed = False  # no reply will reach its client any more
        self.moved_s = 0.0
        self.task: asyncio.Task[None]
        self._proxy = proxy
        self.requests, self.replies = Requests(proxy, self), Replies(proxy, self)
        self.client = End(proxy.ends, self.requests.put, lambda: proxy.admit(self))
        self.server = End(proxy.ends, self.replies.put)
        self.requests.join(self.client, self.server)
        self.replies.join(self.server, self.client)

    async def run(self) -> None:
        """Connect, and pass on until both sides have ended."""
        if self._proxy.mode.swallows:
            self.is_spoiled = True
        else:
            await self._connect()
        if self._proxy.mode.half_closes:
            self.half_close()
        async with asyncio.TaskGroup() as ways:
            ways.create_task(self.requests.carry())
            ways.create_task(self.replies.carry())
        self.client.close()
        self.server.close()

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.server, HOST, self._proxy.target_port)
        except OSError:
            self.abort()
        except asyncio.CancelledError:
            self._proxy.ends.discard(self.server)  # uvloop closes it without a word
            raise

    def part(self, survivor: End) -> None:
        """Deal with a side that has vanished."""
        if self.is_doomed and survivor is self.server:
            self.server.end()  # so that it still reads, and does, what it was sent
        else:
            self.abort()

    def half_close(self) -> None:
        """End the way to the client for good."""
        self.replies.discards = True
        self.client.end()

    def break_off(self) -> None:
        """Reset the client; the server may go on with what it was sent."""
        self.is_doomed = self.replies.discards = True
        self._proxy.resets += 1
        self.client.abort()

    def reset(self) -> None:
        """Break both sides, as a fault."""
        self._proxy.resets += 1
        self.abort()

    def abort(self) -> None:
        """Break both sides."""
        self.client.abort()
        self.server.abort()
        self.task.cancel()
