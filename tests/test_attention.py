"""The rules as masks: what each kind sees, and that nothing reaches later text except through latents."""

from typing import get_args

import pytest
import torch

from latent_core.model.attention import Flow, attend, tables
from latent_core.model.slot_types import (
    AFTER,
    AUX,
    AUX_END,
    AUX_START,
    CLOSE,
    IMAGE,
    LATENT,
    OPEN,
    PAD,
    PROMPT,
    SEALED,
    TEXT,
    numbered,
    slot_class,
)
from latent_core.settings import Rule


def sequence(rule: str) -> torch.Tensor:
    """(1, S) slot_types of a run with two blocks of two latents."""
    slot_types = [PROMPT, IMAGE, IMAGE, PROMPT, TEXT, TEXT]
    for block in range(2):
        slot_types += [numbered(OPEN, block), *[numbered(LATENT, block)] * 2]
        slot_types += [numbered(SEALED, block)] * 2 * (rule == "sealed")
        slot_types += [numbered(CLOSE, block), AFTER, AFTER]
    return torch.tensor([slot_types])


def mask(rule: str) -> tuple[torch.Tensor, torch.Tensor]:
    slot_types = sequence(rule)
    slots = torch.arange(slot_types.shape[1])[None]
    return attend(slot_types, tables([rule]), slots)[0], slot_class(slot_types[0])


def reachable(seen: torch.Tensor, without: torch.Tensor) -> torch.Tensor:
    """(S, S) whether information can flow from a column to a row along any path that avoids the slots `without`."""
    direct = seen & ~without[None, :] & ~without[:, None]
    paths = direct.clone()
    for _ in range(len(seen)):
        paths = paths | ((paths.float() @ direct.float()) > 0)
    return paths


def test_everything_is_causal():
    seen, _ = mask("causal")
    assert torch.equal(seen, torch.ones_like(seen).tril())


def test_no_image_hides_images_from_text_after_a_block():
    seen, slot_types = mask("no_image")
    expected = torch.ones_like(seen).tril()
    late = (slot_types == AFTER) | (slot_types == CLOSE)
    expected[late[:, None] & (slot_types == IMAGE)[None]] = False
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("rule", get_args(Rule))
def test_thoughts_see_all_before_them_and_every_slot_sees_itself(rule):
    seen, slot_types = mask(rule)
    thinking = (slot_types == OPEN) | (slot_types == LATENT)
    assert torch.equal(seen[thinking], torch.ones_like(seen).tril()[thinking])
    assert seen.diagonal().all()


@pytest.mark.parametrize(("rule", "carriers"), [("latents_only", (LATENT,)), ("sealed", (SEALED,))])
def test_only_latents_lead_to_later_text(rule, carriers):
    seen, slot_types = mask(rule)
    first = int((slot_types == CLOSE).nonzero()[0])
    before = torch.arange(len(slot_types)) < first
    late = (slot_types == AFTER) | (slot_types == CLOSE)
    carrier = torch.isin(slot_types, torch.tensor(carriers))
    cut = reachable(seen, without=carrier)
    assert not (cut[late][:, before]).any()
    assert reachable(seen, without=torch.zeros_like(carrier))[late][:, carrier & before].any()
    # nor do text slots read anything else directly
    allowed = carrier | late
    assert not seen[late][:, ~allowed].any()


def directed(flow: Flow, rule: str = "causal") -> tuple[torch.Tensor, torch.Tensor]:
    """(S, S) mask and slot_types of a run whose two blocks each follow an auxiliary image of two tokens."""
    slot_types = [PROMPT, IMAGE, PROMPT]
    for block in range(2):
        slot_types += [AFTER if block else TEXT, *(numbered(kind, block) for kind in (AUX_START, AUX, AUX, AUX_END))]
        slot_types += [numbered(OPEN, block), *[numbered(LATENT, block)] * 2, numbered(CLOSE, block), AFTER]
    slot_types = torch.tensor([slot_types])
    return attend(slot_types, tables([rule]), torch.arange(slot_types.shape[1])[None], flow)[0], slot_types[0]


@pytest.mark.parametrize("readers", ["latents", "open+latents"])
@pytest.mark.parametrize("own", [True, False])
def test_only_its_own_block_reads_an_auxiliary_image(readers, own):
    seen, slot_types = directed(Flow(readers=readers, within_image=own))
    classes = slot_class(slot_types)
    for number in range(2):
        image = slot_types == numbered(AUX, number)
        readers_of_it = slot_types == numbered(LATENT, number)
        if readers == "open+latents":
            readers_of_it |= slot_types == numbered(OPEN, number)
        expected = readers_of_it[:, None] & image
        if own:
            expected |= image[:, None] & image & torch.ones_like(seen).tril()
        assert torch.equal(seen & image, expected)
        opened = slot_types == numbered(OPEN, number)
        rows = seen[:, opened].any(1)
        if readers == "open+latents":  # the token has looked at the image: its own block may see it, text may not
            assert torch.equal(rows, opened | (slot_types == numbered(LATENT, number)))
        else:
            assert rows[-1]
    rest = ~torch.isin(classes, torch.tensor([AUX, OPEN]))
    assert torch.equal(seen[:, rest], torch.ones_like(seen).tril()[:, rest])


@pytest.mark.parametrize("readers", ["latents", "open+latents"])
def test_what_text_knows_of_an_auxiliary_image_came_through_latents(readers):
    for rule in get_args(Rule):
        if rule == "sealed":
            continue
        seen, slot_types = directed(Flow(readers=readers), rule)
        classes = slot_class(slot_types)
        text = (classes == AFTER) | (classes == CLOSE)
        paths = reachable(seen, without=classes == LATENT)
        assert not paths[text][:, classes == AUX].any()
        assert reachable(seen, without=classes == PAD)[text][:, classes == AUX].any()


def test_free_latents_escape_and_text_does_not():
    seen, slot_types = directed(Flow(readers="latents", within_image=False, free_latents=True))
    classes = slot_class(slot_types)
    free = torch.isin(classes, torch.tensor([AUX, AUX_END, OPEN, LATENT]))
    assert torch.equal(seen[free], torch.ones_like(seen).tril()[free])
    assert not seen[~free][:, classes == AUX].any()


def test_without_latents_everything_still_leaks():
    """The disconnect: under `causal` and `no_image` there are paths around the latents."""
    for rule in ("causal", "no_image"):
        seen, slot_types = mask(rule)
        paths = reachable(seen, without=slot_types == LATENT)
        assert paths[-1][slot_types == IMAGE].any()


def test_sealed_copies_see_only_sealed_copies():
    seen, slot_types = mask("sealed")
    sealed = slot_types == SEALED
    assert torch.equal(seen[sealed].any(0), sealed)
    last = int(sealed.nonzero()[-1])
    assert seen[last][sealed].all()


def test_nobody_sees_padding_and_rows_keep_their_own_rule():
    slot_types = torch.cat([sequence("causal"), sequence("latents_only")])
    slot_types[0, 5] = PAD
    slots = torch.tensor([[17], [17]])
    seen = attend(slot_types, tables(["causal", "latents_only"]), slots)
    assert seen.shape == (2, 1, 18)
    assert seen[0, 0].tolist() == [True] * 5 + [False] + [True] * 12
    assert torch.equal(seen[1, 0], mask("latents_only")[0][17])
