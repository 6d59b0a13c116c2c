"""Published checkpoints beside the embedded ones in a real browser: twins at a width of sixteen, from a local Hub."""

import re
from collections.abc import Iterator

import pytest
from huggingface_hub.utils import close_session
from playwright.sync_api import expect

from app.__main__ import prepared
from app.names import method_label
from app.runner import Runner
from app.server import serve
from latent_core.checkpoints import embedded, placement
from latent_core.checkpoints import loading as checkpoints
from latent_core.checkpoints.placement import Machine
from latent_core.checkpoints.published import PUBLISHED
from tests.hub_downloads import online, serving
from tests.twins import write_twin

MONET, SFT, LVR = "NOVAglow646/Monet-7B", "NOVAglow646/Monet-SFT-7B/stage3", "vincentleebang/LVR-7B"


@pytest.fixture(scope="module", params=[MONET, SFT, LVR])
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def url(name, tmp_path_factory) -> Iterator[str]:
    """A page as `make app MODEL=name` serves it, on a machine that has room for the real one."""
    repository, root = PUBLISHED[name].repository, tmp_path_factory.mktemp("hub")
    write_twin(PUBLISHED[name], root)
    with serving({repository: root}) as hub, pytest.MonkeyPatch.context() as patch:
        online(patch, hub.url, tmp_path_factory.mktemp("cache"))
        patch.setattr(placement, "machine", lambda: Machine(memory=64 * 10**9))
        runner = Runner([*prepared(name), *embedded.offered()], checkpoints.load)
        page = serve(runner, host="127.0.0.1", port=None, wait=False)
        yield page.local_url
        page.close()
        close_session()


def test_it_is_offered_first_and_streams_its_latents(page, name):
    first = page.locator(".ins-methods label").first
    expect(first).to_have_text(method_label(name))
    expect(first.locator("input")).to_be_checked()
    latents = PUBLISHED[name].config.latents.default
    expect(page.locator("#ins-k input[type='number']")).to_have_value(str(latents))
    page.locator(".ins-seg label", has_text="Forced").click()
    page.locator(".ins-seg label", has_text="Real").click()
    page.click("#ins-run")
    block = page.locator("#ins-run-view .ins-cards").first
    expect(block.locator(".ins-card")).to_have_count(latents)
    page.locator("#ins-stop").click()
    expect(page.locator("#ins-stop")).to_be_disabled()
    expect(page.locator(".ins-status")).to_contain_text(re.compile(r"\d+ latents"))


def test_another_method_brings_its_own_sampling(page, name):
    sampling = PUBLISHED[name].config.sampling
    page.locator("#ins-more button").first.click()
    temperature, most = page.get_by_label("Temperature (0 is greedy)"), page.get_by_label("Most tokens")
    expect(temperature).to_have_value(f"{sampling.temperature:g}")
    expect(most).to_have_value(str(sampling.max_new_tokens))
    page.get_by_role("radio", name="LVR", exact=True).check(force=True)
    expect(temperature).to_have_value("0")
    expect(most).to_have_value("128")
    expect(page.locator("#ins-k input[type='number']")).to_have_value("4")
