"""One child, whose process is made of paper."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
from tests.rig import eventually

from millhand.pulse import Birth, Line
from millhand_fleet import child
from millhand_fleet.child import BIRTH_LIMIT_S, KILL_AFTER_S, STACKS_CHARS_MAX, Child, Parcel, Spec


class PaperProcess:
    """Looks like a multiprocessing.Process and writes down what is done to it."""

    def __init__(self, *, target: Callable[..., None], args: tuple[Parcel], name: str) -> None:
        (parcel,) = args
        assert target is child._call
        self.target, self.args, self.name = parcel.target, parcel.args, name
        self.pid: int | None = 4711
        self.sentinel = -1
        self.exitcode: int | None = None
        self.done: list[str] = []
        self.end: Line | None = None

    def start(self) -> None:
        """Keep the child's end of the line open, as the new process would."""
        birth = self.args[-1]
        assert isinstance(birth, Birth)
        self.end = Line(birth.end.dup())
        self.done.append("start")

    def terminate(self) -> None:
        self.done.append("terminate")

    def kill(self) -> None:
        self.done.append("kill")

    def join(self) -> None:
        self.done.append("join")

    def close(self) -> None:
        self.done.append("close")


class Paper:
    """Makes paper children, on a clock that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.processes: list[PaperProcess] = []
        self.children: list[Child] = []

    def monotonic(self) -> float:
        return self.now

    def Process(self, **wanted: Any) -> PaperProcess:  # noqa: N802 - as in multiprocessing
        self.processes.append(PaperProcess(**wanted))
        return self.processes[-1]

    def make(self, **spec: Any) -> tuple[Child, PaperProcess, Line]:
        """Return a child, its process, and its end of the line."""
        made = Child(Spec(**{"name": "worker-1", "target": print, "args": lambda identity: (identity,), **spec}))
        self.children.append(made)
        end = self.processes[-1].end
        assert end is not None
        return made, self.processes[-1], end


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Paper]:
    made = Paper()
    monkeypatch.setattr(child, "_spawn", made)
    monkeypatch.setattr(child, "time", made)
    yield made
    for one, process in zip(made.children, made.processes, strict=True):
        one.line.close()
        if process.end is not None:
            process.end.close()


# -- birth -------------------------------------------------------------------------------------------------------------


def test_a_child_gets_its_identity_and_its_birth(paper: Paper) -> None:
    made, process, _ = paper.make()
    identity, birth = process.args
    assert identity == made.identity
    assert (birth.name, process.name, process.done) == ("worker-1", "worker-1", ["start"])
    assert (made.pid, made.exit_code, made.ready, made.stopping) == (4711, None, False, False)


def test_no_two_incarnations_have_the_same_identity(paper: Paper) -> None:
    assert len({paper.make()[0].identity for _ in range(50)}) == 50


@pytest.mark.parametrize(("consumer", "begin"), [("host:w1", "host:w1:"), ("", "worker-1:")])
def test_an_identity_begins_with_the_consumer_or_else_the_name(paper: Paper, consumer: str, begin: str) -> None:
    assert paper.make(consumer=consumer)[0].identity.startswith(begin)


def test_the_supervisor_does_not_hold_the_childs_end_of_the_line_open(paper: Paper) -> None:
    """Or it would never read end-of-file."""
    made, _, end = paper.make()
    end.close()
    made.hear()
    assert made.line.closed


# -- hearing -----------------------------------------------------------------------------------------------------------


def test_a_beat_is_a_sign_of_life_with_stats(paper: Paper) -> None:
    made, _, end = paper.make()
    paper.now += KILL_AFTER_S + 1
    end.send({"beat": {"in_hand": 2}})
    assert made.hear() == []
    assert made.stats == {"in_hand": 2}
    assert made.overdue() is None


def test_a_child_says_when_it_is_ready(paper: Paper) -> None:
    made, _, end = paper.make()
    end.send({"ready": True})
    assert made.hear() == []
    assert made.ready


def test_a_child_says_why_it_cannot_work(paper: Paper) -> None:
    made, _, end = paper.make()
    end.send({"unusable": "Redis 6.2 is too old"})
    assert made.hear() == []
    assert made.unusable == "Redis 6.2 is too old"


def test_what_is_meant_for_others_is_passed_on_in_order(paper: Paper) -> None:
    made, _, end = paper.make(name="desk")
    messages: list[dict[str, Any]] = [{"scale": 3}, {"beat": {}}, {"stop_fleet": True}]
    for message in messages:
        end.send(message)
    assert made.hear() == [{"scale": 3}, {"stop_fleet": True}]


# -- stopping ----------------------------------------------------------------------------------------------------------


def test_a_child_of_ours_is_told_to_stop_and_within_what_time(paper: Paper) -> None:
    made, process, end = paper.make()
    made.stop(20, 4)
    assert end.receive() == [{"stop": 20}]
    assert made.stopping
    assert "terminate" not in process.done


def test_a_foreign_program_gets_a_signal(paper: Paper) -> None:
    made, process, end = paper.make(name="valkey", beats=False)
    made.stop(5, 4)
    assert process.done == ["start", "terminate"]
    assert end.receive() == []


def test_who_is_stopping_already_is_not_told_again_and_gets_no_more_time(paper: Paper) -> None:
    made, _, end = paper.make()
    made.stop(20, 4)
    paper.now += 10
    made.stop(20, 4)
    assert end.receive() == [{"stop": 20}]
    paper.now += 14.1
    assert made.overdue() == "did not stop in time"


def test_a_stop_to_a_child_that_is_gone_does_no_harm(paper: Paper) -> None:
    made, _, end = paper.make()
    end.close()
    made.stop(20, 4)
    assert made.stopping


# -- overdue -----------------------------------------------------------------------------------------------------------


def test_who_stops_within_the_grace_is_not_overdue(paper: Paper) -> None:
    made, _, _ = paper.make()
    made.stop(5, 4)
    paper.now += 9
    assert made.overdue() is None


def test_a_silent_child_is_overdue(paper: Paper) -> None:
    made, _, end = paper.make()
    end.send({"beat": {}})
    made.hear()
    paper.now += KILL_AFTER_S
    assert made.overdue() is None
    paper.now += 0.1
    assert made.overdue() == f"silent for {KILL_AFTER_S:g} s"


def test_a_child_that_still_imports_has_more_time(paper: Paper) -> None:
    """F17: on a busy machine all would be killed before they are ready, again and again."""
    made, _, _ = paper.make()
    paper.now += BIRTH_LIMIT_S
    assert made.overdue() is None
    paper.now += 0.1
    assert made.overdue() == f"silent for {BIRTH_LIMIT_S:g} s"


def test_a_foreign_program_may_be_silent_for_ever(paper: Paper) -> None:
    made, _, _ = paper.make(beats=False)
    paper.now += 10 * KILL_AFTER_S
    assert made.overdue() is None


def test_a_foreign_program_must_stop_in_time_too(paper: Paper) -> None:
    made, _, _ = paper.make(beats=False)
    made.stop(5, 4)
    paper.now += 9.1
    assert made.overdue() == "did not stop in time"


def test_who_was_killed_is_not_overdue_again(paper: Paper) -> None:
    made, process, _ = paper.make()
    paper.now += BIRTH_LIMIT_S + 1
    assert made.overdue()
    made.kill()
    assert made.overdue() is None
    assert process.done == ["start", "kill"]


def test_a_life_is_measured_from_its_start(paper: Paper) -> None:
    made, _, _ = paper.make()
    paper.now += 61
    assert made.lived_s == 61


def test_a_burial_gives_everything_back(paper: Paper) -> None:
    made, process, end = paper.make()
    made.bury()
    assert process.done == ["start", "join", "close"]
    end.receive()
    assert end.closed
    assert made.line.closed


# -- what is seen of the process ---------------------------------------------------------------------------------------


def test_a_childs_memory_is_what_the_kernel_says(paper: Paper) -> None:
    """F18: and nothing, where it says nothing any more."""
    made, process, _ = paper.make()
    process.pid = os.getpid()
    assert 10 < made.rss_mib < 10_000
    process.pid = 2**22 + 1  # beyond the largest there is
    assert made.rss_mib == 0.0


def test_the_stacks_that_a_child_left_are_found_and_those_of_an_earlier_life_are_not(
    paper: Paper, tmp_path: Path
) -> None:
    """F7."""
    file = tmp_path / "worker-1"
    file.write_text("of an earlier life")
    made, process, _ = paper.make(stacks=str(file))
    assert process.args[-1].stacks == str(file)
    assert made.stacks() == ""
    file.write_text("Timeout (0:00:15)!\n" + "x" * STACKS_CHARS_MAX)
    assert made.stacks().startswith("Timeout")
    assert len(made.stacks()) == STACKS_CHARS_MAX


def test_a_child_that_has_no_file_for_them_leaves_no_stacks(paper: Paper) -> None:
    assert paper.make()[0].stacks() == ""


def test_a_stopped_process_is_told_from_one_that_hangs(paper: Paper) -> None:
    """F6: it cannot show its stacks, so nobody should look for them."""
    made, process, _ = paper.make()
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as running:
        try:
            process.pid = running.pid
            assert made._frozen() == ""
            running.send_signal(signal.SIGSTOP)
            eventually(lambda: "SIGSTOP" in made._frozen())
        finally:
            running.kill()


def test_a_process_that_cannot_be_started_leaves_no_descriptor_open(
    paper: Paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F17: tried again for hours, each try would cost two."""
    pairs = []

    def pair() -> tuple[Line, socket.socket]:
        pairs.append(real())
        return pairs[-1]

    def refuse(_: PaperProcess) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    real = Line.pair
    monkeypatch.setattr(Line, "pair", pair)
    monkeypatch.setattr(PaperProcess, "start", refuse)
    with pytest.raises(OSError, match="temporarily"):
        Child(Spec("worker-1", print, lambda _: ()))
    paper.processes.clear()
    ((ours, theirs),) = pairs
    assert ours.closed
    assert theirs.fileno() == -1


