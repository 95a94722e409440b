"""A virtual environment for each peer, made when it is first needed, and anew when its requirements change."""

import subprocess
import sys
from pathlib import Path

from scripts.bench.rig import PROJECT

CACHE = PROJECT / ".bench" / "venvs"
REQUIREMENTS = PROJECT / "scripts" / "bench" / "peers"
UV = Path(sys.executable).with_name("uv")
STAMP = "installed.txt"
TOLD = ("redis", "httpx", "coredis")


def bin_of(peer: str) -> Path:
    """Return the folder of a peer's programs, installed as its list of requirements says."""
    requirements, venv = REQUIREMENTS / f"{peer}.txt", CACHE / peer
    wanted, stamp = requirements.read_text(encoding="utf-8"), venv / STAMP
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        _run("venv", "--quiet", "--clear", "--python", sys.executable, str(venv))
        _run("pip", "sync", "--quiet", "--python", str(venv / "bin" / "python"), str(requirements))
        stamp.write_text(wanted, encoding="utf-8")
    return venv / "bin"


def _run(*arguments: str) -> None:
    subprocess.run([UV, *arguments], check=True)  # noqa: S603 - arguments of ours


def versions_of(peer: str) -> str:
    """Return what a peer's list of requirements pins of the packages that matter for it, in a few words."""
    lines = (REQUIREMENTS / f"{peer}.txt").read_text(encoding="utf-8").split()
    pinned = dict(line.split("==") for line in lines)
    return ", ".join(f"{name} {version}" for name, version in pinned.items() if name.startswith(peer) or name in TOLD)
