"""How far the fast lane reads ahead, and what it leaves to the walk."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import pytest

from millhand import known as known_module
from millhand.cache import Answers
from millhand.config import Config
from millhand.courier import Courier
from millhand.enriching import Enricher
from millhand.keys import Keys
from millhand.known import IN_HAND_MAX, READ_AHEAD_BYTES_MAX, READ_AHEAD_MAX, Known
from millhand.lease import Leases
from millhand.log import logger
from millhand.model.answer import Answer
from millhand.stop import Stop
from millhand.tasks.catalogue import chosen_tasks
from millhand.tasks.task import Questions
from millhand.verdict import Delivery

STORED = msgspec.json.encode(Answer('{"sentiment":{"label":"positive","confidence":90}}', 200, 12, 1.25))
NOBODY: Any = None


class Paper(Answers):
    """Answers on paper: every text that begins with "known" has one."""

    def __init__(self, config: Config) -> None:
        super().__init__(Courier(NOBODY), Keys.of(config), config, Questions(chosen_tasks(config)), logger())
        self.while_looking: Any = lambda: None
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def find_all(self, texts: Sequence[str], model_digest: str) -> list[bytes | None]:  # noqa: ARG002
        """Find what is known."""
        self.while_looking()
        await self.may_answer.wait()
        return [STORED if text.startswith("known") else None for text in texts]


class Lane:
    """A fast lane on paper."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or msgspec.structs.replace(
            Config(), cache=msgspec.structs.replace(Config().cache, ttl_s=1.0)
        )
        self.answers = Paper(self.config)
        self.leases = Leases(NOBODY, Keys.of(self.config), "here:w1:a", 30.0, logger())
        enricher = Enricher("fake:1b", "here:w1:a", lambda: "d1")
        self.known = Known(self.config, self.answers, enricher, self.leases, Stop(1.0))

    async def take(self, *deliveries: Delivery) -> tuple[list[str], list[str]]:
        """Return the ids of those that are known, and of the rest."""
        known, rest = await self.known.among(list(deliveries))
        return [delivery.id for delivery, _ in known], [delivery.id for delivery in rest]

    async def take_texts(self, *texts: str) -> int:
        """Take events with these texts; return how far it reads ahead then."""
        await self.take(*(delivery(n, text) for n, text in enumerate(texts)))
        return self.known.ahead


def delivery(n: int = 1, text: str = "known", **more: Any) -> Delivery:
    data = more.pop("data", msgspec.json.encode({"text": text}))
    fields = {b"data": data, **more.pop("fields", {})}
    return Delivery(f"{n}-1", fields, "here:w1:a", **{"count": 1, **more})


async def test_it_reads_ahead_twice_what_was_known_without_an_exception() -> None:
    lane = Lane()
    assert lane.known.ahead == 0
    assert await lane.take_texts("known") == 2
    assert await lane.take_texts(*["known"] * 7) == 14
    assert await lane.take_texts(*["known"] * 1000) == READ_AHEAD_MAX
    assert await lane.take_texts() == READ_AHEAD_MAX


async def test_it_reads_nothing_ahead_after_a_single_exception() -> None:
    lane = Lane()
    await lane.take_texts(*["known"] * 20)
    assert await lane.take_texts(*["known"] * 40, "unknown") == 0
    assert await lane.take_texts(*["known"] * 8) == 16


async def test_it_reads_nothing_ahead_after_a_read_that_failed() -> None:
    """Nobody knows what came of it: a reply that is too large, or gets lost, must not be asked for again and again."""
    lane = Lane()
    await lane.take_texts(*["known"] * 20)
    lane.known.read_failed()
    assert lane.known.ahead == 0


async def test_it_reads_nothing_ahead_where_a_death_buries_all_that_is_in_hand() -> None:
    """What only waits to be written out must not be buried for what another event, or the machine, has done."""
    config = Lane().config
    delivery = msgspec.structs.replace(config.delivery, deliveries_max=1)
    lane = Lane(msgspec.structs.replace(config, delivery=delivery))
    assert await lane.take_texts(*["known"] * 20) == 0


