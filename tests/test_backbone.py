"""The backbone against the published classes: positions, blocks, dtypes, files that plain transformers reads."""

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from latent_core.decoding.batch import SequenceBatch, prompt_feeds
from latent_core.decoding.engine import decode
from latent_core.methods.requests import Feed
from latent_core.model.backbones import build, image_geometry, wrap
from latent_core.model.cache import GradientCache
from latent_core.model.slots import text_slots
from latent_core.settings import Settings
from tests.tiny import IMAGE, tiny_method, tiny_model, tiny_prompt

PROMPTS = [tiny_prompt(0), tiny_prompt(1, grids=[(4, 4), (6, 4)], text=9), tiny_prompt(2, grids=[], text=4)]


@pytest.mark.parametrize("prompt", PROMPTS)
@torch.no_grad()
def test_states_of_a_prompt_equal_transformers(prompt):
    """All levels of a prompt, the ragged batch padded, against the plain model with its own positions and masks."""
    backbone = wrap(tiny_model())
    levels = range(backbone.num_layers + 1)
    batch = SequenceBatch(backbone, backbone.new_cache(len(PROMPTS), 8), ["causal"] * len(PROMPTS))
    _, found = batch.feed(prompt_feeds(backbone, PROMPTS), levels=levels)
    sequence, ids = PROMPTS.index(prompt), prompt.input_ids[None]
    images = {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.grid_thw} if len(prompt.grid_thw) else {}
    expected = tiny_model()(
        input_ids=ids, mm_token_type_ids=(ids == IMAGE).int(), output_hidden_states=True, **images
    ).hidden_states
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours[sequence, : ids.shape[1]], theirs[0], atol=1e-5, rtol=0)


def test_fast_layers_equal_transformers_layers():
    """Decoding's own layer against the published one that training runs, over a prompt and ten ragged forwards."""
    backbone = wrap(tiny_model())
    rules = ["causal", "sealed", "no_image"]
    fast_batch = SequenceBatch(backbone, backbone.new_cache(3, 8), rules)
    stock_batch = SequenceBatch(backbone, GradientCache(backbone.num_layers, 3, backbone.device), rules)
    feeds = prompt_feeds(backbone, PROMPTS)
    words = [Feed(then=(token,), slots=text_slots(1, 0)) for token in range(10)]
    for feed in [feeds, *([word] * 3 for word in words)]:
        with torch.no_grad():
            fast, _ = fast_batch.feed(feed)
        stock, _ = stock_batch.feed(feed)
        for n, one in enumerate(feed):
            torch.testing.assert_close(fast[n, : one.size], stock[n, : one.size], atol=1e-5, rtol=0)


def test_hooks_on_layers_are_called_while_decoding():
    """A researcher's hook turns the fast layer off, for that model and as long as it is there."""
    backbone, calls = wrap(tiny_model()), []
    clean = list(decode(backbone, tiny_method("text"), PROMPTS[:1], [Settings(max_new_tokens=4)]))
    attention = backbone.layers[1].self_attn
    hook = attention.register_forward_hook(lambda *_: calls.append(1))
    hooked = list(decode(backbone, tiny_method("text"), PROMPTS[:1], [Settings(max_new_tokens=4)]))
    hook.remove()
    assert len(calls) == 4
    torch.testing.assert_close(hooked[-2].hidden, clean[-2].hidden, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_comes_from_the_model(dtype):
    backbone = wrap(tiny_model().to(dtype))
    settings = [Settings(mode="forced", latents=3, rule="sealed", max_new_tokens=12, temperature=1.0)]
    *_, latent, _, _ = decode(backbone, tiny_method(), PROMPTS[:1], settings)
    assert backbone.dtype == dtype and latent.hidden.dtype == torch.float32 and latent.hidden.isfinite().all()


def test_saved_models_do_not_know_of_us(tmp_path):
    backbone = wrap(tiny_model())
    backbone.model.save_pretrained(tmp_path)
    assert "inscape" not in (tmp_path / "config.json").read_text()
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    assert plain.config.text_config._attn_implementation == "sdpa"


def test_padding_reaches_the_registered_attention():
    """Without a mask function beside the attention function, transformers would drop this padding silently."""
    model, prompt = tiny_model(), PROMPTS[2]
    ids = prompt.input_ids[None]
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    mask = torch.cat([torch.zeros(1, 3, dtype=torch.long), torch.ones_like(ids)], 1)
    expected = model(input_ids=ids).logits
    model = wrap(model).model
    positions = (mask.cumsum(-1) - 1).clamp(min=0).expand(3, 1, -1)
    found = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_images_are_encoded_as_transformers_does():
    backbone, prompt = wrap(tiny_model()), PROMPTS[1]
    expected = tiny_model().get_image_features(prompt.pixel_values, prompt.grid_thw).pooler_output
    tokens = backbone.encode_images(prompt.pixel_values, prompt.grid_thw).tokens
    assert torch.equal(tokens, torch.cat(expected))


def test_a_vision_tower_is_frozen_and_compared():
    backbone, same, other = wrap(tiny_model()), wrap(tiny_model()), wrap(tiny_model(seed=1))
    assert backbone.vision_is_same(same) and not backbone.vision_is_same(other)
    names = {name for name, _ in backbone.model.named_parameters()}
    backbone.train_vision(False)
    learned = {name for name, p in backbone.model.named_parameters() if p.requires_grad}
    assert learned == {name for name in names if "visual" not in name} != names
    backbone.train_vision(True)
    assert all(p.requires_grad for p in backbone.parameters())


def test_geometry_is_that_of_the_model():
    backbone = wrap(tiny_model(hidden=48))
    attention = backbone.layers[0].self_attn
    assert (backbone.num_key_heads, backbone.head_width) == (3, 8) == (attention.k_proj.out_features // 8, 8)
    assert backbone.new_cache(2, 5).keys[1].shape == (2, 3, 5, 8)
    geometry = image_geometry(backbone.model.config)
    assert (geometry.patch, geometry.merge, geometry.token_side) == (4, backbone.merge_size, 8)


def test_a_backbone_can_be_shapes_alone():
    """What the planner counts needs no memory."""
    with torch.device("meta"):
        backbone = build(tiny_model().config)
    assert {p.device.type for p in backbone.parameters()} == {"meta"}
    assert sum(p.numel() for p in backbone.parameters()) == sum(p.numel() for p in tiny_model().parameters())
