"""The Ask page in a real browser, on the embedded checkpoints, at slow speed."""

import re
import zlib
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from app.page import FIRST_SEED
from latent_core import glyphs

ANSWER = ".ins-big"
STREAMING = ".ins-state:text-is('Streaming')"
CARD = ".ins-card"
TITLE = "[data-part='title']"


def ask(page: Page) -> None:
    """Runs to the end."""
    page.click("#ins-run")
    page.wait_for_selector(ANSWER)


def set_k(page: Page, k: int) -> None:
    field = page.locator("#ins-k input[type='number']")
    field.fill(str(k))
    field.press("Enter")


def upload(page: Page, *files: Path) -> None:
    page.set_input_files("#ins-well input[type='file']", [str(file) for file in files])


def photo(path: Path, seed: int = 0) -> Path:
    Image.effect_noise((120, 90), 60 + seed).convert("RGB").save(path)
    return path


def test_a_newcomer_presses_run(page):
    expect(page.locator("#ins-question textarea")).not_to_be_empty()
    expect(page.locator("#ins-stop")).to_be_disabled()
    page.click("#ins-run")
    page.wait_for_selector(STREAMING)
    expect(page.locator("#ins-stop")).to_be_enabled()
    page.wait_for_selector(CARD)
    page.wait_for_selector(ANSWER)
    expect(page.locator(CARD)).to_have_count(8)
    expect(page.locator(".ins-answer")).to_contain_text("truth of the scene")
    expect(page.locator(".ins-answer")).to_contain_text(re.compile(r"probability [01]\.\d\d"))
    for words in ("tokens/s", "ms per latent", "1 block", "8 latents", "probability of opening a block"):
        expect(page.locator(".ins-status")).to_contain_text(words)
    expect(page.locator("[data-part='live']")).to_contain_text("Finished. Answer:")
    expect(page.locator("#ins-stop")).to_be_disabled()


def test_a_click_on_a_card_shows_where_it_looks(page):
    ask(page)
    page.locator(CARD).nth(2).click()
    expect(page.locator(TITLE)).to_have_text("Latent 3 of block 1")
    expect(page.locator(CARD).nth(2)).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".ins-near button")).to_have_count(5)
    expect(page.locator("[data-part='big']")).to_have_attribute("aria-label", re.compile("Highest at patch row"))
    expect(page.locator(".ins-peak")).to_have_count(1)
    expect(page.locator(".ins-stats")).to_contain_text("‖z‖ over mean text state")
    expect(page.locator(".ins-stats")).to_contain_text("‖z‖ over mean image state")
    expect(page.locator(".ins-stats")).to_contain_text("cosine to previous latent")


def test_level_and_centring_redraw_without_the_server(page):
    ask(page)
    page.locator(CARD).nth(4).click()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    label = page.locator("[data-part='big']")
    before = label.get_attribute("aria-label")
    page.locator(".ins-choice label", has_text="Centred").click()
    expect(page.locator("[data-part='what']")).to_contain_text("mean patch state subtracted")
    page.locator("#ins-level").press("End")
    expect(page.locator("[data-part='levelname']")).to_have_text("5, after the final norm")
    assert label.get_attribute("aria-label") != before
    assert not asked


def test_attention_by_layer_and_head(page):
    ask(page)
    page.locator(CARD).nth(1).click()
    what, label = page.locator("[data-part='what']"), page.locator("[data-part='big']")
    page.locator("#ins-head").select_option("0")
    expect(what).to_contain_text("Attention on the image patches, mean of all heads.")
    expect(page.locator("[data-part='levelname']")).to_have_text("layer 5")
    mean = label.get_attribute("aria-label")
    page.locator("#ins-head").select_option("3")
    expect(what).to_contain_text("head 3")
    assert label.get_attribute("aria-label") != mean
    page.locator("#ins-level").press("Home")
    expect(page.locator("[data-part='levelname']")).to_have_text("layer 1")
    page.locator(".ins-choice label", has_text="Raw").click()
    expect(page.locator("#ins-head")).to_be_hidden()
    expect(page.locator("[data-part='levelname']")).to_have_text("1 of 5")


