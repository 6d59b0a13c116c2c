"""A public instance in a real browser: it works under its own policy, shows hostile text as text, tells who waits."""

import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from gradio.utils import get_upload_folder
from playwright.sync_api import Page, expect

from app.limits import OWN, PUBLIC
from app.runner import Runner
from app.server import serve
from latent_core.checkpoints import embedded
from latent_core.checkpoints import loading as checkpoints
from latent_core.trace import Trace
from tests import hostile
from tests.browser.test_ask import CARD, STREAMING, ask, upload
from tests.scripted import ScriptedReasoner
from tests.visitor import Visitor

INSPECT = "#ins-inspect-view"
LINK = '<a href="https://evil.example">x</a><b>y</b>'
"""Markup that Plotly takes for its own."""
PWNED = "() => window.__pwned"


@pytest.fixture(scope="module")
def url():
    """In place of the other browser tests' server: `open_page` opens this one, and fails for what a policy blocks."""
    runner = Runner(embedded.offered(), checkpoints.load, others=embedded.available())
    page = serve(runner, host="127.0.0.1", port=None, wait=False, public=True)
    yield page.local_url
    page.close()


@pytest.fixture
def busy():
    """A server that runs one slow question at a time, and soon forgets who has left."""
    limits = dataclasses.replace(OWN, at_once=1, away_seconds=0.5)
    runner = Runner(["scripted"], lambda name: ScriptedReasoner(delay=0.5), limits=limits)
    page = serve(runner, host="127.0.0.1", port=None, wait=False)
    yield runner, page.local_url
    page.close()


def test_every_page_works_under_its_policy(open_page, url):
    script = httpx.get(url).headers["Content-Security-Policy"].split("; ")[1]
    assert script.startswith("script-src") and "unsafe-inline" not in script and "nonce-" in script
    page = open_page()  # a blocked script, style, picture or request is logged as an error, and fails the test
    page.get_by_label("Real").check(force=True)
    ask(page)
    page.locator(CARD).nth(2).click()
    page.get_by_role("tab", name="Inspect").click()
    page.wait_for_selector(f"{INSPECT} .plot-container")
    page.get_by_role("tab", name="Compare").click()
    page.wait_for_selector("#ins-compare-view .ins-panel")
    page.get_by_role("tab", name="Ask").click()
    expect(page.locator(".ins-kept")).to_have_text(PUBLIC.retention_notice)


def test_hostile_text_is_shown_as_text(open_page, url, tmp_path):
    """Markup in a question, in names of files and runs, and in every text of an opened trace."""
    page = open_page()
    page.get_by_label("Real").check(force=True)
    page.fill("#ins-question textarea", "".join(hostile.SCRIPTS))
    ask(page)
    page.get_by_role("tab", name="Inspect").click()
    page.wait_for_selector(f"{INSPECT} .plot-container")
    page.fill(f"{INSPECT} [data-part='name']", hostile.SCRIPTS[1])
    page.click(f"{INSPECT} [data-part='rename']")
    expect(page.locator(f"{INSPECT} [data-part='runs'] option").first).to_have_text(hostile.SCRIPTS[1])

    names = [path for path in Path(get_upload_folder()).glob("*/inscape-run-*.safetensors")]
    trace = Trace.load(max(names, key=lambda path: path.stat().st_mtime))
    for number, script in enumerate(hostile.SCRIPTS[:5]):
        texts = dict(zip(trace.tokens, (script, LINK, script), strict=False))
        words = tuple(dataclasses.replace(step, text=texts[step]) if step in texts else step for step in trace.steps)
        source = dataclasses.replace(trace.source, checkpoint=script)
        path = tmp_path / f"{number}.safetensors"
        dataclasses.replace(trace, question=script, system=script, source=source, steps=words).save(path)
        page.set_input_files(f"{INSPECT} [data-part='file']", path)
        expect(page.locator(f"{INSPECT} [data-part='runs'] option")).to_have_count(number + 2 + recorded(url))
    expect(page.locator(f"{INSPECT} .ins-plot text", has_text=LINK)).not_to_have_count(0)  # as it was written
    assert page.locator(f"{INSPECT} .ins-plot a").count() == 0
    page.get_by_role("tab", name="Compare").click()
    page.wait_for_selector("#ins-compare-view .ins-panel")
    page.wait_for_timeout(500)

    page.get_by_role("tab", name="Ask").click()
    broken = tmp_path / f"{hostile.SCRIPTS[1].replace('/', '')}.png"
    broken.write_text("no image")
    upload(page, broken)
    expect(page.locator("#ins-notice")).to_contain_text("is not an image")
    assert page.evaluate(PWNED) is None


