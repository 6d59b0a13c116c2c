"""A run from its recipe to the finished checkpoint's folder."""

import dataclasses
from functools import partial
from importlib.metadata import version
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Literal

import torch
from accelerate import PartialState
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import TensorBoardCallback
from transformers.utils import logging

from latent_core.checkpoints.loading import load_model, load_parameters, read_config, save
from latent_core.checkpoints.published import FINAL, PUBLISHED, full_name
from latent_core.methods import build_method
from latent_core.model.model_config import check_fit
from latent_core.model.processor import Processor
from latent_core.settings import check
from trainers.arguments import check_buildable
from trainers.data.formats import FORMATS
from trainers.data.glyphs import GlyphsDataset
from trainers.data.repeated import Repeated
from trainers.data.rows import PublishedDataset
from trainers.loop.copies import check_updates
from trainers.loop.folder import BAD_ROWS, METRICS, TENSORBOARD, clear_drafts, held, set_aside
from trainers.loop.origin import Origin, source_folder
from trainers.loop.saves import final_damage, last_checkpoint, resume_from
from trainers.loop.stopping import Diverged, Interrupted, SaveWhenAsked, Signals, kept, why_diverged
from trainers.loop.trainer import JsonlLog, Progress, StageTrainer, StopAt
from trainers.loop.vocabulary import add_tokens
from trainers.parallel import from_main, keeps_copies
from trainers.recipe import Recipe
from trainers.stage import Stage
from trainers.tiny_model import build_image_processor, build_model, build_tokenizer

Standing = Literal["finished", "saved", "begun", "other"]
"""State of a run's folder: it holds this run's end, a checkpoint of it, its beginning, or another run or nothing."""


def build_stage(recipe: Recipe, runs: Path) -> Stage:
    """The module that a run optimises, with its model and processor inside."""
    dtype = getattr(torch, recipe.dtype)
    if recipe.init is None:
        tokenizer = build_tokenizer()
        model, processor = build_model(tokenizer), Processor(tokenizer, build_image_processor())
    else:
        folder = source_folder(recipe.init, runs)
        model, processor = load_model(folder, dtype=dtype), Processor.load(folder)
        check_fit(model.config, processor, recipe.init)
    if recipe.method != "text":
        processor = add_tokens(model, processor, recipe.tokens())
    stage = recipe.spec.stage(model.train(), processor, recipe)
    for parameter in stage.parameters():  # heads, too; buffers such as frequencies stay exact
        parameter.data = parameter.data.to(dtype)
    if recipe.spec.reinforces:
        load_parameters(stage.method, folder)
        check_goes_on(recipe, folder)
    stage.at_start()
    if recipe.teacher is not None:
        stage.learn_from(load_model(source_folder(recipe.teacher, runs), dtype=dtype))
    return stage


def check_goes_on(recipe: Recipe, folder: Path) -> None:
    """Refuses to reinforce a checkpoint otherwise than it was taught. Raises ValueError with the remedy."""
    name = full_name(recipe.init)
    if not (folder / "method.json").is_file() and name not in PUBLISHED:
        return
    before, now = read_config(folder, name), recipe.method_config()
    for field in ("method", "system", "convention"):
        former, value = getattr(before, field), getattr(now, field)
        check(
            former == value,
            f"{field} is {value!r}, but {recipe.init} was taught with {former!r}; set {field} to that.",
        )


def checkpoints_activations(arguments: TrainingArguments) -> bool:
    """Whether activations are computed again instead of kept, under the option's older or newer name."""
    return bool(getattr(arguments, "activation_checkpointing", None) or arguments.gradient_checkpointing)