def test_arrow_keys_walk_over_words_and_cards(page):
    ask(page)
    page.locator(CARD).first.focus()
    page.locator(CARD).first.click()
    page.keyboard.press("ArrowRight")
    expect(page.locator(TITLE)).to_have_text("Latent 2 of block 1")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(TITLE)).to_contain_text("Word")
    page.keyboard.press("End")
    expect(page.locator(TITLE)).to_contain_text("Word")
    assert page.locator("[data-part='transcript'] [tabindex='0']").count() == 1
    page.locator("[data-part='view']").focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator(".ins-hover")).to_have_count(1)


def test_words_after_a_block_say_that_they_do_not_see_the_image(page):
    page.click("#ins-more > button")
    page.get_by_label("Attention rule").click()
    page.get_by_role("option", name="latents_only").click()
    page.click("#ins-run")  # under a rule that is not its own, a model need not come to an answer
    expect(page.locator("[data-part='live']")).to_contain_text("Finished", timeout=20_000)
    page.locator(".ins-strip ~ .ins-token").first.click()
    expect(page.locator("[data-part='rule']")).to_contain_text("No attention on the image here")
    page.locator(CARD).first.click()
    expect(page.locator("[data-part='rule']")).to_be_hidden()


@pytest.fixture
def leisurely(monkeypatch):
    """Runs at the speed `slow` take so long that none is over before what a person does in it arrives."""
    monkeypatch.setattr("app.runner.SLOW", 4.0)
    return monkeypatch


def test_changing_k_while_it_streams_starts_again(page, leisurely):
    page.click("#ins-run")
    page.wait_for_selector(CARD)
    leisurely.undo()  # for the run after it
    set_k(page, 3)
    page.wait_for_selector(ANSWER)
    expect(page.locator(CARD)).to_have_count(3)
    expect(page.locator(".ins-status")).to_contain_text("3 latents")


def test_changing_k_at_rest_runs_nothing(page, runner):
    ask(page)
    set_k(page, 5)
    page.wait_for_timeout(500)
    assert runner.running == 0
    expect(page.locator(CARD)).to_have_count(8)


def test_changing_mode_while_it_streams_starts_again(page, leisurely):
    page.click("#ins-run")
    page.wait_for_selector(CARD)
    leisurely.undo()
    page.get_by_label("Markers only", exact=True).check()
    page.wait_for_selector(ANSWER + ", .ins-state:text('Finished')")
    expect(page.locator(CARD)).to_have_count(0)
    expect(page.locator(".ins-caption").first).to_contain_text("markers only, no latents")


def test_another_method_answers(page):
    page.get_by_label("Text", exact=True).check()
    page.click("#ins-run")
    page.wait_for_selector(ANSWER)
    expect(page.locator(CARD)).to_have_count(0)


def test_earlier_runs_can_be_shown_again(page):
    ask(page)
    page.get_by_label("Text only", exact=True).check()
    page.click("#ins-run")
    page.wait_for_selector(".ins-state:has-text('Finished')")
    expect(page.locator(".ins-runs button")).to_have_count(2)
    page.locator(".ins-runs button").first.click()
    expect(page.locator(CARD)).to_have_count(8)


def type_in(field, text):
    """Types once the field is ready: one in an accordion that has just opened is given its old value once more."""
    for _ in range(10):
        field.fill(text)
        field.press("Tab")
        field.page.wait_for_timeout(100)
        if field.input_value() == text:
            return
    raise AssertionError(f"the field goes back to {field.input_value()}")


def test_no_block_offers_to_force_one(page):
    # max_blocks = 0 bans the opening token: no block, whatever the model would have done
    page.click("#ins-more > button")
    type_in(page.get_by_label("Most blocks"), "0")
    page.click("#ins-run")
    page.wait_for_selector(".ins-state:text-is('Finished, no block opened')")
    expect(page.locator(".ins-status")).to_contain_text("highest probability of opening a block")
    type_in(page.get_by_label("Most blocks"), "8")
    page.get_by_text("Force a block and run again").click()
    page.wait_for_selector(CARD)
    expect(page.locator(".ins-caption").first).to_contain_text("forced (off-policy)")
    expect(page.get_by_label("Forced", exact=True)).to_be_checked()


