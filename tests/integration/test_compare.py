"""worker-ctl compare, on what real workers wrote: equal runs, another run, repeated events, and what is no record."""

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result
from tests.integration.hands import working
from tests.integration.race import Race
from tests.rig import config_for

from millhand.keys import Keys
from millhand_fleet import outputs
from millhand_fleet.ctl.cli import cli
from scripts.fake_ollama import FakeOllama

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from millhand.config import Config

TEXTS = [f"The mill runs well, day {n}." for n in range(30)]
ANSWER = {"reply": {"sentiment": {"label": "negative", "confidence": 1}}}


class Comparing:
    """Runs over the same events, each a fleet of its own, and what `worker-ctl compare` says of them."""

    def __init__(self, redis: "Redis", redis_url: str, fake: FakeOllama) -> None:
        self.redis = redis
        self.redis_url = redis_url
        self.fake = fake

    async def run(self, fleet: str, texts: Sequence[str] = TEXTS, **fields: bytes) -> Race:
        """Let a worker of a fleet enrich events."""
        config: Config = config_for(self.redis_url, self.fake.url, {"fleet.name": fleet})
        race = await Race(self.redis, Keys.of(config)).open()
        before = len(await race.output())
        for text in texts:
            await race.add(text, **fields)
        async with working(config):
            await race.until_enriched(before + len(texts))
        return race

    async def says(self, *arguments: str, fleet: str = "monday") -> Result:
        """Give the command."""
        environment = {"MILLHAND_REDIS_URL": self.redis_url, "MILLHAND_FLEET_NAME": fleet}
        return await asyncio.to_thread(CliRunner().invoke, cli, ["compare", *arguments], env=environment)

    async def document(self, *arguments: str) -> Any:
        """Give it with --json."""
        return json.loads((await self.says(*arguments, "--json")).stdout)


@pytest.fixture
def comparing(redis: "Redis", redis_url: str, fake: FakeOllama) -> Comparing:
    """Work on the shared server with the fake model."""
    return Comparing(redis, redis_url, fake)


async def ids(race: Race) -> list[tuple[str, str]]:
    """Return the ids of the output's entries and of their raw entries, in the order of these."""
    entries: Any = await race.redis.xrange(race.keys.output)
    found = [(entry_id.decode(), fields[b"src"].decode()) for entry_id, fields in entries]
    return sorted(found, key=lambda pair: [int(part) for part in pair[1].split("-")])


# -- two runs ---------------------------------------------------------------------------------------------------------


