"""`python -m tests.browser.screenshots`: the pictures of the README, taken from the page as it is."""

from pathlib import Path

from playwright.sync_api import sync_playwright

from app.runner import Runner
from app.server import serve
from latent_core import load
from latent_core.checkpoints import embedded

FOLDER = Path(__file__).parents[2] / "assets" / "screenshots"
SHOTS = {
    "ask-light": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "light"},
    "ask-dark": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "dark"},
    "ask-phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
}


def main() -> None:
    """Asks the first question at K = 8 and selects a latent, in light, dark and narrow; and inspects it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    names = embedded.offered()
    page = serve(Runner(names, load), host="127.0.0.1", port=None, wait=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for name, options in SHOTS.items():
            tab = browser.new_page(**options)
            tab.goto(page.local_url)
            tab.wait_for_selector("#ins-well img")
            tab.click("#ins-run")
            tab.wait_for_selector(".ins-big")
            tab.locator(".ins-card").nth(5).click()
            tab.screenshot(path=FOLDER / f"{name}.png", full_page=True)
            if name == "ask-light":
                tab.get_by_role("tab", name="Inspect").click()
                tab.wait_for_selector(".ins-figure-references .main-svg")
                tab.wait_for_timeout(1000)
                tab.set_viewport_size({"width": 1440, "height": 1500})
                tab.wait_for_timeout(1000)
                tab.screenshot(path=FOLDER / "inspect-light.png")
            tab.close()
        browser.close()
    page.close()


if __name__ == "__main__":
    main()
