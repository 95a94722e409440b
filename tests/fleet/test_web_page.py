"""The web page, in a real browser: what a person sees of a fleet at work, and of one in trouble."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect
from tests.fleet.browser import FAINT_TEXTS, PATIENCE_S, chromium, page_opener, running_browser
from tests.fleet.conftest import DEAD, OUTPUT, RunningFleet, Streams
from tests.rig import SERVERS, RedisServer, eventually

from millhand_fleet.state import ENDPOINTS, StateDir
from scripts.fake_ollama import FakeOllama

pytestmark = pytest.mark.xdist_group("web page")  # they share one fleet and one browser

Open = Callable[..., Page]

HOSTILE = '<img src=x onerror="document.title=`taken`"><b>bold</b>'
LONG = "no-place-to-break-" * 30
PHONE = {"width": 360, "height": 740}
LAPTOP = {"width": 1280, "height": 900}
MODEL_S = 0.02
DASH = "\N{EN DASH}"


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """Run a server for this module's fleet."""
    chromium()  # nothing is worth starting without
    with RedisServer({"appendonly": "yes"}, binary=SERVERS["valkey"]()) as server:
        yield server


@pytest.fixture(scope="module")
def fleet(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    """Run a fleet that shows payloads."""
    with FakeOllama(slots=8, latency_s=MODEL_S).in_thread() as fake:
        settings = {
            "MILLHAND_REDIS_URL": redis.url,
            "MILLHAND_MODEL_URL": fake.url,
            "MILLHAND_MODEL_NAME": fake.model,
            "MILLHAND_FLEET_DRAIN_S": "2",
            "MILLHAND_DELIVERY_RETRIES": "0",
            "MILLHAND_DESK_SHOW_PAYLOADS": "true",
        }
        with RunningFleet(tmp_path_factory.mktemp("web"), settings) as fleet:
            fleet.up()
            yield fleet


@pytest.fixture
def streams(redis: RedisServer) -> Iterator[Streams]:
    """Look into the fleet's streams, and write to them."""
    with redis.client() as client:
        yield Streams(client)


@pytest.fixture(scope="module")
def browser(fleet: RunningFleet) -> Iterator[Browser]:
    """Run one browser for this module. While it runs, no other event loop may begin or end in this thread."""
    assert fleet.process is not None
    with running_browser() as browser:
        yield browser


@pytest.fixture
def url(fleet: RunningFleet) -> str:
    """Say where the desk is."""
    return str(StateDir(fleet.state_dir).read(ENDPOINTS)["desk_url"])


@pytest.fixture
def look(browser: Browser, url: str) -> Iterator[Open]:
    """Open the page; it must ask nobody but the desk, and complain of nothing."""
    with page_opener(browser, url) as opened:
        yield opened


def told(page: Page, document: Mapping[str, Any]) -> None:
    """Let the page hear a document of the test's own."""
    message = f"retry: 200\ndata: {json.dumps(document)}\n\n"
    page.route("**/live", lambda route: route.fulfill(body=message, content_type="text/event-stream"))


def shown(page: Page, name: str) -> float:
    """Return a number that the page shows; 0 while it shows none."""
    found = re.match(r"[\d.]+", page.locator(f"#{name}").inner_text().replace(",", ""))
    return float(found[0]) if found else 0.0


def row(page: Page, name: str) -> Any:
    return page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=name, exact=True))


def cell(page: Page, name: str, column: str) -> Any:
    return row(page, name).locator(f'[data-label="{column}"]')


def sideways(page: Page) -> list[str]:
    """Name what is wider than the window, or than the card that it stands in."""
    found: list[str] = page.evaluate("""() => [...document.querySelectorAll("body *")].filter((one) => {
      const room = one.parentElement.closest(".card, .state, body").getBoundingClientRect();
      const drawn = one.checkVisibility() && !one.closest(".unseen, .skip, .nil, thead");
      return drawn && one.getBoundingClientRect().right > Math.min(room.right, document.documentElement.clientWidth);
    }).map((one) => `${one.tagName} ${one.id} ${one.className}`)""")
    overflow = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    return [*found, *(["the page"] if overflow else [])]


# -- a fleet at work --------------------------------------------------------------------------------------------------


