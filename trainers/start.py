"""From a recipe to a finished checkpoint folder."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from signal import SIGINT, SIGTERM

import torch
from accelerate import PartialState
from torch import nn
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

from latent_core.checkpoints import find, load_model, load_parameters, read_config, save
from latent_core.embedded import EMBEDDED
from latent_core.glyphs.model import build_image_processor, build_model, build_tokenizer
from latent_core.methods import build_method
from latent_core.model_config import check_fit
from latent_core.processor import Processor
from latent_core.registry import FINAL, PUBLISHED, full_name
from latent_core.settings import check
from trainers.copies import check_updates
from trainers.data.formats import FORMATS
from trainers.data.glyphs import GlyphsDataset
from trainers.data.rows import PublishedDataset
from trainers.parallel import keeps_copies
from trainers.recipe import UNROLLED, Recipe, recipes
from trainers.rl.samples import SaveSamples
from trainers.rl.stage import Repeated, RlStage
from trainers.run import JsonlLog, Progress, StageTrainer, StopAt
from trainers.saves import forget, last_checkpoint, resume_from
from trainers.sft.deeplatent import Distil, Interleaved
from trainers.sft.latent import LatentStage
from trainers.sft.lvr import LvrStage
from trainers.sft.monet import AlignLatents, AlignObservations, WarmUp
from trainers.sft.text import TextStage
from trainers.sft.valr import ValrStage
from trainers.sft.vision import VisionStage
from trainers.stopping import Diverged, Interrupted, SaveWhenAsked, Signals, kept, why_diverged
from trainers.vocabulary import add_tokens

STAGES: dict[str, Callable[[nn.Module, Processor, Recipe], nn.Module]] = {
    "vision": VisionStage,
    "text": TextStage,
    "latent": LatentStage,
    "lvr": LvrStage,
    "valr": ValrStage,
    "deeplatent1": Interleaved,
    "deeplatent2": Distil,
    "rl": RlStage,
    "monet1": WarmUp,
    "monet2": AlignObservations,
    "monet3": AlignLatents,
}


def source_folder(init: str, runs: Path) -> Path:
    """Where `init` lies: a recipe's finished run, a checkpoint folder or name, or a Hub id, which is fetched.

    A recipe that has not run here, but whose checkpoint is embedded, need not run again.
    """
    for folder in (runs / init / FINAL, Path(init), EMBEDDED / init):
        if (folder / "config.json").is_file():
            return folder
    if init in recipes():
        raise ValueError(
            f"init is {init!r}, a recipe that has not finished; run `python -m trainers run {init}` first."
        )
    return find(init)


def build_stage(recipe: Recipe, runs: Path) -> nn.Module:
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
    stage = STAGES[recipe.stage](model.train(), processor, recipe)
    for parameter in stage.parameters():  # heads, too; buffers such as frequencies stay exact
        parameter.data = parameter.data.to(dtype)
    if recipe.stage == "rl":  # it goes on with a whole checkpoint
        load_parameters(stage.method, folder)
        check_goes_on(recipe, folder)
        stage.keep_reference()
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
        was, given = getattr(before, field), getattr(now, field)
        check(was == given, f"{field} is {given!r}, but {recipe.init} was taught with {was!r}; set {field} to that.")


def checkpoints_activations(arguments: TrainingArguments) -> bool:
    """Whether activations are computed again instead of kept, under the option's older or newer name."""
    return bool(getattr(arguments, "activation_checkpointing", None) or arguments.gradient_checkpointing)


def check_run(recipe: Recipe, arguments: TrainingArguments) -> None:
    """Refuses settings that contradict each other. Raises ValueError with the remedy."""
    check(arguments.max_steps > 0, f"max_steps is {arguments.max_steps}; a run needs at least 1.")
    check(
        arguments.warmup_steps <= arguments.max_steps,
        f"warmup_steps is {arguments.warmup_steps}, but the run has {arguments.max_steps} steps; warm up for fewer.",
    )
    check(
        not arguments.eval_on_start or arguments.eval_strategy != "no",
        "eval_on_start is true, eval_strategy no: there is nothing to validate on; set eval_strategy=steps.",
    )
    if recipe.stage == "rl":
        saves, updates = arguments.save_strategy != "no", recipe.rl.updates
        check(
            not saves or arguments.save_steps % updates == 0,
            f"save_steps is {arguments.save_steps}, rl.updates {updates}; a checkpoint stands between two batches of "
            "rollouts, so take a multiple.",
        )
    check(
        not (checkpoints_activations(arguments) and recipe.stage in UNROLLED),
        f"activation_checkpointing drops the cache that latents of stage {recipe.stage} are generated with; turn it "
        "off and shard the model instead.",
    )


