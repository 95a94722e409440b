"""The turns that the processes of a test run take."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from tests.rig import eventually
from tests.turns import Turns

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[Turns]]:
    """Open the same turns three times, as three processes do."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Turns(tmp_path))) for _ in range(3)]


def is_shut(door: Path) -> bool:
    """Whether somebody waits behind the door for the room to become empty."""
    descriptor = os.open(door, os.O_RDWR | os.O_CLOEXEC)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        return True
    finally:
        os.close(descriptor)


def test_those_who_need_no_turn_of_their_own_are_in_together(three: list[Turns]) -> None:
    for turns in three:
        turns.enter(alone=False)


def test_who_wants_to_be_alone_waits_for_those_within_and_goes_before_those_who_come_later(
    three: list[Turns], tmp_path: Path
) -> None:
    first, alone, later = three
    order = []

    def come(turns: Turns, name: str, *, alone: bool) -> None:
        turns.enter(alone=alone)
        order.append(name)
        turns.leave()

    first.enter(alone=False)
    with ThreadPoolExecutor(2) as threads:
        ends = [threads.submit(come, alone, "alone", alone=True)]
        eventually(lambda: is_shut(tmp_path / "door"))
        ends.append(threads.submit(come, later, "later", alone=False))
        order.append("first")
        first.leave()
        for end in ends:
            end.result(10)
    assert order == ["first", "alone", "later"]


def test_a_turn_that_is_kept_needs_not_be_waited_for(three: list[Turns]) -> None:
    turns, *_ = three
    turns.enter(alone=True)
    turns.enter(alone=True)


TESTS = """
import os, pathlib, time, pytest

FOLDER = pathlib.Path(os.environ["TRACE"])
LOOK_S = 0.3

def look_out_for(others, me):
    (FOLDER / me).touch()
    until = time.monotonic() + LOOK_S
    while time.monotonic() < until:
        met = [one.name for one in FOLDER.glob(others + "-*") if one.name != me]
        if met:
            break
        time.sleep(0.01)
    (FOLDER / me).unlink()
    return met

@pytest.mark.parametrize("n", range(8))
def test_together(n):
    assert not look_out_for("alone", f"together-{n}")

@pytest.mark.alone
@pytest.mark.parametrize("n", range(3))
def test_alone(n):
    assert not look_out_for("*", f"alone-{n}")
"""


def test_nothing_runs_beside_a_test_that_is_marked_alone(tmp_path: Path) -> None:
    """With the project's own hooks, in three processes, whose tests look out for each other."""
    shelf, traces = tmp_path / "shelf", tmp_path / "traces"
    shelf.mkdir()
    traces.mkdir()
    (shelf / "test_shelf.py").write_text(TESTS)
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    answer = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", PROJECT / "pyproject.toml"),
            *("--rootdir", tmp_path, "--numprocesses", "3", "--dist", "loadgroup", shelf),
        ],
        cwd=PROJECT, env={**own, "TRACE": str(traces)}, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "11 passed" in answer.stdout
