"""`make space`: the tree that is published as a Space, in build/space, from nothing but what the page needs.

An allow-list: what is not named here does not get in. Two builds of one state of the repository are equal, byte for
byte. Then check.py starts the tree in an environment of its own and asks a question; `--no-check` leaves that out.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script's own folder is there instead, and this one is no package

from latent_core.checkpoints.embedded import offered  # noqa: E402
from latent_core.files import write_folder  # noqa: E402

TREE = ROOT / "build" / "space"
LOCK = ROOT / "spaces" / "web.lock"
"""A Space installs its pre-requirements.txt first and by itself: pip refuses files there whose hash is another."""

PAGE = (
    "app/*.py",
    "latent_core/**/*.py",
    "assets/app/*.css",
    "assets/app/*.html",
    "assets/app/*.js",
    "assets/traces/*.safetensors",
    "LICENSE",
)
LEFT_OUT = ("app/__main__.py",)
"""Matched by PAGE, but of no use to a Space, which has an app.py of its own."""
CHECKPOINT = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "method.json",
    "method.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    # artifacts
    "bank.safetensors",
    "depict.safetensors",
    "depict.json",
    "grounding.json",
)
"""Files of a checkpoint that is offered, as far as it has them."""

SECTIONS = ("latent_core", "app")
"""Parts of requirements.txt that the page needs at run time."""
PROVIDED = ("gradio", "spaces", "huggingface_hub")
"""Brought by the Space itself; to list them would fight with its own."""
WEB = (
    "anyio",
    "brotli",
    "fastapi",
    "gradio-client",
    "h11",
    "httpcore",
    "httpx",
    "jinja2",
    "markupsafe",
    "orjson",
    "python-multipart",
    "starlette",
    "uvicorn",
)
"""What reads requests and writes answers: web.lock's versions, so that nothing installed later changes them.

Not pydantic: what a Space adds to Gradio (`mcp`) wants an older one than the tests run with."""
BENEATH = ("scipy", "numba", "llvmlite", "pynndescent")
"""What the layouts depend on: other versions lay points out elsewhere."""


def main(arguments: list[str] | None = None) -> int:
    """Builds, prints what it weighs, checks; 1 where the tree cannot be written or does not work."""
    parser = argparse.ArgumentParser(prog="spaces/build.py", description="Build the Space's tree in build/space.")
    parser.add_argument("--no-check", action="store_true", help="do not start the tree in a fresh environment")
    options = parser.parse_args(arguments)
    try:
        write_folder(TREE, fill)
    except OSError as problem:
        print(problem, file=sys.stderr)
        return 1
    print(summary(TREE))
    if options.no_check:
        return 0
    return subprocess.run([sys.executable, str(ROOT / "spaces" / "check.py"), str(TREE)]).returncode


def fill(tree: Path) -> None:
    """Writes everything into an empty folder."""
    for path in sources():
        target = tree / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    shutil.copyfile(ROOT / "spaces" / "space_app.py", tree / "app.py")
    shutil.copyfile(LOCK, tree / "pre-requirements.txt")
    (tree / "requirements.txt").write_text(requirements(), encoding="utf-8")
    (tree / "README.md").write_text(readme(), encoding="utf-8")


def sources() -> Iterator[Path]:
    """The repository's files that the Space gets as they are."""
    for pattern in PAGE:
        for path in sorted(ROOT.glob(pattern)):
            if path.relative_to(ROOT).as_posix() not in LEFT_OUT:
                yield path
    for name in offered():
        folder = ROOT / "assets" / "checkpoints" / name
        yield from (folder / file for file in CHECKPOINT if (folder / file).is_file())


def readme() -> str:
    """The front matter that configures the Space, and what visitors read about it."""
    text = (ROOT / "spaces" / "space_readme.md").read_text(encoding="utf-8")
    return text.replace("{gradio}", tested()["gradio"][0].partition("==")[2])


def requirements() -> str:
    """The tested versions of what the page imports; for PyTorch a range up to it, for ZeroGPU takes only some."""
    ranges, pins = wanted(), tested()
    lines = ["# Written by `make space`. gradio, spaces and huggingface_hub come with the Space."]
    for name, requirement in ranges.items():
        if name == "torch":
            (pin,) = pins[name]
            lines.append(f"{requirement},<={pin.partition('==')[2]}")
        elif name not in PROVIDED:
            lines += pins[name]
    beneath, web = (line for name in BENEATH for line in pins[name]), locked()
    return "\n".join([*lines, *beneath, *(line for name in WEB for line in web[name])]) + "\n"


def wanted() -> dict[str, str]:
    """Package → its line in the SECTIONS of requirements.txt."""
    section, requirements = "", {}
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            section = line[2:]
        elif line and section in SECTIONS:
            requirements[_name(line)] = line
    return requirements


def tested() -> dict[str, list[str]]:
    """Package → its lines in constraints.txt, one per range of Python versions."""
    pins: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pins.setdefault(_name(line), []).append(line)
    return pins


def locked() -> dict[str, list[str]]:
    """Package → its lines in web.lock, one per range of Python versions, without the hashes."""
    pins: dict[str, list[str]] = {}
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        if line[0] not in " #":
            pins.setdefault(_name(line), []).append(line.rstrip(" \\"))
    return pins


def _name(requirement: str) -> str:
    return re.split(r"[<>=!~;\s]", requirement, maxsplit=1)[0]


def summary(tree: Path) -> str:
    """How many files and megabytes (10⁶ bytes) there are, in all and by folder."""
    sizes, counts = Counter(), Counter()
    for path in sorted(tree.rglob("*")):
        if path.is_file():
            inside = path.relative_to(tree).parts
            part = "/".join(inside[: 2 if inside[0] == "assets" else 1]) if len(inside) > 1 else "its root"
            sizes[part] += path.stat().st_size
            counts[part] += 1
    where = tree.relative_to(ROOT) if ROOT in tree.parents else tree
    head = f"{where}: {counts.total()} files, {sizes.total() / 1e6:.1f} MB"
    return "\n".join([head, *(f"  {part:20}{counts[part]:4} files {sizes[part] / 1e6:6.1f} MB" for part in sizes)])


if __name__ == "__main__":
    sys.exit(main())