async def test_retry_says_nothing_of_what_comes_next() -> None:
    lane = Lane()
    await lane.take_texts("known", "known")
    assert await lane.take(delivery(attempts=1)) == ([], ["1-1"])
    assert lane.known.ahead == 4


async def test_it_reads_fewer_large_events_ahead() -> None:
    lane = Lane()
    assert await lane.take_texts(*["known" + "x" * 65_536] * 20) == READ_AHEAD_BYTES_MAX // 65_536 - 1
    assert await lane.take_texts(*["known" + "x" * 1_000_000] * 2) == 2


async def test_what_is_in_hand_counts_against_it() -> None:
    lane = Lane()
    await lane.take_texts(*["known"] * 1000)
    with lane.leases.hold_all([delivery(n) for n in range(IN_HAND_MAX - 5)]):
        assert lane.known.ahead == 5
    with lane.leases.hold_all([delivery(n) for n in range(IN_HAND_MAX + 5)]):
        assert lane.known.ahead == 0


@pytest.mark.parametrize(
    "left",
    [
        pytest.param(delivery(attempts=1), id="a retry really asks"),
        pytest.param(delivery(count=2), id="a worker died with it in hand"),
        pytest.param(delivery(text="unknown"), id="unknown"),
        pytest.param(delivery(data=b"{"), id="no JSON"),
        pytest.param(delivery(data=b"{}"), id="no text"),
        pytest.param(Delivery("1-1", {}, "@parked", 1), id="deleted"),
    ],
)
async def test_what_is_not_fresh_sound_and_known_is_left_to_its_walk(left: Delivery) -> None:
    """And its neighbours, in their order, are not held up."""
    lane = Lane()
    assert await lane.take(delivery(7), left, delivery(8)) == (["7-1", "8-1"], ["1-1"])
    assert len(lane.leases) == 0


@pytest.mark.parametrize(("window_s", "is_left"), [(0.0, False), (60.0, True)])
async def test_event_id_is_left_to_the_walk_where_it_may_be_a_repetition(window_s: float, *, is_left: bool) -> None:
    lane = Lane()
    deduped = msgspec.structs.replace(lane.config.input, dedupe_event_id_s=window_s)
    lane = Lane(msgspec.structs.replace(lane.config, input=deduped))
    known, rest = await lane.take(delivery(1, fields={b"event_id": b"7"}), delivery(2))
    assert rest == (["1-1"] if is_left else [])
    assert "2-1" in known


async def test_nothing_is_known_where_no_answers_are_kept() -> None:
    lane = Lane(Config())
    assert await lane.take(delivery()) == ([], ["1-1"])
    assert lane.known.ahead == 0


async def test_what_was_lost_during_the_look_is_not_walked() -> None:
    """Another has it; what is known of it is still written out, for whoever comes first has the right answer."""
    lane = Lane()

    def lose_all() -> None:
        for bundle in lane.leases._bundles:
            bundle.lost.update(("1-1", "2-1"))

    lane.answers.while_looking = lose_all
    assert await lane.take(delivery(1), delivery(2, "unknown")) == (["1-1"], [])


async def test_stop_that_allows_no_more_leaves_everything_to_be_handed_back() -> None:
    lane = Lane()
    lane.answers.may_answer.clear()
    lane.known._stop.request(0.0)
    assert await lane.take(delivery(1), delivery(2)) == ([], ["1-1", "2-1"])


async def test_answer_is_read_once_for_many_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is remembered is bounded."""
    lane = Lane()
    read: list[bytes] = []
    valid = lane.answers.valid

    def counted(stored: bytes) -> Any:
        read.append(stored)
        return valid(stored)

    monkeypatch.setattr(lane.answers, "valid", counted)
    for _ in range(3):
        await lane.take_texts(*["known"] * 5)
    assert read == [STORED]

    monkeypatch.setattr(known_module, "REMEMBERED_MAX", 2)
    lane.known._remembered.update((bytes([n]), cast("Any", None)) for n in range(5))
    lane.known._remembered.pop(STORED)
    await lane.take_texts("known")
    assert list(lane.known._remembered) == [STORED]