def test_numbers_move_while_events_flow(look: Open, streams: Streams) -> None:
    page = look()
    expect(page.locator("#link")).to_have_text("live")
    expect(page.get_by_role("heading", level=1)).to_have_text("All is well")
    streams.produce(60)
    eventually(lambda: shown(page, "race-enriched") >= 60, PATIENCE_S)
    eventually(lambda: shown(page, "rate-out") > 0, PATIENCE_S)
    expect(page.locator("#spark-out")).to_have_attribute("d", re.compile("^M.*L.*L"))
    expect(page.locator("#success")).to_contain_text("%")
    expect(page.locator("#permits")).to_have_text(re.compile(r"^\d+ of \d+$"))
    expect(page.locator("#server")).to_contain_text("Valkey")
    assert page.title().startswith("All is well")


def test_a_killed_worker_shows_with_its_restart_and_its_new_pid(look: Open, fleet: RunningFleet) -> None:
    page = look()
    pid = cell(page, "worker-1", "pid")
    expect(pid).to_have_text(re.compile(r"^\d+$"))
    before = int(pid.inner_text())
    assert before == fleet.pids()["worker-1"]
    restarts = int(cell(page, "worker-1", "restarts").inner_text())
    os.kill(before, signal.SIGKILL)
    expect(cell(page, "worker-1", "restarts")).to_have_text(str(restarts + 1))
    expect(cell(page, "worker-1", "state")).to_have_text("ready")
    expect(pid).not_to_have_text(str(before))
    expect(cell(page, "worker-1", "doing")).to_contain_text("signal 9")
    expect(cell(page, "worker-2", "restarts")).to_have_text("0")


def test_a_dead_letter_appears_with_its_reason_and_what_was_wrong(look: Open, streams: Streams) -> None:
    page = look()
    streams.client.xadd("{events}:raw", {"data": "no JSON at all"})
    letters = page.get_by_role("region", name="Dead letters")
    expect(letters.get_by_role("listitem").filter(has_text="malformed").first).to_be_visible()
    expect(letters).to_contain_text("`data` is not JSON")
    expect(page.locator("#race-dead")).not_to_have_text("0")


def test_text_that_is_markup_stays_text(look: Open, streams: Streams) -> None:
    """Whoever can write an event must not be able to act in the browser of whoever looks on."""
    page = look()
    streams.client.xadd("{events}:raw", {"data": json.dumps({"text": HOSTILE})})
    shown = page.get_by_role("region", name="Last enriched").get_by_role("listitem").filter(has_text="bold").first
    shown.get_by_text("Payload").click()
    expect(shown.locator("pre")).to_contain_text("<b>bold</b>")
    letter = {"src": "1-1", "failure_reason": "<i>reason</i>", "failure_detail": HOSTILE, "data": "x"}
    streams.client.xadd(DEAD, letter)
    expect(page.get_by_role("region", name="Dead letters")).to_contain_text(HOSTILE)
    assert page.locator("main img, main b:has-text('bold'), main i:has-text('reason')").count() == 0
    assert "taken" not in page.title()


def test_what_somebody_reads_is_not_taken_away(look: Open, streams: Streams) -> None:
    page = look()
    streams.produce(1, text="first of all")
    enriched = page.get_by_role("region", name="Last enriched")
    item = enriched.get_by_role("listitem").first
    expect(item).to_be_visible()
    item.get_by_text("Payload").click()
    key = item.get_attribute("data-key")
    count = streams.client.xlen(OUTPUT)
    streams.produce(8, text="and more")
    eventually(lambda: shown(page, "race-enriched") >= count + 8, PATIENCE_S)
    expect(enriched).to_contain_text("Kept while you read")
    assert enriched.locator(f'li[data-key="{key}"] pre').is_visible()


def test_the_page_can_be_held_still(look: Open, streams: Streams) -> None:
    page = look()
    expect(page.locator("#link")).to_have_text("live")
    hold = page.get_by_role("button", name="Hold still")
    hold.press("Enter")
    expect(page.locator("#link")).to_have_text("held still")
    before = shown(page, "race-enriched")
    streams.produce(5)
    other = look()
    eventually(lambda: shown(other, "race-enriched") >= before + 5, PATIENCE_S)
    assert shown(page, "race-enriched") == before
    hold.press("Enter")
    eventually(lambda: shown(page, "race-enriched") >= before + 5, PATIENCE_S)
    expect(page.locator("#link")).to_have_text("live")


