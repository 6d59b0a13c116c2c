"""Intervals, against scipy and a published example."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from latent_core.analysis.statistics import Interval, difference, is_share, mean, mean_share, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (481, 500)])
def test_shares_have_wilsons_interval(successes, n):
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    found = wilson(successes, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert found.value == successes / n and found.n == n


def test_no_samples_say_nothing():
    assert wilson(0, 0) == Interval(0.0, 0.0, 1.0, 0)


def test_differences_have_newcombes_interval():
    """Newcombe 1998, method 10, table II (a): 56/70 against 48/80 gives 0.2000 [0.0524, 0.3339]."""
    found = difference(wilson(56, 70), wilson(48, 80))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    assert found.n == 150


def test_means_have_the_interval_of_a_mean_and_those_of_shares_end_at_one():
    values = torch.tensor([0.0, 0.5, 1.0, 1.0])
    half = 1.96 * np.std(values.numpy(), ddof=1) / 2
    whole, cut = mean(values), mean_share(values)
    assert (whole.value, whole.low, whole.high) == pytest.approx((0.625, 0.625 - half, 0.625 + half), abs=1e-6)
    assert whole.high > 1 == cut.high and cut.low == whole.low and cut.n == whole.n == 4


@pytest.mark.parametrize("n", [4, True, None, 4.0])
def test_a_share_in_json_has_bounds_and_a_count(n):
    assert is_share({"value": 0.5, "low": 0, "high": 1.0, "n": n}) == (n == 4 and type(n) is int)
    assert not is_share({"value": 0.5, "low": 0, "high": 1.5, "n": 4})
    assert not is_share([0.5, 0.0, 1.0, 4])
