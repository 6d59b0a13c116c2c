"""The stage of reinforcement learning: rollouts of groups, their rewards, a loss over tokens and latents alike.

A batch of prompts is rolled out once and learned from `updates` times: the data set repeats it, and a checkpoint may
stand only between two batches, so that a resumed run rolls out what it would have. Responses depend on the policy, the
recipe's seed and the prompt's name alone: however prompts are spread over processes, they are the same.

Shapes: P prompts of a batch, G responses of a group.
"""

import copy
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset
from transformers import TrainerCallback

from latent_core.decoding.batch import prompt_feeds
from latent_core.decoding.interventions import perturb
from latent_core.example import Example
from latent_core.methods import LatentMethod
from latent_core.methods.deeplatent import DeepLatent, image_tokens
from latent_core.model.backbone import Backbone
from latent_core.model.backbones import wrap
from latent_core.model.processor import Prompt
from latent_core.reasoner import Reasoner
from latent_core.settings import Settings
from latent_core.trace import Trace
from trainers.data.caps import shrink
from trainers.parallel import batch_mean, whole
from trainers.planning.costs import Load
from trainers.planning.lengths import Length, RowSizes
from trainers.rl.judge import Judge
from trainers.rl.objective import LIMIT, advantages, k3, objective, surrogate
from trainers.rl.options import JudgeOptions, RlOptions
from trainers.rl.rewards import Reward
from trainers.rl.rollouts import LOGITS, Replayed, SampledResponse, replay, roll_out
from trainers.rl.samples import SaveSamples
from trainers.rl.variants import check_variant, formed, latent_terms, modulation_terms, modulations
from trainers.stage import Item, Stage

if TYPE_CHECKING:
    from trainers.recipe import Recipe


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A batch of rollouts, those of all groups that teach something, from which a phase of updates learns."""

    key: tuple[int | str, ...]
    """The seed and the prompts' names: the same prompts of another phase are rolled out anew."""
    rollouts: list[SampledResponse]
    advantages: torch.Tensor
    """One per rollout."""
    spare: SampledResponse
    """Any one, for a process that has nothing to learn from, but takes part in the forward of the others."""
    reference: list[Replayed]
    """The reference's view of them; empty without KL."""
    features: list[tuple[torch.Tensor, torch.Tensor]]
    """Image tokens of every rollout's prompt and their places, where modulations need them."""
    metrics: dict[str, float]


