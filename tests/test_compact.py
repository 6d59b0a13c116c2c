"""Compact forms of tensors for a browser, against numpy and by hand; and how much each of the ways may lose."""

import numpy as np
import pytest
import torch

from latent_core.analysis.attention import baseline, over_heads, with_mean
from latent_core.analysis.compact import COSINE_UNITS, GRID, byte_maps, cosine_steps, layout_steps, rounded
from latent_core.analysis.geometry import mean_norm, norms, paired_cosine
from latent_core.analysis.regions import AT_ONCE, enrichment, mean_enrichment, similarity, tokens_in, total


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("digits", [2, 3, 4, 5])
def test_rounded_is_what_numpy_rounds_to(draw, digits):
    values = torch.randn(40, 7, generator=draw) * 30
    assert rounded(values, digits) == np.round(values.double().numpy(), digits).tolist()
    assert rounded(torch.tensor([0.25, 0.75, -0.25]), 1) == [0.2, 0.8, -0.2]  # halves to even
    assert rounded(torch.tensor(1.23456)) == 1.2346


def test_cosines_come_back_within_half_a_step(draw):
    cosines = torch.rand(3, 4, 5, generator=draw) * 2 - 1
    steps = cosine_steps(cosines)
    assert steps.dtype == torch.int16 and steps.shape == cosines.shape
    np.testing.assert_allclose(steps.numpy() / COSINE_UNITS, cosines.numpy(), atol=0.5001 / COSINE_UNITS)
    assert cosine_steps(torch.tensor([1.00001, -1.00001])).tolist() == [COSINE_UNITS, -COSINE_UNITS]


def test_byte_maps_have_255_at_the_peak_of_each_row(draw):
    weights = torch.rand(2, 3, 9, generator=draw)
    weights[1, 2] = 0
    maps, peaks = byte_maps(weights)
    assert maps.dtype == torch.uint8 and torch.equal(peaks, weights.amax(-1))
    assert maps.amax(-1).flatten().tolist() == [255] * 5 + [0]
    back = maps.numpy() * peaks.numpy()[..., None] / 255
    np.testing.assert_allclose(back, weights.numpy(), atol=0.502 / 255)


def test_groups_share_one_grid_that_distorts_nothing(draw):
    groups = torch.randn(30, 2, generator=draw) * torch.tensor([9.0, 1.0]), torch.randn(4, 2, generator=draw) + 3
    layout = layout_steps(groups)
    every = np.concatenate([group.numpy() for group in groups])
    np.testing.assert_allclose(layout.middle.numpy(), (every.max(0) + every.min(0)) / 2, rtol=1e-6)
    np.testing.assert_allclose(layout.unit.item(), (every.max(0) - every.min(0)).max() / 2 / GRID, rtol=1e-6)
    for group, steps in zip(groups, layout.groups, strict=True):
        back = steps.numpy() * layout.unit.item() + layout.middle.numpy()
        np.testing.assert_allclose(back, group.numpy(), atol=0.51 * layout.unit.item())
    alone = layout_steps([torch.ones(1, 3)])
    assert alone.groups[0].tolist() == [[0, 0, 0]] and alone.unit > 0


def test_means_over_heads_and_words(draw):
    weights = torch.rand(5, 4, 6, generator=draw)  # layers, heads, image tokens
    mean = weights.numpy().mean(1)
    np.testing.assert_allclose(over_heads(weights), mean, rtol=1e-6)
    np.testing.assert_allclose(over_heads(weights[None], heads=2)[0], mean, rtol=1e-6)
    both = with_mean(weights)
    assert both.shape == (5, 5, 6) and torch.equal(both[:, 1:], weights)
    np.testing.assert_allclose(both[:, 0], mean, rtol=1e-6)
    np.testing.assert_allclose(baseline(weights), weights.numpy().mean(0), rtol=1e-6)
    with pytest.raises(ValueError, match="at least one"):
        baseline(weights[:0])


def test_norms_and_their_mean(draw):
    vectors = torch.randn(3, 4, 8, generator=draw)
    wanted = np.linalg.norm(vectors.numpy(), axis=-1)
    np.testing.assert_allclose(norms(vectors), wanted, rtol=1e-5)
    np.testing.assert_allclose(mean_norm(vectors), wanted.mean(-1), rtol=1e-5)


def test_cosines_of_the_same_places_end_with_the_shorter_block(draw):
    first, second = torch.randn(5, 8, generator=draw), torch.randn(3, 8, generator=draw)
    a, b = first.numpy()[:3], second.numpy()
    wanted = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(paired_cosine(first, second), wanted, rtol=1e-5)


def test_sums_cosines_and_enrichment_of_a_region(draw):
    grid, box = (4, 5), (0.0, 0.0, 0.5, 0.5)
    inside = tokens_in(box, grid)
    maps = torch.rand(3, 2, 20, generator=draw)  # positions, layers, image tokens
    np.testing.assert_allclose(total(maps.half(), inside), maps.half().float().numpy()[..., inside].sum(-1), rtol=1e-6)
    each = np.stack([enrichment(one, box, grid).numpy() for one in maps])
    np.testing.assert_allclose(mean_enrichment(maps, box, grid), each.mean(0), rtol=1e-6)
    vectors, states = torch.randn(AT_ONCE + 3, 8, generator=draw), torch.randn(20, 8, generator=draw)
    reference = torch.randn(7, 8, generator=draw)
    for centred in (False, True):
        found = similarity(vectors, states, inside, centred=centred, reference=reference)
        a = vectors.numpy() - (reference.numpy().mean(0) if centred else 0)
        b = states.numpy() - (states.numpy().mean(0) if centred else 0)
        cosines = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
        np.testing.assert_allclose(found, cosines[:, inside].mean(1), atol=1e-5)
