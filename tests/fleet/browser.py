"""Looking at the desk's page with a real browser."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

PROGRAMS = ("chromium", "google-chrome")
PATIENCE_S = 30.0
PATIENCE_MS = PATIENCE_S * 1000

# Whether the text that is drawn stands out from its ground as WCAG 2 asks at level AA: 4.5, or 3 for large text.
# Transparent grounds are looked through; what is faded or hidden is not asked about.
FAINT_TEXTS = """() => {
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
  const colour = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const found = colour(getComputedStyle(one).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.closest("svg, noscript, .unseen")) continue;
    const style = getComputedStyle(element);
    const [one, other] = [light(colour(style.color)), light(ground(element))].sort((a, b) => b - a);
    const contrast = (one + 0.05) / (other + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (contrast < (large ? 3 : 4.5)) faint.push(`${element.id || element.className}: ${contrast.toFixed(2)}`);
  }
  return faint;
}"""


def chromium() -> str:
    """Return the path of a Chromium. Skips the test where there is none; but CI installs one, so there it fails."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found:
        return found
    missing = f"there is no browser to look at the page with (none of {', '.join(PROGRAMS)}): apt-get install chromium"
    assert os.environ.get("CI") != "true", missing
    pytest.skip(missing)


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Run a Chromium without a window."""
    program = chromium()
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        # its own sandbox wants a kernel and a user that a container may not give; the page is our own
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def page_opener(browser: Browser, url: str, forgiven: str = "") -> Iterator[Callable[..., Page]]:
    """Return what opens the page, in a window of its own.

    In the end every request must have gone to the desk, and no page may have complained but of what is `forgiven`.
    """
    asked: list[str] = []
    complaints: list[str] = []
    contexts = []

    def opened(path: str = "/", prepare: Callable[[Page], Any] = lambda _: None, **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        prepare(page)
        page.goto(url + path)
        return page

    try:
        yield opened
    finally:
        for context in contexts:
            context.close()
    assert [one for one in asked if not one.startswith((f"{url}/", "data:"))] == []
    assert [one for one in complaints if not (forgiven and forgiven in one)] == []