class RlStage(Stage):
    """Group-relative policy optimisation, in the variant that the recipe names."""

    options: RlOptions

    @classmethod
    def trains_vision(cls, recipe: "Recipe") -> bool:
        return False

    @classmethod
    def freeze(cls, recipe: "Recipe", method: LatentMethod) -> None:
        options = recipe.stage_options
        if isinstance(method, DeepLatent):
            method.requires_grad_(False)
            for module in modulations(method) if options.variant == "modulation" else ():
                module.requires_grad_(True)
            if options.former:
                method.former.requires_grad_(True)

    @classmethod
    def check(cls, recipe: "Recipe", method: LatentMethod) -> None:
        check_variant(recipe.stage_options, method)

    @classmethod
    def repeats(cls, recipe: "Recipe") -> int:
        return recipe.stage_options.updates

    @classmethod
    def length(cls, recipe: "Recipe", row: RowSizes) -> Length:
        """As long as a response may be; latents come to the limit on tokens."""
        options, latents = recipe.stage_options, 0
        if "text" not in (recipe.method, options.variant):
            latents = options.max_blocks * recipe.latents_default
        row = replace(row, text={"text": options.max_new_tokens - 1})  # and the end of turn
        return row.length(latents=latents, forwards=options.max_new_tokens + latents)

    @classmethod
    def load(cls, recipe: "Recipe", lengths: Sequence[Length], rows: int, vocabulary: int) -> Load:
        options, rows = recipe.stage_options, rows * recipe.stage_options.group
        tokens = rows * max(row.student for row in lengths)
        return Load(
            tokens=tokens,
            learned=min(rows * max(row.learned for row in lengths), LOGITS // vocabulary),
            aligned=0,
            forwards=0,
            teacher_tokens=tokens // options.updates if options.kl else 0,
            rolled=tokens,
            decoded=max(row.forwards for row in lengths),
            updates=options.updates,
            frozen="reference" if options.kl else "",
        )

    @classmethod
    def card(cls, recipe: "Recipe") -> str:
        most = "at most " if recipe.method == "deeplatent" else ""
        return f"Blocks had {most}{recipe.latents_default} latents."

    def setup(self) -> None:
        judge: JudgeOptions = self.recipe.options["judge"]
        self.reward = Reward.build(self.options, Judge(judge) if judge.url else None)
        # a step learns from as many batches as gradients are accumulated over
        accumulated = int(self.recipe.training.get("gradient_accumulation_steps", 1))
        self._held: deque[Batch] = deque(maxlen=accumulated)
        # in a tuple, so that nobody trains, saves or wraps it
        self._reference: tuple[Backbone, LatentMethod] | None = None

    def at_start(self) -> None:
        """Keeps the policy as it is now as the reference."""
        if self.options.kl:
            model, method = copy.deepcopy(self.model), copy.deepcopy(self.method)
            self._reference = wrap(model.requires_grad_(False).eval()), method.requires_grad_(False).eval()

    def callbacks(self, run: Path, val: Dataset | None) -> list[TrainerCallback]:
        """Samples of the policy's responses along the run."""
        count = 0 if val is None else min(self.options.samples, len(val))
        return [SaveSamples(run, [val[number][0] for number in range(count)])] if count else []

    @property
    def reference(self) -> tuple[Backbone, LatentMethod]:
        """The policy at the start, on this one's device."""
        assert self._reference is not None
        return tuple(part.to(self.backbone.device) for part in self._reference)

    def collate(self, items: Sequence[Item]) -> dict[str, object]:
        rng = items[0][1]
        return {"examples": [example for example, _ in items], "seed": rng.randrange(2**31)}

    def forward(self, examples: Sequence[Example], seed: int, traced: bool = False) -> dict[str, object]:
        """A step of training, an evaluation, or sampled responses as traces: all within one call, so that sharded
        parameters are at hand.
        """
        examples = [self.sized(example) for example in examples]
        if traced:
            return {"traces": self.traces(examples, seed)}
        if not self.training:
            return self._evaluate(examples)
        key = (seed, *(example.name for example in examples))
        batch = next((held for held in self._held if held.key == key), None)
        if batch is None:
            batch = self.collect(examples, seed)
            self._held.append(batch)
        loss, metrics = self.loss(batch)
        return {"loss": loss, "metrics": batch.metrics | metrics}

    def sized(self, example: Example) -> Example:
        """The example with its images within the recipe's caps."""
        caps = self.recipe.caps
        return shrink(example, caps.total, caps.each, side=self.processor.token_side) if caps.total else example

    def prompt(self, example: Example) -> Prompt:
        """The model's inputs."""
        return self.processor(example.images, example.question, self.recipe.system)

    def settings(self, seed: int) -> Settings:
        """The settings that rollouts are decoded with."""
        options = self.options
        return Settings(
            latents=self.recipe.latents_default,
            mode="text" if options.variant == "text" else "latent",
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            max_new_tokens=options.max_new_tokens,
            max_blocks=options.max_blocks,
            seed=seed,
        )

    @torch.no_grad()
    def collect(self, examples: Sequence[Example], seed: int) -> Batch:
        """Rolls out G responses per prompt, rewards them and keeps the groups that teach something."""
        options, group = self.options, self.options.group
        self.backbone.eval()  # blocks that are to be computed again would drop the cache
        self.method.train(options.variant == "modulation")  # what a method draws has a ratio there, and nowhere else
        owners = [example for example in examples for _ in range(group)]
        prompts = [prompt for example in examples for prompt in [self.prompt(example)] * group]
        first = [Random(f"rollouts/{seed}/{e.name}").randrange(2**31) for e in examples]
        settings = [self.settings(start + number) for start in first for number in range(group)]
        with whole(self):
            rollouts = roll_out(
                self.backbone, self.method, prompts, settings, self.processor.decode, noise=options.noise
            )
            features: list[tuple[torch.Tensor, torch.Tensor]] = []
            if options.variant == "modulation":
                features = [image_tokens(feed) for feed in prompt_feeds(self.backbone, prompts)]
        rewards, right = (torch.tensor(values).view(-1, group) for values in self.reward(rollouts, owners))
        self.backbone.train()
        solved = right.sum(1)
        taught = (solved > 0) & (solved <= options.easy * group) & (rewards.std(1) > 0)
        indices = [number for number in range(len(rollouts)) if taught[number // group]]
        taught_rollouts = [rollouts[number] for number in indices]
        reference: list[Replayed] = []
        if options.kl and taught_rollouts:
            reference = replay(*self.reference, taught_rollouts, options.temperature)
        return Batch(
            key=(seed, *(example.name for example in examples)),
            rollouts=taught_rollouts,
            advantages=advantages(rewards).flatten()[indices],
            spare=rollouts[0],
            reference=reference,
            features=[features[number] for number in indices if features],
            metrics=_describe(rollouts, rewards, right)
            | {f"solved_{count}": (solved == count).float().mean().item() for count in range(group + 1)}
            | {"taught": taught.float().mean().item()},
        )

    def loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """The objective over one replay of all rollouts, and how far the policy has moved."""
        options, method = self.options, self.method
        replays: list[Replayed] = []
        # every process and parameter takes part in the backward pass, whatever there is to learn from; those that are
        # spread now do so by a forward
        zero = sum((0 * p.float()).sum() for p in self.parameters() if p.requires_grad and not isinstance(p, DTensor))
        if batch.rollouts:
            latents = None
            if options.former:
                latents = [formed(method, *pair) for pair in zip(batch.rollouts, *zip(*batch.features))]  # noqa: B905
            replays = replay(self.backbone, method, batch.rollouts, options.temperature, latents=latents)
        elif self.sharded:
            zero = zero + 0 * replay(self.backbone, method, [batch.spare], options.temperature)[0].logprobs.sum()
        terms, costs, moved = [], [], {"token": [], "latent": []}
        for number, (rollout, replayed) in enumerate(zip(batch.rollouts, replays, strict=True)):
            old_logprobs = rollout.logprobs.to(replayed.logprobs.device)
            log_ratios, divergence = replayed.logprobs - old_logprobs, torch.zeros_like(old_logprobs)
            reference: tuple[LatentMethod, Replayed] | None = None
            if batch.reference:
                reference = self.reference[1], batch.reference[number]
                divergence = k3(replayed.logprobs - reference[1].logprobs)
            actions = [(log_ratios, divergence)]
            if options.variant == "vlpo":
                actions += latent_terms(options, method, rollout, replayed, reference)
            if options.variant == "modulation":
                actions += modulation_terms(options, method, rollout, replayed, reference, batch.features[number][0])
            moved["token"].append(actions[0])
            moved["latent"] += actions[1:]
            ratios, penalty = (torch.cat(parts) for parts in zip(*actions, strict=True))
            clip = dict(low=options.low, high=options.high, dual=options.dual or None)
            terms.append(surrogate(ratios, batch.advantages[number].to(ratios.device), **clip))
            costs.append(penalty)
        losses = torch.zeros(0, device=self.backbone.device)
        if terms:
            losses = objective(terms, costs, weight=options.kl, by=options.aggregation)
        metrics = {}
        for kind, actions in moved.items():
            if actions:
                log_ratios, penalty = (torch.cat(parts).detach() for parts in zip(*actions, strict=True))
                ratios = log_ratios.clamp(-LIMIT, LIMIT).exp()
                clipped = (ratios < 1 - options.low) | (ratios > 1 + options.high)
                metrics |= {
                    f"{kind}_ratio": ratios.mean().item(),
                    f"{kind}_ratio_std": ratios.std(correction=0).item(),
                    f"{kind}_clipped": clipped.float().mean().item(),
                    f"{kind}_kl": penalty.mean().item(),
                }
        return batch_mean(losses) + zero, metrics

    @torch.no_grad()
    def traces(self, examples: Sequence[Example], seed: int) -> list[Trace]:
        """A sampled response to each question with everything recorded, one after the other."""
        config = self.recipe.method_config()
        reasoner = Reasoner(
            name=self.recipe.name, backbone=self.backbone, processor=self.processor, method=self.method, config=config
        )
        settings, noise = asdict(self.settings(seed)), self.options.noise
        with whole(self), torch.random.fork_rng():
            torch.manual_seed(seed)
            self.method.train(self.options.variant == "modulation")
            return [
                reasoner.run(
                    example.images,
                    example.question,
                    intervene=perturb(noise, seed) if noise else None,
                    attention=True,
                    **settings,
                )
                for example in examples
            ]

    @torch.no_grad()
    def _evaluate(self, examples: Sequence[Example]) -> dict[str, object]:
        """Greedy answers; the loss is minus the mean reward."""
        self.method.eval()
        prompts = [self.prompt(example) for example in examples]
        mode = "text" if self.options.variant == "text" else "latent"
        greedy = Settings(latents=self.recipe.latents_default, mode=mode, max_new_tokens=self.options.max_new_tokens)
        with whole(self):
            rollouts = roll_out(self.backbone, self.method, prompts, [greedy] * len(prompts), self.processor.decode)
        rewards, right = map(torch.tensor, self.reward(rollouts, examples))
        metrics = _describe(rollouts, rewards, right)
        families = [str(example.metadata.get("family", "all")) for example in examples]
        for family in set(families):
            chosen = [number for number, name in enumerate(families) if name == family]
            metrics[f"accuracy_{family}"] = right[chosen].float().mean().item()
        return {"loss": -rewards.mean(), "metrics": metrics}


def _describe(rollouts: Sequence[SampledResponse], rewards: torch.Tensor, right: torch.Tensor) -> dict[str, float]:
    """Reward, accuracy, share of responses that open a block, sampled ids and latents per response."""
    count = len(rollouts)
    return {
        "reward": rewards.mean().item(),
        "accuracy": right.float().mean().item(),
        "trigger": sum(bool(r.latents) for r in rollouts) / count,
        "length": sum(len(r.ids) for r in rollouts) / count,
        "latents": sum(len(block) for r in rollouts for block in r.latents) / count,
    }
