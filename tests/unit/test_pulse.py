"""The line between a child and its supervisor."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millhand.pulse import MESSAGE_BYTES_MAX, Line, Pulse
from millhand.stop import ORPHAN_DRAIN_S, Stop

QUIET = settings(deadline=None, database=None, max_examples=50)
AT_ONCE_S = 2.0  # generous: what is meant is microseconds
LARGEST = {"x": "y" * (MESSAGE_BYTES_MAX - len('{"x": ""}'))}
TOO_LARGE = {"x": LARGEST["x"] + "y"}


@pytest.fixture
def ends() -> Iterator[tuple[Line, Line]]:
    """Return the two ends of a line."""
    ours, end = Line.pair()
    theirs = Line(end)
    yield ours, theirs
    ours.close()
    theirs.close()


# -- Line --------------------------------------------------------------------------------------------------------------


def test_messages_arrive_whole_and_in_order(ends: tuple[Line, Line]) -> None:
    ours, theirs = ends
    sent = [{"beat": {"in_hand": number}} for number in range(3)]
    assert all(ours.send(message) for message in sent)
    assert theirs.receive() == sent
    assert not theirs.closed


def test_a_line_carries_both_ways(ends: tuple[Line, Line]) -> None:
    ours, theirs = ends
    assert theirs.send({"ready": True})
    assert ours.send({"stop": 5})
    assert (ours.receive(), theirs.receive()) == ([{"ready": True}], [{"stop": 5}])


def test_a_silent_line_has_no_messages_and_is_not_closed(ends: tuple[Line, Line]) -> None:
    ours, _ = ends
    assert ours.receive() == []
    assert not ours.closed


@QUIET
@given(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.booleans()), max_size=5))
def test_a_message_arrives_as_it_was_sent(message: dict[str, Any]) -> None:
    ours, end = Line.pair()
    theirs = Line(end)
    with contextlib.closing(ours), contextlib.closing(theirs):
        assert ours.send(message)
        assert theirs.receive() == [message]


def test_the_largest_message_arrives(ends: tuple[Line, Line]) -> None:
    ours, theirs = ends
    assert ours.send(LARGEST)
    assert theirs.receive() == [LARGEST]


def test_a_message_too_long_is_dropped_and_told_to_the_sender(ends: tuple[Line, Line]) -> None:
    ours, theirs = ends
    assert not ours.send(TOO_LARGE)
    assert ours.send({"after": 1})
    assert theirs.receive() == [{"after": 1}]


def test_text_that_utf8_cannot_spell_does_not_raise(ends: tuple[Line, Line]) -> None:
    """A file name of an odd encoding may stand in an error's text."""
    ours, theirs = ends
    assert ours.send({"unusable": "cannot read \udcff.gguf"})
    (message,) = theirs.receive()
    assert message["unusable"].startswith("cannot read ")


def test_hanging_up_is_read_as_end_of_file_after_the_last_message(ends: tuple[Line, Line]) -> None:
    ours, theirs = ends
    ours.send({"unusable": "no such model"})
    ours.close()
    assert theirs.receive() == [{"unusable": "no such model"}]
    assert theirs.closed
    assert theirs.receive() == []


def test_last_words_are_heard_also_from_one_who_did_not_listen(ends: tuple[Line, Line]) -> None:
    """Unread messages at the other end make the kernel report a reset before it hands out what has arrived."""
    ours, theirs = ends
    ours.send({"died": "host:w1:ab"})
    theirs.send({"unusable": "no such model"})
    theirs.close()
    assert ours.receive() == [{"unusable": "no such model"}]
    assert ours.closed


def test_sending_to_one_who_does_not_read_drops_the_message_and_never_blocks(ends: tuple[Line, Line]) -> None:
    ours, theirs = ends
    sent = 0
    while ours.send(LARGEST):
        sent += 1
        assert sent < 1000
    assert len(theirs.receive()) == sent
    assert ours.send({"again": True})


def test_sending_to_one_who_hung_up_drops_the_message(ends: tuple[Line, Line]) -> None:
    ours, theirs = ends
    theirs.close()
    assert not ours.send({"stop": 1})


def test_a_closed_line_neither_sends_nor_receives(ends: tuple[Line, Line]) -> None:
    ours, theirs = ends
    theirs.send({"x": 1})
    ours.close()
    assert not ours.send({"stop": 1})
    assert ours.receive() == []
    assert ours.closed


# -- Pulse -------------------------------------------------------------------------------------------------------------


class Beating:
    """A pulse that runs, its stop, and the supervisor's end of its line."""

    def __init__(self) -> None:
        self.supervisor, self.end = Line.pair()
        self.stop = Stop(drain_s=20)
        self.pulse = Pulse(self.end, self.stop)

    async def until(self, what: asyncio.Event | Stop) -> None:
        """Run the pulse until something has happened."""
        running = asyncio.create_task(self.pulse.run())
        try:
            async with asyncio.timeout(AT_ONCE_S):
                await what.wait()
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running


@pytest.fixture
def beating() -> Iterator[Beating]:
    both = Beating()
    yield both
    both.supervisor.close()
    both.end.close()


async def test_the_first_beat_goes_out_at_once_with_the_stats(beating: Beating) -> None:
    beat = asyncio.Event()

    def stats() -> dict[str, Any]:
        beat.set()
        return {"in_hand": 3}

    beating.pulse.stats = stats
    await beating.until(beat)
    assert beating.supervisor.receive() == [{"beat": {"in_hand": 3}}]


async def test_an_order_to_stop_is_a_stop_within_its_time(beating: Beating) -> None:
    beating.supervisor.send({"stop": 5})
    await beating.until(beating.stop)
    assert 4 < beating.stop.remaining_s() <= 5


async def test_another_order_goes_to_who_hears(beating: Beating) -> None:
    heard: list[dict[str, Any]] = []
    came = asyncio.Event()

    def hear(message: dict[str, Any]) -> None:
        heard.append(message)
        came.set()

    beating.pulse.hear = hear
    beating.supervisor.send({"died": "host:w1:ab"})
    await beating.until(came)
    assert heard == [{"died": "host:w1:ab"}]
    assert not beating.stop.requested


async def test_a_child_whose_supervisor_is_gone_stops_soon(beating: Beating) -> None:
    beating.supervisor.close()
    await beating.until(beating.stop)
    assert 0 < beating.stop.remaining_s() <= ORPHAN_DRAIN_S


async def test_an_order_sent_just_before_the_end_is_still_obeyed(beating: Beating) -> None:
    beating.supervisor.send({"stop": 0.25})
    beating.supervisor.close()
    await beating.until(beating.stop)
    assert beating.stop.remaining_s() <= 0.25


async def test_a_word_to_the_supervisor_goes_out_at_once(beating: Beating) -> None:
    beating.pulse.send({"ready": True})
    assert beating.supervisor.receive() == [{"ready": True}]


def test_a_line_of_another_kind_of_socket_is_not_needed() -> None:
    """Whole messages need SOCK_SEQPACKET: on a stream two beats would run into one."""
    ours, end = Line.pair()
    with contextlib.closing(ours), end:
        assert end.type == socket.SOCK_SEQPACKET
