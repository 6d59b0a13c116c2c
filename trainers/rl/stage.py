"""One stage for every variant: rollouts of groups, rewards, and a loss over words and latents alike.

    text         log-ratios of words; rollouts open no blocks                      GRPO
    constants    log-ratios of words; latents replayed as constants                GRPO_latent (LVR)
    vlpo         words and latents, each latent with a Gaussian ratio              VLPO (Monet, equation 7)
    modulation   words and the modulation actions of blocks, closed-form KL        continuous-space GRPO (DeepLatent)

A batch of prompts is rolled out once and learned from `updates` times: the data set repeats it, and a checkpoint may
stand only between two batches, so that a resumed run rolls out what it would have.

Shapes: P prompts of a batch, G responses of a group.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import nn
from torch.utils.data import Dataset

from latent_core.backbone import Backbone
from latent_core.drive import Block
from latent_core.example import Example
from latent_core.lockstep import see
from latent_core.methods import LatentMethod, build_method
from latent_core.methods.deeplatent import DeepLatent, Modulated
from latent_core.processor import Processor
from latent_core.settings import Settings, check
from trainers.recipe import Recipe
from trainers.rl.objective import (
    advantages,
    k3,
    latent_log_ratio,
    modulation_log_ratio,
    objective,
    surrogate,
)
from trainers.rl.rewards import Reward, accuracy, boxed, invocation
from trainers.rl.rollouts import Replayed, Rollout, replay, roll_out


class Repeated(Dataset):
    """Batches of a data set, each `times` times in a row."""

    def __init__(self, data: Dataset, batch: int, times: int) -> None:
        self.data, self.batch, self.times = data, batch, times

    def __len__(self) -> int:
        return len(self.data) * self.times

    def __getitem__(self, index: int) -> object:
        if not 0 <= index < len(self):
            raise IndexError(index)
        step, place = divmod(index, self.batch)
        return self.data[step // self.times * self.batch + place]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What a phase of updates learns from: the responses of all groups that teach something."""

    key: tuple[str, ...]
    rollouts: list[Rollout]
    advantages: torch.Tensor
    """One per rollout."""
    reference: list[Replayed]
    """The reference's view of them; empty without KL."""
    features: list[torch.Tensor]
    """Image tokens of every rollout's prompt, where modulations need them."""
    metrics: dict[str, float]


