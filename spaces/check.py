"""A check of a Space's tree: it starts as a Space would, in a fresh environment, and answers in a headless browser.

The environment is made from the tree's two lists of requirements and what every Gradio Space brings, by this
interpreter's version of Python and pip as it is configured here: where that finds PyTorch's CPU build, the CPU build
it is.
"""

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import Error as BrowserError
from playwright.sync_api import sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
BROUGHT = ("gradio[oauth,mcp]=={gradio}", "huggingface_hub", "spaces")
"""What a Space's image holds besides the requirements."""
READY = 180
"""Seconds until the page must be served."""
ANSWERED = 90
"""Seconds until the first answer, the model's loading among them."""
SERVER_LOG = "server.log"


def main(arguments: list[str] | None = None) -> int:
    """Says how long each part took; 1 with a sentence where one fails."""
    parser = argparse.ArgumentParser(prog="spaces/check.py", description="Start a Space's tree and ask it a question.")
    parser.add_argument("tree", type=Path, help="what `make space` has built")
    tree = parser.parse_args(arguments).tree.resolve()
    environment = tree.with_name(f"{tree.name}-environment")
    before = listing(tree)
    try:
        if not CHROMIUM.exists():
            raise RuntimeError(f"Chromium is not at {CHROMIUM}: apt-get install chromium, or --no-check.")
        with timed("environment"):
            python = install(tree, environment)
        with start(python, tree, environment / SERVER_LOG) as (process, url):
            with timed("page served"):
                wait_for_health(process, url, environment / SERVER_LOG)
            with timed("question"):
                answer = ask(url)
    except (RuntimeError, OSError) as problem:
        print(f"The tree does not work: {problem}", file=sys.stderr)
        return 1
    if listing(tree) != before:
        added = sorted(set(listing(tree)) - set(before))
        print(f"Running it changed the tree ({', '.join(added[:3]) or 'files are gone'}).", file=sys.stderr)
        return 1
    shutil.rmtree(environment)  # gigabytes; where something fails, it stays to be looked into
    print(f"The tree works: the page answered {answer!r}.")
    return 0


def install(tree: Path, environment: Path) -> Path:
    """A fresh virtual environment for the tree; its Python. Raises RuntimeError where pip fails."""
    shutil.rmtree(environment, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    version = sdk_version(tree)
    brought = [package.format(gradio=version) for package in BROUGHT]
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]
    for arguments in ([str(tree / "pre-requirements.txt")], [str(tree / "requirements.txt"), *brought]):
        done = subprocess.run([*command, *arguments], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"pip could not install its requirements: {_last_line(done.stderr)}")
    return python


def sdk_version(tree: Path) -> str:
    """The Gradio that the front matter asks for."""
    (version,) = re.findall(r"^sdk_version: (\S+)$", (tree / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    return version


@contextmanager
def start(python: Path, tree: Path, log: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """The running app.py and its address; ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "HF_"))
    }
    chosen = {
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "HF_HUB_OFFLINE": "1",
        "INSCAPE_CHECKPOINTS": "",  # the embedded ones, on whatever machine this runs
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(python), "app.py"], cwd=tree, env={**inherited, **chosen}, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield process, f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for_health(process: subprocess.Popen, url: str, log: Path) -> None:
    """Returns once /health says ok. Raises RuntimeError with the last line of its output where it ends before."""
    end = time.monotonic() + READY
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"app.py ended with status {process.returncode}: {_last_line(log.read_text())}")
        try:
            if httpx.get(f"{url}health", timeout=5).json()["status"] == "ok":
                return
        except httpx.TransportError:  # nobody listens yet
            time.sleep(0.2)
    raise RuntimeError(f"/health gave nothing within {READY} seconds; {log} holds what app.py printed.")


def ask(url: str) -> str:
    """The answer that the page shows after a click on Run. Raises RuntimeError for faults of the page."""
    faults: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda error: faults.append(f"a script threw {error}"))
        page.on(
            "request",
            lambda request: request.url.startswith((url, "data:", "blob:")) or faults.append(f"asked {request.url}"),
        )
        try:
            page.goto(url)
            page.wait_for_selector("#ins-well img")
            page.click("#ins-run")
            answer = page.wait_for_selector(".ins-big", timeout=ANSWERED * 1000).inner_text()
            text = page.inner_text(".ins-answer")
        except BrowserError as problem:
            raise RuntimeError(f"the page did not answer: {_last_line(str(problem))}") from problem
        finally:
            browser.close()
    if faults:
        raise RuntimeError(f"the page is at fault: {'; '.join(faults[:3])}")
    if "truth of the scene" not in text:
        raise RuntimeError(f"the page answered {answer!r} and did not tell the scene's truth: {text!r}")
    return answer


def listing(tree: Path) -> dict[str, int]:
    """Size of every file by its path in the tree."""
    return {path.relative_to(tree).as_posix(): path.stat().st_size for path in tree.rglob("*") if path.is_file()}


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Prints what took how long, once it is done."""
    began = time.monotonic()
    yield
    print(f"  {what:12}{time.monotonic() - began:7.1f} s", flush=True)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


if __name__ == "__main__":
    sys.exit(main())
