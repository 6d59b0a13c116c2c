"""The list of threats keeps its promises: every test that it names exists, and every threat names one."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
THREATS = (ROOT / "docs" / "THREATS.md").read_text(encoding="utf-8")
HELD = THREATS.partition("## What is kept")[0]


def functions(path: Path) -> set[str]:
    """Names of a module's functions."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_named_test_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", THREATS)
    assert len(named) > 40
    missing = [f"{path}::{name}" for path, name in named if name not in functions(ROOT / path)]
    assert not missing, missing


def test_every_threat_names_a_test():
    rows = [row for row in HELD.splitlines() if row.startswith("| ") and not row.startswith("| threat")]
    assert len(rows) > 20
    assert not [row for row in rows if "::test_" not in row]
