"""Where the gradients of Monet's stages go, what their options change, and batches against single rows."""

from random import Random

import pytest
import torch

from latent_core import glyphs
from latent_core.decoding.sequence import Block
from latent_core.decoding.unroll import encode_sequences, splice
from latent_core.model.processor import Processor
from latent_core.model.slot_types import AUX, LATENT, slot_class
from tests.test_parity_monet_training import build, rows_of
from trainers.recipe import Recipe
from trainers.sft.interleaved import gather, levels
from trainers.sft.losses import alignment, row_cross_entropy
from trainers.sft.monet import (
    AlignLatents,
    AlignObservations,
    MonetStageOptions,
    WarmUp,
    flow,
    think,
    unstack,
)
from trainers.stage import Stage
from trainers.tiny_model import build_image_processor, build_model, build_tokenizer

SECTION = "stage2_two_steps"
RULES = ["causal"]
OURS = dict(aux_self=True, latent_pass_mask="same", surrogate_weight=1.0, align_axis="hidden")


def vector(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


def gradients(stage: Stage, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = [(name, p) for name, p in stage.model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)
    return {name: g if g is not None else torch.zeros_like(p) for (name, p), g in zip(named, found, strict=True)}


def aligned(stage: Stage) -> tuple[torch.Tensor, torch.Tensor]:
    """Stage 2's alignment loss on the fixture's row, and the stacked latents."""
    wanted = stage.targets(rows_of(SECTION, "teacher"), RULES)
    spliced, latents = think(stage, rows_of(SECTION), RULES)
    return alignment(wanted, gather(spliced.levels, stage.aligned(spliced.layout))).mean(), latents


def live_chain(stage: Stage, detach: bool) -> list[torch.Tensor]:
    """The latents, (D,) each, once more, by a chain of whole forwards in which every latent stays in the graph."""
    rows = rows_of(SECTION)
    blocks = [segment.latents for segment in rows[0].segments if isinstance(segment, Block)]
    like = [[torch.empty(count, 0) for count in blocks]]
    made: list[torch.Tensor] = []
    for number in range(sum(blocks)):
        fed = [latent.detach() if detach else latent for latent in made]
        slots = torch.stack(fed + [torch.zeros(stage.backbone.width)] * (sum(blocks) - number))
        whole = splice(stage.backbone, stage.method, rows, unstack(slots, like), rule=RULES, flow=flow(stage.options))
        places = (slot_class(whole.layout.slot_types[0]) == LATENT).nonzero()[:, 0]
        made.append(whole.states[0, places[number] - 1])
    return made


@pytest.mark.parametrize("detach", [True, False])
def test_latent_only_gradient_is_that_of_the_latents_alone(detach):
    """Σ⟨Z, g⟩ has the gradient of a chain of whole forwards that makes Z, contracted with g; nothing else gets any."""
    stage = build(AlignObservations, detach_feedback=detach, **OURS)
    loss, latents = aligned(stage)
    (g,) = torch.autograd.grad(loss, latents, retain_graph=True)
    found = vector(gradients(stage, stage.guide(loss, latents)))
    chain = torch.stack(live_chain(stage, detach))
    torch.testing.assert_close(chain, latents, atol=1e-5, rtol=0)
    expected = vector(gradients(stage, (chain * g).sum()))
    assert (found - expected).norm() <= 1e-3 * expected.norm()
    # the alignment itself reaches parameters by other ways too
    ordinary = vector(gradients(stage, loss))
    assert (ordinary - expected).norm() > 0.1 * expected.norm()


def test_gradients_at_the_states_that_make_latents_would_count_twice():
    """Why the gradient is taken at the stacked latents: a state also acts through the latents that come after it."""
    stage = build(AlignObservations, detach_feedback=False, **OURS)
    states = live_chain(stage, detach=False)
    latents = torch.stack(states)
    spliced = splice(
        stage.backbone,
        stage.method,
        rows_of(SECTION),
        unstack(latents, [[torch.empty(5, 0), torch.empty(5, 0)]]),
        rule=RULES,
        flow=flow(stage.options),
        levels=levels(stage.backbone, stage.options.align_levels),
    )
    wanted = stage.targets(rows_of(SECTION, "teacher"), RULES)
    loss = alignment(wanted, gather(spliced.levels, stage.aligned(spliced.layout))).mean()
    (right,) = torch.autograd.grad(loss, latents, retain_graph=True)
    twice = torch.stack(torch.autograd.grad(loss, states, retain_graph=True))
    assert (twice - right).norm() > 0.2 * right.norm()
    assert (twice[-1] - right[-1]).norm() < 1e-6  # the last one has nothing after it


def test_stage_3_backpropagates_ordinarily():
    section = "stage3_two_steps"
    stage = build(AlignLatents, **OURS)
    result = stage(rows_of(section), RULES, ["all"], rows_of(section, "target"))
    plain = build(AlignLatents, align_weight=0.0, **OURS)
    without = plain(rows_of(section), RULES, ["all"], rows_of(section, "target"))
    difference = result["loss"] - without["loss"]
    assert difference.item() == pytest.approx(2 * result["metrics"]["alignment"], abs=1e-5)


@pytest.mark.parametrize("axis", ["hidden", "token"])
def test_alignment(axis):
    """Against the formula written out; 0 for equal states, whatever their length."""
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(3, 5, 8, generator=generator) for _ in range(2))
    total = 0.0
    for level in range(3):
        first, second = teacher[level], student[level]
        pairs = zip(*((first, second) if axis == "hidden" else (first.T, second.T)), strict=True)
        total += sum(1 - (a @ b / (a.norm() * b.norm())).item() for a, b in pairs)
    expected = total / (3 * (5 if axis == "hidden" else 8))
    assert alignment([teacher], [student], axis).item() == pytest.approx(expected, abs=1e-5)
    assert alignment([teacher], [3 * teacher], axis).item() == pytest.approx(0, abs=1e-6)
    assert alignment([teacher[:, :0]], [student[:, :0]], axis).item() == 0
    with pytest.raises(ValueError, match=r"\(3, 5, 8\) and student states \(3, 4, 8\)"):
        alignment([teacher], [student[:, :4]], axis)


def test_weighted_cross_entropy_is_a_mean_over_rows():
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(5, 7, generator=generator), torch.tensor([0, 1, 2, 3, 4])
    weights, rows = torch.tensor([1.0, 4, 4, 1, 1]), torch.tensor([0, 0, 0, 2, 2])
    losses = -logits.log_softmax(-1)[torch.arange(5), targets]
    expected = [(losses[0] + 4 * losses[1] + 4 * losses[2]) / 9, 0.0, (losses[3] + losses[4]) / 2]
    found = row_cross_entropy(logits, targets, weights, rows, 3)
    torch.testing.assert_close(found, torch.tensor([float(value) for value in expected]))


@pytest.fixture(scope="module")
def world() -> tuple[Processor, object]:
    tokenizer = build_tokenizer()
    return Processor(tokenizer, build_image_processor()), tokenizer


def stage_of(kind: type[Stage], world, *, rule: str = "latents_only", **options) -> Stage:
    processor, tokenizer = world
    number = {WarmUp: 1, AlignObservations: 2, AlignLatents: 3}[kind]
    recipe = Recipe(
        name="glyphs",
        description="",
        stage=f"monet{number}",
        method="monet",
        teacher=None if number == 1 else "itself",
        rule=rule,
        train_vision=False,
        mixture={"find": 1},
        options={"monet": MonetStageOptions(**options)},
    )
    stage = kind(build_model(tokenizer), processor, recipe)
    if number > 1:
        stage.learn_from(build_model(tokenizer, seed=1))
    return stage


KINDS = [WarmUp, AlignObservations, AlignLatents]


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["causal", "latents_only", "sealed"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_the_mean_of_its_rows(kind, rule, world):
    """Samples with one block and with two, so that places and numbers of blocks differ; loss and gradient."""
    stage = stage_of(kind, world, rule=rule, observation_factor=4.0)
    items = [(glyphs.sample(family, 3, "train"), Random(0)) for family in ("find", "relate", "count")]
    batch = stage.collate(items)
    whole = stage(**batch)
    together = vector(gradients(stage, whole["loss"]))
    alone = []
    for index in range(3):
        row = {name: values[index : index + 1] for name, values in batch.items()}
        alone.append(stage(**row)["loss"])
    mean = torch.stack(alone).mean()
    assert whole["loss"].item() == pytest.approx(mean.item(), abs=1e-5)
    expected = vector(gradients(stage, mean))
    assert (together - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"latent_only": False}, "gradient"),
        ({"align_weight": 0.0}, "gradient"),
        ({"align_levels": "last"}, "gradient"),
        ({"aux_image": False}, "gradient"),
        ({"aux_readers": "open+latents"}, "gradient"),
        ({"aux_self": False}, "gradient"),
        ({"latent_pass_mask": "causal"}, "gradient"),
        ({"observation_factor": 4.0}, "gradient"),
        ({"observation_tags": "context"}, "rows"),
    ],
)
def test_every_option_does_something(options, change, world):
    """Ablations and released variants change what is learned; nothing is only recorded."""
    item = (glyphs.sample("relate", 3, "train"), Random(0))
    losses = []
    for given in ({}, options):
        stage = stage_of(AlignObservations, world, **given)
        batch = stage.collate([item])
        losses.append((vector(gradients(stage, stage(**batch)["loss"])), batch["rows"][0].segments))
    (first, rows), (second, others) = losses
    assert (first - second).norm() > 1e-4 * first.norm()
    if change == "rows":
        assert len(rows) != len(others)


