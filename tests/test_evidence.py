"""Short real runs of what the embedded checkpoints are measured and shown with: study, recorded runs, teachers."""

import json
import shutil

import pytest
import torch

from latent_core import glyphs
from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.evaluation.image_decoder import Depicter
from latent_core.trace import Trace
from trainers.evidence.cards import SECTIONS
from trainers.evidence.decoder import depict
from trainers.evidence.measurements import beside_weights, markdown, study
from trainers.evidence.recorded_runs import RECORDED, TRACES, record
from trainers.evidence.reports import read_report
from trainers.evidence.teachers import KINDS, teach
from trainers.sft.encoders import load_encoder


def test_a_study_is_written_as_json_and_as_what_the_json_says(tmp_path):
    out = study("glyph-text", families=["find"], n=2, out=tmp_path)
    report = read_report(out / "metrics.json")
    assert report["command"] == "python -m trainers study glyph-text --n 2 --split test --families find"
    assert report["seeds"] == [0, 1] and report["guessing"] == {"find": pytest.approx(1 / 6)}
    assert [row["condition"]["wrong_image"] for row in report["rows"]] == [False, True]
    text = (out / "metrics.md").read_text()
    assert text == markdown(report)
    assert "seeds 0 to 1, greedy" in text and "Uniform guessing: find 16.7%." in text and "per latent" not in text
    assert text.count("\n| find | ") == 2


def test_a_studys_text_tells_the_latents_speed_where_there_are_any():
    report = {
        "command": "c",
        "split": "val",
        "seeds": [0, 9],
        "blind_accuracy": {"find": 0.1655},
        "guessing": {"find": 0.25},
        "timing_ms": {"n": 3, "latent": 1.25, "thought": 9.9, "token": 2.0, "run": 50.4},
        "rows": [],
    }
    assert "Best answer from the question alone: find 16.6%" in markdown(report)
    assert "(median of 3): 1.2 ms per latent, 10 ms per thought, 2.0 ms per token, 50 ms per run." in markdown(report)


def test_a_decoder_is_trained_and_read_beside_the_weights(tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(EMBEDDED / "glyph-monet", folder)
    written = depict(str(folder), n=6, train=2, steps=4)
    report = read_report(folder / "depict.json")
    assert report["n"] == 6 and report["train_samples"] == 8 and report["command"].endswith("mine --n 6")
    assert written.read_text() == SECTIONS["depict.json"][1](report)
    assert "seeds 0 to 5 of test" in written.read_text() and "\n| from latent 8 alone | " in written.read_text()
    assert Depicter.load(folder / "depict.safetensors").width == 128


def test_measurements_lie_beside_the_weights_or_in_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/method.json").write_text("{}")
    assert beside_weights("glyph-monet", "ground").name == "glyph-monet"
    assert beside_weights("mine", "ground").resolve() == tmp_path / "mine"
    folder = beside_weights("someone/theirs", "ground")
    assert folder.is_dir() and folder.as_posix() == "runs/ground/theirs"


def test_recorded_runs_are_those_that_the_page_opens(tmp_path):
    written = record(tmp_path)
    assert sorted(path.name for path in written) == sorted(path.name for path in TRACES.iterdir())
    assert len(written) == len(RECORDED)
    for path in written:
        new, shipped = Trace.load(path), Trace.load(TRACES / path.name)
        assert (new.question, new.text, new.settings) == (shipped.question, shipped.text, shipped.settings)
        assert [step.position for step in new.steps] == [step.position for step in shipped.steps]
        for block, known in zip(new.blocks, shipped.blocks, strict=True):
            torch.testing.assert_close(block.latents, known.latents, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(new.attention.image, shipped.attention.image, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("name", KINDS)
def test_a_teacher_learns_and_can_be_used_as_an_encoder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teach(name, steps=2, folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / name / "training.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 2 and lines[-1]["train_loss"] > 0
    taught, shipped = load_encoder(str(tmp_path / name)), load_encoder(name)
    assert (taught.width, taught.size, taught.grid) == (shipped.width, shipped.size, shipped.grid)
    image = glyphs.sample("find", 0).images[0]
    (features,), _ = taught.features(taught.prepare([image]))
    (known,), _ = shipped.features(shipped.prepare([image]))
    assert features.shape == known.shape and features.isfinite().all()