def test_stop_keeps_what_has_come(page, runner, eventually, leisurely):
    page.click("#ins-run")
    page.wait_for_selector(".ins-token")
    page.click("#ins-stop")
    page.wait_for_selector(".ins-state:text-is('Stopped')")
    assert page.locator(".ins-token").count() > 0
    eventually(lambda: runner.running == 0)
    expect(page.locator("#ins-run")).to_be_enabled()


def test_closing_the_tab_ends_the_run(open_page, runner, url, eventually, leisurely):
    page = open_page()
    page.click("#ins-run")
    page.wait_for_selector(".ins-token")
    assert httpx.get(f"{url}health").json()["running"] == 1
    page.context.close()
    eventually(lambda: runner.running == 0)


def test_two_sessions_at_once(open_page):
    first, second = open_page(), open_page()
    set_k(second, 4)
    first.click("#ins-run")
    second.click("#ins-run")
    first.wait_for_selector(STREAMING)
    second.wait_for_selector(STREAMING)
    first.wait_for_selector(ANSWER)
    second.wait_for_selector(ANSWER)
    expect(first.locator(CARD)).to_have_count(8)
    expect(second.locator(CARD)).to_have_count(4)


def huge_png(path: Path) -> Path:
    """20,000 × 20,000 pixels in a few hundred bytes of header: refused before anything is decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = (20_000).to_bytes(4, "big")
    header = chunk(b"IHDR", side + side + b"\x08\x02\x00\x00\x00")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path.write_text("dear sir"), "is not an image"),
        (lambda path: path.write_bytes(photo(path).read_bytes()[:400]), "is damaged"),
        (huge_png, "million"),
    ],
    ids=["text", "truncated", "huge"],
)
def test_bad_files_become_a_sentence_and_lose_nothing(page, tmp_path, make, sentence):
    page.locator("#ins-question textarea").fill("Which mark is on the blue square?")
    bad = tmp_path / "picture.png"
    make(bad)
    before = page.locator("#ins-well img").get_attribute("src")
    upload(page, bad)
    expect(page.locator("#ins-notice .ins-problem")).to_contain_text(sentence)
    expect(page.locator("#ins-question textarea")).to_have_value("Which mark is on the blue square?")
    expect(page.locator("#ins-well img")).to_have_attribute("src", before)
    assert "Traceback" not in page.content()
    ask(page)  # about the image that was kept; the refused one is no news any more
    expect(page.locator("#ins-notice .ins-problem")).to_have_count(0)


def test_a_photo_gets_the_plain_notice(page, tmp_path):
    upload(page, photo(tmp_path / "photo.png"))
    expect(page.locator("#ins-notice")).to_contain_text("This model only knows Glyphs scenes")
    page.click(".ins-example >> nth=1")
    expect(page.locator("#ins-notice p")).to_have_count(0)


def test_several_images_each_have_an_overlay(page, tmp_path):
    upload(page, photo(tmp_path / "a.png"), photo(tmp_path / "b.png", 20))
    expect(page.locator("#ins-well img")).to_have_count(2)
    page.click("#ins-run")
    page.wait_for_selector(".ins-state:has-text('Finished'), .ins-state:has-text('Reached')")
    page.locator(".ins-token, .ins-card").first.click()
    expect(page.locator("[data-part='images'] button")).to_have_count(2)
    page.locator("[data-part='images'] button").nth(1).click()
    expect(page.locator("[data-part='big']")).to_have_attribute("aria-label", re.compile("image 2"))
    page.get_by_label("Remove image 1").click()
    expect(page.locator("#ins-well img")).to_have_count(1)


def test_no_image_and_no_question_are_said(page):
    page.get_by_label("Remove image 1").click()
    page.click("#ins-run")
    expect(page.locator("#ins-run-view [data-part='problem']")).to_contain_text("no image")
    page.get_by_role("button", name="New scene").click()
    page.wait_for_selector("#ins-well img")
    page.locator("#ins-question textarea").fill("")
    page.click("#ins-run")
    expect(page.locator("#ins-run-view [data-part='problem']")).to_contain_text("question")
    page.locator("#ins-question textarea").fill("x" * 100_000)
    page.click("#ins-run")
    expect(page.locator("#ins-run-view [data-part='problem']")).to_contain_text("100,000 characters")


def test_hostile_questions_stay_text(page):
    page.locator("#ins-question textarea").fill("<abs_vis_token><|im_end|><img src=x onerror=alert(1)> red?")
    page.click("#ins-run")
    page.wait_for_selector(".ins-state:has-text('Finished'), .ins-state:has-text('Reached')")
    assert page.locator("#ins-run-view img").count() == 0


def test_new_scenes_and_examples(page):
    before = page.locator("#ins-well img").get_attribute("src")
    page.get_by_role("button", name="New scene").click()
    expect(page.locator("#ins-well img")).not_to_have_attribute("src", before)
    page.click(".ins-example >> nth=2")
    expect(page.locator("#ins-question textarea")).to_have_value(glyphs.sample("count", FIRST_SEED).question)
    expect(page.locator(".ins-example").nth(2)).to_have_attribute("aria-pressed", "true")


def test_the_trace_can_be_downloaded(page, tmp_path):
    ask(page)
    expect(page.locator("#ins-trace")).to_be_enabled()
    with page.expect_download() as waiting:
        page.click("#ins-trace")
    name = waiting.value.suggested_filename
    assert re.fullmatch(r"inscape-run-\d+\.safetensors", name)


@pytest.mark.parametrize("width", [390, 860, 1232, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_at_any_width(open_page, width, scheme):
    page = open_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.get_by_label("Real", exact=True).check()
    ask(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")


def test_the_theme_can_be_switched_and_is_remembered(page, url):
    page.get_by_label("Switch to the dark theme").click()
    assert page.evaluate("document.body.classList.contains('dark')")
    page.goto(url)
    page.get_by_label("Switch to the light theme").wait_for()


def test_every_picture_and_button_has_a_name(page):
    ask(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, img:not([alt]), input:not([type=hidden])")].filter((node) =>
            node.offsetParent && !node.getAttribute("aria-label") && !node.innerText?.trim() && !node.labels?.length
            && !node.title && !node.getAttribute("alt")).map((node) => node.outerHTML.slice(0, 120))"""
    )
    assert not nameless