def test_a_desk_that_is_away_is_said_and_found_again(browser: Browser, fleet: RunningFleet, url: str) -> None:
    """One that hangs, then is killed; another takes its place."""
    with page_opener(browser, url, forgiven="net::ERR_") as opened:
        page = opened()
        expect(page.locator("#link")).to_have_text("live")
        desk = fleet.pids("desk")["desk"]
        os.kill(desk, signal.SIGSTOP)
        expect(page.locator("#lost")).to_contain_text("The desk does not answer. What you see is")
        expect(page.locator("body")).to_have_attribute("data-link", "lost")
        expect(page.get_by_role("heading", level=1)).to_have_text("No word from the desk")
        os.kill(desk, signal.SIGKILL)
        expect(page.locator("#link")).to_have_text("live")
        expect(page.locator("#lost")).to_be_hidden()
        expect(page.get_by_role("heading", level=1)).not_to_have_text("No word from the desk")
        expect(cell(page, "desk", "pid")).not_to_have_text(str(desk))


def test_a_page_for_which_there_is_no_stream_left_asks_now_and_then(browser: Browser, url: str) -> None:
    with page_opener(browser, url, forgiven="503") as opened:
        page = opened(prepare=lambda page: page.route("**/live", lambda route: route.fulfill(status=503)))
        expect(page.locator("#link")).to_have_text("every 5 s")
        expect(page.locator("#race-enriched")).to_have_text(re.compile(r"^[\d,]+$"))
        page.unroute("**/live")
        expect(page.locator("#link")).to_have_text("live")


# -- whatever the document says ---------------------------------------------------------------------------------------


def test_what_is_not_known_is_a_dash(look: Open) -> None:
    bare = {
        "health": {"status": "degraded", "reasons": ["2 of 3 workers are ready"]},
        "children": [{"name": "worker-1"}],
    }
    page = look(prepare=lambda page: told(page, bare))
    expect(page.get_by_role("heading", level=1)).to_have_text("Degraded")
    expect(page.get_by_role("list", name="Reasons")).to_have_text("2 of 3 workers are ready")
    for name in ("backlog", "rate-in", "success", "event-p95", "gate-state", "tokens", "version"):
        expect(page.locator(f"#{name}")).to_have_text(DASH)
    expect(cell(page, "worker-1", "pid")).to_have_text(DASH)


def test_trouble_is_told_with_its_reasons(look: Open, url: str) -> None:
    status = httpx.get(f"{url}/status").json()
    status["health"] |= {
        "status": "down",
        "ready": False,
        "reasons": ["redis does not answer: refused"],
        "backlog": 1204,
    }
    status["gate"] |= {"state": "throttled", "since_s": 75.0, "until_s": 3.2, "says": "429 too many"}
    status["streams"] |= {"in_per_s": 9.0}
    status["health"] |= {"drained_in_s": None, "enriched_per_s": 2.0, "backlog_age_s": 4000.0}
    page = look(prepare=lambda page: told(page, status))
    expect(page.get_by_role("heading", level=1)).to_have_text("Down")
    expect(page.locator("#reasons")).to_contain_text("redis does not answer: refused")
    expect(page.locator("#sentence")).to_contain_text("No event is being enriched. 1,204 events wait")
    expect(page.locator("#sentence")).to_contain_text("more come in than go out")
    expect(page.locator("#drained")).to_have_text("not at this rate")
    expect(page.locator("#backlog-age")).to_have_text("1 h 7 min")
    expect(page.locator(".gate-state")).to_have_text("throttled for 1 min, next probe in 3.2 s: 429 too many")


def test_payloads_that_are_not_shown_say_how_to_have_them(look: Open, url: str, streams: Streams) -> None:
    streams.produce(1)
    page = look()
    expect(page.locator("#enriched li").first).to_be_visible()
    expect(page.locator("#payload-note")).to_be_hidden()
    status = httpx.get(f"{url}/status").json()
    status["recent_enriched"] = [{**one, "results": None, "payload": None} for one in status["recent_enriched"]]
    page = look(prepare=lambda page: told(page, status))
    expect(page.locator("#payload-note")).to_contain_text("show_payloads = true")
    assert page.get_by_text("Payload", exact=True).locator("visible=true").count() == 0


# -- whoever looks, and with whatever ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("status", ["ok", "degraded", "down"])
def test_all_text_stands_out_in_light_and_dark(look: Open, url: str, scheme: str, status: str) -> None:
    """Each colour of each state, by WCAG's contrast at level AA."""
    document = troubled(httpx.get(f"{url}/status").json(), status)
    page = look(prepare=lambda page: told(page, document), color_scheme=scheme, viewport=LAPTOP)
    expect(page.locator("body")).to_have_attribute("data-status", status)
    expect(page.locator("#reasons")).to_contain_text(LONG)
    assert page.evaluate(FAINT_TEXTS) == []
    dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(18, 22, 26)"
    assert dark == (scheme == "dark")


