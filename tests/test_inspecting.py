"""What the Inspect and Compare pages are sent, against numpy and by hand."""

import base64
import json
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

from app.artifacts import Artifacts
from app.formulas import FORMULAS, formulas
from app.history import RECORDED
from app.inspect_payload import inspection, view_of
from app.payload import maps
from app.runner import Runner
from app.traces import difference, pairs, region
from app.view import Item, fold
from latent_core import glyphs, load
from latent_core.checkpoints.embedded import available, offered
from latent_core.evaluation.reference_bank import Bank
from latent_core.trace import Trace

RELATE = RECORDED / "relate_glyph-monet.safetensors"


@pytest.fixture(scope="module")
def trace() -> Trace:
    return Trace.load(RELATE)


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner(offered(), load, others=available())


@pytest.fixture(scope="module")
def artifacts(runner) -> Artifacts:
    return Artifacts(runner.known)


@pytest.fixture(scope="module")
def value(trace, artifacts):
    return inspection(
        trace,
        run="7",
        name="seven",
        label="Monet",
        own=True,
        bank=artifacts.bank("glyph-monet"),
        depicter=artifacts.depicter("glyph-monet"),
        measured=artifacts.measured("glyph-monet"),
        replayed=None,
    )


def chosen_states(trace):
    """Words' states and latents' vectors in order, markers left out."""
    kept = [(n, s) for n, s in enumerate(trace.steps) if getattr(s, "kind", "latent") in ("text", "latent")]
    return [n for n, _ in kept], np.stack([(s.fed if hasattr(s, "fed") else s.hidden).numpy() for _, s in kept])


def test_recorded_traces_fit_the_checkpoints_that_ship():
    """Their runs, made again, say the same: nobody forgot to record after training."""
    for path in sorted(RECORDED.glob("*.safetensors")):
        recorded = Trace.load(path)
        family, checkpoint = path.stem.split("_")
        example = glyphs.sample(family, 22, "test")
        assert recorded.source.checkpoint == checkpoint and recorded.question == example.question
        again = load(checkpoint).run(example.images, example.question, temperature=0.0)
        assert again.text == recorded.text
        if family != "trace":
            assert recorded.answer == example.answer


def test_coordinates_are_those_of_the_bank(trace, value, artifacts):
    bank, (of, states) = artifacts.bank("glyph-monet"), chosen_states(trace)
    assert value["of"] == of and len(value["space"]["labels"]) == len(bank.labels)
    assert [layout["key"] for layout in value["space"]["layouts"]] == [
        *("pca.raw", "umap2.raw", "umap3.raw", "pca.unit", "umap2.unit", "umap3.unit")
    ]
    for layout in value["space"]["layouts"]:
        scaled, axes = layout["key"].endswith("unit"), len(layout["axes"])
        unpacked = np.frombuffer(base64.b64decode(layout["items"]), "<i2").reshape(-1, axes)
        places = np.array(layout["middle"]) + unpacked * layout["unit"]
        vectors = states / np.linalg.norm(states, axis=1, keepdims=True) if scaled else states
        if layout["key"].startswith("pca"):
            expected = bank.axes(scaled=scaled).place(torch.from_numpy(vectors)).numpy()
        else:
            expected = bank.umap(torch.from_numpy(states), axes, scaled=scaled).numpy()
        np.testing.assert_allclose(places, expected, atol=1.01 * layout["unit"])


def test_matrices_norms_and_shares(trace, value):
    for block, sent in zip(trace.blocks, value["homogeneity"]["blocks"], strict=True):
        np.testing.assert_allclose(sent["matrix"], cosines(block), atol=1e-4)
        assert sent["adjacent"] == pytest.approx(np.diagonal(cosines(block), 1).mean(), abs=1e-5)
    _, states = chosen_states(trace)
    patches = trace.start.image_states[0].numpy()
    expected = np.linalg.norm(states, axis=1) / np.linalg.norm(patches, axis=1).mean()
    np.testing.assert_allclose(value["norms"]["mean image embedding (the merger’s output)"], expected, atol=1e-3)
    shares = value["shares"]
    np.testing.assert_allclose(np.array(shares["shares"]).sum(-1), 1, atol=4e-3)
    step = trace.steps[shares["of"][5]]
    np.testing.assert_allclose(shares["shares"][5][2], step.attention.shares[2].mean(0), atol=1e-3)
    assert len(shares["layers"]) == 5 and len(value["depict"]) == 2 and len(value["depict"][0]["each"]) == 8