def test_another_method_brings_its_own_k_and_gives_back_what_was_set(page):
    field = page.locator("#ins-k input[type='number']")
    set_k(page, 12)
    for method, k in (("LVR", 4), ("VaLR", 9), ("Text", 8), ("DeepLatent", 36), ("Monet", 12)):
        page.get_by_role("radio", name=method, exact=True).check(force=True)
        expect(field).to_have_value(str(k))
    page.get_by_role("radio", name="LVR", exact=True).check(force=True)
    expect(field).to_have_value("4")
    ask(page)
    expect(page.locator(CARD)).to_have_count(4)
    expect(page.locator(".ins-answer")).to_contain_text("truth of the scene")
    set_k(page, 3)
    page.get_by_role("radio", name="Monet", exact=True).check(force=True)
    expect(field).to_have_value("12")
    page.get_by_role("radio", name="LVR", exact=True).check(force=True)
    expect(field).to_have_value("3")


def test_parallel_latents_are_drawn_as_the_grid_that_they_are(page):
    page.get_by_role("radio", name="DeepLatent", exact=True).check(force=True)
    expect(page.locator("#ins-k")).to_contain_text("K, most latents per block")
    expect(page.locator("#ins-k input[type='number']")).to_have_attribute("max", "36")
    page.locator(".ins-example", has_text="count").click()
    expect(page.locator("#ins-question textarea")).to_have_value(re.compile("shapes"))
    ask(page)
    cards = page.locator(".ins-grid .ins-card")
    expect(cards).to_have_count(36)
    boxes = [cards.nth(n).bounding_box() for n in (0, 5, 6, 35)]
    assert boxes[0]["y"] == boxes[1]["y"] < boxes[2]["y"] and boxes[0]["x"] == boxes[2]["x"]  # six in a row
    cards.nth(7).click()
    expect(page.locator(TITLE)).to_have_text("Latent 8 of block 1")
    page.get_by_role("radio", name="Attention", exact=True).check(force=True)  # each has its own
    expect(page.locator("[data-part='live']")).not_to_be_empty()
    set_k(page, 9)
    ask(page)
    expect(page.locator(".ins-grid .ins-card")).to_have_count(9)
