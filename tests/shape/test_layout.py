"""The architecture's rules, as tests."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
WORKER = PROJECT / "worker" / "millhand"
SOURCES = [*WORKER.rglob("*.py"), *(PROJECT / "supervisor" / "millhand_fleet").rglob("*.py")]
LUA = sorted((WORKER / "lua").glob("*.lua"))

# what brings more work in, and what events can do without; all else must end what is in hand
REFUSED_WHEN_FULL = {"take_due", "requeue", "look_up_answer", "look_up_answers", "keep_answer"}


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("root", ["worker", "supervisor"])
def test_a_source_root_is_no_package(root: str) -> None:
    """An __init__.py there would shadow supervisord, whose import name is `supervisor`."""
    assert not (PROJECT / root / "__init__.py").exists()


def test_supervisord_stays_importable_from_the_project_root() -> None:
    code = "import supervisor.supervisord as s, millhand, millhand_fleet; print(s.__file__)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "site-packages" in answer.stdout


def test_a_fleet_is_wired_without_loading_the_embedded_model() -> None:
    """One with its own Ollama needs no llama.cpp, and no supervisor carries it along."""
    code = "import sys, millhand_fleet.assemble; sys.exit('xllamacpp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0


def test_the_import_directions_hold() -> None:
    command = [str(BIN / "lint-imports"), "--no-cache"]
    answer = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize(
    ("module", "owners"),
    [
        ("signal", {"stop.py"}),
        ("multiprocessing", {"child.py", "supervisor.py"}),
        ("httpx", {"ollama.py", "wire.py", "documents.py"}),
        ("ctypes", {"process.py", "preflight.py"}),
    ],
)
def test_a_dangerous_thing_has_one_owner(module: str, owners: set[str]) -> None:
    users = {file.name for file in SOURCES if module in {name.split(".")[0] for name in imports(file)}}
    assert users == owners


def test_commands_of_the_stream_are_spelled_in_one_place() -> None:
    """Writing commands: only scripts move an event, and only `stream` reads one; two commands are producers."""
    spelled = re.compile(r"\.(xadd|xack|xclaim|xautoclaim|xreadgroup|xdel|xtrim)\(|\"(XADD|XACK|XCLAIM|XREADGROUP)\"")
    users = {file.name for file in SOURCES if spelled.search(file.read_text(encoding="utf-8"))}
    assert users == {"stream.py", "produce.py", "demo.py"}


@pytest.mark.parametrize("file", LUA, ids=lambda file: file.name)
def test_a_script_is_headed_by_its_keys_arguments_and_answers(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.isascii(), "Redis takes it, but not every editor does"
    flags = "" if file.stem in REFUSED_WHEN_FULL else " flags=(allow-oom|no-writes)"
    assert re.match(rf"#!lua{flags}\n-- {file.stem}: ", text)
    for heading in ("\n-- KEYS ", "\n-- ARGV ", "\n-- answer "):
        assert heading in text


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.name)
def test_nothing_prints_but_the_command_line(file: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_the_lock_names_no_index_and_hashes_everything() -> None:
    lock = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in lock
    assert "--index-url" not in lock
    pinned = re.findall(r"^[a-z0-9].*==", lock, re.MULTILINE)
    assert len(pinned) > 40
    assert len(re.findall(r"^[a-z0-9][^\n]*\\\n\s+--hash=sha256:", lock, re.MULTILINE)) == len(pinned)


def test_no_extra_resolves_the_package_that_needs_a_compiler() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    assert not [name for name in [*project["dependencies"], *extras] if "smollm2" in name]
