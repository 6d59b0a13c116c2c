"""The decoder from latents to auxiliary images, its training and use; what ships fits the checkpoints that ship."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from latent_core import glyphs, load
from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.evaluation.image_decoder import FILE, MOST, SIDE, Depicter
from latent_core.evaluation.reference_bank import Bank
from latent_core.events import TokenEvent
from trainers.evidence.bank import measure
from trainers.evidence.build import BANKED, PAINTED
from trainers.evidence.decoder import LABELS, _explained, rates, thoughts, train_classifier, train_depicter, truth

BESIDE = [
    (path.parent.name, path.name) for path in sorted(EMBEDDED.glob("*/*")) if path.name in (FILE, "bank.safetensors")
]


@pytest.fixture(scope="module")
def decoder() -> Depicter:
    torch.manual_seed(0)
    return Depicter(8).eval()


@pytest.fixture(scope="module")
def reasoner():
    return load("glyph-monet")


def test_a_picture_depends_on_the_latents_that_may_be_read_alone(decoder):
    latents = torch.randn(1, 5, 8)
    there = torch.tensor([[True, False, True, True, False]])
    changed = latents.clone()
    changed[0, [1, 4]] = 100.0
    torch.testing.assert_close(decoder(latents, there), decoder(changed, there))
    changed[0, 2] += 1.0
    assert not torch.allclose(decoder(latents, there), decoder(changed, there))


def test_pictures_of_a_block_and_of_each_latent(decoder):
    latents = torch.randn(3, 8)
    found = decoder.pictures(latents)
    assert found.shape == (4, SIDE, SIDE, 3) and found.dtype == torch.uint8
    with torch.no_grad():
        whole = decoder(latents[None], torch.ones(1, 3, dtype=torch.bool))[0]
        second = decoder(latents[None], torch.tensor([[False, True, False]]))[0]
    assert (found[0].permute(2, 0, 1) - whole * 255).abs().max() <= 0.51
    assert (found[2].permute(2, 0, 1) - second * 255).abs().max() <= 0.51


def test_the_file_comes_back_and_broken_ones_are_named(decoder, tmp_path):
    path = tmp_path / FILE
    decoder.save(path, {"seed": 0})
    back = Depicter.load(path)
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor.half().float())
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["depict"]) == {"width": 8, "seed": 0}
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"depict\.safetensors is no decoder of latents"):
        Depicter.load(path)
    Depicter(4).save(path, {"width": 8})
    with pytest.raises(ValueError, match="does not fit this version's decoder"):
        Depicter.load(path)
    with pytest.raises(ValueError, match="reads up to 16 of width 8"):
        decoder(torch.randn(1, MOST + 1, 8), torch.ones(1, MOST + 1, dtype=torch.bool))


@pytest.mark.slow
def test_training_finds_what_is_in_the_vectors():
    """Grey levels that one of three vectors tells, the others noise: explained, from that one alone, too."""
    draw = torch.Generator().manual_seed(0)
    level = torch.rand(400, generator=draw)
    vectors = torch.zeros(400, MOST, 8)
    vectors[:, :3] = torch.randn(400, 3, 8, generator=draw)
    vectors[:, 1, 0] = 4 * level
    mask = (torch.arange(MOST) < 3).expand(400, -1)
    images = level[:, None, None, None].expand(-1, 3, SIDE, SIDE)
    decoder = train_depicter(vectors, mask, images, steps=60, seed=0)
    some = type("Some", (), {"latents": vectors, "mask": mask, "images": images})
    assert _explained(decoder, some, images.mean(0)) > 0.8
    some.mask = mask & (torch.arange(MOST) == 1)
    assert _explained(decoder, some, images.mean(0)) > 0.8
    some.mask = mask & (torch.arange(MOST) == 0)
    assert _explained(decoder, some, images.mean(0)) < 0.2


def test_blocks_are_paired_with_their_steps(reasoner):
    examples = [glyphs.sample(family, 3, "val") for family in ("find", "relate")]
    found = thoughts(reasoner, examples, [4, 2], batch=2)
    assert found.family == ("find", "relate", "relate") and found.sample == (0, 1, 1)
    assert found.mask.sum(1).tolist() == [4, 2, 2]
    trace = reasoner.run(examples[1].images, examples[1].question, latents=2)
    torch.testing.assert_close(found.latents[2, :2], trace.blocks[1].latents, atol=1e-4, rtol=1e-3)
    opened = [n for n, step in enumerate(trace.steps) if isinstance(step, TokenEvent) and step.kind == "open"]
    before = [step for step in trace.steps[: opened[0]] if isinstance(step, TokenEvent)]
    torch.testing.assert_close(found.text_states[1, 0], before[-1].hidden, atol=1e-4, rtol=1e-3)
    picture = examples[1].steps[1].image.convert("RGB").resize((SIDE, SIDE))
    assert np.array_equal((found.images[2] * 255).round().permute(1, 2, 0).numpy(), np.asarray(picture))


def test_truth_and_rates():
    example = glyphs.sample("find", 5, "test")
    colour, shape, mark = truth(example)
    name = f"{LABELS['colour'][colour]} {LABELS['shape'][shape]}"
    assert name in example.question and LABELS["mark"][mark] == example.answer
    found = rates(torch.tensor([[0, 1, 2], [0, 1, 1]]), torch.tensor([[0, 1, 2], [0, 2, 1]]))
    assert [found[key].value for key in (*LABELS, "all three")] == [1, 0.5, 1, 0.5]
    assert found["shape"].n == 2 and found["shape"].low < 0.5 < found["shape"].high


@pytest.mark.slow
def test_the_classifier_reads_what_it_was_taught():
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (64, 1), generator=draw).expand(-1, 3)
    pictures = (labels[:, :1, None, None] / 4.0).expand(-1, 3, SIDE, SIDE) + 0.01 * torch.randn(64, 3, SIDE, SIDE)
    classifier = train_classifier(pictures, labels, steps=80, seed=0)
    assert (classifier.read(pictures) == labels).float().mean() > 0.9


def test_measured_beside_the_bank_against_numpy(reasoner):
    examples = [glyphs.sample("find", seed, "val") for seed in range(3)]
    traces = [reasoner.run(example.images, example.question, latents=4) for example in examples]
    rows = {(row["quantity"], row["of"]): row for row in measure(examples, traces, traces)}

    def adjacent(vectors):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return (unit[1:] * unit[:-1]).sum(1).mean()

    latents = [trace.blocks[0].latents.numpy() for trace in traces]
    values = [adjacent(block) for block in latents]
    row = rows["adjacent cosine", "latents"]
    assert row["value"] == pytest.approx(np.mean(values), abs=1e-4) and row["n"] == 3
    half = 1.96 * np.std(values, ddof=1) / np.sqrt(3)
    assert row["interval"] == pytest.approx([np.mean(values) - half, np.mean(values) + half], abs=2e-4)
    words = [np.stack([t.hidden.numpy() for t in trace.tokens if t.kind == "text"]) for trace in traces]
    assert rows["adjacent cosine", "words of the same runs"]["value"] == pytest.approx(
        np.mean([adjacent(w) for w in words]), abs=1e-4
    )
    eigenvalues = np.linalg.eigvalsh(np.cov(np.concatenate(latents).T))
    assert rows["effective rank", "latents"]["value"] == pytest.approx(
        eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), abs=0.01
    )


@pytest.mark.parametrize(("checkpoint", "file"), BESIDE)
def test_companions_that_ship_were_made_from_the_weights_that_ship(checkpoint, file):
    folder = EMBEDDED / checkpoint
    fingerprint = json.loads((folder / "method.json").read_text())["provenance"]["fingerprint"]
    if file == FILE:
        assert Depicter.load(folder / file).width == 128
        for report in ("depict.json", "grounding.json"):
            assert json.loads((folder / report).read_text())["fingerprint"] == fingerprint
        with safe_open(folder / file, "pt") as stored:
            assert json.loads(stored.metadata()["depict"])["fingerprint"] == fingerprint
    else:
        assert Bank.load(folder / file).notes["fingerprint"] == fingerprint


def test_companions_ship_with_the_checkpoints_that_are_said_to_have_them():
    named_files = [(name, "bank.safetensors") for name in BANKED] + [(name, FILE) for name in PAINTED]
    assert sorted(BESIDE) == sorted(named_files)
