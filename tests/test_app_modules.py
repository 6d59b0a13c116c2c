"""The app's modules import each other in one direction: none comes back to itself, imports in functions included."""

import ast
from pathlib import Path

APP = Path(__file__).resolve().parents[1] / "app"


def imported(path: Path, modules: set[str]) -> set[str]:
    """The modules of the app that a file imports, in any of the ways to write that."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return {name.removeprefix("app.") for name in names if name.startswith("app.")} & modules


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, in its order; none where there is no circle."""
    left = dict(graph)
    while leaves := [module for module, others in left.items() if not others & left.keys()]:
        for module in leaves:
            del left[module]
    way: list[str] = []
    while left and (not way or way[-1] not in way[:-1]):
        way.append(min(left[way[-1]] & left.keys() if way else left))
    return way[way.index(way[-1]) :] if way else []


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) in (["b", "c", "b"], ["c", "b", "c"])
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_module_of_the_app_comes_back_to_itself():
    files = {path.stem: path for path in APP.glob("*.py") if path.stem != "__init__"}
    graph = {name: imported(path, set(files)) for name, path in files.items()}
    assert graph["server"] >= {"page", "runner"}
    assert circle(graph) == []


def reaches_in(source: str) -> list[str]:
    """Imports of Gradio's modules, and attributes of others' that begin with one underscore, in a source text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.startswith(("gradio.", "gradio_client"))]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("gradio", "gradio_client"):
            found.append(node.module)
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "os")):
                found.append(ast.unparse(node))
    return found


def test_what_reaches_into_gradio_is_found():
    source = "import gradio as gr\nfrom gradio.utils import x\nimport gradio.queueing\ny = page._queue\nself._own = 1"
    assert reaches_in(source) == ["gradio.utils", "gradio.queueing", "page._queue"]


def test_one_file_alone_reaches_into_gradio():
    found = {path.stem: reaches_in(path.read_text(encoding="utf-8")) for path in APP.glob("*.py")}
    assert {name: what for name, what in found.items() if what and name != "gradio_private"} == {}
    assert "page._queue" in found["gradio_private"]
