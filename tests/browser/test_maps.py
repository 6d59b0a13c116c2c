"""Which map the page shows: what the checkpoint was measured to look at best, until a person chooses another."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import pick
from tests.browser.test_ask import CARD

LEVEL, WHAT = "[data-part='levelname']", "[data-part='what']"
SHOWN = "[name='ins-shown']:checked"
OWN = "Back to the checkpoint’s own map"


@pytest.fixture
def page(page) -> Page:
    """Runs take no longer than they need."""
    pick(page.locator("input[type=radio][value=real]"))
    return page


def choose_method(page: Page, name: str) -> None:
    """And waits for what follows it, K and sampling."""
    with page.expect_response(lambda response: "queue/data" in response.url):
        page.locator(".ins-methods label").filter(has=page.locator(f"span:text-is('{name}')")).click()
    page.wait_for_timeout(200)


def run_again(page: Page) -> None:
    """Runs to the end; the words of the run before are marked, to know it from this one."""
    page.evaluate("for (const node of document.querySelectorAll('.ins-token')) node.dataset.former = 'yes'")
    page.click("#ins-run")
    expect(page.locator(".ins-token[data-former]")).to_have_count(0)
    page.wait_for_selector(".ins-inspect")


def shown(page: Page) -> tuple[str, str, str]:
    return page.locator(SHOWN).get_attribute("value"), page.locator(LEVEL).inner_text(), page.input_value("#ins-head")


def cards(page: Page) -> list[str]:
    return page.locator(f"{CARD} canvas").evaluate_all("all => all.map((canvas) => canvas.toDataURL())")


OPENS = {
    "Monet": ("attention", "layer 5", "3"),
    "Monet RL": ("centred", "4 of 5", "0"),  # was not measured
    "LVR": ("raw", "0, the merger’s output", "0"),
    "VaLR": ("centred", "4 of 5", "3"),
}


def test_maps_open_at_what_the_checkpoint_was_measured_to_look_at_best(page):
    for method, opens in OPENS.items():
        if method != "Monet":
            choose_method(page, method)
        run_again(page)
        assert shown(page) == opens, method
        words = "was not measured for" if method == "Monet RL" else "were measured to hit oftenest"
        expect(page.locator(WHAT)).to_contain_text(words)
        expect(page.locator("[data-part='low']")).to_have_text("0.00" if opens[0] == "attention" else "≤ 0.00")
        expect(page.get_by_text(OWN)).to_be_hidden()


def test_cards_differ_and_agree_with_the_big_map(page):
    run_again(page)
    pictures = cards(page)
    assert len(set(pictures)) == len(pictures) == 8
    card = page.locator(CARD).nth(0)
    card.click()
    value = page.locator(".ins-near b").first.inner_text()
    assert value.lstrip("0") == card.locator(".ins-foot span").inner_text()


def test_zero_is_black(page):
    """Where nothing is looked at, the picture is dimmed and nothing is added to it."""
    run_again(page)
    page.locator(CARD).nth(0).click()
    dark = page.locator("[data-part='big']").evaluate("""(canvas) => {
        const pixels = canvas.getContext("2d").getImageData(2, 2, 8, 8).data;
        return Math.max(...pixels.filter((_, i) => i % 4 < 3));
    }""")
    assert dark < 40  # the scene's ground, dimmed; heat of any kind is brighter
    page.locator(".ins-choice label", has_text="Raw").click()
    expect(page.locator("[data-part='low']")).to_have_text("≤ 0.00")


def test_what_was_chosen_stays_over_runs_reload_and_checkpoints(page):
    streams = set()  # on which answers are on their way
    page.on("request", lambda request: "queue/data" in request.url and streams.add(request))
    for end in ("requestfinished", "requestfailed"):
        page.on(end, lambda request: streams.discard(request))
    run_again(page)
    opening = cards(page)
    page.locator(".ins-choice label", has_text="Raw").click()
    page.locator("#ins-level").press("Home")
    assert shown(page)[:2] == ("raw", "0, the merger’s output") and cards(page) != opening
    run_again(page)
    assert shown(page)[:2] == ("raw", "0, the merger’s output")
    choose_method(page, "VaLR")
    run_again(page)
    assert shown(page)[:2] == ("raw", "0, the merger’s output")
    for _ in range(100):  # Gradio's client logs an error where a reload ends one
        if streams:
            page.wait_for_timeout(50)
    assert not streams
    page.reload()
    page.wait_for_selector("#ins-well img")
    run_again(page)
    assert shown(page)[:2] == ("raw", "0, the merger’s output")
    page.get_by_text(OWN).click()
    assert shown(page) == ("attention", "layer 5", "3") and cards(page) == opening
    page.locator("#ins-head").select_option("1")
    run_again(page)
    assert shown(page) == ("attention", "layer 5", "1")  # the layer is still the checkpoint's own


KEPT = (
    '{"shown": "attention", "layer": 99, "head": 77}',  # of a checkpoint that has more of them
    '{"shown": "sideways", "level": -3, "head": -1, "layer": null}',
    '{"shown": {"raw": 1}, "level": "1", "head": "3"}',
    "[7]",
    "null",
    "no json",
)


def test_a_choice_that_fits_nothing_leaves_the_checkpoints_own_map(page):
    for kept in KEPT:
        page.evaluate("(kept) => sessionStorage.setItem('ins-map', kept)", kept)
        run_again(page)
        assert shown(page) == OPENS["Monet"], kept


def test_inspect_and_compare_show_the_same_maps(page):
    run_again(page)
    page.locator("#ins-tabs [role=tab]").nth(2).click()
    expect(page.locator("#ins-compare-view [data-caption='0']")).to_contain_text("attention of layer 5, head 3")
    page.locator("#ins-tabs [role=tab]").nth(1).click()
    page.wait_for_selector("#ins-inspect-view .ins-mini canvas")
    minis = page.locator("#ins-inspect-view .ins-mini canvas")
    assert len(set(minis.evaluate_all("all => all.map((canvas) => canvas.toDataURL())"))) == 8
