"""Layouts of vectors on a plane, against umap-learn and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from latent_core.analysis.plane import NEIGHBOURS, neighbour_weights, place_by_neighbours, umap_layout, unit
from latent_core.evaluation.reference_bank import KINDS, Bank, lay_out, layout_name

NOTES = {"seed": 0, "command": "", "measured": []}
BANK = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)) + 4 * torch.eye(8)[torch.arange(60) % 3]
NEW = BANK[:5] + 0.1 * torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def bank():
    kinds = (torch.arange(60) % 3).to(torch.uint8)
    return lay_out(BANK, kinds, tuple(f"v{i}" for i in range(60)), NOTES)


def test_the_seed_is_umaps(bank):
    """The layouts are what umap-learn gives for these settings, and the same seed gives them again."""
    from umap import UMAP

    stored, threads = BANK.half().float(), torch.get_num_threads()
    direct = UMAP(n_components=2, n_neighbors=15, min_dist=0.1, random_state=0, n_jobs=1)
    np.testing.assert_array_equal(direct.fit_transform(stored.numpy()), bank.layouts["umap2.raw"].numpy())
    torch.set_num_threads(threads)
    assert torch.equal(umap_layout(unit(stored), 3), bank.layouts["umap3.unit"])
    assert torch.get_num_threads() == threads  # umap-learn sets another number


def test_weights_are_umaps(bank):
    """Against umap-learn's own bandwidths, which it finds to 1e-5 in at most 64 steps."""
    from umap.umap_ import smooth_knn_dist

    distances, _ = torch.cdist(NEW.double(), BANK.double()).topk(NEIGHBOURS, largest=False)
    sigmas, rhos = smooth_knn_dist(distances.numpy().astype(np.float32), float(NEIGHBOURS), local_connectivity=1.0)
    expected = np.exp(-np.maximum(0, distances.numpy() - rhos[:, None]) / sigmas[:, None])
    actual = neighbour_weights(distances)
    np.testing.assert_allclose(actual.numpy(), expected, atol=2e-3)
    np.testing.assert_allclose(actual[:, 1:].sum(1).numpy(), np.log2(NEIGHBOURS), atol=1e-6)
    assert torch.equal(actual[:, 0], torch.ones(5, dtype=torch.float64))


def test_equal_neighbours_weigh_the_same():
    assert torch.equal(neighbour_weights(torch.full((2, 4), 3.0)), torch.ones(2, 4, dtype=torch.float64))


def test_a_new_vector_lies_among_its_neighbours(bank):
    layout = bank.layouts["umap2.raw"]
    placed = place_by_neighbours(NEW, BANK, layout)
    for vector, place in zip(NEW, placed, strict=True):
        rows = (BANK - vector).norm(dim=1).argsort()[:NEIGHBOURS]
        assert (place >= layout[rows].amin(0)).all() and (place <= layout[rows].amax(0)).all()


def test_principal_axes_are_scikit_learns(bank):
    for scaled in (False, True):
        background = bank.vectors.numpy()
        background = normalize(background) if scaled else background
        new = normalize(NEW.numpy()) if scaled else NEW.numpy()
        expected = PCA(3).fit(background).transform(new)
        actual = bank.axes(scaled=scaled).place(bank.seen(NEW, scaled=scaled)).numpy()
        signs = np.sign((actual * expected).sum(0))
        np.testing.assert_allclose(actual, expected * signs, atol=1e-4)


def test_bank_comes_back_from_its_file(bank, tmp_path):
    bank.save(tmp_path / "bank.safetensors")
    back = Bank.load(tmp_path / "bank.safetensors")
    assert back.labels == bank.labels and back.notes == bank.notes
    assert torch.equal(back.vectors, bank.vectors) and torch.equal(back.kinds, bank.kinds)
    assert back.layouts.keys() == bank.layouts.keys() == {layout_name(a, scaled=s) for a in (2, 3) for s in (0, 1)}
    assert all(torch.equal(back.layouts[name], bank.layouts[name]) for name in bank.layouts)
    assert torch.equal(back.umap(NEW, 2, scaled=True), bank.umap(NEW, 2, scaled=True))
    assert len(back.rows("patch")) == 20 and KINDS[int(back.kinds[4])] == "word"


def test_broken_banks_are_named(bank, tmp_path):
    path = tmp_path / "bank.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"bank\.safetensors is no reference bank"):
        Bank.load(path)
    for change in ({"labels": bank.labels[:-1]}, {"kinds": bank.kinds[:-1]}, {"kinds": bank.kinds + 7}):
        parts = {name: getattr(bank, name) for name in ("vectors", "kinds", "labels", "layouts", "notes")}
        Bank(**{**parts, **change}).save(path)
        with pytest.raises(ValueError, match="do not fit together"):
            Bank.load(path)
    with pytest.raises(ValueError, match="15 neighbours needs more"):
        umap_layout(BANK[:15], 2)
    with pytest.raises(ValueError, match="are needed"):
        place_by_neighbours(NEW[:, :7], BANK, bank.layouts["umap2.raw"])
