"""One training loop: transformers' Trainer around a stage, which is a module that returns its loss and its metrics."""

import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_model
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME

from trainers.recipe import Recipe


class StageTrainer(Trainer):
    """Adds a stage's metrics to the log and keeps the data in their order, so that resuming repeats nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._sums: dict[str, tuple[float, int]] = {}

    def _get_train_sampler(self, train_dataset: object = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: object = None
    ) -> object:
        outputs = model(**inputs)
        for name, value in outputs["metrics"].items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value, count + 1
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # safetensors refuses tensors that share memory: a tied head is stored once, as the embedding
        unique = {}
        for name, tensor in (state_dict or self.model.state_dict()).items():
            unique.setdefault((tensor.data_ptr(), tensor.shape), (name, tensor))
        super()._save(output_dir, dict(unique.values()))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        load_model(model or self.model, Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME)

    def log(self, logs: dict[str, float], *args: object, **kwargs: object) -> None:
        if "loss" in logs:
            logs |= {name: total / count for name, (total, count) in self._sums.items()}
            self._sums = {}
        super().log(logs, *args, **kwargs)

    @torch.no_grad()
    def evaluate(self, *args: object, **kwargs: object) -> dict[str, float]:
        """Loss and metrics on the validation set, weighted by batch."""
        self.model.eval()
        loader = DataLoader(
            self.eval_dataset, self.args.per_device_eval_batch_size, collate_fn=self.data_collator, shuffle=False
        )
        sums: dict[str, list[float]] = {}
        for batch in loader:
            outputs = self.model(**self._prepare_inputs(batch))
            for name, value in {"loss": outputs["loss"].item(), **outputs["metrics"]}.items():
                sums.setdefault(f"eval_{name}", []).append(value)
        self.model.train()
        metrics = {name: sum(values) / len(values) for name, values in sums.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class JsonlLog(TrainerCallback):
    """Appends every log line to metrics.jsonl; a resumed run first drops what it will write again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        lines = self.path.read_text().splitlines() if self.path.exists() and state.global_step else []
        kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
        self.path.write_text("".join(f"{line}\n" for line in kept))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        values = {name: value for name, value in (logs or {}).items() if isinstance(value, (int, float))}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": state.global_step, **values}) + "\n")


COMPLETE = "complete"


class MarkComplete(TrainerCallback):
    """Marks a checkpoint once all its files are written, so that a run killed while saving resumes before it."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def last_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    found = [path.parent for path in run.glob(f"checkpoint-*/{COMPLETE}")]
    return max(found, key=lambda path: int(path.name.split("-")[1]), default=None)


class StopAt(TrainerCallback):
    """Ends training once the validation accuracy of every named family is reached (curriculum by accuracy)."""

    def __init__(self, targets: dict[str, float]) -> None:
        self.targets = targets

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
            control.should_training_stop = True


class Progress(TrainerCallback):
    """One line per log: step, loss, accuracies, time left. Readable on a terminal and in a file alike."""

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
