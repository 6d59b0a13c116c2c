"""Reports: the Markdown that ships is made from the JSON that ships, and tables are written in one way."""

import json

import pytest

from latent_core.analysis.statistics import difference, wilson
from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.evaluation.tables import percent, points, table
from trainers.evidence.cards import SECTIONS, card
from trainers.evidence.reports import read_report, write_report

SHIPPED = sorted(path.parent.name for path in EMBEDDED.glob("*/method.json"))
TABLES = [(path.parent.name, path.name) for path in sorted(EMBEDDED.glob("*/*.md")) if path.name != "README.md"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_model_card_is_made_from_what_lies_beside_it(name):
    assert card(name).encode() == (EMBEDDED / name / "README.md").read_bytes()


@pytest.mark.parametrize(("name", "file"), TABLES)
def test_a_table_is_made_from_the_json_beside_it(name, file):
    source = (EMBEDDED / name / file).with_suffix(".json")
    _, markdown = SECTIONS[source.name]
    assert markdown(read_report(source)).encode() == (EMBEDDED / name / file).read_bytes()


def test_every_report_that_ships_is_as_it_would_be_written(tmp_path):
    reports = [path for name in SHIPPED for path in (EMBEDDED / name).glob("*.json") if path.name in SECTIONS]
    assert {path.name for path in reports} == set(SECTIONS)
    for path in reports:
        written = write_report(tmp_path / path.name, read_report(path), SECTIONS[path.name][1])
        assert written == (tmp_path / path.name).with_suffix(".md")
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_markdown_is_made_from_what_json_keeps(tmp_path):
    seen = []
    write_report(tmp_path / "a.json", {"rows": (1, 2)}, lambda report: seen.append(report) or "text")
    assert seen == [{"rows": [1, 2]}] == [json.loads((tmp_path / "a.json").read_text())]
    assert (tmp_path / "a.md").read_text() == "text"


def test_a_table_has_a_line_per_row_and_no_bar_within_a_cell():
    assert table(["", "n"], [["a | b", "1"], ["c", ""]]) == "|  | n |\n|---|---|\n| a ¦ b | 1 |\n| c |  |\n"
    with pytest.raises(AssertionError, match="no cell for each"):
        table(["", "n"], [["c"]])


def test_shares_and_differences_are_rounded_as_one_rounds_by_hand():
    assert percent(0.5) == "50.0" and percent(None) == ""
    assert percent(1543 / 2000) == "77.2"  # 77.15%
    assert percent(wilson(3, 10)) == "30.0 [10.8, 60.3]"
    assert points(difference(wilson(56, 70), wilson(48, 80))) == "+20.0 [+5.2, +33.4]"
    assert points(difference(wilson(5, 10), wilson(5, 10))).startswith("+0.0 [-")
