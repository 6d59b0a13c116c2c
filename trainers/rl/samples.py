"""Sampled responses along a run, saved as traces that the Inspect page opens."""

import json
from collections.abc import Sequence
from pathlib import Path

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from latent_core import answers
from latent_core.example import Example

FOLDER = "rollouts"


class SaveSamples(TrainerCallback):
    """Saves the policy's sampled responses to the same questions, at the start and at every evaluation.

    They lie in rollouts/step-<n>/<number>.safetensors of the run's folder, with one line each in index.jsonl.
    """

    def __init__(self, run: Path, examples: Sequence[Example]) -> None:
        self.folder, self.examples = run / FOLDER, list(examples)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: object
    ) -> None:
        if not state.global_step:
            self.on_evaluate(args, state, control, model)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: object
    ) -> None:
        training = model.training
        model.eval()
        traces = model(examples=self.examples, seed=args.seed, traced=True)["traces"]
        model.train(training)
        if not args.should_save:
            return
        folder = self.folder / f"step-{state.global_step:05}"
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for number, (trace, example) in enumerate(zip(traces, self.examples, strict=True)):
            trace.save(folder / f"{number}.safetensors")
            texts = {"question": example.question, "true": example.answer, "answer": answers.extract(trace.text)}
            lines.append(json.dumps({"file": f"{number}.safetensors", "name": example.name, **texts}) + "\n")
        (folder / "index.jsonl").write_text("".join(lines), encoding="utf-8")