def check_run(recipe: Recipe, arguments: TrainingArguments) -> None:
    """Refuses settings that contradict each other. Raises ValueError with the remedy."""
    check(arguments.max_steps > 0, f"max_steps is {arguments.max_steps}; a run needs at least 1.")
    check_buildable(arguments)
    check(
        arguments.warmup_steps <= arguments.max_steps,
        f"warmup_steps is {arguments.warmup_steps}, but the run has {arguments.max_steps} steps; warm up for fewer.",
    )
    check(
        not arguments.eval_on_start or arguments.eval_strategy != "no",
        "eval_on_start is true, eval_strategy no: there is nothing to validate on; set eval_strategy=steps.",
    )
    repeats = recipe.spec.stage.repeats(recipe)
    check(
        arguments.save_strategy == "no" or arguments.save_steps % repeats == 0,
        f"save_steps is {arguments.save_steps}, but {repeats} steps each learn from one batch; a checkpoint stands "
        "between two batches, so take a multiple.",
    )
    check(
        not (checkpoints_activations(arguments) and recipe.spec.unrolled),
        f"activation_checkpointing drops the cache that latents of stage {recipe.stage} are generated with; turn it "
        "off and shard the model instead.",
    )


def build_data(recipe: Recipe, arguments: TrainingArguments, report: Path | None) -> tuple[Dataset, Dataset | None]:
    """Rows to train on, in the order of the run, and rows to validate on, if any. report: lists skipped rows."""
    batch = arguments.per_device_train_batch_size * arguments.world_size
    rows = batch * arguments.gradient_accumulation_steps * arguments.max_steps
    seed = arguments.data_seed or arguments.seed
    evaluates = arguments.eval_strategy != "no"
    times = recipe.spec.stage.repeats(recipe)
    fresh = -(-rows // times)
    if recipe.mixture:
        learned = GlyphsDataset(recipe.mixture, fresh, batch=batch, seed=seed)
        val = GlyphsDataset(recipe.mixture, recipe.val_size * len(recipe.mixture), split="val") if evaluates else None
    else:
        data, report = recipe.data, report if arguments.should_save else None
        options = dict(on_bad_row=data.on_bad_row, instruction=data.instruction)
        published = partial(PublishedDataset, data.files, data.root, FORMATS[data.format], **options)
        learned = published(size=fresh, batch=batch, split="train", seed=seed, report=report)
        val = published(size=recipe.val_size, split="val") if evaluates else None
    if times > 1:
        learned = Repeated(learned, batch * arguments.gradient_accumulation_steps, times)
    return learned, val


def train(recipe: Recipe, arguments: TrainingArguments, *, resume: bool = True) -> Path:
    """Runs a recipe to its end, from its newest whole checkpoint if there is one; returns the final folder.

    A run that already finished with the same recipe and the same start is not run again.

    Raises:
        ValueError: if the run folder holds checkpoints of another recipe, or none that is whole; if the run diverges.
        OSError: if a file cannot be written; complete checkpoints stay as they are.
        Interrupted: by SIGTERM or Ctrl-C, with what the next start goes on from.
    """
    run = Path(arguments.output_dir)
    try:
        with Signals(saves=arguments.enable_jit_checkpoint) as signals:
            return _train(recipe, arguments, run, resume, signals)
    except Diverged as error:
        raise ValueError(why_diverged(error, recipe.name, arguments, run)) from None
    except OSError as error:
        if error.errno is None:  # has its sentence
            raise
        raise OSError(f"{recipe.name} stopped: {error.filename or run}: {error.strerror}. {kept(run)}") from error
    except KeyboardInterrupt as error:
        number = getattr(error, "signal", SIGINT)
        raise Interrupted(f"{recipe.name} was interrupted by {number.name}. {kept(run)}", number) from None


def _train(recipe: Recipe, arguments: TrainingArguments, run: Path, resume: bool, signals: Signals) -> Path:
    check(
        arguments.n_gpu <= 1,
        f"This process sees {arguments.n_gpu} GPUs, among which Trainer would cut every batch up; start one process "
        "for each with `accelerate launch --config_file trainers/accelerate/….yaml`, or show it one with "
        "CUDA_VISIBLE_DEVICES=0.",
    )
    sharded, mixed = keeps_copies(arguments), arguments.mixed_precision
    check_updates(recipe.dtype, arguments.optim.value, sharded=sharded, mixed_precision=mixed)
    check_run(recipe, arguments)
    with held(run):
        origin = from_main(lambda: Origin.of(recipe, run.parent))
        standing = from_main(lambda: look(run, origin, resume))
        if standing != "finished":
            _optimise(recipe, arguments, run, origin, standing, signals)
    return run / FINAL


def look(run: Path, origin: Origin, resume: bool) -> Standing:
    """The standing of a folder that is held. Raises ValueError where that is another run, not to be begun anew.

    A finished checkpoint that is damaged is set aside, with a line that says so.
    """
    clear_drafts(run)
    if not resume:
        return "other"
    final = run / FINAL
    reason = final_damage(final) if final.exists() else ""
    whole = final.exists() and not reason
    if whole and origin.made(final):
        return "finished"
    begun = origin.began(run)
    if (last_checkpoint(run) and not begun) or whole:
        raise ValueError(
            f"{run} holds checkpoints of another version of this recipe; "
            "remove the folder, set output_dir to a new one, or pass --restart, which sets them aside."
        )
    if reason:
        print(f"{final} is left out: {reason}.", flush=True)
        set_aside(run, only=FINAL)
    if not begun:
        return "other"
    if last_checkpoint(run) is None:
        return "begun"
    origin.check_parents(run)
    return "saved"


def begin(run: Path, origin: Origin, standing: Standing) -> None:
    """Has a folder say what the weights to come are of; those of another run are set aside first."""
    if standing == "other":
        set_aside(run)
    if standing != "saved":
        origin.record(run)


def _optimise(
    recipe: Recipe, arguments: TrainingArguments, run: Path, origin: Origin, standing: Standing, signals: Signals
) -> None:
    set_seed(arguments.seed)
    logging.disable_progress_bar()
    stage = build_stage(recipe, run.parent)
    PartialState().wait_for_everyone()  # nobody writes before everybody has read
    same = from_main(lambda: Origin.of(recipe, run.parent) == origin)
    check(same, f"What {recipe.name} starts from was replaced while it was read; start it again.")
    from_main(lambda: begin(run, origin, standing))
    data, val = build_data(recipe, arguments, run / BAD_ROWS)
    stop_at = StopAt(recipe.stop_at)
    save_when_asked = SaveWhenAsked(signals, recipe.spec.stage.repeats(recipe))
    trainer = StageTrainer(
        model=stage,
        args=arguments,
        data_collator=stage.collate,
        train_dataset=data,
        eval_dataset=val,
        callbacks=[
            stop_at,
            save_when_asked,
            *(_logs(recipe, run) if arguments.should_save else ()),
            *stage.callbacks(run, val),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = resume_from(run, trainer.files())
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if save_when_asked.stopped and not stop_at.reached:
        raise Interrupted("SIGTERM", SIGTERM)
    weights = trainer.weights()
    trainer.check(weights.items())
    if arguments.should_save:
        save_final(stage, recipe, run, origin, weights)
    PartialState().wait_for_everyone()


def _logs(recipe: Recipe, run: Path) -> list[TrainerCallback]:
    """The callbacks by which the main process writes a run's logs."""
    return [JsonlLog(run / METRICS), Progress(recipe), TensorBoardCallback(SummaryWriter(run / TENSORBOARD))]


def save_final(stage: Stage, recipe: Recipe, run: Path, origin: Origin, weights: dict[str, torch.Tensor]) -> None:
    """Writes the finished checkpoint beside the run's logs, whole or not at all; weights: all of the stage's."""
    config = recipe.method_config(
        {
            "command": f"python -m trainers run {recipe.name}",
            "fingerprint": origin.fingerprint,
            "run": origin.recipe,
            "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        }
    )
    before = source_folder(recipe.init, run.parent) if recipe.spec.reinforces else run
    if (before / "method.json").is_file():  # reinforced blocks may be as long as they might have been before
        most = max(read_config(before, recipe.init).latents.max, config.latents.max)
        config = dataclasses.replace(config, latents=dataclasses.replace(config.latents, max=most))
    prefix = "model."
    model_weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    with torch.device("meta"):
        model = type(stage.model)(stage.model.config)
    model.load_state_dict(model_weights, strict=False, assign=True)
    model.tie_weights()
    model.generation_config = stage.model.generation_config
    prefix = "method."
    method_weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    method = None
    if method_weights:
        method = build_method(config, stage.processor.token_id)
        method.load_state_dict(method_weights)
    save(run / FINAL, model=model, processor=stage.processor, config=config, method=method)