def build_data(recipe: Recipe, arguments: TrainingArguments, report: Path | None) -> tuple[Dataset, Dataset | None]:
    """Rows to train on, in the order of the run, and rows to validate on, if any. report: lists skipped rows."""
    batch = arguments.per_device_train_batch_size * arguments.world_size
    rows = batch * arguments.gradient_accumulation_steps * arguments.max_steps
    seed = arguments.data_seed or arguments.seed
    evaluates = arguments.eval_strategy != "no"
    times = recipe.rl.updates if recipe.stage == "rl" else 1
    fresh = -(-rows // times)
    if recipe.mixture:
        learned = GlyphsDataset(recipe.mixture, fresh, batch=batch, seed=seed)
        val = GlyphsDataset(recipe.mixture, recipe.val_size * len(recipe.mixture), split="val") if evaluates else None
    else:
        data, report = recipe.data, report if arguments.should_save else None
        asked = dict(on_bad_row=data.on_bad_row, instruction=data.instruction)
        published = partial(PublishedDataset, data.files, data.root, FORMATS[data.format], **asked)
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
    except KeyboardInterrupt as error:
        number = getattr(error, "signal", SIGINT)
        raise Interrupted(f"{recipe.name} was interrupted by {number.name}. {kept(run)}", number) from None


def _train(recipe: Recipe, arguments: TrainingArguments, run: Path, resume: bool, signals: Signals) -> Path:
    check_run(recipe, arguments)
    check(
        arguments.n_gpu <= 1,
        f"This process sees {arguments.n_gpu} GPUs, among which Trainer would cut every batch up; start one process "
        "for each with `accelerate launch --config_file trainers/accelerate/….yaml`, or show it one with "
        "CUDA_VISIBLE_DEVICES=0.",
    )
    sharded, mixed = keeps_copies(arguments), arguments.mixed_precision
    check_updates(recipe.dtype, arguments.optim.value, sharded=sharded, mixed_precision=mixed)
    run.mkdir(parents=True, exist_ok=True)
    record = run / "recipe.json"
    text = json.dumps(_changed(recipe), indent=1, sort_keys=True)
    key = fingerprint(text, recipe, run.parent)
    if resume and finished(run / FINAL) == key:
        return run / FINAL
    if resume and last_checkpoint(run) and (not record.is_file() or record.read_text() != text):
        raise ValueError(
            f"{run} holds checkpoints of another version of this recipe; "
            "remove the folder, set output_dir to a new one, or pass --restart."
        )
    PartialState().wait_for_everyone()  # nobody writes before everybody has read
    if arguments.should_save:
        record.write_text(text)
    set_seed(arguments.seed)
    logging.disable_progress_bar()
    stage = build_stage(recipe, run.parent)
    data, val = build_data(recipe, arguments, run / "bad_rows.jsonl")
    ends = StopAt(recipe.stop_at), SaveWhenAsked(signals, recipe.rl.updates if recipe.stage == "rl" else 1)
    trainer = StageTrainer(
        model=stage,
        args=arguments,
        data_collator=stage.collate,
        train_dataset=data,
        eval_dataset=val,
        callbacks=[
            *ends,
            *(_logs(recipe, run) if arguments.should_save else ()),
            *_samples(recipe, run, val),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = resume_from(run, trainer.files()) if resume else None
    if not resume and arguments.should_save:
        forget(run)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    reached, asked = ends
    if asked.stopped and not reached.reached:
        raise Interrupted("SIGTERM", SIGTERM)
    weights = trainer.weights()
    trainer.check(weights.items())
    if arguments.should_save:
        save_final(stage, recipe, run, text, key, weights)
    PartialState().wait_for_everyone()
    return run / FINAL


def _logs(recipe: Recipe, run: Path) -> list[TrainerCallback]:
    """What the main process writes of a run."""
    return [JsonlLog(run / "metrics.jsonl"), Progress(recipe), TensorBoardCallback(SummaryWriter(run / "tensorboard"))]


def _samples(recipe: Recipe, run: Path, val: Dataset | None) -> list[TrainerCallback]:
    """What is kept of the responses of a run of stage rl that evaluates."""
    count = 0 if recipe.stage != "rl" or val is None else min(recipe.rl.samples, len(val))
    return [SaveSamples(run, [val[number][0] for number in range(count)])] if count else []


def fingerprint(text: str, recipe: Recipe, runs: Path) -> str:
    """Hash of a recipe and of all that it starts and learns from."""
    parents = [finished(source_folder(name, runs)) for name in (recipe.init, recipe.teacher) if name]
    return hashlib.sha256("".join([text, *parents]).encode()).hexdigest()


def finished(folder: Path) -> str:
    """The fingerprint of the run that made a checkpoint; empty where none is recorded."""
    path = folder / "method.json"
    return json.loads(path.read_text())["provenance"].get("fingerprint", "") if path.is_file() else ""


_INCIDENTAL = ("output_dir", "logging_steps", "save_steps", "save_total_limit", "report_to")
"""Training arguments that do not decide the result."""


def _changed(recipe: Recipe) -> dict[str, object]:
    """The fields that are not at their defaults: what a run is, whatever options are added to the program later."""
    values = {}
    for item in dataclasses.fields(recipe):
        value = getattr(recipe, item.name)
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        if value != default:
            values[item.name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
    values["training"] = {name: value for name, value in recipe.training.items() if name not in _INCIDENTAL}
    return values


def save_final(
    stage: nn.Module, recipe: Recipe, run: Path, text: str, key: str, weights: dict[str, torch.Tensor]
) -> None:
    """Writes the finished checkpoint beside the run's logs, whole or not at all; weights: all of the stage's."""
    config = recipe.method_config(
        {
            "command": f"python -m trainers run {recipe.name}",
            "fingerprint": key,
            "run": json.loads(text),
            "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        }
    )
    before = source_folder(recipe.init, run.parent) if recipe.stage == "rl" else run
    if (before / "method.json").is_file():  # reinforced blocks may be as long as they might have been before
        most = max(read_config(before, recipe.init).latents.max, config.latents.max)
        config = dataclasses.replace(config, latents=dataclasses.replace(config.latents, max=most))
    prefix = "model."
    own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    with torch.device("meta"):
        model = type(stage.model)(stage.model.config)
    model.load_state_dict(own, strict=False, assign=True)
    model.tie_weights()
    model.generation_config = stage.model.generation_config
    prefix = "method."
    heads = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    method = None
    if heads:
        method = build_method(config, stage.processor.token_id)
        method.load_state_dict(heads)
    save(run / FINAL, model=model, processor=stage.processor, config=config, method=method)
