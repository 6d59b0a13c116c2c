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
