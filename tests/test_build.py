"""How the embedded checkpoints are built: what is measured of each, how a finished run is installed and described."""

import json
from pathlib import Path

import pytest

from latent_core import glyphs
from latent_core.checkpoints.embedded import EMBEDDED
from trainers.evidence import build, cards
from trainers.evidence.build import BANKED, BEFORE_AND_AFTER, PAINTED, REINFORCED, STAGES, STEPS, STUDIED, families
from trainers.evidence.results import BEGIN, END, RESULTS, headline, write_evidence


@pytest.fixture
def embedded(tmp_path, monkeypatch) -> Path:
    """An empty place for embedded checkpoints."""
    for module in (build, cards):
        monkeypatch.setattr(module, "EMBEDDED", tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def finished(run: Path, weights: str) -> Path:
    """What a run of training leaves behind: final/ with method.json and weights, and the log beside it."""
    final = run / "final"
    final.mkdir(parents=True)
    (final / "method.json").write_text(json.dumps({"provenance": {"fingerprint": weights}}))
    (final / "model.safetensors").write_text(weights)
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    return final


def test_a_run_is_installed_with_its_curve_and_loses_its_measurements_when_its_weights_change(embedded, tmp_path):
    build.install("mine", finished(tmp_path / "first", "first"))
    assert (embedded / "mine/training.jsonl").read_text() == '{"step": 1}\n'
    (embedded / "mine/grounding.json").write_text("{}")
    build.install("mine", tmp_path / "first/final")
    assert (embedded / "mine/grounding.json").is_file()
    build.install("mine", finished(tmp_path / "second", "second"))
    assert (embedded / "mine/model.safetensors").read_text() == "second"
    assert sorted(path.name for path in (embedded / "mine").iterdir()) == [
        "method.json",
        "model.safetensors",
        "training.jsonl",
    ]


def test_a_card_has_a_section_for_every_report_beside_it(embedded):
    folder = embedded / "glyph-monet"
    folder.mkdir(parents=True)
    build.document("glyph-monet")
    bare = (folder / "README.md").read_text()
    assert bare.startswith("---\nlicense: apache-2.0\n") and "\n# glyph-monet\n" in bare and "##" not in bare
    for file in ("metrics.json", "depict.json"):
        (folder / file).write_bytes((EMBEDDED / "glyph-monet" / file).read_bytes())
    build.document("glyph-monet")
    card = (folder / "README.md").read_text()
    titles = [line.removeprefix("## ") for line in card.splitlines() if line.startswith("## ")]
    assert titles == ["Measurements", "What the latents depict"] and card.startswith(bare.rstrip())


def test_checkpoints_are_measured_on_what_they_learned():
    assert families("glyph-monet") == glyphs.FAMILIES
    for name in STUDIED:
        measured = json.loads((EMBEDDED / name / "metrics.json").read_text())["guessing"]
        assert families(name) == tuple(measured), name
    assert any("views" in families(name) for name in STUDIED)


def test_what_ships_is_what_the_build_makes():
    assert {*STUDIED, *STAGES} <= set(STEPS)
    shipped = {path.parent.name for path in EMBEDDED.glob("*/method.json")}
    assert shipped == {*STUDIED, *STAGES, *REINFORCED}
    reports = {
        "metrics.json": {*STUDIED},
        "grounding.json": {*STUDIED} - {"glyph-text"},
        "depict.json": {*PAINTED},
        "bank.safetensors": {*BANKED},
        "reinforcement.json": {*BEFORE_AND_AFTER},
    }
    for file, names in reports.items():
        assert {path.parent.name for path in EMBEDDED.glob(f"*/{file}")} == names, file


def test_the_evidence_is_written_between_the_markers_alone(tmp_path):
    readme, results = tmp_path / "README.md", tmp_path / "RESULTS.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_evidence(STUDIED, BEFORE_AND_AFTER, readme, results)
    assert readme.read_text() == f"before\n{BEGIN}\n{headline(STUDIED)}{END}\nafter\n"
    assert results.read_bytes() == RESULTS.read_bytes()
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="README.md lacks the marker"):
        write_evidence(STUDIED, (), readme, results)
