"""Runs that end before their end: diverged, preempted, interrupted. What is good stays, what is not never ships."""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerControl, TrainerState

from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.checkpoints.loading import load, load_model
from latent_core.files import write_folder
from latent_core.finite import not_finite
from tests.training import SMALL, curve, small
from trainers.__main__ import main
from trainers.loop.launch import train
from trainers.loop.saves import last_checkpoint
from trainers.loop.stopping import Interrupted, SaveWhenAsked, Signals
from trainers.loop.trainer import JsonlLog, StageTrainer

WILD = ["learning_rate=1e9", "max_grad_norm=0", "save_steps=1", "save_total_limit=1", "warmup_steps=0"]


def command(name: str, folder: Path, *overrides: str) -> list[str]:
    return ["run", name, *SMALL, f"output_dir={folder}", "use_cpu=true", *overrides]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("glyph-lvr", ["init=glyph-lvr"]),
        ("glyph-vision", ["init=null"]),
        ("glyph-text", ["init=glyph-text", "dtype=bfloat16"]),
        ("glyph-text", ["init=glyph-text", "logging_strategy=no", "gradient_accumulation_steps=2"]),
        ("glyph-text", ["init=glyph-text", "optim=sgd", "learning_rate=1e30"]),
    ],
)
def test_a_diverged_run_stops_says_why_and_ships_nothing(name, overrides, tmp_path, capsys):
    batch = "per_device_train_batch_size=2"
    assert main(command(name, tmp_path, *WILD, "max_steps=40", batch, *overrides)) == 2
    out, error = capsys.readouterr()
    assert "Finished" not in out and "loss 0 " not in out
    assert error.count("\n") == 1 and f"{name} diverged: after " in error and " of 40 steps the " in error
    assert "the learning rate (1e+" in error and "max_grad_norm is 0" in error and "--restart" in error
    assert not (tmp_path / "final").exists()
    kept = last_checkpoint(tmp_path)
    assert kept is not None and str(kept) in error
    assert not_finite(load_file(kept / "model.safetensors").items()) == []


def test_a_loss_that_is_not_finite_before_any_step_is_not_blamed_on_the_rate(tmp_path, capsys):
    assert main(command("glyph-lvr", tmp_path, "init=glyph-lvr", "lvr.weight=1e300", "max_steps=2")) == 2
    error = capsys.readouterr().err
    assert "after 0 of 2 steps the loss is" in error and "what it starts from" in error
    assert "learning rate" not in error and "There is no checkpoint yet" in error


