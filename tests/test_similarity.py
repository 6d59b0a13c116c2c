"""Nearest patch against scikit-learn's cosine, computed one level at a time."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from latent_core.analysis.similarity import Patch, maps, nearest_patch, shared_scale, top

GRIDS = ((2, 3), (1, 4))
Q, S, N, D = 5, 3, 10, 7


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    offset = 3 * torch.randn(D, generator=generator)  # a large common mean, as real states have
    vectors = torch.randn(Q, D, generator=generator) + offset
    return vectors, torch.randn(S, N, D, generator=generator) - offset


def test_raw_equals_scikit_learn(data):
    vectors, states = data
    expected = np.stack([cosine_similarity(vectors, level) for level in states], axis=1)
    np.testing.assert_allclose(nearest_patch(vectors, states, centred=False), expected, atol=1e-6)


def test_centred_equals_scikit_learn(data):
    vectors, states = data
    here, there = vectors.numpy() - vectors.numpy().mean(0), [s - s.mean(0) for s in states.numpy()]
    expected = np.stack([cosine_similarity(here, level) for level in there], axis=1)
    np.testing.assert_allclose(nearest_patch(vectors, states, centred=True), expected, atol=1e-6)


def test_reference_is_the_mean_that_is_subtracted(data):
    vectors, states = data
    one = nearest_patch(vectors[:1], states, centred=True, reference=vectors)
    assert torch.allclose(one, nearest_patch(vectors, states, centred=True)[:1], atol=1e-6)
    assert not nearest_patch(vectors[:1], states, centred=True).any()  # a vector minus its own mean is zero


def test_centring_ignores_offsets_and_scale(data):
    vectors, states = data
    moved = nearest_patch(7 * vectors + 5, states - torch.arange(D), centred=True)
    assert torch.allclose(moved, nearest_patch(vectors, states, centred=True), atol=1e-5)


def test_16_bit_input_is_compared_in_32_bits(data):
    vectors, states = (part.bfloat16() for part in data)
    result = nearest_patch(vectors, states, centred=True)
    assert torch.equal(result, nearest_patch(vectors.float(), states.float(), centred=True))


def test_a_patch_finds_itself(data):
    _, states = data
    similarity = nearest_patch(states[1], states, centred=True, reference=states[1])[:, 1]
    for n, (image, row, column) in enumerate(
        [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 1, 2), (1, 0, 0), (1, 0, 1), (1, 0, 2), (1, 0, 3)]
    ):
        best = top(similarity[n], GRIDS)[0]
        assert (best.image, best.row, best.column) == (image, row, column) and best.value == pytest.approx(1)


def test_top_is_sorted_and_breaks_ties_by_place():
    similarity = torch.tensor([0.1, 0.5, 0.5, -1.0, 0.9, 0.0, 0.2, 0.3, 0.4, 0.0])
    assert top(similarity, GRIDS, 3) == (
        Patch(0, 1, 1, pytest.approx(0.9)),
        Patch(0, 0, 1, pytest.approx(0.5)),
        Patch(0, 0, 2, pytest.approx(0.5)),
    )
    assert len(top(similarity, GRIDS)) == 5 and len(top(similarity, GRIDS, 99)) == N


def test_maps_are_one_per_image(data):
    similarity = nearest_patch(*data, centred=False)
    first, second = maps(similarity, GRIDS)
    assert first.shape == (Q, S, 2, 3) and second.shape == (Q, S, 1, 4)
    assert first[2, 1, 1, 0] == similarity[2, 1, 3] and second[2, 1, 0, 3] == similarity[2, 1, 9]


def test_shared_scale(data):
    similarity = nearest_patch(*data, centred=True)
    assert shared_scale(similarity) == (similarity.numpy().min(), similarity.numpy().max())
    with pytest.raises(ValueError, match="no map"):
        shared_scale(similarity[:0])


def test_wrong_shapes_are_named(data):
    vectors, states = data
    with pytest.raises(ValueError, match=r"\(5, 6\).*\(3, 10, 7\)"):
        nearest_patch(vectors[:, 1:], states, centred=False)
    with pytest.raises(ValueError, match="9 values.*10 image tokens"):
        top(torch.zeros(9), GRIDS)
