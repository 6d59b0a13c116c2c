"""A report: measurements as JSON, and the same as Markdown beside it, made from the JSON alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latent_core.files import write_file

METRICS_FILE = "metrics.json"
ABLATIONS_FILE = "ablations.json"
REINFORCEMENT_FILE = "reinforcement.json"
"""Names of reports in a checkpoint's folder; those that the page reads, too, have theirs in latent_core."""

Report = dict[str, Any]
"""JSON values by name."""


def write_report(path: Path, report: Report, markdown: Callable[[Report], str]) -> Path:
    """Writes `path`, which ends in .json, and beside it what `markdown` makes of it; returns the Markdown file."""
    content = json.dumps(report, indent=1)
    write_file(path, content.encode())
    write_file(path.with_suffix(".md"), markdown(json.loads(content)).encode())
    return path.with_suffix(".md")


def read_report(path: Path) -> Report:
    """The JSON of a report, as `write_report` wrote it."""
    return json.loads(path.read_text(encoding="utf-8"))
