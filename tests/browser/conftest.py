"""One server with the embedded checkpoints, and pages of a real Chromium that watch themselves.

A page fails its test when a script of it throws or when it asks anything of another machine.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from app.runner import Runner
from app.server import serve
from latent_core.checkpoints import embedded
from latent_core.checkpoints import loading as checkpoints

CHROMIUM = "/usr/bin/chromium"
PAGE_READY = 10_000
"""Milliseconds until the page can be used."""


def pick(radio: Locator) -> None:
    """Chooses a radio button, a few times where a page that is still being built forgets it."""
    for _ in range(3):
        radio.click(force=True)
        radio.page.wait_for_timeout(100)
        if radio.is_checked():
            break
    expect(radio).to_be_checked()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in item.path.parts:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.alone)  # what a page does has bounds in seconds, which a busy machine breaks


@pytest.fixture(scope="session")
def runner() -> Runner:
    names = embedded.offered()
    assert names[0] == "glyph-monet", "the browser tests need the embedded checkpoint glyph-monet: make glyphs"
    return Runner(names, checkpoints.load, others=embedded.available())


@pytest.fixture(scope="session")
def url(runner) -> Iterator[str]:
    page = serve(runner, host="127.0.0.1", port=None, wait=False)
    yield page.local_url
    page.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"Chromium is not at {CHROMIUM}: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, url) -> Iterator[Callable[..., Page]]:
    """Opens the Ask page in a session of its own; options are those of a browser context."""
    contexts, faults = [], []

    def watched(request) -> None:
        if not request.url.startswith((url, "data:", "blob:")):
            faults.append(f"asked {request.url}")

    def open_one(path: str = "", **options) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 1000}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: faults.append(f"threw {error}"))
        page.on("console", lambda message: message.type == "error" and faults.append(f"logged {message.text}"))
        page.on("request", watched)
        page.goto(url + path)
        page.wait_for_selector("#ins-well img", timeout=PAGE_READY)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not faults, "; ".join(faults)


@pytest.fixture
def page(open_page) -> Page:
    return open_page()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits up to five seconds for a condition outside the browser."""

    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < end, "it never became true"
            time.sleep(0.05)

    return wait
