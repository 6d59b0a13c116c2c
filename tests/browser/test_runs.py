"""Runs that are changed, stopped, chosen again, on screens of all sizes: what is shown is what was asked for last."""

from dataclasses import replace

import pytest
from playwright.sync_api import Page, expect

from app.page import FIRST_SEED
from latent_core import glyphs
from latent_core.checkpoints import embedded
from latent_core.checkpoints.loading import read_config
from latent_core.trace import Trace
from tests.browser.test_ask import CARD, STREAMING, TITLE, photo, set_k, type_in, upload

K = "#ins-k input[type='number']"
QUESTION = "#ins-question textarea"
CHIPS = "#ins-run-view .ins-runs button"
CHOSEN = f"{CHIPS}[aria-pressed='true']"
INSPECT = "#ins-inspect-view"


def at_rest(page: Page) -> None:
    """What was asked for has ended and is in view."""
    page.wait_for_function("() => inscape.asked === null && !document.querySelector('#ins-trace').disabled")


def quick(page: Page) -> None:
    page.get_by_label("Real", exact=True).check(force=True)


def run(page: Page) -> None:
    page.click("#ins-run")
    at_rest(page)


def choose_method(page: Page, name: str) -> None:
    page.get_by_role("radio", name=name, exact=True).check(force=True)


def downloaded(page: Page) -> Trace:
    with page.expect_download() as waiting:
        page.click("#ins-trace")
    return Trace.load(waiting.value.path())


def test_a_second_change_during_a_run_wins(page):
    """After any time between the two: what is shown has the K of the field, and has ended."""
    for seconds in (0, 0.02, 0.06, 0.12, 0.2, 0.35, 0.6, 1):
        page.click("#ins-run")
        page.wait_for_selector(STREAMING)
        set_k(page, 2)
        page.wait_for_timeout(1000 * seconds)
        set_k(page, 7)
        at_rest(page)
        expect(page.locator("#ins-run-view .ins-state")).to_have_text("Finished")
        expect(page.locator(CARD)).to_have_count(7)
        expect(page.locator(CHOSEN)).to_have_text("Monet, K 7: ring")
        assert page.locator(K).input_value() == "7"
        set_k(page, 8)


@pytest.mark.parametrize(
    ("first", "second", "between", "name", "cards"),
    [
        (lambda page: set_k(page, 2), lambda page: choose_method(page, "LVR"), 0, "LVR, K 4: ring", 4),
        (lambda page: choose_method(page, "LVR"), lambda page: set_k(page, 3), 120, "LVR, K 3", 3),
        (lambda page: choose_method(page, "Text"), lambda page: choose_method(page, "VaLR"), 0, "VaLR, K 9", 9),
        (lambda page: choose_method(page, "Markers only"), lambda page: choose_method(page, "Latent"), 60, "K 8", 8),
        (lambda page: set_k(page, 5), lambda page: page.click("#ins-run"), 0, "Monet, K 5", 5),
        (lambda page: page.click("#ins-run"), lambda page: set_k(page, 6), 30, "Monet, K 6", 6),
        (lambda page: page.locator(K).fill(""), lambda page: page.locator(K).fill("6"), 200, "Monet, K 6", 6),
    ],
    ids=["k-method", "method-k", "method-method", "mode-mode", "k-run", "run-k", "empty-k"],
)
def test_of_two_changes_of_any_kind_the_last_one_wins(page, monkeypatch, first, second, between, name, cards):
    monkeypatch.setattr("app.runner.SLOW", 12.0)
    page.click("#ins-run")
    page.wait_for_selector(".ins-token")
    first(page)
    page.wait_for_timeout(between)
    monkeypatch.undo()
    second(page)
    page.wait_for_timeout(300)
    at_rest(page)
    expect(page.locator(CHOSEN)).to_contain_text(name)
    expect(page.locator(CARD)).to_have_count(cards)
    assert page.locator(K).input_value() == str(cards)


def test_a_seed_that_is_typed_during_a_run_is_the_runs(page):
    page.click("#ins-more > button")
    type_in(page.get_by_label("Seed"), "3")
    page.click("#ins-run")
    page.wait_for_selector(STREAMING)
    page.get_by_label("Seed").fill("12")
    page.wait_for_timeout(100)
    page.get_by_label("Seed").fill("123")
    at_rest(page)
    trace = downloaded(page)
    assert trace.settings.seed == 123 and trace.finish.reason == "stop"


