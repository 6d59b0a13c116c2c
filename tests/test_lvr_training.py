"""LVR's stage: what it learns from, what moves, that decoding feeds what training taught; bad boxes by name."""

from random import Random

import pytest
import torch

from latent_core import glyphs
from latent_core.decoding.engine import decode
from latent_core.decoding.layout import ForcedSequence
from latent_core.decoding.sequence import Block, Tokens
from latent_core.decoding.unroll import splice
from latent_core.events import LatentEvent
from latent_core.example import Step
from latent_core.model.processor import Processor
from latent_core.model.slot_types import LATENT, slot_class
from latent_core.settings import Settings
from tests.tiny import of_sequence, scripted
from trainers.recipe import load_recipe
from trainers.sft.lvr import LvrStage, box_slots, step_slots
from trainers.tiny_model import build_image_processor, build_model, build_tokenizer

TOKENIZER = build_tokenizer()


def stage(*overrides: str) -> LvrStage:
    recipe, _ = load_recipe("glyph-lvr", list(overrides))
    torch.manual_seed(0)
    return LvrStage(build_model(TOKENIZER), Processor(TOKENIZER, build_image_processor()), recipe)


def batch(built: LvrStage, families=("find", "relate", "count", "trace"), seed=3):
    return built.collate([(glyphs.sample(family, seed, "train"), Random(0)) for family in families])


@pytest.mark.parametrize(
    "options",
    [
        "{}",
        "{head: mlp, width: 128}",
        "{head: glu, width: 128}",
        "{exit: latent_end, width: 128}",
        "{exit: mode_switch}",
    ],
)
def test_a_step_moves_everything_but_the_vision_tower(options):
    built = stage(f"method_options={options}")
    built.train()
    out = built(**batch(built))
    out["loss"].backward()
    for name, parameter in built.named_parameters():
        still = "visual" in name
        assert (parameter.grad is None) == still, name
        assert still or parameter.grad.abs().sum() > 0, name
    assert ("switch" in out["metrics"]) == ("mode_switch" in options)


def test_slots_hold_the_boxes_tokens_and_their_targets():
    built = stage("lvr.slots_max=0", "method_options={}")
    given = batch(built, ("find",))
    (row,), ((slots,),) = given["rows"], given["slots"]
    example = glyphs.sample("find", 3, "train")
    assert slots == box_slots(example.steps[0].region, (6, 6), "x") and len(slots) == 4
    unrolled = built.run(given["rows"], given["slots"])
    (latents,) = unrolled.latents[0]
    features = built.backbone.encode_images(row.prompt.pixel_values, row.prompt.grid_thw).tokens
    torch.testing.assert_close(latents, features[slots])
    predicted, wanted = built.pairs(unrolled)
    assert torch.equal(wanted, latents)
    first = int((slot_class(unrolled.layout.slot_types)[0] == LATENT).nonzero()[0])
    torch.testing.assert_close(predicted, unrolled.states[0, first - 1 : first + 3])


def test_boxes_of_the_second_image_take_its_tokens():
    example = glyphs.sample("find", 3, "train")
    step = example.steps[0]
    two = type(example)(
        images=example.images * 2,
        question=example.question,
        steps=(Step(text=step.text, observation=step.observation, region=step.region, image_index=1),),
        answer=example.answer,
        name="two",
    )
    built = stage("lvr.slots_max=0")
    given = built.collate([(two, Random(0))])
    assert given["slots"][0][0] == [36 + slot for slot in box_slots(step.region, (6, 6), "x")]
    built(**given)["loss"].backward()


def test_it_learns_to_reconstruct():
    built = stage("method_options={head: mlp, width: 128}", "lvr.weight=1")
    given = batch(built, ("find", "relate"))
    optimiser = torch.optim.AdamW([p for p in built.parameters() if p.requires_grad], 2e-3)
    seen = []
    for _ in range(40):
        optimiser.zero_grad()
        out = built(**given)
        out["loss"].backward()
        optimiser.step()
        seen.append(out["metrics"])
    assert seen[-1]["reconstruction"] < 0.5 * seen[0]["reconstruction"] and seen[-1]["ce"] < 0.5 * seen[0]["ce"]


@pytest.mark.parametrize("head", ["none", "mlp", "glu"])
@pytest.mark.parametrize("rule", ["causal", "latents_only"])
def test_decoding_feeds_exactly_what_training_compares(head, rule):
    """A decoded run, spliced: the head on the state before a slot is what was fed there, for the first one, too."""
    built = stage(f"method_options={{head: {head}, width: 128}}", f"rule={rule}").eval()
    built.backbone.eos_ids = frozenset()
    example = glyphs.sample("find", 3, "train")
    prompt = built.processor(example.images, example.question)
    ids = [5, built.method.open_id, built.method.close_id, 6, 7, built.processor.eos_id]
    settings = [Settings(latents=3, max_new_tokens=len(ids) + 3)]
    events = list(decode(built.backbone, built.method, [prompt], settings, sampler=scripted(ids)))
    fed = torch.stack([event.fed for event in of_sequence(events, 0, LatentEvent)])
    row = ForcedSequence(prompt, (Tokens((5,)), Block(3, learn_close=True), Tokens((6, 7))))
    with torch.no_grad():
        unrolled = splice(built.backbone, built.method, [row], [[fed]])
        predicted, wanted = built.pairs(unrolled)
    torch.testing.assert_close(predicted, fed, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(wanted, fed)


def test_places_share_the_slots():
    boxes = ((0.0, 0.0, 0.33, 0.33), (0.67, 0.67, 1.0, 1.0), (0.0, 0.67, 0.33, 1.0))
    step = Step(text="", observation="", region=(0.0, 0.0, 1.0, 1.0), focus=boxes)
    every = step_slots(step, (6, 6), 0, "x")
    assert every == sorted(slot for box in boxes for slot in box_slots(box, (6, 6), "x")) and len(every) == 12
    four = step_slots(step, (6, 6), 4, "x")
    places = [set(box_slots(box, (6, 6), "x")) for box in boxes]
    assert len(four) == 4 and sorted(len(place & set(four)) for place in places) == [1, 1, 2]
    nowhere = Step(text="", observation="")
    assert len(step_slots(nowhere, (6, 6), 4, "x")) == 4 and len(step_slots(nowhere, (6, 6), 0, "x")) == 36


def test_a_bad_box_names_its_sample():
    built = stage()
    example = glyphs.sample("find", 3, "train")
    for region, words in (((0.2, 0.2, 1.2, 0.8), "leaves the image"), ((0.5, 0.2, 0.5, 0.8), "holds no image token")):
        bad = type(example)(
            images=example.images,
            question="?",
            steps=(Step(text="", observation="", region=region),),
            answer="x",
            name="bad/9",
        )
        with pytest.raises(ValueError, match=f"bad/9: the box .* {words}"):
            built.collate([(bad, Random(0))])


def test_options_that_do_not_fit():
    with pytest.raises(ValueError, match=r"options\.width is 0; a head or a learned vector needs D"):
        stage("method_options={head: mlp}")
    with pytest.raises(ValueError, match="unknown field 'heads'. Did you mean 'head'|unknown field 'heads'"):
        stage("method_options={heads: mlp}")
    with pytest.raises(ValueError, match="stage lvr trains method lvr, not 'monet'"):
        stage("method=monet", "method_options={}")
