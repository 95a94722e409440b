"""A call may bring several texts; the fake answers each as it would alone."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

import httpx
import msgspec
import pytest
from tests.integration.fake_client import say

from scripts.fake_ollama import FakeOllama, instance


class Part(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class Finding(msgspec.Struct, forbid_unknown_fields=True):
    label: Literal["positive", "neutral", "negative"]
    parts: list[Part]


SINGLE = msgspec.json.schema(Finding)
GARBAGE = "Sure! Here is your JSON: {"


@pytest.fixture
async def http(fake: FakeOllama) -> AsyncIterator[httpx.AsyncClient]:
    """Give a plain client."""
    async with httpx.AsyncClient(base_url=fake.url, trust_env=False, timeout=20) as client:
        yield client


def schema_of(count: int, single: dict[str, Any] = SINGLE) -> dict[str, Any]:
    """Ask for so many answers."""
    numbers = [str(number) for number in range(1, count + 1)]
    return {"type": "object", "properties": dict.fromkeys(numbers, single), "required": numbers}


async def say_all(http: httpx.AsyncClient, texts: Sequence[str], **more: Any) -> httpx.Response:
    """Send several texts in one call."""
    message = json.dumps({"texts": {str(number): text for number, text in enumerate(texts, 1)}})
    return await say(http, message, **{"format": schema_of(len(texts)), **more})


def told(reply: httpx.Response) -> Any:
    """Read what the model said."""
    return json.loads(reply.json()["message"]["content"])


async def test_each_text_gets_the_answer_that_it_gets_alone(http: httpx.AsyncClient) -> None:
    texts = ["hello", "wörld", '{"2": "I am not another text"}', "hello"]
    alone = [told(await say(http, text, format=SINGLE)) for text in texts]
    together = told(await say_all(http, texts))
    assert [together[number] for number in "1234"] == alone == [instance(SINGLE, text) for text in texts]
    assert list(together) == list("1234")


async def test_members_may_refer_to_definitions_of_the_whole(http: httpx.AsyncClient) -> None:
    whole = schema_of(2, {"$ref": SINGLE["$ref"]}) | {"$defs": SINGLE["$defs"]}
    answers = told(await say_all(http, ["one", "two"], format=whole))
    assert answers == {"1": instance(SINGLE, "one"), "2": instance(SINGLE, "two")}


async def test_what_only_looks_like_a_batch_is_one_text(http: httpx.AsyncClient) -> None:
    """Without a schema that asks for as many answers, it is an event like another."""
    text = '{"texts": {"1": "[[fake empty]]", "2": "b"}}'
    assert told(await say(http, text.replace("empty", "delay=0"), format=SINGLE))
    assert (await say(http, text, format=SINGLE)).json()["message"]["content"] == ""
    assert (await say(http, text, format=schema_of(3))).json()["message"]["content"] == ""


async def test_orders_about_an_answer_are_about_that_member_alone(http: httpx.AsyncClient) -> None:
    """F45: one bad answer has good neighbours."""
    orders = ["garbage", "wrong_schema", "empty", 'reply={"label":"ok"}', 'reply="as it is"']
    answers = told(await say_all(http, ["first", *(f"[[fake {order}]]" for order in orders), "last"]))
    assert answers == {
        "1": instance(SINGLE, "first"),
        "2": GARBAGE,
        "3": {"unexpected": [1, 2, 3]},
        "5": {"label": "ok"},
        "6": "as it is",
        "7": instance(SINGLE, "last"),
    }


async def test_orders_about_the_call_hold_for_all_and_the_first_decides(http: httpx.AsyncClient) -> None:
    """F43: a call is refused, or cut, as a whole."""
    texts = ["[[fake garbage]]", "[[fake status=503 retry_after=5]]", "[[fake status=400]]"]
    reply = await say_all(http, texts)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
    assert (await say_all(http, ["one", "[[fake length]]"])).json()["done_reason"] == "length"
    assert (await say_all(http, ["one", "[[fake nonsense]]"])).status_code == 400


async def test_a_limited_order_counts_the_calls_that_bring_its_text(http: httpx.AsyncClient) -> None:
    """F42: alone or in company."""
    text = "[[fake status=429 times=2]]"
    assert (await say_all(http, ["one", text])).status_code == 429
    assert (await say(http, text, format=SINGLE)).status_code == 429
    assert told(await say_all(http, [text, "one"])) == {"1": instance(SINGLE, text), "2": instance(SINGLE, "one")}


async def test_a_default_is_about_all_that_the_model_says(http: httpx.AsyncClient, fake: FakeOllama) -> None:
    """F45: a batch that is garbage as a whole."""
    fake.script({"garbage": True})
    assert (await say_all(http, ["one", "two"])).json()["message"]["content"] == GARBAGE
    fake.outage(429)
    assert (await say_all(http, ["one", "[[fake empty]]"])).status_code == 429


async def test_latency_is_that_of_the_call_and_of_each_text() -> None:
    """So that the gain of a batch can be measured."""
    async with FakeOllama(latency_s=0.1, latency_per_event_s=0.1) as fake, httpx.AsyncClient(base_url=fake.url) as http:
        single = (await say(http, "one", format=SINGLE)).json()["total_duration"] / 1e9
        batch = (await say_all(http, ["one", "two", "three", "four"])).json()["total_duration"] / 1e9
    assert 0.2 <= single < 0.5
    assert 0.5 <= batch < single + 0.5