def test_six_presses_and_a_stop_leave_nothing_running(page, runner, eventually):
    for _ in range(6):
        page.click("#ins-run")
    page.click("#ins-stop")
    expect(page.locator("#ins-stop")).to_be_disabled()
    eventually(lambda: runner.running == 0)
    shown = page.locator("#ins-run-view section").first.inner_text
    page.wait_for_timeout(1000)
    before = shown()
    page.wait_for_timeout(1200)  # as long as a run takes
    assert shown() == before and "Streaming" not in before and runner.running == 0
    run(page)
    expect(page.locator("#ins-run-view .ins-state")).to_have_text("Finished")


def test_stop_while_a_run_starts_again(page, runner, eventually):
    for wait in (0, 60, 250):
        page.click("#ins-run")
        page.wait_for_selector(STREAMING)
        set_k(page, 4)
        page.wait_for_timeout(wait)
        page.click("#ins-stop")
        eventually(lambda: runner.running == 0)
        page.wait_for_timeout(700)
        assert runner.running == 0
        expect(page.locator("#ins-run-view .ins-state")).to_have_text("Stopped")
        set_k(page, 8)


def test_closing_the_tab_while_a_run_starts_again(open_page, runner, eventually):
    page = open_page()
    page.click("#ins-run")
    page.wait_for_selector(STREAMING)
    set_k(page, 4)
    page.context.close()
    eventually(lambda: runner.running == 0 and not runner._sessions)


def test_a_scene_that_is_chosen_during_a_run_is_the_next_question(page):
    """The run goes on with what it was asked, which it says; what starts after that is about the new scene."""
    page.click("#ins-run")
    page.wait_for_selector(STREAMING)
    page.click(".ins-example >> nth=2")
    expect(page.locator(QUESTION)).to_have_value(glyphs.sample("count", FIRST_SEED).question)
    at_rest(page)
    asked = page.locator("#ins-run-view [data-part='asked']")
    expect(asked).to_have_text(glyphs.sample("find", FIRST_SEED).question)
    expect(page.locator(".ins-answer")).to_contain_text("truth of the scene: ring")
    page.click("#ins-run")
    page.wait_for_selector(STREAMING)
    set_k(page, 6)
    at_rest(page)
    expect(asked).to_have_text(glyphs.sample("count", FIRST_SEED).question)
    expect(page.locator(".ins-answer")).to_contain_text("truth of the scene: 3")


# ---- the run that is shown


@pytest.fixture
def two_runs(page):
    """A run about the first scene, with K 8 and its fifth latent selected, and then one about another, with K 3."""
    quick(page)
    run(page)
    page.locator(CARD).nth(4).click()
    page.click(".ins-example >> nth=2")
    expect(page.locator(QUESTION)).to_have_value(glyphs.sample("count", FIRST_SEED).question)
    set_k(page, 3)
    run(page)
    expect(page.locator(CHIPS)).to_have_count(2)
    return page


def test_inspect_compare_and_download_mean_the_run_that_is_shown(two_runs):
    page, question = two_runs, glyphs.sample("find", FIRST_SEED).question
    assert downloaded(page).question == glyphs.sample("count", FIRST_SEED).question
    page.locator(CHIPS).first.click()
    expect(page.locator(TITLE)).to_have_text("Latent 5 of block 1")  # as it was left
    trace = downloaded(page)
    assert trace.question == question and len(trace.blocks[0].latents) == 8
    page.get_by_role("button", name="Inspect this run").click()
    page.wait_for_selector(f"{INSPECT} .ins-mini")
    expect(page.locator(f"{INSPECT} [data-part='question']")).to_have_text(question)
    expect(page.locator("[data-part='chosen']")).to_contain_text("Latent 5 of block 1")
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#ins-compare-view [data-part='a'] option:checked")).to_contain_text("Monet, K 8")
    expect(page.locator("#ins-compare-view [data-part='b'] option:checked")).to_contain_text("Monet, K 3")
    expect(page.locator(".ins-sides section").first.locator("[aria-pressed='true']")).to_have_attribute(
        "aria-label", "Latent 5 of block 1"
    )
    # a word of the other one
    page.get_by_role("tab", name="Ask").click()
    page.locator(CHIPS).nth(1).click()
    page.locator("#ins-run-view .ins-token").nth(1).click()
    word = page.locator(TITLE).inner_text()
    page.get_by_role("button", name="Inspect this run").click()
    expect(page.locator(f"{INSPECT} [data-part='about']")).to_contain_text("K 3")
    expect(page.locator("[data-part='chosen']")).to_contain_text(word)


