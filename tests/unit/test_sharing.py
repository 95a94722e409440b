"""Events that share a call: who is waited for, and who gets what."""

import asyncio
from collections.abc import Iterable

import pytest
from tests.rig import eventually_async

from millhand import sharing
from millhand.errors import ModelAway
from millhand.model.answer import Answer
from millhand.sharing import Guest, Party, Share, attending
from millhand.verdict import Delivery

ANSWER = Answer("{}", 1, 1, 0.1)


def guest(number: int) -> Guest:
    return Guest(Delivery(f"{number}-0", {}, "here:w1:a", 1), f"text {number}")


class Table:
    """Takes down the calls that are made, and answers them."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.fails: Exception | None = None
        self.bad: set[str] = set()
        self.cancelled = False
        self.forgone = 0

    def forgo(self) -> None:
        self.forgone += 1

    async def call(self, guests: list[Guest]) -> list[Share | None]:
        self.calls.append([one.text for one in guests])
        try:
            await self.answers.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.fails:
            raise self.fails
        return [
            None if one.text in self.bad else Share(ANSWER, {"of": one.text}, len(guests), "hash") for one in guests
        ]


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def never_lingering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "LINGER_S", 0.0)


@pytest.fixture
def always_lingering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "LINGER_S", 3600.0)


async def attend(party: Party, number: int) -> Share | None:
    with attending(party) as seat:
        assert seat
        return await seat.share(guest(number))


def texts(shares: Iterable[Share | None]) -> list[object]:
    return [share and share.results["of"] for share in shares]


@pytest.mark.usefixtures("always_lingering")
async def test_all_that_came_together_share_one_call_and_each_gets_its_own(table: Table) -> None:
    party = Party(3, table.call, table.forgo)
    shares = await asyncio.gather(*(attend(party, number) for number in range(3)))
    assert table.calls == [["text 0", "text 1", "text 2"]]
    assert texts(shares) == ["text 0", "text 1", "text 2"]


@pytest.mark.usefixtures("always_lingering")
async def test_whoever_leaves_without_taking_the_seat_is_not_waited_for(table: Table) -> None:
    party = Party(3, table.call, table.forgo)
    with attending(party):
        pass
    shares = await asyncio.gather(attend(party, 1), attend(party, 2))
    assert texts(shares) == ["text 1", "text 2"]


@pytest.mark.usefixtures("never_lingering")
async def test_nobody_waits_long_for_the_others_and_the_late_ask_alone(table: Table) -> None:
    party = Party(3, table.call, table.forgo)
    table.answers.clear()
    early = [asyncio.create_task(attend(party, number)) for number in (0, 1)]
    await eventually_async(lambda: bool(table.calls))
    assert await attend(party, 2) is None
    table.answers.set()
    assert texts(await asyncio.gather(*early)) == ["text 0", "text 1"]
    assert table.calls == [["text 0", "text 1"]]


@pytest.mark.usefixtures("always_lingering")
async def test_one_guest_is_no_party(table: Table) -> None:
    party = Party(2, table.call, table.forgo)
    with attending(party):
        pass
    assert await attend(party, 1) is None
    assert not table.calls
    assert table.forgone


@pytest.mark.usefixtures("always_lingering")
async def test_a_party_to_which_nobody_comes_is_forgone(table: Table) -> None:
    party = Party(2, table.call, table.forgo)
    for _ in range(2):
        with attending(party) as seat:
            assert seat
            seat.decline()
    assert (table.calls, table.forgone) == ([], 1)


@pytest.mark.usefixtures("always_lingering")
async def test_whoever_has_declined_asks_alone(table: Table) -> None:
    party = Party(3, table.call, table.forgo)
    with attending(party) as seat:
        assert seat
        seat.decline()
        shares = await asyncio.gather(attend(party, 1), attend(party, 2))
        assert await seat.share(guest(0)) is None
    assert texts(shares) == ["text 1", "text 2"]


@pytest.mark.usefixtures("always_lingering")
async def test_a_bad_share_is_one_guests_alone(table: Table) -> None:
    table.bad = {"text 1"}
    party = Party(3, table.call, table.forgo)
    shares = await asyncio.gather(*(attend(party, number) for number in range(3)))
    assert texts(shares) == ["text 0", None, "text 2"]


@pytest.mark.usefixtures("always_lingering")
async def test_a_call_that_fails_leaves_all_to_ask_alone(table: Table) -> None:
    table.fails = ModelAway("model_unreachable", "reset")
    party = Party(2, table.call, table.forgo)
    assert texts(await asyncio.gather(attend(party, 0), attend(party, 1))) == [None, None]


@pytest.mark.usefixtures("always_lingering")
async def test_a_guest_that_is_cancelled_leaves_the_call_to_the_others(table: Table) -> None:
    table.answers.clear()
    party = Party(2, table.call, table.forgo)
    guests = [asyncio.create_task(attend(party, number)) for number in range(2)]
    await eventually_async(lambda: bool(table.calls))
    guests[0].cancel()
    await asyncio.wait({guests[0]})
    table.answers.set()
    assert texts([await guests[1]]) == ["text 1"]


@pytest.mark.usefixtures("always_lingering")
async def test_a_call_for_nobody_any_more_is_ended(table: Table) -> None:
    table.answers.clear()
    party = Party(2, table.call, table.forgo)
    guests = [asyncio.create_task(attend(party, number)) for number in range(2)]
    await eventually_async(lambda: bool(table.calls))
    for one in guests:
        one.cancel()
    await asyncio.wait(guests)
    await eventually_async(lambda: table.cancelled)


@pytest.mark.usefixtures("always_lingering")
async def test_a_party_whose_only_guest_leaves_is_forgone(table: Table) -> None:
    party = Party(2, table.call, table.forgo)
    lingering = asyncio.create_task(attend(party, 0))
    await asyncio.sleep(0)
    lingering.cancel()
    await asyncio.wait({lingering})
    assert table.forgone == 1
