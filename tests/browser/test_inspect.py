"""The Inspect and Compare pages in a real browser: what is linked, drawn, downloaded, renamed, run again."""

import csv
import io
import re

import pytest
from playwright.sync_api import expect

from latent_core.trace import Trace

VIEW = "#ins-inspect-view"
MINI = f"{VIEW} .ins-mini"
DRAWN = f"{VIEW} .ins-figure-space .main-svg"


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def ask(page):
    page.get_by_label("Real").check(force=True)
    page.click("#ins-run")
    page.wait_for_selector("#ins-trace button:not([disabled]), #ins-trace a, #ins-trace:not([disabled])")
    page.wait_for_selector(".ins-state:text-is('Finished')")


@pytest.fixture
def inspected(page):
    """The Inspect page with a run of one block of eight latents."""
    ask(page)
    tab(page, "Inspect")
    page.wait_for_selector(DRAWN)
    return page


def chosen(page) -> str:
    return page.locator("[data-part='chosen']").inner_text()


def test_a_recorded_run_is_there_before_any_model(open_page):
    page = open_page()
    tab(page, "Inspect")
    page.wait_for_selector(DRAWN)
    expect(page.locator(f"{VIEW} [data-part='runs'] option:checked")).to_contain_text("Recorded")
    expect(page.locator(MINI).first).to_be_visible()
    expect(page.locator(f"{VIEW} [data-part='rename']")).to_be_hidden()
    page.select_option(f"{VIEW} [data-part='runs']", label="Recorded: relate, glyph-monet")
    expect(page.locator(MINI)).to_have_count(16)
    page.locator(MINI).nth(12).click()
    expect(page.locator("[data-part='chosen']")).to_contain_text("Latent 5 of block 2")
    expect(page.locator(".ins-figure-depict .ins-whole")).to_contain_text("block 2")


def test_all_figures_are_drawn(inspected):
    for name in ("space", "shares", "norms", "homogeneity", "references"):
        expect(inspected.locator(f".ins-figure-{name} .main-svg").first).to_be_visible()
    expect(inspected.locator(".ins-figure-depict img")).to_have_count(9)
    expect(inspected.locator(".ins-figure-lens")).to_contain_text("layer 1")
    expect(inspected.locator(".ins-figure-rollout canvas")).to_be_visible()
    expect(inspected.locator(".ins-figure-measured")).to_contain_text("python -m trainers ground glyph-monet")
    expect(inspected.locator(".ins-figure-references")).to_contain_text("ReaLVR")


def test_selecting_anywhere_selects_everywhere(inspected):
    page = inspected
    page.locator(MINI).nth(4).click()
    assert "Latent 5 of block 1" in chosen(page)
    expect(page.locator(".ins-figure-depict button[aria-pressed='true']")).to_have_text("5")
    page.locator(".ins-figure-depict button").nth(3).click()  # latent 3: the first is the block
    assert "Latent 3 of block 1" in chosen(page)
    expect(page.locator(f"{MINI}[aria-pressed='true'] b")).to_have_text("3")
    # a bar of the attention figure: the first position is the first word
    page.locator(".ins-figure-shares .nsewdrag").click(position={"x": 8, "y": 60})
    expect(page.locator("[data-part='chosen']")).to_contain_text("Word “I”")
    # and Ask follows
    tab(page, "Ask")
    expect(page.locator("#ins-run-view [data-part='title']")).to_have_text("Word “I”")
    page.locator("#ins-run-view .ins-card").nth(6).click()
    tab(page, "Inspect")
    expect(page.locator("[data-part='chosen']")).to_contain_text("Latent 7 of block 1")


def test_keyboard_alone(inspected):
    page = inspected
    page.locator(f"{MINI}[aria-pressed='true']").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("[data-part='chosen']")).to_contain_text("Latent 2 of block 1")
    page.keyboard.press("End")
    expect(page.locator("[data-part='chosen']")).to_contain_text("Word")
    page.keyboard.press("Home")
    expect(page.locator("[data-part='chosen']")).to_contain_text("Word “I”")
    assert page.locator("#ins-inspect-view [data-part='track'] [tabindex='0']").count() == 1
    page.get_by_role("radio", name="UMAP").focus()
    page.keyboard.press("Space")
    expect(page.locator(".ins-figure-space .xtitle")).to_have_text("UMAP 1")
    summary = page.locator(".ins-figure-homogeneity summary")
    summary.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".ins-figure-homogeneity pre").first).to_contain_text("C_ab = ⟨z_a, z_b⟩ / (‖z_a‖ ‖z_b‖)")


