"""The caches: sequences at their own offsets, growth, compaction, and gradients that survive later feeds."""

import torch

from latent_core.model.cache import Cache, GradientCache
from latent_core.model.slot_types import PAD, TEXT


def feed(cache, values, counts):
    """Feeds values (B, N) as one-head, one-wide keys; returns all keys in view (B, S)."""
    slot_types = torch.full(values.shape, TEXT)
    for sequence, count in enumerate(counts):
        slot_types[sequence, count:] = PAD
    cache.begin(slot_types, counts)
    keys, same = cache.update(values[:, None, :, None], values[:, None, :, None], 0)
    assert torch.equal(keys, same)
    return keys[:, 0, :, 0]


def test_rows_write_at_their_own_offset_and_padding_is_overwritten():
    cache = Cache(1, 2, 1, 1, capacity=8, like=torch.zeros(1))
    feed(cache, torch.tensor([[1.0, 2.0, 3.0], [4.0, 9.0, 9.0]]), [3, 1])
    seen = feed(cache, torch.tensor([[5.0], [6.0]]), [1, 1])
    assert cache.lengths == [4, 2]
    assert seen[0].tolist() == [1, 2, 3, 5]
    assert seen[1, :2].tolist() == [4, 6]
    assert cache.all_slot_types()[1, :2].tolist() == [TEXT, TEXT]
    assert cache.query_slots().tolist() == [[3], [1]]


def test_it_grows_and_forgets_finished_rows():
    cache = Cache(1, 3, 1, 1, capacity=2, like=torch.zeros(1))
    for step in range(5):
        seen = feed(cache, torch.tensor([[step], [10 + step], [20 + step]]).float(), [1, 1, step % 2])
    assert seen[:2].tolist() == [[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]]
    cache.keep([2, 0])
    assert cache.lengths == [2, 5]
    seen = feed(cache, torch.tensor([[99.0], [98.0]]), [1, 1])
    assert seen[0, :3].tolist() == [21, 23, 99]
    assert seen[1].tolist() == [0, 1, 2, 3, 4, 98]


def test_gapless_only_where_no_row_sees_anothers_padding():
    cache = Cache(1, 2, 1, 1, capacity=8, like=torch.zeros(1))
    feed(cache, torch.ones(2, 2), [2, 2])
    assert cache.gapless
    feed(cache, torch.ones(2, 1), [1, 0])
    assert not cache.gapless
    feed(cache, torch.ones(2, 1), [0, 1])
    assert not cache.gapless
    feed(cache, torch.ones(2, 1), [1, 1])
    assert cache.gapless


def test_gradients_reach_every_feed():
    cache = GradientCache(1, 1, torch.device("cpu"))
    parts = [torch.ones(1, n, requires_grad=True) for n in (3, 1, 2)]
    total = sum(feed(cache, part, [part.shape[1]]).square().sum() for part in parts)
    total.backward()
    assert [part.grad[0, 0].item() for part in parts] == [6, 4, 2]
    assert cache.gapless
