"""worker-ctl demo: a fleet on embedded Valkey and model, sample events through it, and the proof of what came out."""

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from millhand.config import ENVIRONMENT_PREFIX, Config
from millhand.errors import Unusable, clip
from millhand.event import DATA, ENRICHMENT
from millhand.keys import Keys
from millhand.layers import load
from millhand.stream import connect
from millhand_fleet.ctl.desk_client import NO_ANSWER, request
from millhand_fleet.ctl.settings import EX_UNAVAILABLE, leave, redis_url
from millhand_fleet.ctl.verify import as_json, lines, proven
from millhand_fleet.ctl.visible import visible
from millhand_fleet.embedded.preflight import require_model_server, valkey_binary
from millhand_fleet.state import ENDPOINTS, StateDir

if TYPE_CHECKING:
    from redis.asyncio import Redis

EVENTS = "demo_events.jsonl"
LOG = "fleet.log"
SETTINGS_FILE = "millhand.toml"
MIN_RATE = 0.95
READY_WITHIN_S = 60.0
DONE_WITHIN_S = 110.0
STOP_WITHIN_S = 60.0
POLL_S = 0.2
ANSWER_TIMEOUT_S = 2.0
ROWS_SHOWN = 10
LABELS_CHARS = 40  # what a row needs beside its two long cells
REASON_CHARS = 26  # likewise, of a dead letter
LOG_LINES_SHOWN = 20
TABLE: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "box": SIMPLE_HEAD, "pad_edge": False}
WHY = (b"failure_reason", b"failure_detail")

SETTINGS = """\
# The demo's configuration. It brings the same fleet up again, with what it wrote:
# worker-ctl --config {file} up
[fleet]
name = "demo"
workers = 2
state_dir = {state}

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


@click.command()
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), default=Path(".demo"), show_default=True,
    help="What it makes goes there. An earlier demo's folder is made anew.",
)  # fmt: skip
def demo(folder: Path) -> None:
    """Run the whole thing once, on sample events.

    It starts a Valkey, a small model and two workers, sends sixty events through them, shows what came out and what was
    buried, proves the rate, and ends.

    Exit code 0 if the rate is proven; 1 if not, or if a demo's fleet still runs in the folder; 69 if the fleet does not
    become ready; 78 if an embedded part is missing.

    \b
    Example: worker-ctl demo
    """  # noqa: D301 - click's own mark
    console = Console(highlight=False)
    for required in (valkey_binary, require_model_server):
        _require(required)
    events = resources.files("millhand_fleet").joinpath(EVENTS).read_bytes().splitlines()
    console.rule("[bold]millhand demo")
    console.print(
        f"{len(events)} events go into a Redis stream. Two workers ask a small local model about each. The answers\n"
        "come out on another stream, and what cannot be answered on a third.\n"
    )
    config = _prepared(folder)
    with _fleet(console, config, folder) as endpoints:
        _introduce(console, config, endpoints, folder)
        asyncio.run(_produce(config, events))
        settled = _watch(console, config, len(events))
        asyncio.run(_show(console, config))
        console.rule("the proof, as `worker-ctl verify` gives it")
        report = proven(config, MIN_RATE)
    for line in lines(report):
        click.echo(line)
    click.echo(as_json(report))
    if not settled:
        console.print(f"[red]not all {len(events)} events were settled within {DONE_WITHIN_S:g} s; see {folder / LOG}")
    _farewell(console, config, endpoints, folder)
    sys.exit(not (report.passed and settled))


def _require(part: Any) -> None:
    """Leave with the remedy where an embedded part is not there."""
    try:
        part()
    except Unusable as error:
        leave(*str(error).splitlines())


def _prepared(folder: Path) -> Config:
    """Make the demo's folder anew, and return its configuration; leave if a fleet still uses it, or somebody else."""
    state, file = folder.absolute() / "state", folder / SETTINGS_FILE
    if StateDir(state).held():
        leave("the demo's fleet still runs", f"stop it with: {_command('--config', file, 'stop')}", code=1)
    if folder.exists() and any(folder.iterdir()) and not file.is_file():
        leave(f"{folder} holds something else than a demo", "name another --folder", code=1)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        written = SETTINGS.format(file=file, state=json.dumps(str(state), ensure_ascii=False))
        file.write_text(written, encoding="utf-8")
    except OSError as error:
        leave(f"cannot write {folder}: {error.strerror}", "name another --folder", code=1)
    return load(file, {})


def _environment() -> dict[str, str]:
    """Return the environment without what configures some fleet in earnest: the demo must not write to its streams."""
    return {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}


@contextmanager
def _fleet(console: Console, config: Config, folder: Path) -> Iterator[dict[str, Any]]:
    """Run the fleet for the length of the block; yield where its parts listen."""
    log = folder / LOG
    command = [sys.executable, "-m", "millhand_fleet.ctl.main", "--config", str(folder / SETTINGS_FILE), "up"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=_environment())  # noqa: S603 - our own command
    try:
        with console.status("starting Valkey, the model and two workers …"):
            _await_ready(config, process, log)
        yield StateDir(config.state_dir).read(ENDPOINTS)
    finally:
        with console.status("stopping the fleet …"):
            process.terminate()
            process.wait(STOP_WITHIN_S)


