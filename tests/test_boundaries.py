"""The order of imports: spaces -> app -> latent_core <- trainers, gradio in the app alone; files short enough."""

import ast
from collections.abc import Container, Iterator
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


@pytest.mark.parametrize("folder", [*MAY_IMPORT, "tests", "assets/app"])
def test_files_can_be_read_in_one_sitting(folder):
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".js", ".css", ".html")
    }
    long = {path: count for path, count in lines.items() if count > MAX_LINES}
    assert not long, f"split by responsibility what has more than {MAX_LINES} lines: {long}"


FLOORS = (
    (
        "settings",
        "events",
        "records",
        "config",
        "files",
        "lines",
        "finite",
        "spelling",
        "answers",
        "example",
        "assets",
    ),
    ("stored", "trace"),
    ("glyphs",),
    ("model",),
    ("analysis",),
    ("methods",),
    ("decoding",),
    ("reasoner",),
    ("checkpoints",),
    ("evaluation",),
    ("replay",),
)
"""Rooms of latent_core, lowest first; a floor imports from those below it, its own room and its neighbours."""


def modules(*packages: str) -> dict[str, Path]:
    """Dotted name → file of every module."""
    found = {}
    for package in packages:
        for path in (ROOT / package).rglob("*.py"):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def imported(path: Path, known: Container[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every module among `known` that a file imports when it is loaded.

    What it imports inside functions, or for a type checker alone, is left out.
    """
    waiting = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names if name.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                target = whole if whole in known else node.module
                if target in known:
                    yield node.lineno, target
        waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def test_the_rooms_of_latent_core_are_floors():
    known = modules("latent_core")
    floor_of = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    rooms = {name.split(".")[1] for name in known if "." in name}
    assert rooms == floor_of.keys(), "every room has a floor"
    upwards = [
        f"{name}:{line} imports {other}"
        for name, path in known.items()
        if "." in name
        for line, other in imported(path, known)
        if "." in other and floor_of[other.split(".")[1]] > floor_of[name.split(".")[1]]
    ]
    assert not upwards, "\n".join(upwards)


@pytest.mark.parametrize("package", ["latent_core", "trainers", "app"])
def test_no_module_imports_itself_by_way_of_others(package):
    known = modules(package)
    graph = {name: {other for _, other in imported(path, known)} - {name} for name, path in known.items()}
    while leaves := [name for name, others in graph.items() if not others & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"a circle is among {', '.join(sorted(graph))}"


def test_spaces_is_no_package():
    assert (ROOT / "spaces").is_dir()
    assert not (ROOT / "spaces" / "__init__.py").exists(), "it would hide Hugging Face's package `spaces`"


SEAM = {"latent_core/model/qwen2_5_vl.py"}
"""The files that may touch the insides of a backbone: one for each kind."""
INSIDES = {"visual", "language_model", "lm_head"}
PUBLISHED_CLASSES = ("Qwen2_5_VL", "Qwen2VL", "Qwen3VL")


def reaches_inside(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of every reach into a backbone's model, and of every import of the classes that it is made of."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            inner = node.value.attr if isinstance(node.value, ast.Attribute) else ""
            if node.attr in INSIDES:
                yield node.lineno, f".{node.attr}"
            elif inner == node.attr == "model":
                yield node.lineno, ".model.model"
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith("transformers.models.qwen"):
                    yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "transformers":
            for name in node.names:
                if node.module.startswith("transformers.models.qwen") or name.name.startswith(PUBLISHED_CLASSES):
                    yield node.lineno, f"{node.module}.{name.name}"


def test_reaches_inside_sees_every_form():
    source = (
        "from transformers import AutoModel, Qwen2_5_VLConfig\nimport transformers.models.qwen2_vl as q\n"
        "from transformers.models.qwen2_5_vl import x\nself.model.model.norm(a)\nb.visual\nmodel.lm_head(c)\n"
        "from latent_core.model.qwen2_5_vl import Qwen2_5_VL\nbackbone.model.config\n"
    )
    assert [line for line, _ in sorted(reaches_inside(source))] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_only_the_seam_touches_the_insides_of_a_backbone(package):
    offences = [
        f"{path.relative_to(ROOT)}:{line} has {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.relative_to(ROOT).as_posix() not in SEAM
        for line, name in reaches_inside(path.read_text(encoding="utf-8"))
    ]
    assert not offences, "\n".join(offences)
