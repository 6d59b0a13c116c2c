"""Geometry, regions and lens against numpy, scipy and scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity

from latent_core.analysis import geometry, lens, regions


@pytest.fixture
def vectors() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 12, generator=generator) * torch.linspace(3, 0.1, 12) + 2


def test_cosines_are_scikit_learns(vectors):
    matrix = geometry.cosine_matrix(vectors)
    assert np.allclose(matrix, cosine_similarity(vectors.numpy()), atol=1e-6)
    pairs = [matrix[t, t + 1].item() for t in range(39)]
    assert geometry.adjacent_cosine(vectors) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert geometry.adjacent_cosine(vectors[:1]) is None
    assert geometry.cosine_matrix(torch.zeros(2, 3)).eq(0).all()


def test_instance_similarity_is_the_mean_over_pairs():
    latents = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(1)) + 1
    for t in range(3):
        matrix = cosine_similarity(latents[:, t].numpy())
        expected = matrix[np.triu_indices(5, 1)].mean()
        assert geometry.instance_similarity(latents)[t].item() == pytest.approx(expected, abs=1e-5)
    same = latents[:1].expand(4, -1, -1)
    assert torch.allclose(geometry.instance_similarity(same), torch.ones(3), atol=1e-5)
    with pytest.raises(ValueError, match="at least 2"):
        geometry.instance_similarity(latents[:1])


def test_spectrum_and_ranks_are_numpys(vectors):
    values = np.sort(np.linalg.eigvalsh(np.cov(vectors.numpy().astype(np.float64), rowvar=False)))[::-1]
    assert np.allclose(geometry.spectrum(vectors), values)
    assert geometry.effective_rank(vectors) == pytest.approx(values.sum() ** 2 / (values**2).sum())
    shares = np.cumsum(values) / values.sum()
    assert geometry.rank_at(vectors) == int(np.searchsorted(shares, 0.9)) + 1
    assert geometry.rank_at(vectors, 1.0) == 12


def test_ranks_of_a_line_and_of_one_point():
    line = torch.arange(5.0)[:, None] * torch.ones(1, 7)
    assert geometry.effective_rank(line) == pytest.approx(1)
    assert geometry.rank_at(line) == 1
    assert geometry.effective_rank(torch.ones(4, 7)) == 0 and geometry.rank_at(torch.ones(4, 7)) == 0
    with pytest.raises(ValueError, match="at least 2"):
        geometry.effective_rank(torch.ones(1, 7))
    with pytest.raises(ValueError, match="share is 0"):
        geometry.rank_at(line, 0)


def test_norm_ratio(vectors):
    expected = np.linalg.norm(vectors.numpy(), axis=1) / np.linalg.norm(vectors.numpy()[:5], axis=1).mean()
    assert np.allclose(geometry.norm_ratio(vectors, vectors[:5]), expected, atol=1e-5)
    with pytest.raises(ValueError, match="zero"):
        geometry.norm_ratio(vectors, torch.zeros(2, 12))


@pytest.mark.parametrize("count", [2, 3])
def test_principal_axes_are_scikit_learns(vectors, count):
    axes, expected = geometry.principal_axes(vectors, count), PCA(count).fit(vectors.numpy())
    assert np.allclose(axes.explained, expected.explained_variance_ratio_, atol=1e-5)
    mine, theirs = axes.place(vectors).numpy(), expected.transform(vectors.numpy())
    assert np.allclose(np.abs(mine), np.abs(theirs), atol=1e-3)
    assert (axes.directions.gather(1, axes.directions.abs().argmax(1, keepdim=True)) > 0).all()
    with pytest.raises(ValueError, match="principal axes"):
        geometry.principal_axes(vectors[:1], count)


def test_tokens_of_a_region_are_those_with_their_centre_in_it():
    inside = regions.tokens_in((0.0, 0.0, 0.5, 1.0), (2, 4)).reshape(2, 4)
    assert inside.tolist() == [[True, True, False, False]] * 2
    tiny = regions.tokens_in((0.9, 0.9, 0.91, 0.91), (3, 3))
    assert tiny.nonzero().flatten().tolist() == [8]
    for box in ((0.5, 0, 0.5, 1), (-0.1, 0, 1, 1), (0, 0, 1, 1.2)):
        with pytest.raises(ValueError, match="region"):
            regions.tokens_in(box, (3, 3))


def test_enrichment_compares_with_boxes_of_the_same_size_elsewhere():
    box, grid = (0.0, 0.0, 1 / 3, 1 / 3), (6, 6)
    flat = torch.ones(36)
    assert regions.enrichment(flat, box, grid).item() == pytest.approx(1)
    peaked = flat.clone()
    peaked[regions.tokens_in(box, grid)] = 5
    assert regions.enrichment(peaked, box, grid).item() == pytest.approx(5)
    maps = torch.rand(3, 2, 36, generator=torch.Generator().manual_seed(0))
    some = regions.enrichment(maps, box, grid, boxes=5, seed=1)
    assert some.shape == (3, 2)
    assert torch.equal(some, regions.enrichment(maps, box, grid, boxes=5, seed=1))
    assert not torch.equal(some, regions.enrichment(maps, box, grid, boxes=5, seed=2))
    assert regions.enrichment(flat, (0, 0, 1, 1), grid).item() == pytest.approx(1)
    assert regions.mass(torch.zeros(36), regions.tokens_in(box, grid)).item() == 0


def test_the_lens_ranks_tokens_without_the_control_tokens():
    generator = torch.Generator().manual_seed(0)
    head, vectors = torch.randn(20, 6, generator=generator), torch.randn(4, 6, generator=generator)
    scores = (vectors - 1).numpy() @ head.numpy().T
    scores[:, [3, 7]] = -np.inf
    found = lens.logit_lens(vectors, lambda z: z @ head.T, hidden_ids=[3, 7], mean=torch.ones(6), count=4)
    for row, readings in zip(scores, found, strict=True):
        assert [r.id for r in readings] == np.argsort(-row)[:4].tolist()
        assert [r.rank for r in readings] == [0, 1, 2, 3]
        assert readings[0].probability == pytest.approx(np.exp(row.max()) / np.exp(row).sum(), rel=1e-4)
    ranks = lens.rank_of(vectors, lambda z: z @ head.T, 5)
    plain = vectors.numpy() @ head.numpy().T
    assert ranks.tolist() == [(row > row[5]).sum() for row in plain]


@pytest.mark.parametrize("centred", [False, True])
def test_neighbours_are_scipys(vectors, centred):
    queries = vectors[:3] + 0.1
    middle = vectors.mean(0) if centred else torch.zeros(12)
    expected = 1 - cdist((queries - middle).numpy(), (vectors - middle).numpy(), "cosine")
    values, rows = lens.neighbours(queries, vectors, centred=centred)
    assert np.allclose(values, -np.sort(-expected, axis=1)[:, :5], atol=1e-5)
    assert rows.tolist() == np.argsort(-expected, axis=1)[:, :5].tolist()
    with pytest.raises(ValueError, match="bank"):
        lens.neighbours(queries, vectors[:, :3], centred=centred)
