"""Grounding of latents, against an independent count."""

import json
import shutil

import numpy as np
import pytest

from latent_core import glyphs, load
from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.evaluation.grounding import LookRule, best, collect, report
from trainers.__main__ import main

N, K = 6, 4


@pytest.fixture(scope="module")
def reasoner():
    return load("glyph-monet")


@pytest.fixture(scope="module")
def examples():
    return [glyphs.sample("find", seed, "val") for seed in range(N)]


@pytest.fixture(scope="module")
def hits(reasoner, examples):
    return collect(reasoner, examples, latents=K, batch=4)


def inside(token: int, region: tuple[float, ...]) -> bool:
    x, y = (token % 6 + 0.5) / 6, (token // 6 + 0.5) / 6
    return region[0] <= x <= region[2] and region[1] <= y <= region[3]


def test_similarity_is_counted_as_by_hand(reasoner, examples, hits):
    found = hits[LookRule("similarity", 0, 0)]
    assert found["latents"].shape == (N, K)
    for i, example in enumerate(examples):
        trace = reasoner.run(example.images, example.question, latents=K)
        patches = trace.start.image_states[0].numpy()
        for t, latent in enumerate(trace.blocks[0].latents.numpy()):
            cosine = patches @ latent / np.linalg.norm(patches, axis=1) / np.linalg.norm(latent)
            assert found["latents"][i, t] == inside(int(cosine.argmax()), example.steps[0].region)


def test_attention_is_counted_as_by_hand(reasoner, examples, hits):
    for head in (-1, 2):
        found = hits[LookRule("attention", 3, head)]
        for i, example in enumerate(examples):
            trace = reasoner.run(example.images, example.question, latents=K, attention=[3])
            seen = [step.attention.image[0].float() for step in trace.steps if hasattr(step, "fed")][:K]
            for t, weights in enumerate(seen):
                token = int((weights.mean(0) if head < 0 else weights[head]).argmax())
                assert found["latents"][i, t] == inside(token, example.steps[0].region)


def test_every_rule_is_there_and_the_best_is_the_best(reasoner, hits):
    layers, heads = reasoner.backbone.num_layers, 4
    assert len(hits) == 2 * (layers + 1) + layers * (heads + 1)
    for kind in ("similarity", "attention"):
        rule = best(hits, kind)
        top = hits[rule]["latents"].mean()
        assert all(top >= other["latents"].mean() for name, other in hits.items() if name.kind == kind)
        told = report(hits, rule)
        assert told.latents.value == pytest.approx(top.item())
        assert [one.value for one in told.by_latent] == pytest.approx(hits[rule]["latents"].mean(0).tolist())


def test_the_command_line_reports_and_refuses(tmp_path, monkeypatch, capsys):
    shutil.copytree(EMBEDDED / "glyph-monet", tmp_path / "runs/mine/final")
    monkeypatch.chdir(tmp_path)
    assert main(["ground", "runs/mine", "--n", "3"]) == 0
    assert "cosine with the image states" in capsys.readouterr().out
    content = json.loads((tmp_path / "runs/mine/final/grounding.json").read_text())
    assert content["command"] == "python -m trainers ground runs/mine --n 3"
    assert [row["rule"]["kind"] for row in content["rows"]] == ["similarity", "attention"]
    assert main(["ground", "glyph-text"]) == 2
    assert "no latents" in capsys.readouterr().err
    assert main(["ground", "glyph-monet", "--n", "1"]) == 2
