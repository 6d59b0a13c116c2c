"""JSON Lines files, one object a line, which grow with a run; lines that a kill cut off are told from whole ones."""

import json
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> tuple[list[tuple[int, dict[str, Any]]], list[int]]:
    """(number, object) of every line that holds one, and the numbers of those that hold none; blank ones do not count.

    Empty where there is no such file.
    """
    whole, broken = [], []
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError:  # no JSON, or no UTF-8
            values = None
        if isinstance(values, dict):
            whole.append((number, values))
        else:
            broken.append(number)
    return whole, broken


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Adds an object, on a line of its own even where the last one was cut off."""
    line = json.dumps(values).encode() + b"\n"
    with path.open("a+b") as file:
        if size := file.seek(0, 2):
            file.seek(size - 1)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
