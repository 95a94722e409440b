"""The state directory: who holds it, and what it remembers."""

import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from millhand_fleet.state import DESIRED, PAUSE, DesiredCount, FleetRunningError, OperatorPause, StateDir, kept_port


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    """Hold a state directory."""
    held = StateDir(tmp_path / "deep" / "state")
    held.hold()
    yield held
    release(held)


def release(state: StateDir) -> None:
    """Let go of the lock, as the end of the process would."""
    assert state._lock is not None
    os.close(state._lock)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class Sleeper:
    """A clock that only sleep moves, and what happens while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.meanwhile: list[Callable[[], object]] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        while self.meanwhile:
            self.meanwhile.pop()()


@pytest.fixture
def sleeper(monkeypatch: pytest.MonkeyPatch) -> Sleeper:
    clock = Sleeper()
    monkeypatch.setattr("millhand_fleet.state.time", clock)
    return clock


# -- holding -----------------------------------------------------------------------------------------------------------


def test_the_directory_is_made_and_private(state: StateDir) -> None:
    assert mode(state.path) == 0o700


def test_a_directory_that_was_open_to_others_becomes_private(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    state = StateDir(tmp_path)
    state.hold()
    assert mode(tmp_path) == 0o700
    release(state)


@pytest.mark.usefixtures("sleeper")
def test_a_second_holder_is_refused_and_told_who_is_first(state: StateDir) -> None:
    with pytest.raises(FleetRunningError, match=rf"process {os.getpid()}, state directory {state.path}"):
        StateDir(state.path).hold()


@pytest.mark.usefixtures("sleeper")
def test_being_refused_does_not_disturb_the_holder(state: StateDir) -> None:
    for _ in range(2):
        with pytest.raises(FleetRunningError, match=f"process {os.getpid()}"):
            StateDir(state.path).hold()


@pytest.mark.usefixtures("sleeper")
def test_the_directory_can_be_held_again_after_its_holder_has_ended(tmp_path: Path) -> None:
    first, second = StateDir(tmp_path), StateDir(tmp_path)
    first.hold()
    release(first)
    second.hold()
    with pytest.raises(FleetRunningError):
        StateDir(tmp_path).hold()
    release(second)


def test_a_longer_process_id_of_an_earlier_holder_leaves_no_digits_behind(tmp_path: Path) -> None:
    (tmp_path / "supervisor.lock").write_text("99999999999\n")
    state = StateDir(tmp_path)
    state.hold()
    assert (tmp_path / "supervisor.lock").read_text() == f"{os.getpid()} {os.getppid()}\n"
    release(state)


def test_who_holds_the_directory_can_be_asked(state: StateDir, tmp_path: Path) -> None:
    """As the doctor does, to look at the supervisor's own environment and limits."""
    assert StateDir(state.path).holder() == os.getpid()
    assert StateDir(tmp_path / "nowhere").holder() == 0


def test_whether_the_directory_is_held_can_be_asked_at_any_time(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    assert not StateDir(tmp_path / "absent").held()
    assert not state.held()
    state.hold()
    assert StateDir(tmp_path).held()
    assert StateDir(tmp_path).held(), "asking takes the lock from nobody"
    release(state)
    assert not StateDir(tmp_path).held()


# -- files -------------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_again(state: StateDir) -> None:
    state.write("x.json", {"url": "redis://ü"})
    assert state.read("x.json") == {"url": "redis://ü"}


def test_a_state_file_is_private(state: StateDir) -> None:
    state.write("x.json", {})
    assert mode(state.path / "x.json") == 0o600


def test_a_write_that_fails_half_way_leaves_the_old_file(state: StateDir) -> None:
    state.write("x.json", {"a": 1})
    with pytest.raises(TypeError):
        state.write("x.json", {"a": 2, "b": object()})
    assert state.read("x.json") == {"a": 1}


def test_a_reader_never_sees_a_half_written_file(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    state.write("x.json", {"a": 1})
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("millhand_fleet.state.os.fsync", lambda _: seen.append(state.read("x.json")))
    state.write("x.json", {"a": 2})
    assert seen == [{"a": 1}]
    assert state.read("x.json") == {"a": 2}


def test_what_a_crash_left_of_a_write_does_not_hinder_the_next(state: StateDir) -> None:
    (state.path / ".x.json.draft").write_text('{"a": "left over from a much longer document"')
    state.write("x.json", {"a": 2})
    assert state.read("x.json") == {"a": 2}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"null", b"\xff\xfe", b'{"a": 1} x'])
def test_a_state_file_that_cannot_be_read_is_empty(state: StateDir, content: bytes) -> None:
    (state.path / "x.json").write_bytes(content)
    assert state.read("x.json") == {}


def test_a_state_file_that_is_not_there_is_empty(state: StateDir) -> None:
    assert state.read("x.json") == {}


# -- the desired count -------------------------------------------------------------------------------------------------


def test_the_count_begins_as_configured(state: StateDir) -> None:
    assert DesiredCount(state, 4).value == 4