def test_umap_and_space_in_three_dimensions(inspected):
    page = inspected
    began = page.evaluate("performance.now()")
    page.get_by_role("radio", name="UMAP").check(force=True)
    page.wait_for_selector(".ins-figure-space .xtitle:text-is('UMAP 1')")
    assert page.evaluate("performance.now()") - began < 2000
    page.get_by_role("radio", name="3-D").check(force=True)
    expect(page.locator(".ins-figure-space .gl-container, .ins-figure-space #scene").first).to_be_attached()
    figure = page.locator(".ins-figure-space [role='img']")
    expect(figure).to_have_attribute(
        "aria-label", re.compile("8 latents in 1 block, .*on UMAP 1 and UMAP 2 and UMAP 3")
    )


def test_downloads(inspected):
    page, box = inspected, inspected.locator(".ins-figure-homogeneity")
    with page.expect_download() as got:
        box.get_by_role("button", name="as CSV").click()
    rows = list(csv.reader(io.StringIO(got.value.path().read_text())))
    assert rows[0] == ["latent", *map(str, range(1, 9))] and len(rows) == 9
    assert all(abs(float(rows[i][i]) - 1) < 1e-3 for i in range(1, 9))
    with page.expect_download() as got:
        box.get_by_role("button", name="as PNG").click()
    assert got.value.path().read_bytes()[:4] == b"\x89PNG"
    with page.expect_download() as got:
        box.get_by_role("button", name="as SVG").click()
    assert got.value.path().read_text().startswith("<svg")


def test_runs_are_named_opened_and_deleted(inspected):
    page, runs = inspected, inspected.locator(f"{VIEW} [data-part='runs']")
    page.fill(f"{VIEW} [data-part='name']", "my <b>run</b>")
    page.keyboard.press("Enter")
    expect(runs.locator("option").first).to_have_text("my <b>run</b>")
    page.fill(f"{VIEW} [data-part='name']", " ")
    page.click(f"{VIEW} [data-part='rename']")
    expect(page.locator(f"{VIEW} [data-part='problem']")).to_contain_text("A name has 1 to 60 letters")
    count = runs.locator("option").count()
    page.click(f"{VIEW} [data-part='remove']")
    expect(runs.locator("option")).to_have_count(count - 1)
    expect(runs.locator("option:checked")).to_contain_text("Recorded")


def test_a_trace_file_is_opened_and_a_bad_one_refused(page, tmp_path):
    ask(page)
    with page.expect_download() as got:
        page.click("#ins-trace")
    path = tmp_path / "mine.safetensors"
    path.write_bytes(got.value.path().read_bytes())
    assert Trace.load(path).answer
    tab(page, "Inspect")
    page.wait_for_selector(DRAWN)
    page.set_input_files(f"{VIEW} [data-part='file']", path)
    expect(page.locator(f"{VIEW} [data-part='runs'] option:checked")).to_contain_text("Opened:")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    page.set_input_files(f"{VIEW} [data-part='file']", tmp_path / "bad.safetensors")
    expect(page.locator(f"{VIEW} [data-part='problem']")).to_contain_text("is not a trace that can be read")
    expect(page.locator(f"{VIEW} [data-part='runs'] option:checked")).to_contain_text("Opened:")