class RlStage(nn.Module):
    """Policy optimisation within groups."""

    sharded = False

    def __init__(self, model: nn.Module, processor: Processor, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.processor, self.recipe, self.options = model, processor, recipe, recipe.rl
        self.backbone = Backbone(model)
        self.method = build_method(recipe.method_config(), processor.token_id)
        model.model.visual.requires_grad_(False)
        options = self.options
        if options.variant == "modulation":
            fits = isinstance(self.method, DeepLatent)
            check(fits, f"rl.variant modulation needs method deeplatent, not {recipe.method!r}.")
            moved = [module for name in ("of_latents", "of_image") if (module := getattr(self.method, name, None))]
            check(bool(moved), "rl.variant modulation needs modulations; this checkpoint has none.")
            self.method.requires_grad_(False)
            for module in moved:
                module.requires_grad_(True)
        check(
            options.variant in ("text", "constants") or self.method.has_latents,
            f"rl.variant {options.variant} needs latents; method {recipe.method!r} has none.",
        )
        self.reward = Reward(
            ((options.accuracy_weight, accuracy), (options.format_weight, boxed), (options.bonus, invocation))
        )
        self._held: Batch | None = None
        # in a tuple, so that nobody trains, saves or wraps it
        self._reference: tuple[Backbone, LatentMethod] | None = None

    def keep_reference(self) -> None:
        """Keeps the policy as it is now as the reference: before a resumed run's own weights are loaded."""
        if self.options.kl:
            model, method = copy.deepcopy(self.model), copy.deepcopy(self.method)
            self._reference = Backbone(model.requires_grad_(False).eval()), method.requires_grad_(False).eval()

    @property
    def reference(self) -> tuple[Backbone, LatentMethod]:
        """The policy at the start, on this one's device."""
        assert self._reference is not None
        return tuple(part.to(self.backbone.device) for part in self._reference)

    def collate(self, items: list[tuple[Example, Random]]) -> dict[str, object]:
        rng = items[0][1]
        return {"examples": [example for example, _ in items], "seed": rng.randrange(2**31)}

    def forward(self, examples: Sequence[Example], seed: int) -> dict[str, object]:
        if not self.training:
            return self._evaluate(examples)
        key = tuple(example.name for example in examples)
        if self._held is None or self._held.key != key:
            self._held = self.collect(examples, seed)
        batch = self._held
        nothing = sum((0 * p.float()).sum() for p in self.parameters() if p.requires_grad)
        if not batch.rollouts:
            return {"loss": nothing, "metrics": batch.metrics}
        loss, metrics = self.loss(batch)
        return {"loss": loss + nothing, "metrics": batch.metrics | metrics}

    def settings(self, seed: int) -> Settings:
        """How a rollout is decoded."""
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
        self.method.train(options.variant == "modulation")  # what a method draws has a ratio there, and nowhere else
        prompts = [p for e in examples for p in [self.processor(e.images, e.question)] * group]
        rollouts = roll_out(
            self.backbone,
            self.method,
            prompts,
            [self.settings(seed + number) for number in range(len(prompts))],
            self.processor.decode,
            noise=options.noise if options.variant == "vlpo" else 0.0,
        )
        owners = [example for example in examples for _ in range(group)]
        right = torch.tensor([accuracy(r, e) for r, e in zip(rollouts, owners, strict=True)]).view(-1, group)
        rewards = torch.tensor([self.reward(r, e) for r, e in zip(rollouts, owners, strict=True)]).view(-1, group)
        solved = right.mean(1)
        taught = (solved > 0) & (solved <= options.easy) & (rewards.std(1) > 0)
        kept = [number for number in range(len(rollouts)) if taught[number // group]]
        chosen = [rollouts[number] for number in kept]
        reference: list[Replayed] = []
        if options.kl and chosen:
            reference = replay(*self.reference, chosen, options.temperature)
        features: list[torch.Tensor] = []
        if options.variant == "modulation" and chosen:
            features = see(self.backbone, [rollout.row.prompt for rollout in chosen])
        return Batch(
            key=tuple(example.name for example in examples),
            rollouts=chosen,
            advantages=advantages(rewards).flatten()[kept],
            reference=reference,
            features=features,
            metrics={
                "reward": rewards.mean().item(),
                "accuracy": right.mean().item(),
                "trigger": sum(bool(r.latents) for r in rollouts) / len(rollouts),
                "taught": taught.float().mean().item(),
                "length": sum(len(r.ids) for r in rollouts) / len(rollouts),
            },
        )

    def loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """The objective over one replay of all rollouts, and how far the policy has moved."""
        options = self.options
        now = replay(self.backbone, self.method, batch.rollouts, options.temperature)
        terms, penalties, moved = [], [], {"token": [], "latent": []}
        for number, (rollout, mine) in enumerate(zip(batch.rollouts, now, strict=True)):
            theirs = batch.reference[number] if batch.reference else None
            device = mine.logprobs.device
            words = mine.logprobs - rollout.logprobs.to(device)
            ratios = [words]
            costs = [k3(mine.logprobs - theirs.logprobs) if theirs else torch.zeros_like(words)]
            if options.variant == "vlpo":
                for ratio, cost in self.latents(rollout, mine, theirs):
                    ratios.append(ratio)
                    costs.append(cost)
            if options.variant == "modulation":
                for ratio, cost in self.modulations(rollout, mine, theirs, batch.features[number]):
                    ratios.append(ratio[None])
                    costs.append(cost[None])
            moved["token"].append(words.detach())
            moved["latent"] += [ratio.detach() for ratio in ratios[1:]]
            advantage = batch.advantages[number].to(device)
            clip = dict(low=options.low, high=options.high, dual=options.dual or None)
            terms.append(surrogate(torch.cat(ratios), advantage, **clip))
            penalties.append(torch.cat(costs))
        loss = objective(terms, penalties, weight=options.kl, by=options.aggregation)
        metrics = {"kl": torch.cat(penalties).mean().item()}
        for kind, values in moved.items():
            if values:
                every = torch.cat(values)
                ratios = every.clamp(-10, 10).exp()
                clipped = (ratios < 1 - options.low) | (ratios > 1 + options.high)
                metrics |= {f"{kind}_ratio": ratios.mean().item()}
                metrics |= {f"{kind}_clipped": clipped.float().mean().item()}
        return loss, metrics

    def latents(
        self, rollout: Rollout, mine: Replayed, theirs: Replayed | None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Per block the log-ratios (K,) and KL (K,) of VLPO."""
        options = self.options
        for block, fed in enumerate(rollout.latents):
            if not len(fed):
                continue
            fed, then = fed.to(mine.producers[block]), rollout.producers[block].to(mine.producers[block])
            sigma = options.sigma
            if options.noise:
                sigma = options.noise * then.float().square().mean(-1).sqrt()
            ratio = latent_log_ratio(fed, mine.producers[block], sigma, then if options.noise else None)
            cost = torch.zeros_like(ratio)
            if theirs:
                cost = k3(latent_log_ratio(fed, mine.producers[block], sigma, theirs.producers[block]))
            yield ratio, cost

    def modulations(
        self, rollout: Rollout, mine: Replayed, theirs: Replayed | None, features: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Per modulation action its log-ratio () and its KL ()."""
        reduction = self.options.reduction
        blocks = [segment for segment in rollout.row.segments if isinstance(segment, Block)]
        for number, (block, drawn) in enumerate(zip(blocks, rollout.drawn, strict=True)):
            if not drawn:
                continue
            inputs = self.method.queries(block.grid), features
            now = [m for m in self.method.modulated(mine.controls[number], *inputs) if m is not None]
            other: list[Modulated | None] = [None] * len(now)
            if theirs:
                _, method = self.reference
                other = [m for m in method.modulated(theirs.controls[number], *inputs) if m is not None]
            for modulated, action, reference in zip(now, drawn, other, strict=True):
                x = inputs[action.of]
                ratio = modulation_log_ratio(modulated, action.modulated, x, action.noise, reduction)
                cost = torch.zeros_like(ratio)
                if reference is not None:
                    cost = getattr(modulated.divergence(reference, x), reduction)()
                yield ratio, cost

    @torch.no_grad()
    def _evaluate(self, examples: Sequence[Example]) -> dict[str, object]:
        """Greedy answers; the loss is minus the mean reward."""
        self.method.eval()
        prompts = [self.processor(example.images, example.question) for example in examples]
        greedy = Settings(latents=self.recipe.latents_default, max_new_tokens=self.options.max_new_tokens)
        rollouts = roll_out(self.backbone, self.method, prompts, [greedy] * len(prompts), self.processor.decode)
        found: dict[str, list[float]] = {}
        rewards = []
        for rollout, example in zip(rollouts, examples, strict=True):
            found.setdefault(str(example.metadata.get("family", "all")), []).append(accuracy(rollout, example))
            rewards.append(self.reward(rollout, example))
        metrics = {f"accuracy_{family}": sum(values) / len(values) for family, values in found.items()}
        return {"loss": -torch.tensor(sum(rewards) / len(rewards)), "metrics": metrics}