@pytest.mark.parametrize("scaled", [0, 1, 8, 256])
def test_a_scaled_count_survives_a_restart(state: StateDir, scaled: int) -> None:
    DesiredCount(state, 4).set(scaled)
    assert DesiredCount(state, 4).value == scaled
    assert DesiredCount(state, 4).value == scaled


def test_a_changed_configuration_wins_over_what_was_scaled_before(state: StateDir) -> None:
    DesiredCount(state, 4).set(8)
    assert DesiredCount(state, 5).value == 5
    assert DesiredCount(state, 4).value == 4, "the old count was for another configuration, and is forgotten"


def test_a_new_count_holds_at_once(state: StateDir) -> None:
    desired = DesiredCount(state, 4)
    desired.set(8)
    assert desired.value == 8


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[8]",
        '{"workers": 8}',
        '{"configured": 4}',
        '{"workers": "8", "configured": 4}',
        '{"workers": 8.0, "configured": 4}',
        '{"workers": null, "configured": 4}',
        '{"workers": -1, "configured": 4}',
        '{"workers": 8, "configured": "4"}',
        pytest.param('{"workers": true, "configured": 4}', id="true is no count"),
        pytest.param('{"workers": 1000000000, "configured": 4}', id="more than any fleet may have"),
    ],
)
def test_a_broken_file_means_the_configured_count(state: StateDir, content: str) -> None:
    (state.path / DESIRED).write_text(content)
    count = DesiredCount(state, 4).value
    assert (count, type(count)) == (4, int)
    assert json.loads((state.path / DESIRED).read_text()) == {"workers": 4, "configured": 4}


def test_a_count_that_could_not_be_saved_does_not_hold(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """On disk first: a count that holds now and is forgotten at the next restart surprises twice."""
    desired = DesiredCount(state, 4)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("millhand_fleet.state.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        desired.set(8)
    assert desired.value == 4


def test_a_count_that_a_reload_changes_holds_and_survives(state: StateDir) -> None:
    desired = DesiredCount(state, 2)
    desired.set(7)
    desired.configure(2)
    assert desired.value == 7, "the configuration says what it said before"
    desired.configure(3)
    assert desired.value == 3
    assert DesiredCount(state, 3).value == 3
    desired.set(5)
    assert DesiredCount(state, 3).value == 5


def test_a_changed_count_that_could_not_be_saved_is_taken_over_by_the_next_reload(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    desired = DesiredCount(state, 2)
    with monkeypatch.context() as patch:
        patch.setattr(StateDir, "write", full)
        with pytest.raises(OSError, match="No space"):
            desired.configure(3)
    assert desired.value == 2
    desired.configure(3)
    assert desired.value == 3


# -- the pause ---------------------------------------------------------------------------------------------------------


def test_a_pause_survives_a_restart(state: StateDir) -> None:
    OperatorPause(state).set(True)
    assert OperatorPause(state).value is True
    OperatorPause(state).set(False)
    assert OperatorPause(state).value is False


@pytest.mark.parametrize("content", ["", "{", "[]", '{"paused": "no"}', '{"paused": 1}', "{}"])
def test_a_broken_file_means_no_pause(state: StateDir, content: str) -> None:
    (state.path / PAUSE).write_text(content)
    assert OperatorPause(state).value is False


# -- ports -------------------------------------------------------------------------------------------------------------


def bindable(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def test_a_port_that_is_asked_for_is_given(state: StateDir) -> None:
    assert kept_port(state, "valkey", 6390) == 6390


def test_a_port_is_kept_over_a_restart(state: StateDir) -> None:
    port = kept_port(state, "valkey", 0)
    assert bindable(port)
    assert kept_port(state, "valkey", 0) == port


def test_two_servers_keep_their_ports_apart(state: StateDir) -> None:
    port = kept_port(state, "valkey", 0)
    kept_port(state, "model", 0)
    assert kept_port(state, "valkey", 0) == port


@pytest.fixture
def taken(state: StateDir) -> Iterator[socket.socket]:
    """Listen on the port that the state directory remembers, as somebody else's server."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        state.write("valkey.port.json", {"port": listener.getsockname()[1]})
        yield listener


@pytest.mark.usefixtures("sleeper")
def test_a_kept_port_that_somebody_took_is_replaced(state: StateDir, taken: socket.socket) -> None:
    other = kept_port(state, "valkey", 0)
    assert other not in {0, taken.getsockname()[1]}
    assert state.read("valkey.port.json") == {"port": other}


def test_a_kept_port_that_a_killed_fleets_server_still_holds_is_awaited(
    state: StateDir, taken: socket.socket, sleeper: Sleeper
) -> None:
    port = taken.getsockname()[1]
    sleeper.meanwhile.append(taken.close)
    assert kept_port(state, "valkey", 0) == port


@pytest.mark.parametrize("port", ["6390", None, True, -1, 65536, 1.5, [6390], {}])
def test_a_broken_port_file_means_any_free_port_at_once(state: StateDir, port: Any, sleeper: Sleeper) -> None:
    """What is no port will not become free, however long one waits."""
    begun = sleeper.now
    state.write("valkey.port.json", {"port": port})
    kept = kept_port(state, "valkey", 0)
    assert type(kept) is int
    assert bindable(kept)
    assert sleeper.now == begun
