"""Blocking work beside an event loop, for which nobody waits in the end: a disk that hangs holds no report up."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any


async def aside(work: Callable[..., Any], *args: Any) -> Any:
    """Return, or raise, what the work comes to. asyncio's own threads would be waited for in the end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def tell(settle: Callable[[Any], None], outcome: Any) -> None:
        with suppress(asyncio.InvalidStateError):  # nobody waits any more
            settle(outcome)

    def run() -> None:
        settle: Callable[[Any], None] = done.set_result
        try:
            outcome = work(*args)
        except Exception as error:  # noqa: BLE001 - it is passed on
            settle, outcome = done.set_exception, error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, settle, outcome)

    threading.Thread(target=run, daemon=True).start()
    return await done
