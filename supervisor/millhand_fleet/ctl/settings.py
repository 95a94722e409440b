"""Finding and loading the configuration, as every command does it."""

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from millhand.address import redis_address
from millhand.config import EMBEDDED, SECTIONS, Config
from millhand.errors import ConfigError, Unusable
from millhand.layers import load, load_what_is_right
from millhand_fleet.state import ENDPOINTS, StateDir

EX_UNAVAILABLE = 69
ELSEWHERE = {*SECTIONS, "task"} - {"fleet"}  # sections that do not say which fleet it is
UNCLEAR = (
    "so it is not clear which fleet is meant: mend it, or give --config FILE of one that names it; no fleet was asked"
)
PLACES = (Path("millhand.toml"), Path("/etc/millhand/millhand.toml"))


def load_config(file: Path | None, flags: dict[str, Any] | None = None) -> Config:
    """Load the configuration; leave with every problem in it, one a line."""
    try:
        return load(file or found_file(), os.environ, {key: v for key, v in (flags or {}).items() if v is not None})
    except ConfigError as error:
        leave("the configuration cannot be used", *error.problems)


def load_for_orders(file: Path | None, *, tells: bool = True) -> Config:
    """Load the configuration as far as it takes to speak to the running fleet; leave where it may name another fleet.

    The fleet has read its own long ago: whoever must look at it, or stop it, shall not have to mend a file first.
    """
    config, problems = load_what_is_right(file or found_file(), os.environ)
    if not all(problem.partition(".")[0] in ELSEWHERE for problem in problems):
        leave("the configuration cannot be used", *problems, UNCLEAR)
    if problems and tells:
        say("warning", "yellow", "the configuration is wrong; the running fleet keeps the one that it has", *problems)
    return config


def found_file() -> Path | None:
    """Return the file that is used when none is named."""
    return next((place for place in PLACES if _is_there(place)), None)


def _is_there(place: Path) -> bool:
    """Whether a file is there. Of one that is hidden from us: the system's is, and `load` says so.

    A folder that we may not enter is none that holds ours: `sudo -u millhand worker-ctl status` in somebody's home.
    """
    try:
        return place.is_file()
    except PermissionError:
        return place.is_absolute()


def redis_url(config: Config) -> str:
    """Return the fleet's Redis as `connect` takes it, also an embedded one; leave if that does not run.

    It holds the password: it is for `connect` alone.
    """
    if config.redis.url != EMBEDDED:
        try:
            return redis_address(config.redis)
        except Unusable as error:
            leave(str(error))
    state = StateDir(config.state_dir)
    url = state.read(ENDPOINTS).get("redis_url")
    if not url or not state.held():
        leave(
            f"the embedded Redis of fleet {config.fleet.name!r} does not run (state directory {state.path})",
            "start the fleet with `worker-ctl up`, or set redis.url",
            code=EX_UNAVAILABLE,
        )
    return str(url)


def leave(message: str, *lines: str, code: int = os.EX_CONFIG) -> NoReturn:
    """Say what is wrong and what to do, and exit."""
    say("error", "red", message, *lines)
    sys.exit(code)


def say(word: str, colour: str, message: str, *lines: str) -> None:
    """Say something on standard error, with what belongs to it below."""
    click.echo(click.style(f"{word}: ", fg=colour, bold=True) + message, err=True)
    for line in "\n".join(lines).splitlines():
        click.echo("  " + line, err=True)
