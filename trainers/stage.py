"""The contract of a stage: what the loop optimises, and what recipe and planner have to know of it beforehand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainerCallback

from latent_core.decoding.layout import NO_LABEL, ForcedSequence
from latent_core.decoding.unroll import Unrolled, unroll
from latent_core.example import Example
from latent_core.methods import LatentMethod, build_method
from latent_core.model.backbone import Backbone
from latent_core.model.backbones import wrap
from latent_core.model.processor import Processor
from latent_core.settings import Rule
from trainers.parallel import common_forwards
from trainers.planning.costs import Load
from trainers.planning.lengths import Length, RowSizes
from trainers.sft.losses import next_words

if TYPE_CHECKING:  # a recipe is read with the table of stages
    from trainers.recipe import Recipe

Item = tuple[Example, Random]
"""A row of data, and the source of whatever is drawn for its batch."""


class Stage(nn.Module):
    """A model with its method, and the loss of one stage: the one module that a run optimises and DDP or FSDP wrap.

    A stage is a subclass that says what a batch is (`collate`) and what it costs (`forward`, which returns `loss`, a
    tensor, and `metrics`, name → number). It adds modules of its own in `setup`. What is asked before any weights are
    there (the class methods) depends on the recipe alone. A row in trainers/stages.py makes it known.
    """

    teacher_passes = 0
    """Forwards of the teacher over its rows, for the planner."""
    one_pass = False
    """Whether the pass that generates latents takes the losses, too, for the planner."""
    sharded = False
    """Whether parameters are spread over processes; set by the trainer."""

    def __init__(self, model: nn.Module, processor: Processor, recipe: "Recipe") -> None:
        """model: a backbone's, with the tokens that the processor knows, in training mode."""
        super().__init__()
        self.model, self.processor, self.recipe = model, processor, recipe
        self.options = recipe.stage_options
        self.backbone = wrap(model)
        self.method: LatentMethod = build_method(recipe.method_config(), processor.token_id)
        self.backbone.train_vision(self.trains_vision(recipe))
        self.freeze(recipe, self.method)
        self._teacher: tuple[Backbone, ...] = ()  # in a tuple, so that nobody trains, saves or wraps it
        self.same_sight = False
        """Whether student and teacher see the same in an image, now and later."""
        self.setup()

    @classmethod
    def trains_vision(cls, recipe: "Recipe") -> bool:
        """Whether the vision tower learns."""
        return recipe.train_vision

    @classmethod
    def freeze(cls, recipe: "Recipe", method: LatentMethod) -> None:
        """Leaves `requires_grad` with those of the method's parameters that learn; all do unless a stage says so."""

    @classmethod
    def check(cls, recipe: "Recipe", method: LatentMethod) -> None:
        """Refuses a recipe that the method does not fit. Raises ValueError with the remedy."""

    @classmethod
    def repeats(cls, recipe: "Recipe") -> int:
        """Steps in a row that learn from the same batch of data; a checkpoint stands only behind the last."""
        return 1

    @classmethod
    def length(cls, recipe: "Recipe", row: RowSizes) -> Length:
        """Tokens of a row as the stage lays it out, with the largest K; by default prompt, images and text."""
        return row.length()

    @classmethod
    def load(cls, recipe: "Recipe", lengths: Sequence[Length], rows: int, vocabulary: int) -> Load:
        """The most that a micro-batch of `rows` rows may hold: all padded to the longest ones."""

        def most(name: str) -> int:
            return rows * max(getattr(row, name) for row in lengths)

        return Load(
            tokens=most("student"),
            learned=most("learned"),
            aligned=most("aligned"),
            forwards=max(row.forwards for row in lengths),
            teacher_tokens=cls.teacher_passes * most("teacher"),
            once=cls.one_pass,
            frozen="teacher" if recipe.teacher else "",
        )

    @classmethod
    def uncounted(cls, recipe: "Recipe") -> Sequence[str]:
        """Names of frozen models beside student and teacher, whose memory the planner does not know."""
        return ()

    @classmethod
    def card(cls, recipe: "Recipe") -> str:
        """The sentence of a model card on blocks in training; empty for a stage without blocks."""
        return ""

    def setup(self) -> None:
        """Adds modules and attributes that a stage has beside model and method."""

    def at_start(self) -> None:
        """A hook once the weights that a run starts from are in place, before a resumed run's own are loaded."""

    def rates(self) -> dict[nn.Parameter, float]:
        """Parameters with a learning rate of their own."""
        return {}

    def callbacks(self, run: Path, val: Dataset | None) -> list[TrainerCallback]:
        """The stage's callbacks at events of the loop; run: the run's folder, val: the validation rows, if any."""
        return []

    def collate(self, items: Sequence[Item]) -> dict[str, object]:
        """The arguments of `forward` for a batch."""
        raise NotImplementedError

    def learn_from(self, model: nn.Module) -> None:
        """Sets the frozen teacher."""
        teacher = wrap(model.requires_grad_(False).eval())
        self._teacher = (teacher,)
        frozen = not self.trains_vision(self.recipe) and not self.recipe.caps.teacher_total
        self.same_sight = frozen and self.backbone.vision_is_same(teacher)

    @property
    def teacher(self) -> Backbone:
        """The frozen teacher, on the student's device. Raises ValueError where the recipe names none."""
        if not self._teacher:
            raise ValueError(f"Stage {self.recipe.stage} has no teacher; set `teacher` to a recipe or a checkpoint.")
        (backbone,) = self._teacher
        return backbone if backbone.device == self.backbone.device else backbone.to(self.backbone.device)

    def draw(self, rng: Random, sizes: Sequence[int] = ()) -> tuple[int, Rule]:
        """K, of `sizes` where they are given, and the attention rule: one of each for a batch.

        Sequences whose blocks end together wait for nobody.
        """
        recipe = self.recipe
        latents = rng.choice(sizes) if sizes else rng.randint(recipe.latents_min, recipe.latents_max)
        return latents, "causal" if rng.random() < recipe.causal_share else recipe.rule

    def unroll(self, rows: Sequence[ForcedSequence], rules: Sequence[Rule], **options: object) -> Unrolled:
        """The sequences with their latents generated on the way, with gradients; options as those of `unroll`."""
        return unroll(
            self.backbone,
            self.method,
            rows,
            rule=rules,
            detach_feedback=self.recipe.detach_feedback,
            forwards=common_forwards(self, rows),
            **options,
        )

    def cross_entropy(self, unrolled: Unrolled, families: Sequence[str]) -> tuple[torch.Tensor, dict[str, float]]:
        """Mean over all labels, and accuracy_<family>."""
        states, targets = unrolled.learned()
        logits = self.backbone.logits(states).float()
        return next_words(logits, targets, unrolled.layout.labels != NO_LABEL, families)


