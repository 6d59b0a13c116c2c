"""Monet's latents and logits against the reference implementation's, and against plain transformers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

from latent_core.config import MethodConfig
from latent_core.decoding.engine import decode
from latent_core.decoding.layout import ForcedSequence
from latent_core.decoding.sequence import Block, Tokens
from latent_core.decoding.unroll import splice, unroll
from latent_core.events import LatentEvent, TokenEvent
from latent_core.methods import build_method
from latent_core.model.backbone import Backbone
from latent_core.model.backbones import wrap
from latent_core.model.processor import Prompt
from latent_core.settings import Settings
from tests.tiny import IMAGE, OPEN, of_sequence, scripted, tiny_method, tiny_model, tiny_prompt

FOLDER = Path(__file__).parent / "fixtures" / "monet_seed0"
CASE = json.loads((FOLDER / "case.json").read_text())
TENSORS = load_file(FOLDER / "case.safetensors")
SECTIONS = {
    "causal_one_block": "start_fed",
    "causal_two_blocks": "start_fed",
    "serving_one_block": "start_overwritten",
}
TOLERANCE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return wrap(Qwen2_5_VLForConditionalGeneration.from_pretrained(FOLDER / "model", dtype=torch.float32))


def golden(section: str, key: str) -> torch.Tensor:
    return TENSORS[f"{section}.{key}"]


def method(section: str):
    names = ("latent_start", "latent_end", "latent_pad")
    fields = dict(zip(("open_token", "close_token", "pad_token"), names, strict=True))
    return build_method(
        MethodConfig(method="monet", convention=SECTIONS[section], **fields), CASE["tokens"].__getitem__
    )


def row(section: str) -> ForcedSequence:
    """The prompt and its response cut into words and blocks, as the fixture's layout names them."""
    ids = golden(section, "input_ids")
    layout = {part["name"]: (part["start"], part["end"]) for part in CASE["sections"][section]["layout"]}
    prompt_end = layout["assistant.newline"][1]
    segments, block = [], 0
    for name, (start, end) in layout.items():
        if start < prompt_end or name.endswith((".pads", "latent0.close", "latent1.close")):
            continue
        if name == f"latent{block}.open":
            first, last = layout[f"latent{block}.pads"]
            segments.append(Block(last - first + (SECTIONS[section] == "start_overwritten")))
            block += 1
        else:
            segments.append(Tokens(tuple(ids[start:end].tolist())))
    pixels, grid = (TENSORS[f"images.question.{key}"] for key in ("pixel_values", "grid_thw"))
    prompt = Prompt(input_ids=ids[:prompt_end], pixel_values=pixels, grid_thw=grid, images=())
    return ForcedSequence(prompt, tuple(segments))


@pytest.mark.parametrize("section", SECTIONS)
def test_unrolled_and_spliced_equal_the_reference(backbone, section):
    rows = [row(section)]
    with torch.no_grad():
        unrolled = unroll(backbone, method(section), rows)
        spliced = splice(backbone, method(section), rows, unrolled.latents, levels=range(backbone.num_layers + 1))
    assert torch.equal(unrolled.layout.positions[:, 0], golden(section, "position_ids"))
    torch.testing.assert_close(torch.cat(unrolled.latents[0]), golden(section, "latents"), **TOLERANCE)
    for result in (unrolled, spliced):
        torch.testing.assert_close(backbone.logits(result.states[0]), golden(section, "logits"), **TOLERANCE)
    if SECTIONS[section] == "start_fed":
        slots = CASE["sections"][section]["latent_positions"]
        torch.testing.assert_close(unrolled.states[0], golden(section, "final_states"), **TOLERANCE)
        found = torch.stack([level[0, slots] for level in spliced.levels])
        torch.testing.assert_close(found, golden(section, "latent_slot_states"), **TOLERANCE)


@pytest.mark.parametrize("section", SECTIONS)
def test_decoded_equal_the_reference(backbone, section):
    """The same rows token by token, with a script in place of the sampler."""
    this = row(section)
    monet = method(section)
    script = []
    for segment in this.segments:
        script += [monet.open_id] if isinstance(segment, Block) else segment.ids
    latents = next(segment.latents for segment in this.segments if isinstance(segment, Block))
    settings = Settings(latents=latents, max_new_tokens=128)
    # the row's own end-of-turn id ends the run, one slot before the row does
    events = list(decode(backbone, monet, [this.prompt], [settings], sampler=scripted(script)))
    fed = torch.stack([event.fed for event in of_sequence(events, 0, LatentEvent)])
    torch.testing.assert_close(fed, golden(section, "latents"), **TOLERANCE)
    for event in of_sequence(events, 0, TokenEvent):
        logits = backbone.logits(event.hidden)
        torch.testing.assert_close(logits, golden(section, "logits")[event.position - 1], **TOLERANCE)