@pytest.mark.parametrize("width", [360, 390, 700, 900, 1100, 1280])
def test_nothing_sticks_out_sideways(look: Open, url: str, width: int) -> None:
    """Long words in every place that data comes to, on a phone and a tablet."""
    document = troubled(httpx.get(f"{url}/status").json(), "degraded")
    page = look(prepare=lambda page: told(page, document), viewport={"width": width, "height": 740})
    expect(page.locator("#reasons")).to_contain_text(LONG)
    assert sideways(page) == []
    expect(cell(page, "worker-1", "doing")).to_be_visible()


def troubled(status: dict[str, Any], how: str) -> dict[str, Any]:
    """Fill every place of a document with long words."""
    gone = {"name": "worker-9", "state": "restarting", "restarts": 12, "last_exit": "signal 9"}
    entry = {"id": "1-1", "at": status["at"], "src": "1795730409366-0"}
    return status | {
        "health": status["health"] | {"status": how, "reasons": [f"waits for {LONG}", "2 of 3 workers are ready"]},
        "gate": status["gate"] | {"state": "away", "says": LONG},
        "model": LONG,
        "latency": {key: {"p50_s": 888.8, "p95_s": 88.88, "p99_s": 0.8888} for key in ("event", "model")},
        "children": [*status["children"], gone, gone | {"name": "worker-10", "state": "starting"}],
        "streams": status["streams"] | {"dead_by_reason": {"invalid_answer": 3_000_000, LONG: 1}},
        "recent_dead": [{**entry, "reason": LONG, "detail": LONG}],
        "recent_enriched": [{**entry, "results": {"sentiment": {"label": LONG}}, "payload": LONG}],
    }


def test_the_keyboard_reaches_everything_and_shows_where_it_is(look: Open, streams: Streams) -> None:
    streams.produce(1)
    page = look()
    summary = page.get_by_text("Payload").first
    expect(summary).to_be_visible()
    reached: list[str] = []
    for _ in range(20):
        page.keyboard.press("Tab")
        found = page.evaluate("""() => {
          const here = document.activeElement, style = getComputedStyle(here);
          return [here.textContent.trim(), style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2];
        }""")
        if found[0] in reached[-1:]:
            continue  # the next of the payloads
        assert found[1], f"no outline shows that {found[0]} has the focus"
        reached.append(found[0])
        if found[0] == "health":
            break
    assert reached == ["Skip to how it stands", "Hold still", "Payload", "status", "metrics", "health"]
    summary.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#enriched pre").first).to_be_visible()


@pytest.mark.parametrize("viewport", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_a_screen_reader_finds_landmarks_headings_and_tables(look: Open, viewport: dict[str, int]) -> None:
    page = look(viewport=viewport)
    expect(page.locator("#link")).to_have_text("live")
    for role in ("banner", "main", "contentinfo", "status"):
        assert page.get_by_role(role).count() == 1, role
    assert page.get_by_role("heading", level=1).count() == 1
    headline = page.get_by_role("heading", level=1).inner_text()
    for name in (headline, "Backlog", "Rate", "Success", "Latency", "Gate", "Processes", "Dead letters"):
        assert page.get_by_role("region", name=name).count() == 1, name
    processes = page.get_by_role("table", name="Processes")
    heads = processes.get_by_role("columnheader").all_inner_texts()
    assert heads == ["name", "state", "doing", "in hand", "done", "up", "restarts", "memory", "pid"]
    assert row(page, "worker-1").get_by_role("cell").count() == len(heads) - 1
    assert page.get_by_role("table", name="Latency").get_by_role("rowheader").count() == 3
    assert page.get_by_role("meter", name="Permits in use").count() == 1
    assert page.get_by_role("img", name=re.compile("Rate of the last 5 minutes: now")).count() == 1


def test_nothing_moves_for_whoever_wants_no_motion(look: Open) -> None:
    page = look(reduced_motion="reduce", forced_colors="active")
    expect(page.locator("#link")).to_have_text("live")
    moving = "[...document.querySelectorAll('*')].some((one) => getComputedStyle(one).animationName !== 'none')"
    page.evaluate("document.querySelector('#processes tr').classList.add('new')")
    assert page.evaluate(moving) is False
