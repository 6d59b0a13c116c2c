"""`python -m trainers run RECIPE --dry-run`: checks data and settings and says what the run would cost.

Nothing is trained and no weights are loaded: the model exists as shapes alone.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
import yaml
from transformers import PreTrainedConfig, PreTrainedTokenizerFast, TrainingArguments

from latent_core.checkpoints.published import FINAL
from latent_core.example import Example
from latent_core.glyphs.scene import SIZE
from latent_core.methods import build_method
from latent_core.model.backbones import image_geometry
from latent_core.model.model_config import read_model_config
from latent_core.settings import check
from trainers.data.caps import shrink
from trainers.data.repeated import Repeated
from trainers.data.rows import PublishedDataset
from trainers.loop.copies import check_updates
from trainers.loop.launch import build_data, check_run, checkpoints_activations
from trainers.parallel import SHARDS
from trainers.planning.architectures import published
from trainers.planning.costs import (
    CONTEXT,
    GB,
    GPUS,
    MFU,
    Load,
    Shape,
    Strategy,
    activation_memory,
    cache_memory,
    rollout_time,
    shape,
    state_memory,
    step_time,
)
from trainers.planning.lengths import ImageSizes, Length, RowSizes, text_by_role
from trainers.recipe import Recipe, load_recipe, recipes
from trainers.tiny_model import build_model, build_tokenizer

SAMPLE = 200
"""Rows whose lengths are measured."""
TEMPLATE = 30
"""Tokens of the chat template around a question, estimated."""
CHARACTERS = 3.5
"""Of English per token of Qwen's tokenizer, where that is not at hand."""


@dataclass(frozen=True, slots=True)
class Source:
    """The checkpoint that a run starts from, as far as it can be known."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerFast | None
    name: str


def strategy_of(file: str | None, gpus: int | None) -> tuple[Strategy, int, str]:
    """Strategy, number of processes and mixed precision of an accelerate configuration file; one process without."""
    if file is None:
        return "one", 1, "no"
    try:
        settings = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid YAML: {' '.join(str(error).split())}.") from error
    check(isinstance(settings, dict), f"{file} holds no settings; give a configuration file of accelerate's.")
    count = settings.get("num_processes", 1) if gpus is None else gpus
    check(isinstance(count, int) and count > 0, f"The number of processes is {count!r}; at least 1 is needed.")
    mixed = str(settings.get("mixed_precision") or "no")
    match settings.get("distributed_type"):
        case "FSDP":
            return "fsdp2", count, mixed
        case "DEEPSPEED":
            stage = settings.get("deepspeed_config", {}).get("zero_stage")
            check(stage in (2, 3), f"{file}: zero_stage is {stage!r}; stages 2 and 3 can be planned.")
            return f"zero{stage}", count, mixed
        case "MULTI_GPU" | "MULTI_CPU":
            return "ddp", count, mixed
        case kind:
            raise ValueError(f"{file}: distributed_type is {kind!r}; FSDP, DEEPSPEED and MULTI_GPU can be planned.")


def plan(
    recipe: Recipe, arguments: TrainingArguments, *, config: str | None = None, gpus: int | None = None, gpu: str
) -> str:
    """The estimate, as text.

    config: accelerate's configuration file. gpu: a name in GPUS.

    Raises ValueError with reason and remedy for settings that cannot work.
    """
    strategy, count, mixed = strategy_of(config, gpus)
    sharded = strategy not in ("one", "ddp")
    spec = recipe.spec
    check(not spec.reinforces or strategy != "zero3", SHARDS)
    check_updates(
        recipe.dtype, arguments.optim.value, sharded=sharded, mixed_precision="bf16" if arguments.bf16 else mixed
    )
    check_run(recipe, arguments)
    source = find_source(recipe, Path(arguments.output_dir).parent)
    rows, described = read_rows(recipe, arguments)
    lengths = [length(example, recipe, source) for example in rows]
    longest = max(max(row.student, row.teacher) for row in lengths)
    context = source.config.text_config.max_position_embeddings
    check(longest <= context, f"A row has {longest} tokens, but the model's context {context}; lower caps.total.")
    model = with_method(shape(source.config, train_vision=spec.stage.trains_vision(recipe)), recipe)
    b = 2 if recipe.dtype == "bfloat16" else 4
    load = spec.stage.load(recipe, lengths, arguments.per_device_train_batch_size, model.vocabulary)
    memory = memory_per_gpu(model, load, strategy, count, b, checkpointing=checkpoints_activations(arguments))
    card, need = GPUS[gpu], sum(memory.values())
    sampling = rollout_time(model, load, card, b) / load.updates
    seconds = (step_time(model, load, card, b) + sampling) * arguments.gradient_accumulation_steps
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * count
    student, teacher = ([getattr(row, kind) for row in lengths] for kind in ("student", "teacher"))
    uncounted = spec.stage.uncounted(recipe)
    saved = model.parameters * b + (12 if b == 2 else 8) * model.trainable
    copies = "; the optimiser steps fp32 copies of the trained ones" if b == 2 else ""
    lines = [
        f"{recipe.name}: {recipe.stage} from {source.name}",
        f"data            {described}",
        f"tokens a row    {spread(student)}" + (f"; teacher {spread(teacher)}" if any(teacher) else ""),
        *([] if source.tokenizer else [f"                text estimated at {CHARACTERS} characters a token"]),
        f"parameters      {model.parameters:,}, {model.trainable:,} of them trained, {recipe.dtype}{copies}",
        *([f"encoders        {', '.join(uncounted)}: frozen, not counted"] if uncounted else []),
        f"batch           {batch} rows: {arguments.per_device_train_batch_size} × "
        f"{arguments.gradient_accumulation_steps} steps of accumulation × {count} processes ({strategy})",
        "memory per GPU  " + ", ".join(f"{name} {value / GB:.3g}" for name, value in memory.items() if value),
        f"                {need / GB:.3g} of {card.memory / GB:.3g} GB ({gpu}), at the longest of {len(rows)} rows",
        f"time            {seconds:.3g} s a step, {seconds * arguments.max_steps / 3600:.3g} h for "
        f"{arguments.max_steps} steps, at {MFU:.0%} of the peak",
        f"disk            {saved / GB:.3g} GB a checkpoint, {arguments.save_total_limit or 'all'} kept",
    ]
    if need > card.memory:
        shards = "fsdp2.yaml or zero2.yaml" if spec.reinforces else "fsdp2.yaml or zero3.yaml"
        remedy = f"Take {shards}, more GPUs,"
        if not sharded:
            remedy = f"Spread it over several GPUs (--config trainers/accelerate/{shards}),"
        raise ValueError(
            f"{recipe.name} needs {need / GB:.0f} GB a GPU, {gpu} has {card.memory / GB:.0f} "
            f"({', '.join(f'{name} {value / GB:.0f}' for name, value in memory.items() if value > GB)}). "
            f"{remedy} lower caps.total, or take fewer rows per device."
        )
    return "\n".join(lines)


def find_source(recipe: Recipe, runs: Path) -> Source:
    """Configuration and tokenizer that a recipe starts from, along recipes that have not run yet."""
    name, shapes = recipe.init, published()
    while name is not None:
        for folder in (runs / name / FINAL, Path(name)):
            if (folder / "config.json").is_file():
                tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
                return Source(read_model_config(folder), tokenizer, str(folder))
        if name in shapes:
            return Source(
                shapes[name], None, f"{name} (shape only)" if name == recipe.init else f"{recipe.init}, {name}"
            )
        if name not in recipes():
            backbones = ", ".join(shapes)
            raise ValueError(
                f"init is {name!r}: no recipe, no checkpoint folder, and no backbone known here ({backbones})."
            )
        name = load_recipe(name, [])[0].init
    tokenizer = build_tokenizer()
    return Source(build_model(tokenizer).config, tokenizer, recipe.init or "the tiny Glyphs model")


def with_method(model: Shape, recipe: Recipe) -> Shape:
    """The shape with the method's own parameters, trained as far as the stage has them learn."""
    with torch.device("meta"):
        method = build_method(recipe.method_config(), lambda token: 0)
    recipe.spec.stage.freeze(recipe, method)
    count, learned = (
        sum(p.numel() for p in method.parameters() if p.requires_grad or not trained) for trained in (False, True)
    )
    return replace(model, parameters=model.parameters + count, trainable=model.trainable + learned)


