"""Early ends of a run: numbers that are not finite, SIGTERM, Ctrl-C."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainers.loop.saves import last_checkpoint


class Diverged(Exception):
    """Loss, gradients or weights of a run are nan or infinite. Raised in every process alike.

    steps: of the optimiser so far. what: a clause such as `the loss is nan`.
    """

    def __init__(self, steps: int, what: str) -> None:
        super().__init__(f"after {steps} steps {what}")
        self.steps, self.what = steps, what


class Interrupted(KeyboardInterrupt):
    """A signal ended a run. status: the shell's for a program that the signal ends."""

    def __init__(self, text: str, number: signal.Signals) -> None:
        super().__init__(text)
        self.signal, self.status = number, 128 + number


class Signals:
    """A handler of SIGTERM within a `with`: raises Interrupted at once, or asks a run that saves for a checkpoint."""

    def __init__(self, *, saves: bool) -> None:
        self.saves, self.save_requested = saves, False
        self._process = os.getpid()

    def __enter__(self) -> "Signals":
        self._before = None
        if threading.current_thread() is threading.main_thread():  # nobody else may
            self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader's worker, forked off
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.saves:
            self.save_requested = True
        else:
            raise Interrupted("SIGTERM", signal.Signals(number))


class SaveWhenAsked(TrainerCallback):
    """Ends a run with a checkpoint once SIGTERM has come to any of its processes: between two steps, where data,
    random numbers and optimiser fit together.

    every: a checkpoint may stand at multiples of so many steps.
    """

    def __init__(self, signals: Signals, every: int) -> None:
        self.signals, self.every, self.stopped = signals, every, False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if not self.signals.saves or state.global_step % self.every or state.global_step >= state.max_steps:
            return
        if any(gather_object([self.signals.save_requested])):
            self.stopped = control.should_save = control.should_training_stop = True


def kept(run: Path) -> str:
    """The sentence on what the next start goes on from."""
    folder = last_checkpoint(run)
    if folder is None:
        return "No checkpoint is complete yet, so the same command begins anew."
    return f"{folder} is complete; the same command goes on from it."


def why_diverged(error: Diverged, name: str, arguments: TrainingArguments, run: Path) -> str:
    """The message of a run that diverged: what happened, the likely causes, what is left and what to do."""
    folder = last_checkpoint(run)
    causes = [f"the learning rate ({arguments.learning_rate:g}) is too high"]
    if arguments.max_grad_norm <= 0:
        causes.append("gradients are not clipped (max_grad_norm is 0)")
    if not arguments.warmup_steps:
        causes.append("there is no warm-up (warmup_steps is 0)")
    likely = f"Likely causes: {'; '.join(causes)}. Lower learning_rate, set max_grad_norm=1 or more warmup_steps"
    if error.steps == 0:
        likely = (
            "No step had been taken, so what it starts from, a row of the data or a weight of the loss is the cause. "
            "Look at them"
        )
    left = f"The last finite checkpoint is kept: {folder}" if folder else "There is no checkpoint yet"
    return (
        f"{name} diverged: after {error.steps} of {arguments.max_steps} steps {error.what}. No checkpoint was "
        f"finished. {likely}, and run again with --restart. {left}."
    )
