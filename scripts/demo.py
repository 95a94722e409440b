"""The demo: a fleet on embedded Valkey and model, sample events through it, and the proof of what came out.

Everything it makes is in `.demo/`, and made anew by the next run.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from millhand.errors import clip
from millhand.event import DATA, ENRICHMENT
from millhand.keys import Keys
from millhand.layers import load
from millhand.stream import connect
from millhand_fleet.state import ENDPOINTS, StateDir

PROJECT = Path(__file__).resolve().parent.parent
FOLDER = PROJECT / ".demo"
EVENTS = PROJECT / "scripts" / "demo_events.jsonl"
LOG = FOLDER / "fleet.log"
CONFIG = FOLDER / "millhand.toml"
WORKER_CTL = Path(sys.executable).with_name("worker-ctl")

REDIS_CLI = WORKER_CTL.with_name("redis-cli")  # from a package of the tests; any will do

READY_WITHIN_S = 60.0
DONE_WITHIN_S = 110.0
POLL_S = 0.2
ROWS_SHOWN = 10
LABELS_CHARS = 40
TABLE: dict[str, Any] = {"title_justify": "left", "box": SIMPLE_HEAD, "pad_edge": False}
WHY = (b"failure_reason", b"failure_detail")

SETTINGS = f"""\
# The demo's configuration. It brings the same fleet up again, with what it wrote:
# worker-ctl --config .demo/millhand.toml up
[fleet]
name = "demo"
workers = 2
state_dir = {json.dumps(str(FOLDER / "state"), ensure_ascii=False)}

[enrich]
tasks = ["sentiment", "spam", "gist"]

[desk]
port = 0

[log]
format = "json"

# A task of one's own: a question, and the shape of the answer.
[task.gist]
prompt = "say in at most six words what the text is about."
[task.gist.fields]
words = {{ type = "string", length_max = 40 }}
"""


def main() -> int:
    """Run the demo; return its exit code."""
    console = Console(highlight=False)
    console.rule("[bold]millhand demo")
    prepare(console)
    with fleet(console) as desk:
        endpoints = StateDir(FOLDER / "state").read(ENDPOINTS)
        redis_url = endpoints["redis_url"]
        console.print(f"health  {desk}/healthz\nredis   {redis_url}\nmodel   {endpoints['model_url']}\nlog     {LOG}\n")
        count = asyncio.run(produce(redis_url))
        settled = watch(console, desk, count)
        asyncio.run(show(console, redis_url))
        console.rule("verification")
        command = [sys.executable, str(PROJECT / "scripts" / "verify_enrichment.py"), "--config", str(CONFIG)]
        verified = subprocess.run(command, check=False).returncode  # noqa: S603 - our own script
    if not settled:
        console.print(f"[red]not all {count} events were settled within {DONE_WITHIN_S:g} s; see {LOG}")
    farewell(console, redis_url, desk)
    return verified or int(not settled)


def prepare(console: Console) -> None:
    """Make the demo's folder anew; leave if a fleet still uses it."""
    if StateDir(FOLDER / "state").held():
        ctl = shown(WORKER_CTL)
        console.print(f"the demo's fleet still runs; stop it with: {ctl} --config {CONFIG} stop", soft_wrap=True)
        sys.exit(1)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    CONFIG.write_text(SETTINGS, encoding="utf-8")


@contextmanager
def fleet(console: Console) -> Iterator[str]:
    """Run the fleet for the length of the block; yield the desk's address."""
    with LOG.open("wb") as log:
        command = [str(WORKER_CTL), "--config", str(CONFIG), "up", "--embedded"]
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - our own command
    try:
        with console.status("starting Valkey, the model and two workers …"):
            desk = ready(process)
        yield desk
    finally:
        with console.status("stopping the fleet …"):
            process.terminate()
            process.wait()


def ready(process: "subprocess.Popen[bytes]") -> str:
    """Wait until the fleet is ready; return the desk's address, or leave with the log if it never is."""
    deadline = time.monotonic() + READY_WITHIN_S
    while process.poll() is None and time.monotonic() < deadline:
        desk = StateDir(FOLDER / "state").read(ENDPOINTS).get("desk_url")
        if desk and (ask(desk, "/readyz") or {}).get("ready"):
            return str(desk)
        time.sleep(POLL_S)
    sys.stderr.write(LOG.read_text(encoding="utf-8", errors="replace"))
    sys.exit("the fleet did not become ready; its log is above")