def recorded(url: str) -> int:
    """Runs that every session can open."""
    from app.history import History

    return len(History().recorded)


def test_a_script_that_got_into_the_page_would_not_run(browser, url):
    page = browser.new_page()
    page.goto(url)
    page.wait_for_selector("#ins-well img")
    page.evaluate(
        """(markup) => { const place = document.createElement("div"); place.innerHTML = markup;
            document.body.append(place); const script = document.createElement("script");
            script.textContent = "window.__pwned = true"; document.body.append(script); }""",
        hostile.SCRIPTS[1],
    )
    page.wait_for_timeout(500)
    assert page.evaluate(PWNED) is None
    page.close()


def waiting(page: Page) -> None:
    expect(page.locator("[data-part='status']").first).to_contain_text("The server is busy", timeout=10_000)


def test_who_waits_hears_of_the_queue(browser, busy):
    _, url = busy
    first, second = (browser.new_page() for _ in range(2))
    for page in (first, second):
        page.goto(url)
        page.wait_for_selector("#ins-well img")
    first.click("#ins-run")
    first.wait_for_selector(STREAMING)
    second.click("#ins-run")
    waiting(second)
    second.wait_for_selector(".ins-big", timeout=30_000)  # and then it is served
    for page in (first, second):
        page.close()


def test_a_reload_in_the_middle_of_a_run_ends_it_and_leaves_nothing(browser, busy, eventually):
    runner, url = busy
    page = browser.new_page()
    page.goto(url)
    page.wait_for_selector("#ins-well img")
    before = set(Path(get_upload_folder()).glob("*/inscape-run-*"))
    page.click("#ins-run")
    page.wait_for_selector(STREAMING)
    assert runner.running == 1
    page.reload()
    eventually(lambda: runner.running == 0)
    page.wait_for_selector("#ins-well img")
    page.click("#ins-run")  # the new page is served at once, though one run at a time is allowed
    page.wait_for_selector(".ins-big", timeout=30_000)
    kept = set(Path(get_upload_folder()).glob("*/inscape-run-*")) - before
    assert len(kept) == 1
    page.close()
    eventually(lambda: not any(path.exists() for path in kept))
    assert Visitor(url).http.get("health").json()["running"] == 0


@contextmanager
def instance(port: int, folder: Path) -> Iterator[subprocess.Popen]:
    """A public instance in a process of its own, ready to be asked."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "--public", "--no-browser", "--port", str(port)],
        env={**os.environ, "GRADIO_TEMP_DIR": str(folder)},
        stdout=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 180
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health").raise_for_status()
                break
            except httpx.TransportError:
                assert process.poll() is None and time.monotonic() < end, "it was never served"
                time.sleep(0.2)
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_server_killed_in_the_middle_is_told_and_the_page_goes_on_with_the_next(browser, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = browser.new_page()
    with instance(port, tmp_path) as process:
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("#ins-well img")
        page.fill("#ins-question textarea", "Which mark is on the cyan circle, please?")
        page.click("#ins-run")
        page.wait_for_selector(CARD)
        process.kill()
        expect(page.locator(".ins-offline")).to_contain_text("There is no connection to the server")
        expect(page.locator("#ins-run-view [data-part='problem']")).to_contain_text("lost during this run")
    assert not list(tmp_path.rglob("*run*"))  # neither a trace nor a half one
    with instance(port, tmp_path):
        expect(page.locator(".ins-offline")).to_be_hidden(timeout=30_000)
        expect(page.locator("#ins-question textarea")).to_have_value("Which mark is on the cyan circle, please?")
        page.click("#ins-run")
        page.wait_for_selector(".ins-big", timeout=30_000)
    page.close()