# -- real processes ----------------------------------------------------------------------------------------------------

MUCH = "x" * 1_000_000  # more than a pipe holds


def leave(text: str, birth: Birth) -> None:
    """Be a child that says what it was given."""
    line = Line(birth.end)
    line.send({"given": len(text)})


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_a_child_gets_all_that_it_is_called_with_and_costs_no_descriptor_in_the_end() -> None:
    Child(Spec("first", leave, lambda _: ("",))).bury()  # multiprocessing's own helper stays
    before = descriptors()
    made = Child(Spec("worker-1", leave, lambda _: (MUCH,)))
    assert eventually(made.hear, 30) == [{"given": len(MUCH)}]
    eventually(lambda: made.exit_code == 0, 30)
    made.bury()
    assert descriptors() <= before


@pytest.mark.timeout(60)
def test_a_child_that_dies_before_it_reads_what_it_is_called_with_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F17: killed for its memory while it is being born, say; the supervisor would wait for it for ever."""
    resource_tracker.ensure_running()  # multiprocessing's own helper, by the real interpreter
    monkeypatch.setattr("multiprocessing.spawn._python_exe", b"/bin/false")
    made = Child(Spec("worker-1", leave, lambda _: (MUCH,)))
    eventually(lambda: made.exit_code == 1, 30)
    made.bury()


LOOK = """\
import sys
import millhand.worker
def look(_):
    loaded = list(sys.modules)
    import rich.console
    print(*loaded)
"""
LOOKING = """\
from millhand_fleet.child import Child, Spec
if __name__ == "__main__":
    from look import look
    Child(Spec("worker-1", look, lambda _: ()))
"""


def test_a_worker_loads_nothing_that_its_libraries_have_for_a_terminal(tmp_path: Path) -> None:
    """Each would pay for it in memory. Somebody's own task may."""
    (tmp_path / "look.py").write_text(LOOK)
    (tmp_path / "looking.py").write_text(LOOKING)
    command = [sys.executable, str(tmp_path / "looking.py")]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert "millhand.worker" in loaded
    assert not {"rich", "rich.console", "pygments.lexers", "click"} & set(loaded)
