"""A published checkpoint beside the embedded ones in a real browser: the twin of Monet-7B, at a width of sixteen."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from app.runner import Runner
from app.server import serve
from latent_core import checkpoints, embedded
from latent_core.registry import PUBLISHED
from tests.twins import write_twin

MONET = "NOVAglow646/Monet-7B"


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """A page as `make app MODEL=Monet-7B` serves it, with the twin where the Hub would have been asked."""
    twin = write_twin(PUBLISHED[MONET], tmp_path_factory.mktemp("twin"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "fetch", lambda repository, subfolder: twin)
        page = serve(Runner([MONET, *embedded.offered()], checkpoints.load), host="127.0.0.1", port=None, wait=False)
        yield page.local_url
        page.close()


def test_it_is_offered_first_and_streams_its_latents(page):
    first = page.locator(".ins-methods label").first
    expect(first).to_have_text("Monet 7B")
    expect(first.locator("input")).to_be_checked()
    expect(page.locator("#ins-k input[type='number']")).to_have_value("10")
    page.locator(".ins-seg label", has_text="Forced").click()
    page.locator(".ins-seg label", has_text="Real").click()
    page.click("#ins-run")
    expect(page.locator(".ins-card")).to_have_count(10)
    page.locator("#ins-stop").click()
    expect(page.locator("#ins-stop")).to_be_disabled()
    expect(page.locator(".ins-status")).to_contain_text("10 latents")


def test_another_method_brings_its_own_sampling(page):
    page.locator("#ins-more button").first.click()
    temperature, most = page.get_by_label("Temperature (0 is greedy)"), page.get_by_label("Most tokens")
    expect(temperature).to_have_value("0.1")
    expect(most).to_have_value("2048")
    page.locator(".ins-methods label", has_text="LVR").first.click()
    expect(temperature).to_have_value("0")
    expect(most).to_have_value("128")
    expect(page.locator("#ins-k input[type='number']")).to_have_value("4")