def _await_ready(config: Config, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the fleet is ready; leave with the end of its log if it never is."""
    deadline = time.monotonic() + READY_WITHIN_S
    while process.poll() is None and time.monotonic() < deadline:
        if (_asked(config, "/readyz") or {}).get("ready"):
            return
        time.sleep(POLL_S)
    end = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES_SHOWN:]
    leave(f"the fleet did not become ready; {log} ends with", *end, code=EX_UNAVAILABLE)


def _asked(config: Config, path: str) -> Any:
    """Ask the desk; None while it does not answer."""
    with suppress(*NO_ANSWER):
        return request(config, "GET", path, timeout_s=ANSWER_TIMEOUT_S).document
    return None


def _introduce(console: Console, config: Config, endpoints: dict[str, Any], folder: Path) -> None:
    console.print(
        f"page    {endpoints['desk_url']}\nredis   {redis_url(config)}\nmodel   {endpoints['model_url']}\n"
        f"log     {folder / LOG}\n",
        soft_wrap=True,
    )


async def _produce(config: Config, events: list[bytes]) -> None:
    """Write the sample events as some producer would, the broken line included."""
    redis: Redis = connect(redis_url(config))
    for event in events:
        await redis.xadd(Keys.of(config).input, {DATA: event})
    await redis.aclose()


def _watch(console: Console, config: Config, count: int) -> bool:
    """Show progress until every event is settled. False if that takes too long."""
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    deadline = time.monotonic() + DONE_WITHIN_S
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("enriching", total=count)
        while time.monotonic() < deadline:
            health = _asked(config, "/healthz") or {}
            settled = health.get("enriched", 0) + health.get("dead_letters", 0)
            progress.update(bar, completed=settled, description=f"enriching ({health.get('enriched_per_s', 0):g}/s)")
            if settled >= count:
                return True
            time.sleep(POLL_S)
    return False


async def _show(console: Console, config: Config) -> None:
    """Show enriched events beside their text, and the dead letters with their reasons."""
    redis: Any = connect(redis_url(config))
    enriched = await redis.xrange(Keys.of(config).output)
    dead = await redis.xrange(Keys.of(config).dead_letter)
    await redis.aclose()
    console.print("[dim]A model of 135 million parameters answers in the right form; do not trust what it says.\n")
    table = Table(title=f"{min(len(enriched), ROWS_SHOWN)} of {len(enriched)} enriched events", **TABLE)
    for column in ("raw text", "sentiment", "spam", "gist", "model s"):
        table.add_column(column)
    chars = (console.width - LABELS_CHARS) // 2  # raw text and gist share what the labels leave
    for _, fields in enriched[:: max(1, len(enriched) // ROWS_SHOWN)][:ROWS_SHOWN]:
        table.add_row(*_enriched_row(msgspec.json.decode(fields[DATA]), chars))
    console.print(table)
    graves = Table(title=f"{len(dead)} dead letter{'s' * (len(dead) != 1)}", **TABLE)
    for column in ("data", "failure_reason", "failure_detail"):
        graves.add_column(column)
    grave_chars = (console.width - REASON_CHARS) // 2
    for _, fields in dead:
        data, reason, detail = (fields[name].decode(errors="replace") for name in (DATA, *WHY))
        graves.add_row(_one_line(data, grave_chars), reason, _one_line(detail, grave_chars))
    console.print(graves)


def _enriched_row(event: dict[str, Any], chars: int) -> tuple[str | Text, ...]:
    """Return the cells of an enriched event, foreign text cut to so many characters."""
    text = event.get("text") or event.get("message") or f"{event.get('subject')}: {event.get('body')}"
    made = event[ENRICHMENT]
    labels = made["sentiment"]["label"], made["spam"]["label"]
    return _one_line(text, chars), *labels, _one_line(made["gist"]["words"], chars), f"{made['meta']['model_s']:.2f}"


def _one_line(text: str, chars: int) -> Text:
    """Return foreign text as a table shows it: in one line, cut, and not as markup."""
    return Text(visible(clip(text, max(1, chars)).encode(errors="replace")))


def _farewell(console: Console, config: Config, endpoints: dict[str, Any], folder: Path) -> None:
    """Say how to look at it again."""
    keys, port = Keys.of(config), endpoints["redis_url"].rpartition(":")[2].partition("/")[0]
    file, cli = folder / SETTINGS_FILE, _beside("redis-cli")
    console.rule("look at it yourself")
    console.print(
        "The streams are kept. Bring the same fleet up again, and look into it from another terminal:\n"
        f"  {_command('--config', file, 'up')}\n"
        f"  {_command('--config', file, 'top')}\n"
        f"  {_command('--config', file, 'tail', '--from', 'start')}\n"
        f"  {_command('--config', file, 'dead', 'list')}\n"
        f"  {cli} -p {port} XINFO GROUPS '{keys.input}'\n"
        f"  {cli} -p {port} XRANGE '{keys.output}' - + COUNT 2\n"
        f"The page is then at {endpoints['desk_url']} again.",
        soft_wrap=True, markup=False,
    )  # fmt: skip


def _command(*arguments: Any) -> str:
    """Return a command of ours as one types it here."""
    return shlex.join([_beside("worker-ctl"), *map(str, arguments)])


def _beside(program: str) -> str:
    """Return how a program is called that is installed beside the interpreter, or by its name if it is not."""
    path = Path(sys.executable).with_name(program)
    if not path.exists() or shutil.which(program) == str(path):
        return program
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
