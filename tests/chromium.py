"""Debian's Chromium, driven by Playwright: the fixtures `browser` and `visit`, and what eyes see.

Tests that use them skip where one of the two is missing.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module", name="browser")
def opened_browser() -> Iterator[Any]:
    """Chromium without a window; skips where it or Playwright is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # a container's root has no sandbox; the pages are ours
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(name="visit")
def page_opener(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page of a server; afterwards the console must be clean and no other host asked."""
    problems: list[str] = []
    requests: list[tuple[str, str]] = []
    contexts: list[Any] = []

    def note(message: Any) -> None:
        # Chromium itself reports answers such as 429, which are what some tests are about
        if not message.text.startswith("Failed to load resource"):
            problems.append(f"{message.type}: {message.text}")

    def open_page(url: str, **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("console", note)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: requests.append((url, request.url)))
        page.goto(url)
        page.wait_for_selector("#model:not(:empty), #key-form:visible")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []
    assert [asked for url, asked in requests if not asked.startswith((url, "data:"))] == []


def contrast(page: Any, place: str) -> float:
    """The contrast of an element's text with what lies behind it, as WCAG 2 defines it."""
    ink, ground = page.evaluate(
        """(place) => { const node = document.querySelector(place), clear = 'rgba(0, 0, 0, 0)';
        const ground = (node) => getComputedStyle(node).backgroundColor;
        let behind = node;
        while (ground(behind) === clear) behind = behind.parentElement;
        return [getComputedStyle(node).color, ground(behind)]; }""",
        place,
    )
    lighter, darker = sorted((brightness(ink), brightness(ground)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def brightness(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
