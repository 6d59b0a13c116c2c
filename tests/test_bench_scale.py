"""The benchmark that waits for a GPU runs at the embedded models' shape, and counts the steps that it divides by."""

import math
from unittest import mock

import pytest
import torch

from tests.benchmarks.bench_scale import Bench, main


@pytest.mark.slow
def test_it_measures_all_that_it_names(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with mock.patch.object(torch, "set_num_threads"):
        found = main(["--shape", "glyph", "--device", "cpu", "--steps", "4", "--repeats", "1"])
    assert all(map(math.isfinite, found.values())) and found["prompt"] > 0 and "latent of a parallel block" in found
    assert "against generate" in capsys.readouterr().out
    assert (tmp_path / "runs/bench/scale.json").exists()


@pytest.mark.parametrize(
    ("name", "forwards"),
    [("generate", 5), ("words", 5), ("words, all recorded", 5), ("latents one by one", 7), ("latents at once", 3)],
)
def test_each_run_feeds_what_its_time_is_divided_by(name, forwards):
    """The prompt, then 4 words; or 4 latents between two markers; or all of them at once."""
    bench = Bench("glyph", torch.device("cpu"), steps=4)
    counted = mock.Mock(return_value=None)
    bench.backbone.layers[0].self_attn.q_proj.register_forward_hook(counted)
    bench.whole_runs()[name]()
    assert counted.call_count == forwards
