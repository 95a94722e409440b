"""The README's commands run, and what it names exists."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.rig import old_redis

from millhand.layers import load
from millhand.verdict import Reason

PROJECT = Path(__file__).resolve().parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?P<comment><!-- not run: [^\n]+ -->\n)?```sh\n(?P<commands>.*?)```", re.DOTALL)


def commands(*, run: bool) -> list[str]:
    return [match["commands"] for match in BLOCK.finditer(README) if (match["comment"] is None) == run]


@pytest.mark.alone
@pytest.mark.timeout(400)
def test_the_commands_of_the_readme_run_in_their_order(short_path: Path) -> None:
    if shutil.which("redis-cli") is None:
        assert old_redis().exists()  # its package puts redis-cli beside the interpreter
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MILLHAND_")}
    script = "set -euxo pipefail\ntrap 'worker-ctl stop || true' EXIT\n" + "\n".join(commands(run=True))
    log = short_path / "output"
    with log.open("wb") as output:
        ended = subprocess.run(
            ["bash", "-c", script],
            cwd=PROJECT,
            env={**environment, "HOME": str(short_path)},
            stdout=output,
            stderr=output,
            timeout=360,
            check=False,
        )
    said = log.read_text(encoding="utf-8", errors="replace")
    assert ended.returncode == 0, said[-4000:]
    reports = [json.loads(line) for line in said.splitlines() if line.startswith('{"enriched_count"')]
    assert reports[0]["enriched_count"] >= 57
    assert reports[0]["input_count"] == 60
    assert reports[0]["duplicates"] == 0
    assert set(reports[0]["dead_letter_reasons"]) >= {"no_text", "malformed"}
    assert "workers: 2 -> 4" in said


def test_no_placeholder_is_left() -> None:
    assert not re.findall(r"@[A-Z_]+@|TODO|TBD", README)


def test_the_commands_that_need_servers_of_ones_own_are_at_least_shell() -> None:
    for block in commands(run=False):
        subprocess.run(["bash", "-n", "-c", block], check=True)


def test_every_test_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", README))
    there = "".join(file.read_text(encoding="utf-8") for file in (PROJECT / "tests").rglob("test_*.py"))
    assert named
    assert not [name for name in named if f"def {name}(" not in there]


def test_the_readme_documents_every_reason_of_a_dead_letter() -> None:
    assert not [reason for reason in Reason if f"`{reason}`" not in README]


def test_the_readmes_own_task_is_a_right_configuration(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    file = tmp_path / "millhand.toml"
    file.write_text(example, encoding="utf-8")
    assert load(file, {}).enrich.tasks == ("sentiment", "urgency")


def test_every_path_that_the_documents_name_exists() -> None:
    text = README + (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:worker|supervisor|scripts|tests|conf)/[\w./-]+)`", text)
    assert paths
    assert not [path for path in paths if not (PROJECT / path).exists()]
