"""No refactoring moves what checkpoints decode and stages learn: values recorded before the house was rebuilt."""

import json

import pytest
import torch

from latent_core.checkpoints.embedded import available
from tests.unchanged import VALUES, decoded, learned, stages

BEFORE = json.loads(VALUES.read_text())


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_checkpoint_and_stage_is_compared():
    assert list(BEFORE["decoded"]) == available() and list(BEFORE["learned"]) == stages()


@pytest.mark.parametrize("name", BEFORE["decoded"])
def test_a_checkpoint_decodes_what_it_did(name):
    for family, now in decoded(name).items():
        before = BEFORE["decoded"][name][family]
        assert now["ids"] == before["ids"]
        # equal to 1e-6 where they were recorded; a processor without AVX-512 rounds otherwise, by up to 1.7e-6
        assert now["logprobs"] == pytest.approx(before["logprobs"], abs=3e-6, rel=0)
        assert now["latents"] == pytest.approx(before["latents"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", BEFORE["learned"])
def test_a_stage_learns_what_it_did(name, tmp_path):
    for before, now in zip(BEFORE["learned"][name], learned(name, tmp_path), strict=True):
        assert now.keys() == before.keys()
        # the sum of squares of all gradients keeps a digit less of what kernels of another processor round
        assert now.pop("gradient") == pytest.approx(before.pop("gradient"), rel=1e-4)
        assert now == pytest.approx(before, rel=1e-6, abs=1e-6)
