"""The log outlives its reader, and is bounded in every direction."""

import os
import re
import select
import threading
from pathlib import Path

import pytest
import structlog
from tests.rig import eventually

from millhand.flood import BURST, RATE_PER_S, TELL_EVERY_S, Flood
from millhand.outlet import Outlet

PIPE_BYTES = 65_536


def drained(reader: int) -> bytes:
    """Read what stands in a pipe now."""
    found = b""
    while select.select((reader,), (), (), 0)[0] and (part := os.read(reader, PIPE_BYTES)):
        found += part
    return found


def test_a_pipe_that_nobody_reads_stops_nobody_and_what_finds_no_room_is_counted() -> None:
    """F14: the thread waits for the pipe, and only the thread."""
    reader, writer = os.pipe()
    outlet = Outlet(writer, bytes_max=10_000)
    for n in range(1000):
        outlet.write(f"{n:099}\n")
    assert outlet.dropped > 1000 - (PIPE_BYTES + 10_000) / 100 - 1
    drained(reader)
    eventually(lambda: drained(reader) or not outlet._bytes)
    os.close(reader)


def test_what_was_dropped_is_told_as_soon_as_there_is_room_and_nothing_is_out_of_order() -> None:
    """F14: the numbers of the lines that arrived go up, and the count told is the count of those that did not."""
    reader, writer = os.pipe()
    outlet = Outlet(writer, bytes_max=1000)
    outlet.tell_dropped = lambda count: outlet.write(f"dropped {count}\n")
    for n in range(1000):
        outlet.write(f"{n:099}\n")
    lost = outlet.dropped
    arrived = b""

    def told() -> int:
        nonlocal arrived
        arrived += drained(reader)
        return sum(int(count) for count in re.findall(rb"dropped (\d+)\n", arrived))

    eventually(lambda: told() == lost)
    numbers = [int(line) for line in arrived.splitlines() if line.isdigit()]
    assert numbers == sorted(numbers)
    assert len(numbers) == 1000 - lost
    os.close(reader)


def test_drops_after_the_first_telling_are_told_although_nothing_more_is_said() -> None:
    reader, writer = os.pipe()
    outlet = Outlet(writer, bytes_max=1000)
    told: list[int] = []
    outlet.tell_dropped = told.append
    for _ in range(2):
        for n in range(1000):
            outlet.write(f"{n:099}\n")
        eventually(lambda: drained(reader) or not outlet._bytes)
    eventually(lambda: sum(told) == outlet.dropped and drained(reader) == b"")
    os.close(reader)


def test_what_nobody_can_ever_read_is_dropped_and_counted() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    outlet = Outlet(writer)
    told: list[int] = []
    outlet.tell_dropped = told.append
    outlet.write("one\n")
    outlet.write("two\n")
    eventually(lambda: outlet.dropped == 2)
    outlet.drain(5)
    assert not told, "nobody is there to be told"


def test_the_end_waits_for_what_is_queued_but_not_for_ever() -> None:
    reader, writer = os.pipe()
    outlet = Outlet(writer)
    outlet.write("x" * PIPE_BYTES + "\n")
    outlet.drain(0.05)
    assert outlet._bytes, "nobody has read it"
    reading = threading.Thread(target=lambda: eventually(lambda: drained(reader).endswith(b"\n") or not outlet._bytes))
    reading.start()
    outlet.drain(10)
    reading.join()
    assert not outlet._bytes


def test_no_thread_to_be_had_loses_a_line_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """F17: RLIMIT_NPROC."""
    reader, writer = os.pipe()
    outlet = Outlet(writer)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        outlet.write("one\n")
    assert outlet.dropped == 1
    outlet.write("two\n")
    eventually(lambda: drained(reader) == b"two\n")


def test_a_file_has_each_line_at_once(tmp_path: Path) -> None:
    """A process that is killed has told all that it had to tell."""
    with (tmp_path / "log").open("ab") as file:
        outlet = Outlet(file.fileno())
        outlet.write("one\n")
        assert (tmp_path / "log").read_text(encoding="utf-8") == "one\n"


def test_what_tells_of_dropped_lines_finds_room_although_others_fill_the_queue() -> None:
    """F14: else its number would be lost with it."""
    reader, writer = os.pipe()
    outlet = Outlet(writer, bytes_max=1000)
    crowds: list[threading.Thread] = []

    def fill() -> None:
        for n in range(20):
            outlet.write(f"{n:099}\n")

    def tell(count: int) -> None:
        if not crowds:
            crowds.append(crowd := threading.Thread(target=fill))
            crowd.start()
            crowd.join()
        outlet.write(f"dropped {count}\n")

    outlet.tell_dropped = tell
    for n in range(1000):
        outlet.write(f"{n:099}\n")
    arrived = bytearray()

    def told() -> int:
        arrived.extend(drained(reader))
        return sum(int(count) for count in re.findall(rb"dropped (\d+)\n", arrived))

    eventually(lambda: crowds and told() == outlet.dropped)
    os.close(reader)


def test_a_full_disk_is_counted_and_told_when_there_is_room() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        outlet = Outlet(full.fileno())
        outlet.write("one\n")
        assert outlet.dropped == 1
        told: list[int] = []
        outlet.tell_dropped = told.append
        with Path("/dev/null").open("wb") as room:
            os.dup2(room.fileno(), full.fileno())
        outlet.write("two\n")
    assert told == [1]


def test_a_flood_of_one_event_is_cut_to_a_rate_and_the_rest_is_counted() -> None:
    clock = [100.0]
    left_out: list[tuple[str, int]] = []
    flood = Flood(lambda event, count: left_out.append((event, count)), lambda: clock[0])
    passed = 0
    for _ in range(5000):
        clock[0] += 0.01
        passed += passes(flood, "warning", "event.settled")
        flood.tell_what_was_left_out()
    assert passed == pytest.approx(BURST + 50 * RATE_PER_S, abs=1)
    assert 3 <= len(left_out) <= 50 / TELL_EVERY_S
    flood.tell_what_was_left_out(at_once=True)
    assert sum(count for _, count in left_out) == 5000 - passed
    assert {event for event, _ in left_out} == {"event.settled"}


def test_other_events_and_what_is_critical_pass_a_flood() -> None:
    flood = Flood(lambda *_: None, lambda: 0.0)
    while passes(flood, "warning", "event.settled"):
        pass
    assert passes(flood, "info", "child.died")
    assert all(passes(flood, "critical", "group.recreated") for _ in range(2 * BURST))


def passes(flood: Flood, method: str, event: str) -> bool:
    try:
        flood(None, method, {"event": event})
    except structlog.DropEvent:
        return False
    return True