@pytest.mark.parametrize("when", ["checkpoint", "end", "validation"])
def test_weights_that_are_not_finite_are_never_saved(when, tmp_path, monkeypatch, capsys):
    """The last step may leave what no loss has seen yet."""
    trained = StageTrainer.training_step

    def spoil(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        loss = trained(self, *args, **kwargs)
        if self.state.global_step == 2:
            frozen = next(p for p in self.model.parameters() if not p.requires_grad)
            frozen.view(-1)[0] = torch.nan
        return loss

    monkeypatch.setattr(StageTrainer, "training_step", spoil)
    more = {
        "checkpoint": ["save_steps=1", "save_total_limit=1"],
        "end": ["save_strategy=no"],
        "validation": ["save_steps=1", "eval_strategy=steps", "eval_steps=1", "save_total_limit=1"],
    }[when]
    given = ["init=glyph-text", "max_steps=3", "per_device_train_batch_size=2", "per_device_eval_batch_size=2", *more]
    assert main(command("glyph-text", tmp_path, *given)) == 2
    what = "the validation loss is nan" if when == "validation" else "the weights are not finite in 1 tensor (model."
    assert f"after 3 of 3 steps {what}" in capsys.readouterr().err
    assert not (tmp_path / "final").exists()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ([] if when == "end" else ["checkpoint-2"])


def spoiled(folder: Path, file: str, value: float) -> Path:
    """A copy of glyph-deeplatent with one number that is not finite, and what its tensor is called."""
    tensors = load_file(EMBEDDED / "glyph-deeplatent" / file)
    name = max(tensors)
    tensors[name].view(-1)[-1] = value

    def fill(draft: Path) -> None:
        for path in (EMBEDDED / "glyph-deeplatent").iterdir():
            (draft / path.name).write_bytes(path.read_bytes())
        save_file(tensors, draft / file, metadata={"format": "pt"})

    write_folder(folder, fill)
    return folder


@pytest.mark.parametrize("file", ["model.safetensors", "method.safetensors"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_checkpoint_with_a_number_that_is_not_finite_is_refused_by_name(file, value, tmp_path, capsys):
    folder = spoiled(tmp_path / "diverged", file, value)
    with pytest.raises(ValueError, match=r"weights of diverged are nan or infinite in 1 tensor \("):
        load(folder)
    if file.startswith("model"):
        with pytest.raises(ValueError, match="diverged are nan or infinite"):
            load_model(folder, dtype=torch.bfloat16)
        assert main(command("glyph-text", tmp_path / "run", f"init={folder}", "max_steps=1")) == 2
        assert "diverged are nan or infinite" in capsys.readouterr().err


def test_not_finite_names_what_it_finds():
    good = {"a": torch.ones(3), "b": torch.zeros(0), "c": torch.tensor([1, 2]), "d": torch.full((2,), 3e38)}
    assert not_finite(good.items()) == []
    bad = {
        "n": torch.tensor([0, torch.nan]),
        "i": torch.tensor([torch.inf]),
        "h": torch.tensor([-torch.inf]).bfloat16(),
    }
    assert not_finite((good | bad).items()) == ["n", "i", "h"]


def send(monkeypatch: pytest.MonkeyPatch, number: int, step: int) -> None:
    """Has this process signalled once a run has logged a step."""
    logged = JsonlLog.on_log

    def on_log(self: JsonlLog, args, state, control, logs=None, **more) -> None:
        logged(self, args, state, control, logs, **more)
        if state.global_step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(JsonlLog, "on_log", on_log)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("glyph-vision", ["save_steps=3", "save_total_limit=1"]),
        ("glyph-text", ["save_strategy=no", "init=glyph-text", "dtype=bfloat16", "gradient_accumulation_steps=2"]),
    ],
)
def test_a_preempted_run_saves_goes_on_and_ends_with_the_same_weights(name, more, tmp_path, capsys):
    given = ["init=null", "per_device_train_batch_size=2", "max_steps=6", "lr_scheduler_type=cosine", *more]
    whole = train(*small(name, tmp_path / "whole", *given))
    run = command(name, tmp_path / "run", *given, "enable_jit_checkpoint=true")
    with pytest.MonkeyPatch.context() as patch:
        send(patch, signal.SIGTERM, 3)
        assert main(run) == 143
    out, error = capsys.readouterr()
    kept = last_checkpoint(tmp_path / "run")
    assert "Finished" not in out and f"{name} was interrupted by SIGTERM. {kept} is complete" in error
    assert kept.name == "checkpoint-4" and not (tmp_path / "run/final").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert main(run) == 0
    assert "Finished" in capsys.readouterr().out
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    final = tmp_path / "run/final/model.safetensors"
    assert final.read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_preempted_in_its_last_step_is_finished(tmp_path, monkeypatch, capsys):
    send(monkeypatch, signal.SIGTERM, 2)
    assert main(command("glyph-vision", tmp_path, "init=null", "max_steps=2", "enable_jit_checkpoint=true")) == 0
    assert "Finished" in capsys.readouterr().out and (tmp_path / "final").is_dir()


def test_a_checkpoint_on_a_signal_stands_between_two_batches_of_rollouts():
    signals = Signals(saves=True)
    signals.save_requested = True
    asked, state = SaveWhenAsked(signals, every=4), TrainerState(max_steps=12)
    stops = []
    for state.global_step in range(1, 13):
        control = TrainerControl()
        asked.on_step_end(None, state, control)
        assert control.should_save == control.should_training_stop
        stops += [state.global_step] if control.should_save else []
    assert stops == [4, 8]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "saved"),
    [(signal.SIGTERM, 143, True), (signal.SIGINT, 130, True), (signal.SIGINT, 130, False)],
)
def test_a_signal_without_that_option_ends_in_a_sentence(number, status, saved, tmp_path, monkeypatch, capsys):
    send(monkeypatch, number, 3)
    given = ["init=null", "max_steps=6", f"save_steps={2 if saved else 5}", "per_device_train_batch_size=1"]
    assert main(command("glyph-vision", tmp_path, *given)) == status
    out, error = capsys.readouterr()
    assert "Finished" not in out and error.count("\n") == 1
    assert f"glyph-vision was interrupted by {signal.Signals(number).name}. " in error
    assert ("checkpoint-2 is complete" if saved else "No checkpoint is complete yet") in error
    assert not (tmp_path / "final").exists()


def test_a_signal_goes_back_to_who_had_it_before():
    def mine(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(Interrupted), Signals(saves=False):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
