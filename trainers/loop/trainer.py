"""One training loop: transformers' Trainer around a stage, which is a module that returns its loss and its metrics.

Several processes (DDP, FSDP2, DeepSpeed, started by accelerate or torchrun) each take their share of every batch.
Then loss and metrics in the log are means over all of them, a stage whose parameters are sharded is told so
(`sharded`), and only the main process writes.
"""

import copy
import json
import math
import shutil
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, gather_object
from accelerate.utils.constants import FSDP_MODEL_NAME
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from latent_core.files import write_file
from latent_core.finite import not_finite, shortened
from latent_core.lines import append_line, read_lines
from trainers.loop.copies import HALVES, CopiedAdamW
from trainers.loop.saves import COMPLETE, prune
from trainers.loop.stopping import Diverged, kept
from trainers.parallel import is_sharded, shard_on_cpu
from trainers.recipe import Recipe

Sums = dict[str, tuple[float, int]]
"""Metric → sum and number of the batches' values."""


class StageTrainer(Trainer):
    """transformers' Trainer with a stage's metrics in the log and the data in order, so that resuming repeats nothing.

    Trained weights of 16 bits have fp32 copies. Numbers that are not finite raise Diverged in every process, before
    they reach the weights where gradients show them, and before anything is saved where they do not.
    """

    def __init__(self, *, args: TrainingArguments, **kwargs: object) -> None:
        # checkpoints are pruned once the new one is marked, and saved on a signal between two steps: both is done here
        self._keep, args = args.save_total_limit, copy.copy(args)
        args.save_total_limit, args.enable_jit_checkpoint = None, False
        super().__init__(args=args, **kwargs)
        self._sums: Sums = {}
        self._loss = 0.0
        self.model.sharded = is_sharded(self.accelerator)
        # what Trainer asks of a model: the stage's passes then keep their layers' inputs alone
        stage = self.model
        stage.activation_checkpointing_enable = stage.model.activation_checkpointing_enable

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        shard_on_cpu(self.accelerator)
        self.is_fsdp_enabled = self.accelerator.distributed_type == DistributedType.FSDP

    def _get_train_sampler(self, train_dataset: object = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def create_optimizer(self, *args: object, **kwargs: object) -> torch.optim.Optimizer:
        """Parameters for which the stage has a learning rate of their own (`rates`) are groups apart.

        FSDP2 and DeepSpeed keep fp32 copies of their own.
        """
        try:
            optimizer = super().create_optimizer(*args, **kwargs)
        except ImportError as error:
            raise ValueError(f"optim is {self.args.optim.value!r}: {error}") from error
        rates = self.model.rates()
        for group in list(optimizer.param_groups) if rates else ():
            with_rate = [parameter for parameter in group["params"] if parameter in rates]
            group["params"] = [parameter for parameter in group["params"] if parameter not in rates]
            for parameter in with_rate:
                optimizer.add_param_group({**group, "params": [parameter], "lr": rates[parameter]})
        halves = any(weight.dtype in HALVES for group in optimizer.param_groups for weight in group["params"])
        if halves and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            self.optimizer = CopiedAdamW(optimizer.param_groups)
        return self.optimizer

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: object = None
    ) -> object:
        outputs = model(**inputs)
        _add(self._sums, outputs["metrics"])
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def training_step(self, *args: object, **kwargs: object) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._loss = self._loss + loss.detach()
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: object = None) -> object:
        """Comes before each step of the optimiser."""
        norm = super()._get_grad_norm(model, grad_norm)
        total = norm.full_tensor() if isinstance(norm, DTensor) else norm
        numbers = {"loss": float(self._loss), "gradient norm": float(total or 0)}
        self._loss = 0.0
        self._end_if(f"the {name} is {value}" for name, value in numbers.items() if not math.isfinite(value))
        return norm

    def check(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Raises Diverged in every process where a tensor of any has a number that is not finite; all have to call."""
        bad = not_finite((name, t.to_local() if isinstance(t, DTensor) else t) for name, t in tensors)
        self._end_if([f"the weights are not finite in {shortened(bad)}"] if bad else [])

    def _end_if(self, reasons: Iterable[str]) -> None:
        """Raises Diverged in every process where any has a reason."""
        gathered = gather_object([*reasons])
        if gathered:
            raise Diverged(self.state.global_step, gathered[0])

    def weights(self) -> dict[str, torch.Tensor]:
        """The stage's parameters, each once and whole, on the CPU; where they are sharded, in the main process alone.

        Every process has to call it.
        """
        return self._unique(self.accelerator.get_state_dict(self.model_wrapped))

    def _unique(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # what a stage holds under two names (its backbone's model, a tied head) is stored under the first
        named = chain(self.model.named_parameters(), self.model.named_buffers())
        return {name: state[name] for name, _ in named if name in state}

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, self._unique(self.model.state_dict() if state_dict is None else state_dict))

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        """Marks a checkpoint once every process has written its part, and only then removes former ones: a run killed
        at any time has one to go on from.
        """
        self.check(self.model.named_parameters())
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            (folder / COMPLETE).unlink(missing_ok=True)
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save says the last
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):
                raise
            shutil.rmtree(folder, ignore_errors=True)  # half of it, on a disk that may be full
            reason = " ".join(str(error).split())[:200]
            raise OSError(f"{folder} could not be saved: {reason}. Free some space. {kept(folder.parent)}") from error
        PartialState().wait_for_everyone()
        if self.args.should_save:
            (folder / COMPLETE).touch()
            prune(folder, self._keep)

    def files(self) -> list[str]:
        """The files of a checkpoint of this run, without which it could not go on as it was."""
        world = self.args.world_size
        rng = [f"rng_state_{number}.pth" for number in range(world)] if world > 1 else ["rng_state.pth"]
        if self.is_deepspeed_enabled:
            return [TRAINER_STATE_NAME, *rng, "latest"]
        parts = [SAFE_WEIGHTS_NAME, OPTIMIZER_NAME]
        if self.is_fsdp_enabled:
            full = "FULL_STATE_DICT" in str(self.accelerator.state.fsdp_plugin.state_dict_type)
            parts = [f"{FSDP_MODEL_NAME}.bin", "optimizer.bin"] if full else [f"{FSDP_MODEL_NAME}_0", "optimizer_0"]
        return [TRAINER_STATE_NAME, *rng, *parts, SCHEDULER_NAME]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if self.model.sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            path = Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME
            try:
                load_model(model or self.model, path)
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"{path} does not fit the recipe: {reason}. --restart begins anew.") from error

    def log(self, logs: dict[str, float], *args: object, **kwargs: object) -> None:
        if "loss" in logs:
            logs |= _means(self._sums)
            self._sums = {}
        super().log(logs, *args, **kwargs)

    @torch.no_grad()
    def evaluate(self, *args: object, **kwargs: object) -> dict[str, float]:
        """Loss and metrics on the validation set, weighted by batch; every process takes its share of the batches."""
        self.model.eval()
        loader = DataLoader(
            self.eval_dataset,
            batch_sampler=_Share(len(self.eval_dataset), self.args.per_device_eval_batch_size),
            collate_fn=self.data_collator,
        )
        sums: Sums = {}
        for number, batch in enumerate(loader):
            outputs = self.model(**self._prepare_inputs(batch))
            if loader.batch_sampler.counts(number):
                _add(sums, {"loss": outputs["loss"].item(), **outputs["metrics"]})
        self.model.train()
        metrics = {f"eval_{name}": value for name, value in _means(sums).items()}
        if not math.isfinite(loss := metrics.get("eval_loss", 0.0)):  # none where there are no rows
            raise Diverged(self.state.global_step, f"the validation loss is {loss}")
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _add(sums: Sums, metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        total, count = sums.get(name, (0.0, 0))
        sums[name] = total + value, count + 1


def _means(sums: Sums) -> dict[str, float]:
    """Means over the batches of all processes."""
    by_name: dict[str, list[tuple[float, int]]] = {}
    for name, pair in gather_object(list(sums.items())):
        by_name.setdefault(name, []).append(pair)
    return {name: sum(t for t, _ in pairs) / sum(n for _, n in pairs) for name, pairs in by_name.items()}


class _Share:
    """A process's batches of row numbers: every so-manyth one.

    All processes get equally many, for sharded parameters are gathered in every forward. Where batches run out, the
    first ones come again, without counting.
    """

    def __init__(self, rows: int, size: int) -> None:
        state = PartialState()
        self.first, self.step = state.process_index, state.num_processes
        self.batches = [range(start, min(start + size, rows)) for start in range(0, rows, size)]

    def __len__(self) -> int:
        return -(-len(self.batches) // self.step)

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(len(self)):
            yield list(self.batches[self._place(number) % len(self.batches)])

    def counts(self, number: int) -> bool:
        """Whether the process's batch of this number is not a repetition."""
        return self._place(number) < len(self.batches)

    def _place(self, number: int) -> int:
        return self.first + number * self.step


class JsonlLog(TrainerCallback):
    """The log of a run in metrics.jsonl; a resumed run first drops what it will write again or a kill cut."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        lines, cut = read_lines(self.path) if state.global_step else ([], [])
        steps = [(number, values.get("step")) for number, values in lines]
        cut += [number for number, step in steps if not isinstance(step, int)]
        if cut:
            numbers = ", ".join(map(str, sorted(cut)))
            print(f"{self.path}: line {numbers} is no log line, as a kill leaves it, and is dropped.", flush=True)
        earlier = [values for number, values in lines if number not in cut and values["step"] <= state.global_step]
        write_file(self.path, "".join(json.dumps(values) + "\n" for values in earlier).encode())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        values = {name: value for name, value in (logs or {}).items() if isinstance(value, (int, float))}
        append_line(self.path, {"step": state.global_step, **values})


class StopAt(TrainerCallback):
    """Ends training once the validation accuracy of every named family is reached (curriculum by accuracy)."""

    def __init__(self, targets: dict[str, float]) -> None:
        self.targets, self.reached = targets, False

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        metrics = metrics or {}
        reached = [metrics.get(f"eval_accuracy_{name}", 0.0) >= value for name, value in self.targets.items()]
        if reached and all(reached):
            self.reached = control.should_training_stop = True


class Progress(TrainerCallback):
    """Progress on stdout, a line per log: step, loss, accuracies, time left; readable on a terminal and in a file."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.begin, self.first = time.monotonic(), state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        done = state.global_step - self.first
        left = (time.monotonic() - self.begin) / max(done, 1) * (state.max_steps - state.global_step)
        shown = {k: v for k, v in (logs or {}).items() if "loss" in k or "accuracy" in k or k == "learning_rate"}
        values = "  ".join(f"{name} {value:.4g}" for name, value in shown.items() if isinstance(value, float))
        step = f"{state.global_step}/{state.max_steps}"
        print(f"{self.recipe.name} {step}  {values}  {left // 60:.0f} min {left % 60:.0f} s left", flush=True)
