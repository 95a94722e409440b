"""Telling systemd how the service is: sd_notify(3), by the standard library."""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress


def status_line(ready: int, desired: int, so: Mapping[str, bool]) -> str:
    """Return the fleet in a line, for `systemctl status`: its workers, and whatever else is so."""
    return ", ".join([f"{ready} of {desired} workers ready", *(word for word, is_so in so.items() if is_so)])


class Notify:
    """Sends datagrams to the socket that systemd named; does nothing where none was."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        watched = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._beat_every_s = int(environment.get("WATCHDOG_USEC", "0")) / 2e6 if watched and self._address else 0.0
        self._beat_at = 0.0
        self._status = ""
        self._is_stopping = False

    def ready(self) -> None:
        """Say that the service is up, or that a reload is over."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that the configuration is being read; `ready` must follow."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the service stops, once."""
        if not self._is_stopping:
            self._is_stopping = True
            self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Give `systemctl status` a line, if it is another than before."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def beat(self) -> None:
        """Give a sign of life, as often as half of what the watchdog waits; call it as often as one likes."""
        now = time.monotonic()
        if self._beat_every_s and now - self._beat_at >= self._beat_every_s:
            self._beat_at = now
            self._send("WATCHDOG=1")

    def _send(self, state: str) -> None:
        """Send without waiting. What does not arrive is no reason to fail."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
            line.setblocking(False)  # noqa: FBT003 - the standard library's own signature
            line.sendto(state.encode(errors="replace"), address)
