"""The only wiring: from a configuration to a supervisor with its children."""

import errno
import os
import socket
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from millhand.config import CONTROL_SOCKET, EMBEDDED, Config
from millhand.errors import Unusable
from millhand.log import logger
from millhand.worker import work
from millhand_fleet.admission import require_usable
from millhand_fleet.blueprint import Blueprint, Outside, Roles
from millhand_fleet.child import Spec
from millhand_fleet.desk import attend
from millhand_fleet.embedded.model_process import run_model
from millhand_fleet.embedded.preflight import require_model_server, valkey_binary
from millhand_fleet.embedded.valkey import FOLDER, LOG, run_valkey
from millhand_fleet.janitor import consumer_prefix, look_after
from millhand_fleet.leftovers import end_leftovers, remember
from millhand_fleet.notify import Notify
from millhand_fleet.reloading import Reloader
from millhand_fleet.restarts import Wear
from millhand_fleet.slot import worker_name
from millhand_fleet.state import (
    ENDPOINTS,
    ORPHANS_GONE_S,
    POLL_S,
    DesiredCount,
    OperatorPause,
    StateDir,
    kept_port,
)
from millhand_fleet.stop_wait import StopWait
from millhand_fleet.supervisor import STOP_GRACE_S, Supervisor

LISTEN_BACKLOG = 128
STACKS = "stacks"  # a file for each child that hung or crashed last
EMBEDDED_SLOTS = 2  # calls that the embedded model answers at once


@dataclass(frozen=True)
class Fleet:
    """A fleet that can be started, and where it will be found."""

    supervisor: Supervisor
    redis_url: str
    model_url: str
    desk_url: str
    workers: int


def assemble(config: Config, read: Callable[[], Config], waits: StopWait) -> Fleet:
    """Check what can be checked before a process is started, take the lock, open the sockets, and wire the children.

    `read` reads the configuration again, for a reload. Raises Unusable with what to change, FleetRunningError if
    another supervisor is there. `waits` is how long whoever runs us waits after a SIGTERM.
    """
    require_usable(config)
    state = StateDir(config.state_dir)
    try:
        state.hold()
        (state.path / STACKS).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise Unusable(f"fleet.state_dir {state.path} cannot be used: {error.strerror}") from error
    if killed := end_leftovers(state):
        logger().warning("fleet.leftovers_killed", pids=killed)
    return _wire(config, state, read, waits)


def _wire(config: Config, state: StateDir, read: Callable[[], Config], waits: StopWait) -> Fleet:
    servers: list[Spec] = []
    redis_url, model_url = config.redis.url, config.model.url
    if redis_url == EMBEDDED:
        port = kept_port(state, "valkey", config.redis.embedded_port)
        if not port:
            raise Unusable(
                f"redis.embedded_port: port {config.redis.embedded_port} on 127.0.0.1 is taken; choose another"
            )
        redis_url = f"redis://127.0.0.1:{port}/0"
        servers.append(_valkey(state.path.resolve(), port))
    if model_url == EMBEDDED:
        listener = _listen(0, "the embedded model")
        model_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        servers.append(_model(config, listener))
    tcp = _listen(config.desk.port or kept_port(state, "desk", 0), "desk.port")
    unix = _listen_unix(state.path / CONTROL_SOCKET)
    desk_url = f"http://127.0.0.1:{tcp.getsockname()[1]}"

    def drawn(configured: Config) -> Blueprint:
        urls = {"redis": redis_url} if configured.redis.url == EMBEDDED else {"redis": configured.redis.url}
        urls |= {"model": model_url} if configured.model.url == EMBEDDED else {"model": configured.model.url}
        return _blueprint(configured.with_urls(**urls), tuple(servers), (tcp, unix), waits)

    desired = DesiredCount(state, config.fleet.workers)
    embedded = {"redis_url": redis_url} if servers and servers[0].name == "valkey" else {}
    state.write(ENDPOINTS, {"desk_url": desk_url, "model_url": model_url, **embedded})
    outside = Outside(
        tell=logger(),
        notify=Notify(os.environ),
        renew=Reloader(config, read, drawn),
        remember=lambda pids: remember(state, pids),
    )
    supervisor = Supervisor(drawn(config), desired, OperatorPause(state), outside)
    return Fleet(supervisor, redis_url, model_url, desk_url, desired.value)


def _blueprint(
    config: Config, servers: tuple[Spec, ...], sockets: tuple[socket.socket, socket.socket], waits: StopWait
) -> Blueprint:
    roles = Roles(
        servers=servers,
        janitor=lambda living: Spec(
            "janitor", look_after, lambda _: (config, living), stacks=_stacks(config, "janitor")
        ),
        desk=Spec("desk", attend, lambda _: (config, *sockets), stacks=_stacks(config, "desk")),
        worker=lambda number: _worker(config, number),
    )
    fleet = config.fleet
    wear = Wear(fleet.recycle_events, fleet.recycle_mib)
    return Blueprint(roles, fleet.drain_s, wear, waits.note(fleet.drain_s + STOP_GRACE_S))


def _valkey(state_dir: Path, port: int) -> Spec:
    server = valkey_binary()
    log_file = str(state_dir / FOLDER / LOG)
    return Spec("valkey", run_valkey, lambda _: (server, state_dir, port), log_file=log_file, beats=False)


def _model(config: Config, listener: socket.socket) -> Spec:
    path = require_model_server()
    return Spec("model", run_model, lambda _: (config, path, EMBEDDED_SLOTS, listener), stacks=_stacks(config, "model"))


def _worker(config: Config, number: int) -> Spec:
    name = worker_name(number)
    return Spec(
        name,
        work,
        lambda identity: (config, identity),
        consumer=f"{consumer_prefix()}{number}",
        stacks=_stacks(config, name),
    )


def _stacks(config: Config, name: str) -> str:
    return str(config.state_dir / STACKS / name)


def _listen(port: int, key: str) -> socket.socket:
    """Open a listening socket on loopback. A child inherits it, so that its restarts keep the port."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    deadline = time.monotonic() + ORPHANS_GONE_S
    while True:
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(LISTEN_BACKLOG)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                message = f"{key}: port {port} on 127.0.0.1 cannot be had: {error.strerror}; choose another"
                raise Unusable(message) from error
            time.sleep(POLL_S)
        else:
            return listener


def _listen_unix(path: Path) -> socket.socket:
    """Open the control socket, in a directory that only its owner may enter. The lock says that it is ours to open."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    listener.listen(LISTEN_BACKLOG)
    return listener