def cosines(block):
    unit = block.latents.numpy() / np.linalg.norm(block.latents.numpy(), axis=1, keepdims=True)
    return unit @ unit.T


def test_what_is_sent_is_json_of_moderate_size(value):
    assert len(json.dumps(value)) < 700_000
    assert "NaN" not in json.dumps(value) and "Infinity" not in json.dumps(value)


HELD = """
import sys
from app import traces
from app.artifacts import Artifacts
def most():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1])
before, own = most(), Artifacts(("glyph-monet",))
traces.heading(sys.argv[1])
traces.figures(sys.argv[1], own, run="", name="", own=True)
traces.compared(sys.argv[1], sys.argv[1], own)
print(most() - before)
"""


@pytest.mark.slow
def test_a_long_run_of_16_bits_opens_inspects_and_compares_within_200_mb(tmp_path):
    """What comes on top of what the imports take, in a process of its own."""
    example = glyphs.sample("relate", 22, "test")
    reasoner = load("glyph-monet", device="cpu", dtype=torch.bfloat16)
    run = reasoner.run(example.images, example.question, attention=True)
    steps = tuple(step for step in run.steps if hasattr(step, "text")) * 40
    replace(run, steps=steps[:600]).save(tmp_path / "run.safetensors")
    held = subprocess.run(
        [sys.executable, "-c", HELD, tmp_path / "run.safetensors"], capture_output=True, text=True, check=True
    )
    assert int(held.stdout) < 200_000  # kB


def test_attention_of_sixteen_latents_takes_less_than_2_mb(trace):
    """In memory, in the file and in what the browser is sent; the bound of a 7B model is that of the docstring."""
    latents = [s.attention for block in trace.blocks for s in block.events]
    kept = sum(t.numel() * t.element_size() for look in latents for t in (look.image, look.shares, look.entropy))
    assert len(latents) == 16 and kept == 16 * 2 * 5 * 4 * (36 + 12) < 2e6
    assert RELATE.stat().st_size < 2e6
    assert len(json.dumps(maps(view_of(trace))["attention"])) < 2e6
    assert 2 * 28 * 28 * (1200 + 12) == pytest.approx(1.9e6, rel=0.01)


def test_formulas_are_the_docstrings():
    for figure, functions in FORMULAS.items():
        for function, sent in zip(functions, formulas(figure), strict=True):
            lines = [line.strip() for line in sent["text"].splitlines()]
            assert sent["name"] == function.__name__
            assert lines == [line.strip() for line in function.__doc__.strip().splitlines()]


def test_a_run_of_an_unknown_checkpoint_is_laid_out_on_itself(trace):
    value = inspection(
        trace, run="x", name="x", label="x", own=True, bank=None, depicter=None, measured={}, replayed=None
    )
    assert [layout["key"] for layout in value["space"]["layouts"]] == ["pca.raw", "pca.unit"]
    assert value["depict"] is None and value["lens"] == {"nearest": None, "layers": None}
    assert value["space"]["note"] is None and value["homogeneity"]["measured"] == []


def test_a_run_without_states_says_so(trace):
    example = glyphs.sample("find", 3, "val")
    blind = load("glyph-monet").run(example.images, example.question, record=False)
    value = inspection(
        blind, run="x", name="x", label="x", own=True, bank=None, depicter=None, measured={}, replayed=None
    )
    assert value["blind"] and "space" not in value


def test_a_bank_of_another_width_is_not_used(trace):
    kinds = torch.zeros(20, dtype=torch.uint8)
    other = Bank(torch.randn(20, 8), kinds, ("x",) * 20, {}, {"runs": 1, "command": "", "measured": []})
    value = inspection(
        trace, run="x", name="x", label="x", own=True, bank=other, depicter=None, measured={}, replayed=None
    )
    assert value["space"]["labels"] == []


