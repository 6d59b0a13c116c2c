"""The rules as masks: what each kind sees, and that nothing reaches later text except through latents."""

from typing import get_args

import pytest
import torch

from latent_core.attention import (
    AFTER,
    CLOSE,
    IMAGE,
    LATENT,
    OPEN,
    PAD,
    PROMPT,
    SEALED,
    TEXT,
    attend,
    kind_class,
    numbered,
    tables,
)
from latent_core.settings import Rule


def sequence(rule: str) -> torch.Tensor:
    """(1, S) kinds of a run with two blocks of two latents."""
    kinds = [PROMPT, IMAGE, IMAGE, PROMPT, TEXT, TEXT]
    for block in range(2):
        kinds += [numbered(OPEN, block), *[numbered(LATENT, block)] * 2]
        kinds += [numbered(SEALED, block)] * 2 * (rule == "sealed")
        kinds += [numbered(CLOSE, block), AFTER, AFTER]
    return torch.tensor([kinds])


def mask(rule: str) -> tuple[torch.Tensor, torch.Tensor]:
    kinds = sequence(rule)
    slots = torch.arange(kinds.shape[1])[None]
    return attend(kinds, tables([rule]), slots)[0], kind_class(kinds[0])


def reachable(seen: torch.Tensor, without: torch.Tensor) -> torch.Tensor:
    """(S, S) whether information can flow from a column to a row along any path that avoids the slots `without`."""
    direct = seen & ~without[None, :] & ~without[:, None]
    paths = direct.clone()
    for _ in range(len(seen)):
        paths = paths | ((paths.float() @ direct.float()) > 0)
    return paths


def test_everything_is_causal():
    seen, _ = mask("everything")
    assert torch.equal(seen, torch.ones_like(seen).tril())


def test_no_image_hides_images_from_text_after_a_block():
    seen, kinds = mask("no_image")
    expected = torch.ones_like(seen).tril()
    late = (kinds == AFTER) | (kinds == CLOSE)
    expected[late[:, None] & (kinds == IMAGE)[None]] = False
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("rule", get_args(Rule))
def test_thoughts_see_all_before_them_and_every_slot_sees_itself(rule):
    seen, kinds = mask(rule)
    thinking = (kinds == OPEN) | (kinds == LATENT)
    assert torch.equal(seen[thinking], torch.ones_like(seen).tril()[thinking])
    assert seen.diagonal().all()


@pytest.mark.parametrize(("rule", "carriers"), [("latents_only", (LATENT,)), ("sealed", (SEALED,))])
def test_only_latents_lead_to_later_text(rule, carriers):
    seen, kinds = mask(rule)
    first = int((kinds == CLOSE).nonzero()[0])
    before = torch.arange(len(kinds)) < first
    late = (kinds == AFTER) | (kinds == CLOSE)
    carrier = torch.isin(kinds, torch.tensor(carriers))
    cut = reachable(seen, without=carrier)
    assert not (cut[late][:, before]).any()
    assert reachable(seen, without=torch.zeros_like(carrier))[late][:, carrier & before].any()
    # nor do text slots read anything else directly
    allowed = carrier | late
    assert not seen[late][:, ~allowed].any()


def test_without_latents_everything_still_leaks():
    """The disconnect: under `everything` and `no_image` there are paths around the latents."""
    for rule in ("everything", "no_image"):
        seen, kinds = mask(rule)
        paths = reachable(seen, without=kinds == LATENT)
        assert paths[-1][kinds == IMAGE].any()


def test_sealed_copies_see_only_sealed_copies():
    seen, kinds = mask("sealed")
    sealed = kinds == SEALED
    assert torch.equal(seen[sealed].any(0), sealed)
    last = int(sealed.nonzero()[-1])
    assert seen[last][sealed].all()


def test_nobody_sees_padding_and_rows_keep_their_own_rule():
    kinds = torch.cat([sequence("everything"), sequence("latents_only")])
    kinds[0, 5] = PAD
    slots = torch.tensor([[17], [17]])
    seen = attend(kinds, tables(["everything", "latents_only"]), slots)
    assert seen.shape == (2, 1, 18)
    assert seen[0, 0].tolist() == [True] * 5 + [False] + [True] * 12
    assert torch.equal(seen[1, 0], mask("latents_only")[0][17])
