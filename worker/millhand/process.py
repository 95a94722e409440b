"""A child process of the fleet, from its birth to its exit code. What every kind of child does alike is here."""

import asyncio
import ctypes
import faulthandler
import gc
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress

import uvloop

from millhand.config import Config
from millhand.errors import Unusable
from millhand.log import configure, dropped, logger
from millhand.pulse import STDERR, Birth, Pulse
from millhand.stop import DEATH_SIGNAL, Stop

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PROCESS_NAME_BYTES_MAX = 15
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEPT_BYTES_MAX = 16 << 20  # of free memory at the heap's end, that goes not back to the kernel
HEAP_BYTES_MAX = 4 << 20  # of a piece of memory that comes from the heap: a batch's bytes, in and out, are such
NEW_OBJECTS_MAX = 20_000  # between two looks for cycles: those of a few batches, of which hardly any outlive theirs
EX_SOFTWARE = 70


def run_child(birth: Birth, config: Config, life: Callable[[Stop, Pulse], Awaitable[None]]) -> None:
    """Live `life` in an event loop until it ends, beating all the while; then exit.

    Exit code 78 and a word to the supervisor where nothing but a change by a person helps, 70 after an error of ours.
    """
    become_child(birth)
    configure(config.log, birth.name)
    stacks = _open_stacks(birth)
    faulthandler.enable(stacks)
    try:
        uvloop.run(_live(birth, config, life, stacks))
    except Exception as error:  # noqa: BLE001 - the last chance to tell
        logger().critical("process.failed", error=str(error), exc_info=True)
        raise SystemExit(EX_SOFTWARE) from None


def _open_stacks(birth: Birth) -> int:
    """Open the file into which a hang or a crash writes where each thread was; standard error if it cannot be had."""
    with suppress(OSError):
        return os.open(birth.stacks, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    return STDERR


async def _live(birth: Birth, config: Config, life: Callable[[Stop, Pulse], Awaitable[None]], stacks: int) -> None:
    stop = Stop(config.fleet.drain_s)
    stop.listen()
    pulse = Pulse(birth.end, stop, stacks)
    pulse.common = lambda: {"log_dropped": dropped()}
    beating = asyncio.create_task(pulse.run())
    try:
        await life(stop, pulse)
    except Unusable as error:
        pulse.send({"unusable": str(error)})
        raise SystemExit(os.EX_CONFIG) from None
    finally:
        beating.cancel()
        with suppress(asyncio.CancelledError):
            await beating


def expect_batches() -> None:
    """Make this process ready for many events at a time, again and again. To be called once all is imported.

    Else each batch's memory is asked of the kernel, zeroed and given back anew, and the search for cycles goes through
    the same objects many times a batch.
    """
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS_MAX, *gc.get_threshold()[1:])
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # musl has none
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES_MAX)
        mallopt(M_MMAP_THRESHOLD, HEAP_BYTES_MAX)


def become_child(birth: Birth) -> None:
    """Make this process a proper child: named for `ps`, and told by the kernel when its supervisor dies.

    End-of-file on the line says the same and is the rule; the death signal is for a child that does not read.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NAME, f"millhand-{birth.name}".encode()[:PROCESS_NAME_BYTES_MAX], 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, DEATH_SIGNAL, 0, 0, 0)
    if os.getppid() != birth.supervisor_pid:
        raise SystemExit(f"{birth.name}: the supervisor {birth.supervisor_pid} died before its child was ready")