def read_rows(recipe: Recipe, arguments: TrainingArguments) -> tuple[list[Example], str]:
    """Some rows of the training data and a description; all published rows are checked. Raises ValueError."""
    data, _ = build_data(recipe, arguments, None)
    data = data.data if isinstance(data, Repeated) else data
    rows = [data[index][0] for index in range(min(SAMPLE, len(data)))]
    if not isinstance(data, PublishedDataset):
        return rows, f"Glyphs, {', '.join(f'{name} {weight:g}' for name, weight in recipe.mixture.items())}"
    counts = ", ".join(f"{name} {count:,}" for name, count in sorted(data.counts().items()))
    epochs = len(data) / len(data.rows)
    return rows, f"{len(data.rows):,} rows ({counts}), {len(data.bad)} left out; {epochs:.3g} epochs"


def length(example: Example, recipe: Recipe, source: Source) -> Length:
    """Tokens of a row as the stage lays it out, with the largest K."""
    caps, geometry = recipe.caps, image_geometry(source.config)
    side, limits = geometry.token_side, (geometry.min_pixels, geometry.max_pixels)
    student = shrink(example, caps.total, caps.each, side=side) if caps.total else example
    teacher = shrink(example, caps.teacher_total, caps.teacher_each, side=side) if caps.teacher_total else student

    def tokens(text: str) -> int:
        return text_tokens(source, text)

    row = RowSizes(
        example=student,
        teacher=None if recipe.teacher is None else teacher,
        prompt=TEMPLATE + tokens(example.question) + tokens(recipe.system or ""),
        text=text_by_role(example, tokens),
        images=ImageSizes(side, *((SIZE**2, SIZE**2) if recipe.mixture else limits)),
    )
    return recipe.spec.stage.length(recipe, row)


def text_tokens(source: Source, text: str) -> int:
    """Tokens of a text, estimated where there is no tokenizer."""
    if source.tokenizer is None:
        return round(len(text) / CHARACTERS)
    return len(source.tokenizer(text, add_special_tokens=False).input_ids)


def memory_per_gpu(
    model: Shape, load: Load, strategy: Strategy, count: int, b: int, *, checkpointing: bool
) -> dict[str, float]:
    """Bytes by use."""
    states = state_memory(model, strategy, count, b)
    activations = activation_memory(model, load, b, checkpointing=checkpointing)
    frozen = {load.frozen: b * model.parameters} if load.frozen else {}
    if load.rolled:
        # rollouts come before the loss pass, with whole weights
        gathered = b * model.parameters if strategy == "fsdp2" else 0
        rollouts = gathered + cache_memory(model, load.rolled, b)
        frozen["rollouts, beyond the loss pass"] = max(0.0, rollouts - sum(activations.values()))
    return states | frozen | activations | {"context": CONTEXT}


def spread(values: list[int]) -> str:
    """Minimum, median, 95th percentile, maximum."""
    ordered = sorted(values)
    high = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    return f"{ordered[0]} to {ordered[-1]}, median {median(ordered):.0f}, 95% below {high + 1}"
