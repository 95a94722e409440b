"""What is to be examined: the configuration, as far as it can be used, and the fleet that runs with it."""

import os
import socket
from pathlib import Path
from typing import Any

import msgspec

from millhand.address import redis_address
from millhand.config import EMBEDDED, ENVIRONMENT_FILE, Config
from millhand.errors import Unusable
from millhand.layers import load_what_is_right
from millhand_fleet.ctl.settings import PLACES, found_file
from millhand_fleet.doctor.processes import Process, look_at
from millhand_fleet.state import DESIRED, ENDPOINTS, StateDir

EMBEDDED_FLAGS = {"redis.url": EMBEDDED, "model.url": EMBEDDED, "model.name": "smollm2:135m"}  # of `up --embedded`
PROBE_S = 2.0


class Setup(msgspec.Struct, frozen=True):
    """One fleet, seen from outside."""

    config: Config
    problems: tuple[str, ...]
    file: Path | None
    is_running: bool = False
    is_private: bool = False  # its state directory is not ours to look into
    supervisor: Process | None = None
    endpoints: dict[str, Any] = {}
    workers: int = 0  # as many as there should be

    @property
    def redis_url(self) -> str:
        """Where Redis is, with the password; "" if it is an embedded one that does not run. Raises Unusable."""
        if self.is_redis_embedded:
            return self._own("redis_url")
        return redis_address(self.config.redis)

    @property
    def model_url(self) -> str:
        """Where the model is; the same."""
        return self._own("model_url") if self.is_model_embedded else self.config.model.url

    @property
    def is_redis_embedded(self) -> bool:
        """Whether Redis is the fleet's own child."""
        return self.config.redis.url == EMBEDDED

    @property
    def is_model_embedded(self) -> bool:
        """Whether the model is the fleet's own child."""
        return self.config.model.url == EMBEDDED

    def _own(self, name: str) -> str:
        return str(self.endpoints.get(name, "")) if self.is_running else ""


def set_up(file: Path | None) -> Setup:
    """Find out what is to be examined. Never fails: what is wrong is in `problems`."""
    file = file or found_file()
    config, problems = load_what_is_right(file, os.environ)
    try:
        redis_address(config.redis)
    except Unusable as error:
        problems = [*problems, str(error)]
    except ValueError:
        pass  # no address: that is among the problems
    setup = Setup(config, tuple(problems), file, workers=config.fleet.workers)
    state = StateDir(_state_dir(config))
    try:
        is_running = state.held()
    except OSError:
        return msgspec.structs.replace(setup, is_private=True)
    if not is_running:
        return setup
    supervisor = look_at(state.holder())
    if supervisor is not None and "--embedded" in supervisor.arguments:
        config, _ = load_what_is_right(file, os.environ, EMBEDDED_FLAGS)
    return msgspec.structs.replace(
        setup,
        config=config,
        is_running=True,
        supervisor=supervisor,
        endpoints=state.read(ENDPOINTS),
        workers=int(state.read(DESIRED).get("workers", config.fleet.workers)),
    )


def given_file(process: Process) -> str | None:
    """Return the configuration file that a fleet was started with, "" for none; None if that cannot be seen."""
    if not process.folder or process.environment is None or "up" not in process.arguments:
        return None
    given = process.environment.get(ENVIRONMENT_FILE, "")
    for number, argument in enumerate(process.arguments):
        if argument == "--config" and number + 1 < len(process.arguments):
            given = process.arguments[number + 1]
        elif argument.startswith("--config="):
            given = argument.removeprefix("--config=")
    places = [Path(given)] if given else PLACES
    return next((str(path) for place in places if (path := Path(process.folder, place)).is_file()), given)


def listens(port: int) -> bool:
    """Whether somebody listens on a port of loopback."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PROBE_S):
            return True
    except OSError:
        return False


def _state_dir(config: Config) -> Path:
    try:
        return config.state_dir
    except RuntimeError:  # ~ of a user without a home
        return Path(config.fleet.state_dir)