def test_a_run_that_inspect_opened_can_be_downloaded_there_and_left_for_the_one_on_ask(page, tmp_path):
    quick(page)
    run(page)
    trace = downloaded(page)
    trace = replace(trace, question="Which?")
    trace.save(tmp_path / "mine.safetensors")
    page.get_by_role("tab", name="Inspect").click()
    page.wait_for_selector(f"{INSPECT} .ins-mini")
    page.set_input_files(f"{INSPECT} [data-part='file']", tmp_path / "mine.safetensors")
    expect(page.locator(f"{INSPECT} [data-part='runs'] option:checked")).to_contain_text("Opened:")
    with page.expect_download() as waiting:
        page.click(f"{INSPECT} [data-part='save']")
    assert Trace.load(waiting.value.path()).question == trace.question
    page.select_option(f"{INSPECT} [data-part='runs']", label="Recorded: relate, glyph-monet")
    expect(page.locator(f"{INSPECT} [data-part='save']")).to_be_hidden()
    question = page.locator(f"{INSPECT} [data-part='question']")
    for way, asked in (
        (page.get_by_role("tab", name="Inspect"), question.inner_text()),  # it stays at what it showed
        (page.get_by_role("button", name="Inspect this run"), glyphs.sample("find", FIRST_SEED).question),
    ):
        page.get_by_role("tab", name="Ask").click()
        way.click()
        expect(question).to_have_text(asked)


def test_an_earlier_run_brings_its_image_and_question_and_loses_nothing_written(two_runs, tmp_path):
    page, image = two_runs, two_runs.locator("#ins-well img")
    mine = photo(tmp_path / "mine.png")
    upload(page, mine)
    expect(page.locator("#ins-notice p")).to_have_count(1)
    page.locator(QUESTION).fill("half a question")
    written = image.get_attribute("src")
    page.locator(CHIPS).first.click()
    expect(page.locator(QUESTION)).to_have_value(glyphs.sample("find", FIRST_SEED).question)
    expect(page.locator("#ins-run-view [data-part='asked']")).to_have_text(glyphs.sample("find", FIRST_SEED).question)
    expect(page.locator("#ins-notice p")).to_have_count(0)
    expect(page.locator(".ins-example").first).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".ins-scene input")).to_have_value("find: visual search")
    assert image.get_attribute("src") != written
    set_k(page, 5)
    run(page)  # it is asked again, and still has its truth
    expect(page.locator(".ins-answer")).to_contain_text("truth of the scene: ring")
    page.locator(CHIPS).nth(1).click()
    expect(page.locator(QUESTION)).to_have_value(glyphs.sample("count", FIRST_SEED).question)
    page.click("#ins-back")
    expect(page.locator(QUESTION)).to_have_value("half a question")
    expect(image).to_have_attribute("src", written)
    expect(page.locator("#ins-notice p")).to_have_count(1)
    expect(page.locator("#ins-back")).to_be_hidden()


def test_an_earlier_run_stays_in_view_while_another_one_runs(two_runs):
    page = two_runs
    page.get_by_label("Slow, 25 a second").check(force=True)
    page.click("#ins-run")
    page.wait_for_selector(STREAMING)
    expect(page.locator(CHIPS)).to_have_count(3)
    page.locator(CHIPS).first.click()
    expect(page.locator(CARD)).to_have_count(8)
    text = page.locator("[data-part='transcript']").inner_text()
    page.wait_for_function("() => inscape.asked === null")
    expect(page.locator(CHIPS).last).to_contain_text("Monet, K 3: 3")
    assert page.locator("[data-part='transcript']").inner_text() == text
    page.locator(CHIPS).last.click()
    expect(page.locator(CARD)).to_have_count(3)
    expect(page.locator("#ins-run-view .ins-state")).to_have_text("Finished")


def test_a_region_is_painted_on_the_run_that_is_shown(two_runs):
    page, result = two_runs, two_runs.locator("#ins-region-view")
    page.locator(CHIPS).first.click()
    expect(page.locator(TITLE)).to_have_text("Latent 5 of block 1")
    page.locator("[data-part='view']").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(result.locator("[data-part='count']")).to_have_text("1 of 36 patches")
    expect(result).to_contain_text("latent 8 of block 1")
    page.locator(CHIPS).nth(1).click()
    expect(result.locator("[data-part='box']")).to_be_hidden()
    # an answer about a run that is no longer in view comes too late
    page.route("**/queue/join*", lambda route: (page.wait_for_timeout(300), route.continue_()))
    page.locator("[data-part='view']").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.locator(CHIPS).first.click()
    page.wait_for_timeout(1200)
    expect(result.locator("[data-part='box']")).to_be_hidden()


