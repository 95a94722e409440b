"""worker-ctl top: the fleet on a screen that keeps itself fresh."""

import threading
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live

from millhand.config import Config
from millhand.stop import on_stop_signals
from millhand_fleet.ctl.desk_client import NO_ANSWER, ask, remedy, request
from millhand_fleet.ctl.keyboard import single_keys
from millhand_fleet.ctl.panel import MINUTE, Rates, View, screen
from millhand_fleet.ctl.screen import print_trimmed
from millhand_fleet.ctl.settings import load_for_orders
from millhand_fleet.ctl.wording import Document, clock

REFRESH_EVERY_S = 1.0
ANSWER_TIMEOUT_S = 3.0
KEY_POLL_S = 0.25
LEAVES = {"q", "Q", "\x03", "\x04"}
LINES_UNBOUNDED = 10_000  # of --once, whose paper is as long as need be


@click.command()
@click.option("--once", is_flag=True, help="Print one screen and end.")
@click.pass_obj
def top(file: Path | None, *, once: bool) -> None:
    """Watch the fleet on a live screen.

    Backlog, rates, latency, gate and what each worker is doing, fresh every second. q leaves.

    Exit code 0, also after q and Ctrl-C; 2 where there is no terminal; with --once 69 if the fleet does not answer.

    \b
    Examples: worker-ctl top
              worker-ctl top --once
    """  # noqa: D301 - click's own mark
    config = load_for_orders(file)
    console = Console(highlight=False)
    if once:
        view = View(ask(config, "GET", "/status"), is_live=False)
        print_trimmed(console, screen(view, console.width, LINES_UNBOUNDED, ascii_only=console.options.ascii_only))
        return
    if not console.is_terminal or console.is_dumb_terminal:
        raise click.UsageError("There is no terminal to draw on: use `worker-ctl status --json`, or top --once.")
    _watch(config, console)


class Asking(threading.Thread):
    """Asks the desk every second, beside the drawing, so that a silent one delays no key."""

    def __init__(self, config: Config) -> None:
        super().__init__(daemon=True)
        self._config = config
        self._document: Document | None = None
        self._history: deque[Rates] = deque(maxlen=MINUTE)
        self._answered_at, self._answered_clock = time.monotonic(), ""
        self._why = ""

    def run(self) -> None:
        """Ask until the process ends."""
        while True:
            begun = time.monotonic()
            self.ask()
            time.sleep(max(0.0, begun + REFRESH_EVERY_S - time.monotonic()))

    def ask(self) -> None:
        """Ask once."""
        try:
            reply = request(self._config, "GET", "/status", timeout_s=ANSWER_TIMEOUT_S)
        except NO_ANSWER as error:
            self._why = ": ".join(remedy(self._config, error))
            return
        if reply.is_error:
            self._why = f"the desk says {reply.status}"
            return
        self._document = reply.document
        streams = reply.document["streams"]
        self._history.append(Rates(streams.get("in_per_s") or 0.0, streams.get("enriched_per_s") or 0.0))
        self._answered_at, self._answered_clock = time.monotonic(), clock(datetime.now(UTC).isoformat())
        self._why = ""

    def view(self) -> View:
        """Return what is known now."""
        lost_for_s = time.monotonic() - self._answered_at
        return View(self._document, tuple(self._history), self._why, lost_for_s, self._answered_clock)


def _watch(config: Config, console: Console) -> None:
    """Draw until somebody leaves."""
    asking = Asking(config)
    asking.start()
    ended: list[bool] = []
    on_stop_signals(lambda: ended.append(True))
    with single_keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while not ended:
            columns, lines = console.size
            live.update(screen(asking.view(), columns, lines, ascii_only=console.options.ascii_only), refresh=True)
            if pressed(KEY_POLL_S) in LEAVES:
                return