@pytest.mark.parametrize("convention", ["start_fed", "start_overwritten"])
@torch.no_grad()
def test_equal_to_plain_transformers(convention):
    """The paper's loop written out with transformers' own cache, positions and masks, sharing no code with ours."""
    prompt, latents = tiny_prompt(4, grids=[(4, 6), (4, 4)]), 3
    model = tiny_model()
    base, ids = model.model, prompt.input_ids[None]
    positions, delta = base.get_rope_index(ids, mm_token_type_ids=(ids == IMAGE).int(), image_grid_thw=prompt.grid_thw)
    embeds = base.get_input_embeddings()(ids)
    features = torch.cat(base.get_image_features(prompt.pixel_values, prompt.grid_thw).pooler_output)
    embeds = embeds.masked_scatter((ids == IMAGE)[..., None], features)
    cache, place = DynamicCache(), ids.shape[1] + delta.item()

    def step(embeds, positions):
        out = base.language_model(inputs_embeds=embeds, position_ids=positions, past_key_values=cache, use_cache=True)
        return out.last_hidden_state[:, -1:]

    def feed(embeds):
        nonlocal place
        place += 1
        return step(embeds, torch.full((3, 1, 1), place - 1))

    def word(token):
        return feed(base.get_input_embeddings()(torch.tensor([[token]])))

    method = tiny_method(convention=convention)
    hidden = step(embeds, positions)
    hidden = word(7)
    if convention == "start_fed":
        hidden = word(OPEN)
    fed = []
    for _ in range(latents):
        fed.append(hidden[0, 0])
        hidden = feed(hidden)
    hidden = word(method.close_id)
    expected = [model.lm_head(hidden)[0, 0]]
    for token in (8, 9):
        expected.append(model.lm_head(word(token))[0, 0])

    events = list(
        decode(
            wrap(tiny_model()),
            method,
            [prompt],
            [Settings(latents=latents)],
            sampler=scripted([7, OPEN, 8, 9]),
        )
    )
    torch.testing.assert_close(
        torch.stack([e.fed for e in of_sequence(events, 0, LatentEvent)]), torch.stack(fed), atol=1e-5, rtol=0
    )
    states = torch.stack([e.hidden for e in of_sequence(events, 0, TokenEvent)[-3:]])
    torch.testing.assert_close(model.lm_head(states), torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", ["latents_only", "sealed"])
@torch.no_grad()
def test_nothing_but_latents_leads_from_the_prompt_to_the_answer(rule):
    """Other image, question, earlier words; same latents: under `sealed` the answer's logits stay what they were.

    Under `latents_only` the latents' cached keys have looked at the prompt, so holding the vectors is not enough: the
    perturbation enters through the latent slots, and only there (see the reachability test of the mask). Both rules:
    without latents, nothing comes through at all.
    """
    backbone, monet = wrap(tiny_model()), tiny_method(rule=rule)
    latents = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))

    def answer(seed: int, count: int) -> torch.Tensor:
        words = (Tokens((11 + seed, 12 + seed)), Block(count), Tokens((5, 6)))
        this = ForcedSequence(tiny_prompt(seed), words)
        result = splice(backbone, monet, [this], [[latents[:count]]])
        return backbone.logits(result.states[0, -3:])  # closing token, 5, 6

    torch.testing.assert_close(answer(0, 0), answer(1, 0), atol=1e-5, rtol=0)
    moved = (answer(0, 3) - answer(1, 3)).abs().max()
    assert moved < 1e-5 if rule == "sealed" else moved > 1e-3
    monet = tiny_method(rule="causal")
    assert (answer(0, 0) - answer(1, 0)).abs().max() > 1e-3


@torch.no_grad()
def test_sealed_answers_follow_the_latents():
    """The other direction: other latents, another answer, in a decoded run."""
    backbone, monet = wrap(tiny_model()), tiny_method(rule="sealed")
    rows = [ForcedSequence(tiny_prompt(), (Block(3), Tokens((5,))))]
    one, two = (
        splice(backbone, monet, rows, [[torch.randn(3, 32, generator=torch.Generator().manual_seed(s))]])
        for s in (0, 1)
    )
    assert (one.states[0, -2:] - two.states[0, -2:]).abs().max() > 1e-3