def drawn(recipe: "Recipe", kind: str = "") -> str:
    """The sentence for model cards of stages that draw K; kind: such as `the square numbers from `."""
    return f"K was drawn from {kind}{recipe.latents_min} to {recipe.latents_max} for every training batch."


def families_of(items: Sequence[Item]) -> list[str]:
    """The family of each row, under which its accuracy is counted."""
    return [example.metadata.get("family", "all") for example, _ in items]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpec:
    """A row of the table of stages: the class, and what a recipe may say of it."""

    stage: type[Stage]
    options: dict[str, type] = field(default_factory=dict)
    """Field of the recipe → the dataclass that it holds; the first is the stage's own (`Stage.options`)."""
    reads: tuple[str, ...] | None = None
    """Which of these fields and of `caps` the stage reads, as `field` or `field.inner`; None: those in `options`."""
    method: str | None = None
    """The one method that it trains; None: any."""
    latents: bool = True
    """Whether a method without latents is refused."""
    unrolled: bool = False
    """Whether it generates latents while training, whose cache activation checkpointing would drop."""
    teacher: bool = False
    """Whether it learns from a frozen teacher."""
    questions: bool = False
    """Whether questions and answers alone, without reasoning, serve it."""
    reinforces: bool = False
    """Whether it goes on with a whole checkpoint, method included, and samples responses with whole weights."""

    @property
    def fields(self) -> tuple[str, ...]:
        """`reads`, with its default filled in."""
        return tuple(self.options) if self.reads is None else self.reads