async def test_two_runs_of_the_same_events_are_equal(comparing: Comparing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temperature 0 and one seed: each answer is given again. Neither order nor the ends of pages count."""
    monkeypatch.setattr(outputs, "PAGE", 7)
    monday = await comparing.run("monday")
    tuesday = await comparing.run("tuesday", TEXTS[::-1])

    found = await comparing.says("--runs", monday.keys.output, tuesday.keys.output)
    assert (found.exit_code, found.stdout) == (0, "same: 30, different: 0, only in A: 0, only in B: 0\n")
    options = [call.request["options"] for call in comparing.fake.calls]
    assert {(option["temperature"], option["seed"]) for option in options} == {(0.0, 7)}


async def test_a_run_with_other_answers_is_seen_field_by_field(comparing: Comparing) -> None:
    """Two answers are others, one event is missing, one is new."""
    monday = await comparing.run("monday")
    tuesday = await comparing.run("tuesday", TEXTS[2:-1])
    comparing.fake.script(ANSWER)
    await comparing.run("tuesday", [*TEXTS[:2], "a new one"])

    streams = (monday.keys.output, tuesday.keys.output)
    found = await comparing.says("--runs", *streams, "--limit", "1")
    assert found.exit_code == 1
    *pair, total = found.stdout.splitlines()
    assert total == "same: 27, different: 2, only in A: 1, only in B: 1"
    assert [line.split()[0] for line in pair if line and not line.startswith(" ")] == ["A", "B", "event", "answer"]
    assert any(line.startswith("  sentiment.confidence: ") and line.endswith(" -> 1") for line in pair)

    document = await comparing.document("--runs", *streams)
    assert (document["same"], document["different"], document["equal"]) == (27, 2, False)
    assert {each["a_src"] for each in document["listed"]} == {src for _, src in (await ids(monday))[:2]}
    assert all(each["same_event"] == "payload" and each["results"] for each in document["listed"])
    assert document["listed"][0]["meta"] == []


async def test_an_answer_of_a_retry_is_told_from_one_of_the_first_attempt(comparing: Comparing) -> None:
    """A retry has another seed and temperature: that may explain another answer."""
    await comparing.run("monday", ["a"])
    comparing.fake.script({"hold": True, "garbage": True})
    again = asyncio.create_task(comparing.run("monday", ["a"]))
    await comparing.fake.until(lambda: comparing.fake.held == 1)
    comparing.fake.script(ANSWER)
    comparing.fake.release()
    (first, _), (second, _) = await ids(await again)

    found = await comparing.says(first, second)
    assert found.exit_code == 1
    assert "  meta.attempts: 1 -> 2  (a retry has another seed and a higher temperature)" in found.stdout.splitlines()


async def test_events_with_an_event_id_are_matched_by_it(comparing: Comparing) -> None:
    """Payloads may have changed between the runs; --by-payload goes by nothing else."""
    comparing.fake.script(ANSWER)
    monday = await comparing.run("monday", ["a"], event_id=b"k1")
    tuesday = await comparing.run("tuesday", ["b"], event_id=b"k1")
    streams = (monday.keys.output, tuesday.keys.output)

    assert (await comparing.says("--runs", *streams)).exit_code == 0
    found = await comparing.says("--runs", *streams, "--by-payload")
    assert (found.exit_code, found.stdout) == (1, "same: 0, different: 0, only in A: 1, only in B: 1\n")


async def test_a_stream_that_is_not_there_is_no_run(comparing: Comparing) -> None:
    """A misspelt name must not look like a run that lost everything."""
    monday = await comparing.run("monday", TEXTS[:1])
    found = await comparing.says("--runs", monday.keys.output, "{munday}:enriched")
    assert found.exit_code == 2
    assert "there is no stream {munday}:enriched" in found.stderr
    found = await comparing.says("--runs", monday.keys.output, monday.keys.totals)
    assert found.exit_code == 2
    assert "WRONGTYPE" in found.stderr


# -- two records ------------------------------------------------------------------------------------------------------


async def test_two_records_are_named_by_their_own_ids_or_by_those_of_their_raw_entries(comparing: Comparing) -> None:
    """The same event twice: the same answer, unless somebody else gave it."""
    race = await comparing.run("monday", ["a", "b", "a"])
    (a_id, first), (_, other), (b_id, again) = await ids(race)

    found = await comparing.says(a_id, f"src:{again}")
    assert found.exit_code == 0
    assert found.stdout.splitlines() == [
        f"A {a_id}  src {first}",
        f"B {b_id}  src {again}",
        "event  the same, by its payload",
        "answer the same",
    ]
    found = await comparing.says(f"src:{first}", f"src:{other}")
    assert found.exit_code == 1
    assert "event  not the same" in found.stdout
    document = await comparing.document(a_id, b_id)
    assert (document["equal"], document["b_src"], document["results"]) == (True, again, [])


async def test_a_record_older_than_its_raw_entry_is_found_too(comparing: Comparing) -> None:
    """Redis's clock may have been put back in between."""
    race = await comparing.run("monday", ["a"])
    fields: Any = {**(await race.output())[0], b"src": b"99999999999999-0"}
    await race.redis.xadd("{tuesday}:enriched", fields, id="5-0")

    found = await comparing.says("src:99999999999999-0", "5-0", fleet="tuesday")
    assert (found.exit_code, found.stdout.splitlines()[0]) == (0, "A 5-0  src 99999999999999-0")


@pytest.mark.parametrize("name", ["1-0", "src:1-0", "99999999999999999999-0"])
async def test_a_record_that_is_not_there_is_said_to_be_missing(comparing: Comparing, name: str) -> None:
    """Exit code 2, as for a wrong argument."""
    race = await comparing.run("monday", ["a"])
    found = await comparing.says((await ids(race))[0][0], name)
    assert found.exit_code == 2
    assert found.stderr.startswith("error: ")
    assert found.stdout == ""


async def test_nothing_in_a_record_reaches_the_terminal_as_a_command(comparing: Comparing) -> None:
    """Names, values and ids come from models and producers."""
    for n in range(2):
        enrichment: dict[str, Any] = {"a\x1b[31m\u202e": f"\x1b]0;{n}\u202e" * 200, "meta": {"model": f"\u202e{n}"}}
        data = json.dumps({"text": "a", "ai_enrichment": enrichment}, ensure_ascii=False).encode()
        fields: Any = {"data": data, "src": b"\x1b[2J", "hash": str(n)}
        await comparing.redis.xadd("{monday}:enriched", fields, id=f"{n + 1}-0")

    found = await comparing.says("1-0", "2-0")
    assert found.exit_code == 1
    assert all(sign.isprintable() for line in found.stdout.splitlines() for sign in line)
    assert max(map(len, found.stdout.splitlines())) < 1500
    document = await comparing.says("1-0", "2-0", "--json")
    assert document.stdout.isascii()


# -- one run in itself ------------------------------------------------------------------------------------------------


async def test_events_that_were_enriched_twice_are_found_where_they_got_another_answer(comparing: Comparing) -> None:
    """Four came again: two with the same answer, two with another."""
    assert (await comparing.says("--repeats")).exit_code == 0
    race = await comparing.run("monday", [*TEXTS, *TEXTS[:2]])
    found = await comparing.says("--repeats")
    assert (found.exit_code, found.stdout) == (0, "events: 30, enriched more than once: 2, different: 0\n")

    comparing.fake.script(ANSWER)
    await comparing.run("monday", TEXTS[2:4])
    found = await comparing.says("--repeats")
    assert found.exit_code == 1
    assert found.stdout.splitlines()[-1] == "events: 30, enriched more than once: 4, different: 2"
    document = await comparing.document("--repeats", "--limit", "1")
    (listed,) = document["listed"]
    entries = dict(await ids(race))
    assert (entries[listed["a"]], entries[listed["b"]]) == (listed["a_src"], listed["b_src"])
    assert (listed["same_event"], listed["same_hash"]) == ("payload", False)


async def test_entries_that_no_fleet_wrote_are_counted_and_prove_nothing(comparing: Comparing) -> None:
    """All equal is not said of what cannot be read."""
    race = await comparing.run("monday", TEXTS[:2])
    await race.redis.xadd(race.keys.output, {b"data": b"\xff"})
    found = await comparing.says("--repeats")
    assert found.exit_code == 1
    assert found.stdout == "events: 2, enriched more than once: 0, different: 0, unreadable: 1\n"
