"""Without a connection and back: nothing that was written, chosen or run is gone. And files that cannot be taken."""

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import pick
from tests.browser.test_ask import ANSWER, CARD, STREAMING, photo, upload

OFFLINE = ".ins-offline"
QUESTION = "#ins-question textarea"


@pytest.fixture
def open_away(browser: Browser) -> Callable[[str], Page]:
    """A page that may log failed requests, which a browser without a connection does."""
    contexts = []

    def open_one(url: str) -> Page:
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.goto(url)
        page.wait_for_selector("#ins-well img")
        pick(page.locator("input[type=radio][value=real]"))
        page.evaluate("window.sameDocument = true")
        return page

    yield open_one
    for context in contexts:
        context.close()


def untouched(page: Page) -> None:
    assert page.evaluate("window.sameDocument")
    expect(page.locator(QUESTION)).to_have_value("My own question?")
    expect(page.locator("#ins-well img")).to_have_count(2)
    expect(page.locator(".ins-methods input[aria-checked=true]")).to_have_value("glyph-lvr")


def written(page: Page, tmp_path) -> None:
    """A question, two images and a method of one's own."""
    pick(page.locator(".ins-methods input[value='glyph-lvr']"))
    upload(page, photo(tmp_path / "a.png"), photo(tmp_path / "b.png", seed=9))
    expect(page.locator("#ins-notice")).to_contain_text("only knows Glyphs scenes")
    page.fill(QUESTION, "My own question?")


def test_what_is_asked_without_a_connection_waits_for_it(open_away, url, tmp_path):
    page = open_away(url)
    written(page, tmp_path)
    expect(page.locator(OFFLINE)).to_be_hidden()
    page.context.set_offline(True)
    expect(page.locator(OFFLINE)).to_contain_text("no connection to the server")
    page.click("#ins-run")
    page.wait_for_timeout(4500)  # Gradio asks every two seconds whether it may load the page anew
    page.context.set_offline(False)
    expect(page.locator(OFFLINE)).to_be_hidden()
    page.wait_for_selector(".ins-inspect")
    untouched(page)
    assert not page.locator(".toast-body").count()


def test_a_run_and_its_selection_outlast_a_lost_connection(open_away, url):
    page = open_away(url)
    page.click("#ins-run")
    page.wait_for_selector(ANSWER)
    page.locator(CARD).nth(2).click()
    page.context.set_offline(True)
    page.wait_for_timeout(2500)
    page.context.set_offline(False)
    expect(page.locator(OFFLINE)).to_be_hidden()
    expect(page.locator("[data-part='title']")).to_have_text("Latent 3 of block 1")
    page.click("#ins-tabs [role=tab] >> nth=1")
    expect(page.locator("#ins-inspect-view [data-part='about']")).to_contain_text("glyph-monet")
    assert page.evaluate("window.sameDocument")


class Line:
    """A TCP line to a server, on a port of its own, that can be cut and mended."""

    def __init__(self, server_port: int) -> None:
        self.server_port, self.port, self.ends = server_port, 0, []
        self.mend()

    def mend(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, args=[self.listener], daemon=True).start()

    def cut(self) -> None:
        for end in [self.listener, *self.ends]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.ends = []

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.server_port))
                self.ends += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=[one, other], daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)


def test_a_run_that_a_lost_connection_ends_says_so_and_can_be_run_again(open_away, url, tmp_path, monkeypatch):
    monkeypatch.setattr("app.runner.SLOW", 4.0)
    line = Line(urlsplit(url).port)
    page = open_away(f"http://127.0.0.1:{line.port}/")
    written(page, tmp_path)
    pick(page.locator("input[type=radio][value=slow]"))
    page.click("#ins-run")
    page.wait_for_selector(STREAMING)
    line.cut()
    expect(page.locator("#ins-run-view [data-part='problem']")).to_contain_text("lost during this run")
    expect(page.locator("#ins-stop")).to_be_disabled()
    expect(page.locator(OFFLINE)).to_be_visible()
    line.mend()
    expect(page.locator(OFFLINE)).to_be_hidden(timeout=10_000)
    untouched(page)
    pick(page.locator("input[type=radio][value=real]"))
    page.click("#ins-run")
    page.wait_for_selector(".ins-inspect")
    untouched(page)


def test_good_files_are_taken_beside_bad_ones(page, tmp_path):
    problem, notice = page.locator("#ins-well [data-part='problem']"), page.locator("#ins-notice")
    (tmp_path / "large.bmp").write_bytes(bytes(11_000_000))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    good = photo(tmp_path / "a.png"), photo(tmp_path / "b.png", seed=9)
    upload(page, good[0], tmp_path / "large.bmp", good[1])
    expect(problem).to_have_text("large.bmp is larger than 10 MB; save it smaller or crop it.")
    expect(page.locator("#ins-well img")).to_have_count(2)
    upload(page, tmp_path / "broken.png", *good)
    expect(notice).to_contain_text("broken.png is damaged (it begins as PNG, but what follows is none)")
    expect(page.locator("#ins-well img")).to_have_count(2)
    expect(problem).to_be_hidden()
    upload(page, tmp_path / "large.bmp")
    expect(problem).to_contain_text("large.bmp is larger than 10 MB")
    expect(page.locator("#ins-well img")).to_have_count(2)  # those that were there stay
    expect(page.locator(".toast-body")).to_have_count(0)
    page.locator(".ins-examples button").first.click()
    expect(page.locator("#ins-well img")).to_have_count(1)
    expect(problem).to_be_hidden()


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "I;16"])
def test_a_tiff_is_shown(page, tmp_path, mode):
    Image.linear_gradient("L").convert(mode).save(tmp_path / "scan.tif")
    upload(page, tmp_path / "scan.tif")
    page.wait_for_function("document.querySelector('#ins-well img')?.naturalWidth === 256")
    expect(page.locator("#ins-well .ins-name")).to_have_count(0)


SLOW_END = """
    const send = window.fetch.bind(window);
    window.fetch = async (input, options) => {
        const response = await send(input, options);
        if (!String(input.url ?? input).includes("queue/data")) return response;
        const decoder = new TextDecoder(), encoder = new TextEncoder();
        const late = new TransformStream({ async transform(chunk, controller) {
            for (const event of decoder.decode(chunk, { stream: true }).split(/(?<=\\n\\n)/)) {
                if (event.includes("close_stream")) await new Promise((resolve) => setTimeout(resolve, 600));
                controller.enqueue(encoder.encode(event));
            }
        } });
        return new Response(response.body.pipeThrough(late), response);
    };
"""
"""The server's word that a session's events have ended takes its time, as from far away."""


def test_what_is_sent_while_the_events_end_is_listened_for(browser, url):
    """Its answer must not wait for the next thing that a person does."""
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script(SLOW_END)
    page.goto(url)
    page.wait_for_selector("#ins-well img")
    for family in ("relate", "count", "trace", "find"):
        page.locator(".ins-examples button", has_text=family).click()
        expect(page.get_by_label("Family of the new scene")).to_have_value(re.compile(f"^{family}"))
    context.close()