def ask(desk: str, path: str) -> Any:
    """Ask the desk; None while it does not answer."""
    try:
        return httpx.get(desk + path, timeout=2.0, trust_env=False).json()
    except (httpx.TransportError, ValueError):
        return None


async def produce(redis_url: str) -> int:
    """Write the sample events as some producer would, the broken line included. Return how many."""
    redis = connect(redis_url)
    lines = EVENTS.read_bytes().splitlines()
    for line in lines:
        await redis.xadd(_keys().input, {DATA: line})
    await redis.aclose()
    return len(lines)


def watch(console: Console, desk: str, count: int) -> bool:
    """Show progress until every event is settled. False if that takes too long."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    deadline = time.monotonic() + DONE_WITHIN_S
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("enriching", total=count)
        while time.monotonic() < deadline:
            health = ask(desk, "/healthz") or {}
            settled = health.get("enriched", 0) + health.get("dead_letters", 0)
            progress.update(bar, completed=settled, description=f"enriching ({health.get('enriched_per_s', 0):g}/s)")
            if settled >= count:
                return True
            time.sleep(POLL_S)
    return False


async def show(console: Console, redis_url: str) -> None:
    """Show enriched events beside their text, and the dead letters with their reasons."""
    redis: Any = connect(redis_url)
    enriched = await redis.xrange(_keys().output)
    dead = await redis.xrange(_keys().dead_letter)
    await redis.aclose()
    console.print("[dim]A model of 135 million parameters answers in the right form; do not trust what it says.")
    table = Table(title=f"{min(len(enriched), ROWS_SHOWN)} of {len(enriched)} enriched events", **TABLE)
    for column in ("raw text", "sentiment", "spam", "gist", "model s"):
        table.add_column(column)
    chars = (console.width - LABELS_CHARS) // 2  # raw text and gist share what the labels leave
    for _, fields in enriched[:: max(1, len(enriched) // ROWS_SHOWN)][:ROWS_SHOWN]:
        table.add_row(*enriched_row(msgspec.json.decode(fields[DATA]), chars))
    console.print(table)
    graves = Table(title=f"{len(dead)} dead letters", **TABLE)
    for column in ("data", "failure_reason", "failure_detail"):
        graves.add_column(column)
    for _, fields in dead:
        data, reason, detail = (fields[name].decode(errors="replace") for name in (DATA, *WHY))
        graves.add_row(one_line(data, chars), reason, one_line(detail, chars))
    console.print(graves)


def enriched_row(event: dict[str, Any], chars: int) -> tuple[str, ...]:
    """Return the cells of an enriched event, foreign text cut to so many characters."""
    text = event.get("text") or event.get("message") or f"{event.get('subject')}: {event.get('body')}"
    made = event[ENRICHMENT]
    labels = made["sentiment"]["label"], made["spam"]["label"]
    return one_line(text, chars), *labels, one_line(made["gist"]["words"], chars), f"{made['meta']['model_s']:.2f}"


def one_line(text: str, chars: int) -> str:
    """Return foreign text as a table shows it: in one line, cut, and not as markup."""
    return escape(clip(text, chars))


def farewell(console: Console, redis_url: str, desk: str) -> None:
    """Say how to look at it again."""
    keys, port = _keys(), redis_url.rpartition(":")[2].partition("/")[0]
    ctl = shown(WORKER_CTL)
    cli = shown(REDIS_CLI) if REDIS_CLI.exists() else "redis-cli"
    console.rule("look at it yourself")
    console.print(
        "The streams are kept. Bring the same fleet up again, and look into them from another terminal:\n"
        f"  {ctl} --config .demo/millhand.toml up\n"
        f"  {ctl} --config .demo/millhand.toml status\n"
        f"  {cli} -p {port} XINFO GROUPS '{keys.input}'\n"
        f"  {cli} -p {port} XRANGE '{keys.output}' - + COUNT 2\n"
        f"  {cli} -p {port} XRANGE '{keys.dead_letter}' - +\n"
        f"The health page is then at {desk}/healthz again.",
        soft_wrap=True,
    )


def shown(path: Path) -> Path:
    """Return a path as one types it in the project's folder."""
    return path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path


def _keys() -> Keys:
    return Keys.of(load(CONFIG, {}))


if __name__ == "__main__":
    sys.exit(main())
