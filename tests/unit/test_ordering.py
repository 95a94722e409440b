"""Orders through the desk: what goes to the supervisor, and what comes back."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from tests.rig import eventually_async

from millhand.pulse import Pulse
from millhand_fleet import ordering
from millhand_fleet.ordering import Ordering

PLAIN = ["pause", "resume", "restart", "reload", "stop"]


class Ear(Pulse):
    """Takes what is said to the supervisor, without a line."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.said.append(message)


class Counter:
    """A client of the order side, and the supervisor's ear behind it."""

    def __init__(self) -> None:
        self.ear = Ear()
        self.ordering = Ordering(self.ear)
        app = Starlette(routes=self.ordering.routes())
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://desk")

    async def order(self, path: str, body: Any, **answer: Any) -> httpx.Response:
        """Give an order, and let the supervisor answer it."""
        heard = len(self.ear.said)
        asking = asyncio.create_task(self.client.post(path, json=body))
        await eventually_async(lambda: len(self.ear.said) > heard)
        assert not asking.done()
        self.ordering.hear({"answer": self.ear.said[-1]["number"], **answer})
        return await asking


@pytest.fixture
async def counter() -> AsyncIterator[Counter]:
    counter = Counter()
    async with counter.client:
        yield counter


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"7", b"{}", b'{"workers":"8"}', b'{"workers":-1}', b'{"workers":1000000000}', b'{"by":1.5}',
        b'{"workers":null}', b'{"workers":1,"by":1}', b'{"wrkers":1}', b'{"by":-257}', b"\xff" * 99,
        b'{"workers":' + b"9" * 400 + b"}", b"\xff" * 100_000, b"[" * 4000, b"[" * 100_000,
    ],
    ids=lambda body: body[:16].decode(errors="replace"),
)  # fmt: skip
async def test_senseless_order_is_refused_and_goes_no_further(counter: Counter, body: bytes) -> None:
    """F51: the supervisor never hears of it."""
    reply = await counter.client.post("/scale", content=body)
    assert reply.status_code == 400
    assert "error" in reply.json()
    assert counter.ear.said == []


@pytest.mark.parametrize("order", PLAIN)
async def test_an_order_is_obeyed_when_all_of_it_is_there(counter: Counter, order: str) -> None:
    """F51: `restart` ends the desk; whoever was still sending would be told that nobody answers."""
    may_end = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await may_end.wait()
        yield b"}"

    asking = asyncio.create_task(counter.client.post(f"/{order}", content=slowly()))
    for _ in range(20):
        await asyncio.sleep(0)
    assert counter.ear.said == []
    may_end.set()
    await eventually_async(lambda: len(counter.ear.said) > 0)
    counter.ordering.hear({"answer": counter.ear.said[-1]["number"], "said": {}})
    assert (await asking).status_code < 300


@pytest.mark.parametrize("order", PLAIN)
async def test_an_order_that_does_not_end_is_refused(counter: Counter, order: str) -> None:
    """F51: it needs no body at all."""
    reply = await counter.client.post(f"/{order}", content=b"x" * (ordering.ORDER_BYTES_MAX + 1))
    assert reply.status_code == 400
    assert counter.ear.said == []


async def test_an_order_without_a_length_is_refused(counter: Counter) -> None:
    """F51: it could be without an end, too."""

    async def endless() -> AsyncIterator[bytes]:
        yield b'{"workers": 1}'

    assert (await counter.client.post("/scale", content=endless())).status_code == 400
    assert counter.ear.said == []


@pytest.mark.parametrize("body", [{"workers": 5}, {"by": 3}, {"by": -2}])
async def test_scale_goes_to_the_supervisor_and_answers_what_it_says(counter: Counter, body: dict[str, int]) -> None:
    """The answer is the supervisor's, not a hope."""
    reply = await counter.order("/scale", body, said={"workers": 5, "before": 2})
    assert (reply.status_code, reply.json()) == (200, {"workers": 5, "before": 2})
    (said,) = counter.ear.said
    assert {"workers": None, "by": None, **body} == {name: said[name] for name in ("workers", "by")}


@pytest.mark.parametrize("order", PLAIN)
async def test_every_other_order_is_a_word(counter: Counter, order: str) -> None:
    reply = await counter.order(f"/{order}", {}, said={"done": order})
    assert reply.status_code == (202 if order == "stop" else 200)
    assert reply.json() == {"done": order}
    assert [said["order"] for said in counter.ear.said] == [order]


@pytest.mark.parametrize(("refusal", "status"), [("invalid", 400), ("conflict", 409)])
async def test_a_refusal_says_why(counter: Counter, refusal: str, status: int) -> None:
    reply = await counter.order("/reload", {}, **{refusal: "model.name: one problem\nand another"})
    assert (reply.status_code, reply.json()) == (status, {"error": "model.name: one problem\nand another"})


async def test_orders_that_race_each_other_get_their_own_answers(counter: Counter) -> None:
    """F16: also when they are answered the other way round."""
    first = asyncio.create_task(counter.client.post("/scale", json={"by": 1}))
    second = asyncio.create_task(counter.client.post("/scale", json={"by": -1}))
    await eventually_async(lambda: len(counter.ear.said) == 2)
    for said in reversed(counter.ear.said):
        counter.ordering.hear({"answer": said["number"], "said": {"by": said["by"]}})
    assert [(await first).json(), (await second).json()] == [{"by": 1}, {"by": -1}]


async def test_a_supervisor_that_does_not_answer_is_not_waited_for_for_ever(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordering, "ORDER_ANSWER_S", 0.01)
    assert (await counter.client.post("/pause")).status_code == 503
    counter.ordering.hear({"answer": counter.ear.said[0]["number"], "said": {}})  # too late, and harmless


@pytest.mark.parametrize("order", ["scale", *PLAIN])
async def test_an_order_is_never_given_by_looking(counter: Counter, order: str) -> None:
    """F51: a browser or a crawler that gets hold of the address changes nothing."""
    assert (await counter.client.get(f"/{order}")).status_code == 405
    assert counter.ear.said == []