def test_student_of_stage_3_never_sees_an_auxiliary_image(world):
    stage = stage_of(AlignLatents, world)
    batch = stage.collate([(glyphs.sample("find", 3, "train"), Random(0))])
    assert not batch["rows"][0].auxiliary_images and batch["teacher"][0].auxiliary_images
    spliced, _ = think(stage, batch["rows"], batch["rules"])
    assert not (slot_class(spliced.layout.slot_types) == AUX).any()


def test_a_stage_without_its_teacher_says_so(world):
    stage = stage_of(AlignObservations, world)
    stage._teacher = ()
    with pytest.raises(ValueError, match="monet2 has no teacher"):
        stage(**stage.collate([(glyphs.sample("find", 3, "train"), Random(0))]))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_shared_vision_tower_looks_once_and_learns_the_same(kind, world, monkeypatch):
    stage, (_, tokenizer) = stage_of(kind, world), world
    assert not stage.same_sight  # another teacher, another tower
    teacher = build_model(tokenizer, seed=1)
    teacher.model.visual.load_state_dict(stage.backbone.vision.state_dict())
    stage.learn_from(teacher)
    assert stage.same_sight
    batch = stage.collate([(glyphs.sample(family, 3, "train"), Random(0)) for family in ("find", "relate")])
    seen, found = [], []
    monkeypatch.setattr(
        "trainers.sft.monet.encode_sequences", lambda *given: seen.append(given) or encode_sequences(*given)
    )
    for shared, looks in ((True, 1), (False, 2)):
        stage.same_sight = shared
        found.append(vector(gradients(stage, stage(**batch)["loss"])))
        assert len(seen) == looks
        seen.clear()
    assert torch.allclose(*found, atol=1e-7)