def test_region_against_counting_by_hand(trace):
    """The lower right quarter of a 6 × 6 grid: sums of attention, mean cosines, ratio to all other quarters."""
    inside = np.zeros((6, 6), bool)
    inside[3:, 3:] = True
    found = region(str(RELATE), image=0, box=(0.5, 0.5, 1, 1), level=0, centred=False, layer=4, head=2)
    assert (found["tokens"], found["of"]) == (9, 36)
    of, patches = trace.attention.steps, trace.start.image_states[0].numpy()
    image = trace.attention.image.float()
    for row in found["by_attention"]:
        weights = image[of.index(row["n"]), 4, 1].numpy().reshape(6, 6)
        assert row["attention"] == pytest.approx(weights[inside].sum(), abs=1e-3)
    for row in found["by_cosine"]:
        step = trace.steps[row["n"]]
        vector = (step.fed if row["latent"] else step.hidden).numpy()
        cosine = patches @ vector / np.linalg.norm(patches, axis=1) / np.linalg.norm(vector)
        assert row["cosine"] == pytest.approx(cosine.reshape(6, 6)[inside].mean(), abs=1e-3)
    assert [row["cosine"] for row in found["by_cosine"]] == sorted(r["cosine"] for r in found["by_cosine"])[::-1]
    others = [(r, c) for r in range(4) for c in range(4) if not (r > 0 and c > 0)]  # 3 × 3, beside the region
    latents = [q for q, step in enumerate(of) if hasattr(trace.steps[step], "fed")]
    ratios = []
    for q in latents:
        weights = image[q, 4].mean(0).numpy().reshape(6, 6)
        elsewhere = np.mean([weights[r : r + 3, c : c + 3].sum() for r, c in others])
        ratios.append(weights[inside].sum() / elsewhere)
    assert found["enrichment"]["latents"][4] == pytest.approx(np.mean(ratios), abs=2e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": 1}, "no image 2"),
        ({"level": 99}, "states of level 99"),
        ({"layer": 9}, "no attention of layer 10"),
        ({"head": 5}, "head 5"),
        ({"box": (0.5, 0.5, 0.5, 1.0)}, "must hold"),
        ({"box": (0.0, 0.0, float("nan"), 1.0)}, "must hold"),
    ],
)
def test_regions_that_do_not_exist(trace, change, words):
    asked = {"image": 0, "box": (0.0, 0.0, 0.5, 0.5), "level": 0, "centred": True, "layer": 0, "head": 0} | change
    with pytest.raises(ValueError, match=words):
        region(str(RELATE), **asked)


def test_differences_word_by_word():
    first, second = difference(" It is a ring.", " It was a small ring.")
    assert "".join(part["text"] for part in first) == " It is a ring."
    assert "".join(part["text"] for part in second) == " It was a small ring."
    assert [part["text"] for part in first if not part["same"]] == [" is"]
    assert [part["text"] for part in second if not part["same"]] == [" was", " small"]
    assert difference("same", "same") == [[{"text": "same", "same": True}]] * 2


def test_pairs_of_latents(trace):
    other = Trace.load(RECORDED / "find_glyph-monet.safetensors")
    found = pairs(trace, other)
    assert [(pair["block"], pair["index"]) for pair in found] == [(0, t) for t in range(8)]
    a, b = trace.blocks[0].latents[3].numpy(), other.blocks[0].latents[3].numpy()
    assert found[3]["cosine"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-3)
    assert all(pair["cosine"] == 1 for pair in pairs(trace, trace))


def test_view_of_a_trace_is_the_folded_run(trace):
    view = view_of(trace)
    assert view.finish is trace.finish and len(view.items) == len(trace.steps) and view.opens
    one_by_one = replace(view, start=None, items=(), opened=0, finish=None)
    for event in trace.events():
        one_by_one = fold(one_by_one, event)
    assert one_by_one.opened == view.opened == len(trace.blocks)
    for first, second in zip(view.items, one_by_one.items, strict=True):
        assert all(getattr(first, f.name) is getattr(second, f.name) for f in fields(Item) if f.name != "glow")
        assert first.glow is None and (second.glow is not None) == (first.kind == "latent")
    assert Image.fromarray(view.start.images[0].numpy()).size == (96, 96)
