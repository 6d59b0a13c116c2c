"""The layers hold: spaces -> app -> latent_core <- trainers, gradio in the app alone, files short enough to read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "latent_core": set(),
    "trainers": {"latent_core"},
    "app": {"latent_core", "gradio"},
    "spaces": {"app", "latent_core", "gradio"},
}
"""For each of our folders, which of the guarded packages it may import besides itself."""
GUARDED = {*MAY_IMPORT, "tests", "gradio"}
MAX_LINES = 400


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and top-level package of every import in a source text, those inside functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:  # a relative import stays in its package
            yield node.lineno, node.module.partition(".")[0]


def test_imports_sees_every_form():
    source = "import os.path, gradio as gr\nfrom .app import x\ndef f():\n    from trainers.sft import y"
    assert sorted(imports(source)) == [(1, "gradio"), (1, "os"), (4, "trainers")]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_dependencies_point_one_way(package):
    forbidden = GUARDED - MAY_IMPORT[package] - {package}
    offences = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, name in imports(path.read_text(encoding="utf-8"))
        if name in forbidden
    ]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_files_can_be_read_in_one_sitting(package):
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    long = {path: count for path, count in lines.items() if count > MAX_LINES}
    assert not long, f"split by responsibility what has more than {MAX_LINES} lines: {long}"


def test_spaces_is_no_package():
    assert (ROOT / "spaces").is_dir()
    assert not (ROOT / "spaces" / "__init__.py").exists(), "it would hide Hugging Face's package `spaces`"