def test_the_same_question_again_and_side_by_side(page):
    ask(page)
    tab(page, "Compare")
    again = page.locator("#ins-compare-view [data-part='again']")
    again.get_by_role("button", name="K 2", exact=True).click()
    expect(page.locator(".ins-sides .ins-mini")).to_have_count(10)
    expect(page.locator("#ins-compare-view [data-part='b'] option:checked")).to_contain_text("K 2")
    page.locator(".ins-sides section").nth(1).locator(".ins-mini").nth(1).click()
    for side in (0, 1):
        pressed = page.locator(".ins-sides section").nth(side).locator("[aria-pressed='true']")
        expect(pressed).to_have_attribute("aria-label", "Latent 2 of block 1")
    expect(page.locator("#ins-compare-view [data-part='note']")).to_contain_text("Cosine of the two latents")
    page.locator(".ins-sides section").nth(0).locator(".ins-mini").nth(7).click()
    expect(page.locator("[data-caption='1']")).to_have_text("This run has nothing at this place.")
    again.get_by_role("button", name="Text only").click()
    expect(page.locator("#ins-compare-view [data-part='numbers']")).to_contain_text("text, 8")
    expect(page.locator(".ins-changed").first).to_be_visible()  # without latents it says something else
    again.get_by_role("button", name="glyph-text", exact=True).click()
    expect(page.locator("#ins-compare-view [data-part='numbers']")).to_contain_text("glyph-text")


def test_who_looks_into_a_painted_region(page):
    ask(page)
    view = page.locator("#ins-run-view [data-part='view']")
    view.scroll_into_view_if_needed()
    box = view.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.70, box["y"] + box["height"] * 0.70)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.97, box["y"] + box["height"] * 0.97, steps=4)
    page.mouse.up()
    result = page.locator("#ins-region-view")
    expect(result.locator("[data-part='count']")).to_have_text("4 of 36 patches")
    expect(result.locator(".ins-bars").first).to_contain_text("latent")
    expect(result).to_contain_text("Enrichment by layer")
    result.locator(".ins-bars button").first.click()
    expect(page.locator("#ins-run-view [data-part='title']")).to_contain_text("Latent")
    result.get_by_role("button", name="Close").click()
    expect(page.locator(".ins-region")).to_have_count(0)
    # by keyboard: arrows walk, Enter asks about the cell
    view.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(result.locator("[data-part='count']")).to_have_text("1 of 36 patches")


def test_attention_minus_what_words_look_at(page):
    ask(page)
    page.get_by_role("radio", name="Minus words").check(force=True)
    expect(page.locator("[data-part='what']").first).to_contain_text(
        "What the run’s words look at on average is subtracted"
    )
    page.get_by_text("Own scale for each map").click()
    expect(page.locator("[data-part='low']")).to_have_text("0.00")


@pytest.mark.alone
def test_a_card_shows_its_overlay_within_200_ms(page):
    ask(page)
    took = page.evaluate(
        """async () => {
            const cards = document.querySelectorAll("#ins-run-view .ins-card");
            const canvas = document.querySelector("[data-part='big']");
            const times = [];
            for (const card of cards) {
                const before = canvas.toDataURL(), began = performance.now();
                card.click();
                await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
                times.push(performance.now() - began);
                if (canvas.toDataURL() === before && times.length > 1 && times.length < cards.length)
                    throw new Error("nothing was drawn");
            }
            return Math.max(...times);
        }"""
    )
    assert took < 200


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_390_pixels_wide(open_page, scheme):
    page = open_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    for name in ("Inspect", "Compare"):
        tab(page, name)
        page.wait_for_timeout(1500)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    tab(page, "Inspect")
    expect(page.locator(DRAWN).first).to_be_visible()


def test_every_control_has_a_name(inspected):
    unnamed = inspected.evaluate(
        """() => [...document.querySelectorAll("#ins-inspect-view :is(button, input:not([hidden]), select, summary)")]
            .filter((node) => node.offsetWidth && !node.getAttribute("aria-label") && !node.textContent.trim())
            .filter((node) => !node.labels?.[0]?.textContent.trim())
            .map((node) => node.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []


def test_without_a_bank_no_umap_is_offered(page):
    page.get_by_label("LVR", exact=True).check(force=True)
    expect(page.locator("#ins-k input[type='number']")).to_have_value("4")
    ask(page)
    tab(page, "Inspect")
    page.wait_for_selector(DRAWN)
    expect(page.get_by_role("radio", name="UMAP")).to_have_count(0)
    expect(page.locator(".ins-check", has_text="Bank")).to_be_hidden()
    expect(page.locator(".ins-figure-space")).to_contain_text("No reference bank for this checkpoint")
    page.select_option(f"{VIEW} [data-part='runs']", label="Recorded: find, glyph-monet")
    page.get_by_role("radio", name="UMAP").check(force=True)
    expect(page.locator(".ins-figure-space .xtitle")).to_have_text("UMAP 1")