# ---- small screens and keys


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_on_a_phone_run_brings_the_answer_into_view(open_page, motion):
    page = open_page(viewport={"width": 390, "height": 844}, reduced_motion=motion)
    reasoning = page.locator("#ins-run-view section").first
    for press in (lambda: page.click("#ins-run"), lambda: page.locator(QUESTION).press("Enter")):
        page.evaluate("scrollTo(0, 0)")
        page.locator(QUESTION).focus()
        press()
        page.wait_for_function(
            "(node) => node.getBoundingClientRect().top < 200 && node.getBoundingClientRect().top >= 0",
            arg=reasoning.element_handle(),
        )
        expect(page.locator("#ins-stop")).to_be_in_viewport()  # a hand's breadth from what it stops
        assert page.evaluate("document.activeElement.matches('#ins-question textarea, #ins-run')")
        at_rest(page)
    page.evaluate("scrollTo(0, 0)")
    set_k(page, 6)  # a change at rest moves nothing
    top = page.evaluate("scrollY")
    page.wait_for_timeout(300)
    assert page.evaluate("scrollY") == top


@pytest.mark.parametrize("size", [(1440, 900), (1366, 768), (1366, 600), (390, 844)])
def test_question_and_run_are_in_view_together_and_cover_nothing_of_each_other(open_page, size, tmp_path):
    page = open_page(viewport={"width": size[0], "height": size[1]})

    def seen() -> None:
        expect(page.locator("#ins-run")).to_be_in_viewport(ratio=1)
        expect(page.locator(QUESTION)).to_be_in_viewport(ratio=1)
        covered = """(node) => { const box = node.getBoundingClientRect();
            return [0.1, 0.5, 0.9].filter((part) => {
                const top = document.elementFromPoint(box.left + box.width / 2, box.top + box.height * part);
                return !node.contains(top);
            }).length; }"""
        for place in (QUESTION, "#ins-run", "#ins-stop"):
            assert page.locator(place).evaluate(covered) == 0, place

    seen()
    upload(page, photo(tmp_path / "photo.png"))
    expect(page.locator("#ins-notice p")).to_be_in_viewport(ratio=1)
    seen()
    page.locator(QUESTION).fill("one\ntwo\nthree\nfour\nfive\nsix\nseven")
    seen()
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_enter_runs_and_shift_enter_breaks_the_line(page):
    question = page.locator(QUESTION)
    question.fill("Which mark is on")
    question.press("Shift+Enter")
    question.type("the cyan circle?")
    assert question.input_value() == "Which mark is on\nthe cyan circle?"
    page.wait_for_timeout(300)
    assert page.locator("#ins-run-view .ins-state").inner_text() == "Ready"
    question.press("Enter")
    at_rest(page)
    assert question.input_value() == "Which mark is on\nthe cyan circle?"
    assert downloaded(page).question == "Which mark is on\nthe cyan circle?"
    # while an input method is composing, Enter takes a word
    asked = """(node) => node.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", isComposing: true,
        bubbles: true, cancelable: true })) && inscape.asked"""
    assert question.evaluate(asked) is None
    question.fill("Which mark is on the cyan circle?")
    for _ in range(3):
        question.press("Enter")
    at_rest(page)
    expect(page.locator("#ins-run-view .ins-state")).to_have_text("Finished")


def test_the_family_follows_the_example(page):
    family = page.locator(".ins-scene input")
    for number, name in ((2, "count"), (1, "relate: two hops"), (3, "trace: a line"), (0, "find: visual search")):
        page.locator(".ins-example").nth(number).click()
        expect(family).to_have_value(name)
        expect(page.locator(".ins-example[aria-pressed='true']")).to_have_count(1)
    page.locator(".ins-example").nth(2).click()
    expect(family).to_have_value("count")
    page.get_by_role("button", name="New scene").click()
    expect(page.locator(".ins-example[aria-pressed='true']")).to_have_count(0)
    expect(family).to_have_value("count")


def test_every_embedded_method_brings_the_k_that_it_was_taught(page):
    names = {name: read_config(embedded.EMBEDDED / name, name).latents for name in embedded.offered()}
    for name, given in names.items():
        page.locator(f"input[type='radio'][value='{name}']").check(force=True)
        expect(page.locator(K)).to_have_value(str(given.default))
        expect(page.locator(K)).to_have_attribute("max", str(given.max))
