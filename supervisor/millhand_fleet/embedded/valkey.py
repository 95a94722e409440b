"""The embedded Valkey: a real server in the fleet's state directory, durable, on loopback."""

import fcntl
import json
import os
from pathlib import Path

from millhand.process import become_child
from millhand.pulse import Birth

FOLDER = "valkey"
LOCK = "valkey.lock"
LOG = "valkey.log"

CONFIG = """\
# Written anew at every start of the fleet.
bind 127.0.0.1
protected-mode yes
port {port}
dir {folder}
logfile {log}
daemonize no
appendonly yes
appendfsync always
aof-load-truncated yes
save ""
maxmemory-policy noeviction
"""


def run_valkey(server: Path, state_dir: Path, port: int, birth: Birth) -> None:
    """Become the Valkey server: this process is replaced by it, and keeps the kernel's death signal."""
    become_child(birth)
    birth.end.close()
    os.setpgid(0, 0)  # a terminal's Ctrl-C must not reach it before the workers have settled
    folder = state_dir / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    hold_folder(folder)
    config = folder / "valkey.conf"
    config.write_text(CONFIG.format(port=port, folder=_quoted(folder), log=_quoted(folder / LOG)), encoding="utf-8")
    os.execv(server, [str(server), str(config)])  # noqa: S606 - a program of ours with arguments of ours


def _quoted(path: Path) -> str:
    """Return a path as the server's configuration spells a string: JSON's quotes and escapes."""
    return json.dumps(str(path), ensure_ascii=False)


def hold_folder(folder: Path) -> None:
    """Wait for the folder's lock and keep it into the server: two servers would ruin one append-only file.

    The lock ends with the process that holds it, so that a server whose supervisor was killed is waited for.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(descriptor, True)  # noqa: FBT003 - the standard library's own signature
    fcntl.flock(descriptor, fcntl.LOCK_EX)
