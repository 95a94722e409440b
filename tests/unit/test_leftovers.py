"""What an earlier supervisor's children have left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.rig import eventually

from millhand_fleet import leftovers
from millhand_fleet.leftovers import CHILDREN, end_leftovers, is_orphan, remember
from millhand_fleet.state import StateDir

Start = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start processes that wait for ever; ended after the test."""

    def started() -> "subprocess.Popen[bytes]":
        process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        stack.enter_context(process)
        stack.callback(process.kill)
        return process

    with ExitStack() as stack:
        yield started


def test_a_stopped_process_is_killed_at_once(state: StateDir, start: Start) -> None:
    """F12: it hears neither that its supervisor died nor the kernel's signal."""
    process = start()
    remember(state, [process.pid])
    os.kill(process.pid, signal.SIGSTOP)
    eventually(lambda: leftovers._is_stopped(process.pid))
    assert end_leftovers(state) == [process.pid]
    assert process.wait(10) == -signal.SIGKILL


def test_a_process_that_does_not_leave_is_killed_in_the_end(
    state: StateDir, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "ORPHANS_GONE_S", 0.2)
    process = start()
    remember(state, [process.pid])
    assert end_leftovers(state) == [process.pid]
    assert process.wait(10) == -signal.SIGKILL


def test_a_process_that_has_left_is_no_matter(state: StateDir, start: Start) -> None:
    process = start()
    remember(state, [process.pid, 2**22 + 1])
    process.kill()
    process.wait(10)
    assert end_leftovers(state) == []


def test_another_process_that_got_the_number_is_left_alone(state: StateDir, start: Start) -> None:
    process = start()
    os.kill(process.pid, signal.SIGSTOP)
    remember(state, [process.pid])
    state.write(CHILDREN, {**state.read(CHILDREN), "children": [[process.pid, "1"]]})
    assert end_leftovers(state) == []
    assert process.poll() is None


def test_what_was_remembered_before_the_host_was_started_anew_is_nobody(state: StateDir, start: Start) -> None:
    """F12: numbers and times since the start of the kernel may be those of any process now."""
    process = start()
    os.kill(process.pid, signal.SIGSTOP)
    remember(state, [process.pid])
    state.write(CHILDREN, {**state.read(CHILDREN), "boot": "another"})
    assert end_leftovers(state) == []
    assert process.poll() is None


def test_remembering_waits_for_no_disk(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """It happens at every start and end of a child, and means nothing after a power cut."""
    monkeypatch.setattr("os.fsync", lambda _: pytest.fail("a disk was waited for"))
    remember(state, [os.getpid()])
    assert len(state.read(CHILDREN)["children"]) == 1


def test_a_process_whose_parent_is_another_than_the_one_that_started_it_is_an_orphan(start: Start) -> None:
    """F13: its supervisord was killed."""
    process = start()
    assert not is_orphan(process.pid, os.getpid())
    assert is_orphan(process.pid, os.getppid())
    assert not is_orphan(0, 1)
    assert not is_orphan(process.pid, 0), "what is not known is no reason"
    process.kill()
    process.wait(10)
    assert not is_orphan(process.pid, 1), "nobody is there any more"


@pytest.mark.parametrize("document", [{}, {"children": None}, {"children": [1]}, {"children": [["x", "y"]]}])
def test_a_file_that_says_nothing_is_no_matter(state: StateDir, document: dict[str, object]) -> None:
    state.write(CHILDREN, {"boot": leftovers._boot(), **document})
    assert end_leftovers(state) == []
