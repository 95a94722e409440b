"""How a worker comes to its answers: repaired, shared, kept from before, or cut to what fits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from tests.integration.hands import working
from tests.integration.race import Race
from tests.rig import config_for, eventually_async

from millhand import gate as gate_module
from millhand.config import Config
from scripts.fake_ollama import FakeOllama


def config_of(redis_url: str, fake: FakeOllama, **settings: Any) -> Config:
    return config_for(redis_url, fake.url, {name.replace("__", "."): value for name, value in settings.items()})


def turns(fake: FakeOllama) -> list[list[str]]:
    """Return the roles of each call's messages."""
    return [[message["role"] for message in call.request["messages"]] for call in fake.calls]


async def buried(race: Race) -> list[dict[bytes, bytes]]:
    """Wait for a dead letter; return all."""
    await race.until_buried()
    return await race.dead()


# -- repair -----------------------------------------------------------------------------------------------------------


async def test_a_refused_answer_is_shown_to_the_model_once_with_what_is_wrong(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    """It counts as an attempt, and often saves one."""
    entry_id = await race.add("[[fake wrong_schema times=1]]")
    async with working(config_of(redis_url, fake)):
        enriched = await race.until_enriched(1)
    assert enriched[entry_id]["meta"]["attempts"] == 2
    assert turns(fake) == [["system", "user"], ["system", "user", "assistant", "user"]]
    refused, correction = fake.calls[1].request["messages"][2:]
    assert refused["content"] == '{"unexpected": [1, 2, 3]}'
    assert "unexpected" in correction["content"]
    assert await race.totals() == {"enriched": 1}


async def test_only_the_first_answer_is_repaired_and_the_attempts_are_still_four(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    await race.add("[[fake wrong_schema]]")
    async with working(config_of(redis_url, fake)):
        (letter,) = await buried(race)
    assert (letter[b"failure_reason"], letter[b"attempts"]) == (b"invalid_answer", b"4")
    assert [len(roles) for roles in turns(fake)] == [2, 4, 2, 2]
    assert await race.totals() == {"retried": 2, "dead": 1, "dead:invalid_answer": 1}


async def test_without_retries_nothing_is_repaired(race: Race, redis_url: str, fake: FakeOllama) -> None:
    await race.add("[[fake wrong_schema]]")
    async with working(config_of(redis_url, fake, delivery__retries=0)):
        await race.until_buried()
    assert len(fake.calls) == 1


# -- shared calls -----------------------------------------------------------------------------------------------------

TOGETHER: dict[str, Any] = {"model__events_per_call": 4, "model__num_ctx": 8192}


async def test_events_that_wait_share_a_call_and_each_gets_what_it_would_get_alone(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    ids = [await race.add(f"event {n}") for n in range(8)]
    async with working(config_of(redis_url, fake, **TOGETHER)):
        together = await race.until_enriched(8)
    assert len(fake.calls) == 2
    assert {one["meta"]["shared"] for one in together.values()} == {4}
    again = [await race.add(f"event {n}") for n in range(8)]
    async with working(config_of(redis_url, fake)):
        alone = await race.until_enriched(16)
    assert len(fake.calls) == 10
    pairs = zip(ids, again, strict=True)
    assert all(together[first]["sentiment"] == alone[second]["sentiment"] for first, second in pairs)


async def test_a_lone_event_waits_for_nobody(race: Race, redis_url: str, fake: FakeOllama) -> None:
    async with working(config_of(redis_url, fake, **TOGETHER)) as at_work:
        await at_work.ready()
        entry_id = await race.add("alone")
        enriched = await race.until_enriched(1)
    assert "shared" not in enriched[entry_id]["meta"]
    assert turns(fake) == [["system", "user"]]
    assert fake.calls[0].text == "alone"


@pytest.mark.parametrize("order", ["wrong_schema", "empty", "garbage"])
async def test_a_bad_member_of_a_shared_call_is_asked_about_alone(
    race: Race, redis_url: str, fake: FakeOllama, order: str
) -> None:
    """The others keep what they got, and no attempt is spent for the call that was shared."""
    bad = await race.add(f"[[fake {order} times=1]]")
    good = [await race.add(f"event {n}") for n in range(3)]
    async with working(config_of(redis_url, fake, **TOGETHER)):
        enriched = await race.until_enriched(4)
    assert len(fake.calls) == 2
    assert [enriched[entry_id]["meta"].get("shared") for entry_id in good] == [4, 4, 4]
    assert "shared" not in enriched[bad]["meta"]
    assert enriched[bad]["meta"]["attempts"] == 1


async def test_a_shared_call_that_fails_as_a_whole_spends_nobodys_attempt(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    await race.add("[[fake status=500 times=1]]")
    for n in range(3):
        await race.add(f"event {n}")
    async with working(config_of(redis_url, fake, **TOGETHER)):
        enriched = await race.until_enriched(4)
    assert {one["meta"]["attempts"] for one in enriched.values()} == {1}
    assert await race.totals() == {"enriched": 4}


async def test_an_event_that_is_no_good_does_not_keep_the_others_from_sharing(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    await race.add_data(b"no JSON")
    for n in range(3):
        await race.add(f"event {n}")
    async with working(config_of(redis_url, fake, **TOGETHER)):
        enriched = await race.until_enriched(3)
        await race.until_buried()
    assert {one["meta"]["shared"] for one in enriched.values()} == {3}


async def test_texts_that_do_not_fit_one_context_together_are_asked_about_in_several_calls(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    for n in range(4):
        await race.add(f"event {n} " + "word " * 500)
    async with working(config_of(redis_url, fake, **{**TOGETHER, "model__num_ctx": 2600})):
        enriched = await race.until_enriched(4)
    assert len(fake.calls) == 2
    assert {one["meta"]["shared"] for one in enriched.values()} == {2}
    assert {call.status for call in fake.calls} == {200}


async def test_an_event_whose_lease_is_lost_takes_no_share_from_the_others(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    config = config_of(redis_url, fake, **TOGETHER, delivery__lease_s=0.5)
    ids = [await race.add(f"event {n}" + " [[fake hold times=1]]" * (n == 0)) for n in range(3)]
    async with working(config):
        await fake.seen(1)
        await race.steal(ids[1])
        await eventually_async(lambda: _renewed(race, ids[1]))
        fake.release()
        await race.until_enriched(2)
    assert {record[b"src"].decode() for record in await race.output()} == {ids[0], ids[2]}


async def _renewed(race: Race, stolen: str) -> bool:
    """Whether the worker has learned that one of its leases is lost: the others were renewed after it."""
    rows = {row.id: row.idle_ms for row in await race.pending()}
    return all(idle_ms < rows[stolen] for entry_id, idle_ms in rows.items() if entry_id != stolen)


LONG = "word " * 700


@pytest.mark.parametrize(
    ("texts", "settings"),
    [
        pytest.param([f"{n} {LONG}" for n in range(2)], {}, id="too long to share"),
        pytest.param(["[[fake status=400]]", "good"], {}, id="refused together"),
        pytest.param(["the same"] * 3, {"cache__ttl_s": 60.0}, id="equal, and kept"),
        pytest.param(["the same"] * 2 + [f"{n} {LONG}" for n in range(2)], {"cache__ttl_s": 60.0}, id="all of it"),
    ],
)
async def test_a_party_that_makes_no_call_keeps_no_permit_from_its_guests(
    race: Race, redis_url: str, fake: FakeOllama, texts: list[str], settings: dict[str, Any]
) -> None:
    """With one permit for all of them."""
    for text in texts:
        await race.add(text)
    await race.add_data(b"no JSON")
    config = config_of(redis_url, fake, **TOGETHER | {"model__num_ctx": 2048} | settings, model__in_flight_max=1)
    async with working(config):
        await eventually_async(lambda: _settled(race, len(texts) + 1))


async def _settled(race: Race, count: int) -> bool:
    return len(await race.output()) + len(await race.dead()) == count


async def test_many_parties_share_few_permits_and_few_connections(race: Race, redis_url: str, fake: FakeOllama) -> None:
    for n in range(128):
        await race.add(f"text {n % 4} {LONG if n % 3 else ''}")
    settings = {"model__events_per_call": 32, "cache__ttl_s": 60.0, "model__in_flight_max": 2}
    async with working(config_of(redis_url, fake, **settings)):
        await race.until_enriched(128)
    totals = await race.totals()
    assert totals["cache_hits"] + totals.get("cache_joined", 0) + totals["cache_misses"] == 128
    assert len(fake.calls) <= 16


# -- kept answers -----------------------------------------------------------------------------------------------------


async def test_an_equal_question_is_answered_from_what_was_kept(race: Race, redis_url: str, fake: FakeOllama) -> None:
    config = config_of(redis_url, fake, cache__ttl_s=60.0)
    first = await race.add("the same")
    async with working(config):
        await race.until_enriched(1)
        second = await race.add("the same")
        enriched = await race.until_enriched(2)
    assert len(fake.calls) == 1
    assert enriched[first]["sentiment"] == enriched[second]["sentiment"]
    assert "cached" not in enriched[first]["meta"]
    assert enriched[second]["meta"]["cached"] is True
    hashes = {record[b"hash"] for record in await race.output()}
    assert len(hashes) == 1
    assert (await race.totals()).items() >= {"cache_hits": 1, "cache_misses": 1}.items()


async def test_equal_events_in_flight_in_two_workers_make_one_call(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    """And those that wait for the answer hold no permit, so that other events go on."""
    config = config_of(redis_url, fake, cache__ttl_s=60.0, model__in_flight_max=2)
    async with AsyncExitStack() as stack:
        for number in (1, 2):
            worker = await stack.enter_async_context(working(config, f"here:w{number}:a"))
            await worker.ready()
        for _ in range(6):
            await race.add("the same [[fake hold]]")
        await fake.seen(1)
        other = await race.add("another")
        assert other in await race.until_enriched(1)
        fake.release()
        await race.until_enriched(7)
    assert len([call for call in fake.calls if "same" in call.text]) == 1


async def test_equal_events_of_one_party_do_not_wait_for_each_other(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    for text in ("the same", "the same", "another", "a third"):
        await race.add(text)
    async with working(config_of(redis_url, fake, **TOGETHER, cache__ttl_s=60.0)):
        enriched = await race.until_enriched(4)
    assert len(fake.calls) == 1
    assert sum("cached" in one["meta"] for one in enriched.values()) == 1


async def test_a_repaired_answer_is_not_kept_for_others(race: Race, redis_url: str, fake: FakeOllama) -> None:
    """It was another question."""
    async with working(config_of(redis_url, fake, cache__ttl_s=60.0)):
        await race.add("[[fake wrong_schema times=1]]")
        await race.until_enriched(1)
        await race.add("[[fake wrong_schema times=1]]")
        await race.until_enriched(2)
    assert len(fake.calls) == 3


# -- what brings the model down -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["status=403", "status=502", "drop"])
async def test_an_event_that_always_shuts_the_gate_is_buried_and_the_others_are_enriched(
    race: Race, redis_url: str, fake: FakeOllama, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F43, F44: the probe finds the model well each time, and so it was the event."""
    monkeypatch.setattr(gate_module, "PAUSE_FIRST_S", 0.02)
    config = config_of(redis_url, fake, gate__failures_max=2, delivery__retries=0)
    bad = await race.add(f"[[fake {order}]]")
    async with working(config):
        good = [await race.add(f"event {n}") for n in range(5)]
        await race.until_enriched(5)
        letters = await race.until_buried()
    assert set(await race.enriched()) == set(good)
    assert letters[bad]["failure_reason"] == "model_error"


# -- what is too long -------------------------------------------------------------------------------------------------


async def test_an_event_that_surely_does_not_fit_is_buried_without_a_call(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    await race.add("many words " * 20_000)
    async with working(config_of(redis_url, fake)):
        (letter,) = await buried(race)
    assert letter[b"failure_reason"] == b"too_long"
    assert b"model.num_ctx" in letter[b"failure_detail"]
    assert letter[b"attempts"] == b"0"
    assert not fake.calls


async def test_a_text_that_is_to_be_truncated_is_cut_and_marked(race: Race, redis_url: str, fake: FakeOllama) -> None:
    text = "many words " * 2_000
    entry_id = await race.add(text)
    async with working(config_of(redis_url, fake, enrich__too_long="truncate_text")):
        enriched = await race.until_enriched(1)
    mark = enriched[entry_id]["meta"]["truncated"]
    assert mark == {"chars": len(fake.calls[-1].text), "of": len(text.strip())}
    assert 500 < mark["chars"] < mark["of"]
    assert enriched[entry_id]["meta"]["attempts"] == 1


async def test_an_answer_about_a_part_is_not_kept_for_the_whole(race: Race, redis_url: str, fake: FakeOllama) -> None:
    text = "many words " * 1_200
    config = config_of(redis_url, fake, enrich__too_long="truncate_text", cache__ttl_s=60.0)
    async with working(config):
        for count in (1, 2):
            await race.add(text)
            enriched = await race.until_enriched(count)
    assert all("truncated" in one["meta"] for one in enriched.values())


@pytest.fixture
async def old_ollama() -> AsyncIterator[FakeOllama]:
    """Serve a model that cuts a long prompt without a word, whatever it is told."""
    async with FakeOllama() as fake:
        fake.script({"truncates": True})
        yield fake


async def test_a_suspect_that_waits_for_what_is_in_hand_holds_no_permit_that_it_needs(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    """F9: what is in hand is turned away once, and calls begin one by one after that."""
    config = config_of(redis_url, fake, model__in_flight_max=2, delivery__deliveries_max=2)
    suspect = (await race.delivered()).id
    await race.steal(suspect, "@parked", count=2)
    in_hand = await race.add("[[fake hold status=429 retry_after=1 times=1]]")
    async with working(config):
        await fake.seen(1)
        await race.redis.zadd(race.keys.parked, {suspect: 0.0})
        await eventually_async(lambda: _is_taken(race, suspect))
        fake.release()
        enriched = await race.until_enriched(2)
    assert set(enriched) == {in_hand, suspect}


async def _is_taken(race: Race, entry_id: str) -> bool:
    return (await race.pending_row(entry_id)).owner != "@parked"


async def test_an_answer_to_a_prompt_that_was_cut_on_the_way_is_not_taken(
    race: Race, redis_url: str, old_ollama: FakeOllama
) -> None:
    await race.add("many words " * 1_500)
    async with working(config_of(redis_url, old_ollama)):
        (letter,) = await buried(race)
    assert letter[b"failure_reason"] == b"too_long"
    assert len(old_ollama.calls) == 1


async def test_a_worker_that_stops_while_it_waits_for_anothers_answer_hands_its_event_back(
    race: Race, redis_url: str, fake: FakeOllama
) -> None:
    config = config_of(redis_url, fake, cache__ttl_s=60.0, fleet__drain_s=0.5, model__concurrency=1)
    async with working(config, "here:w1:a") as first:
        await first.ready()
        await race.add("the same [[fake hold]]")
        await fake.seen(1)
        async with working(config, "here:w2:b") as second:
            await second.ready()
            await race.add("the same [[fake hold]]")
            await eventually_async(lambda: second.ear.stats().get("at_the_gate"))
            second.stop.request()
            await asyncio.wait_for(second.running, 10)
        assert {owner for owner, _ in (await race.held()).values()} == {"here:w1:a", "@parked"}
        fake.release()
        await race.until_enriched(2)
