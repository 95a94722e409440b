"""Single keys from a terminal, without waiting for the end of a line."""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

KEY_BYTES_MAX = 16  # an arrow is three
END_OF_INPUT = "\x04"  # as Ctrl-D


@contextmanager
def single_keys() -> Iterator[Callable[[float], str]]:
    """Give a function that waits so many seconds for a key, and returns it, or "".

    The terminal is as it was before at the end of the block. Where the input is no terminal, the function only waits.
    """
    if not sys.stdin.isatty():
        yield _only_wait
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield lambda within_s: _key(descriptor, within_s)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _key(descriptor: int, within_s: float) -> str:
    ready, _, _ = select.select([descriptor], [], [], within_s)
    if not ready:
        return ""
    return os.read(descriptor, KEY_BYTES_MAX).decode(errors="replace") or END_OF_INPUT


def _only_wait(within_s: float) -> str:
    time.sleep(within_s)
    return ""
