"""Training in several processes, as far as accelerate does not do it: shared answers, means and gathered weights.

Every process takes its share of each batch. Under DDP nothing else is needed. Where parameters are sharded (FSDP2,
ZeRO-3) every forward gathers them, so that all processes have to call the backbone equally often.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    broadcast_object_list,
    gather_object,
)
from torch.distributed.fsdp import FSDPModule
from transformers import TrainingArguments

from latent_core.decoding.layout import ForcedSequence
from latent_core.decoding.unroll import count_forwards
from latent_core.settings import check

T = TypeVar("T")
SHARDS = (
    "Stage rl gathers parameters for its rollouts, which it can do under FSDP2: take trainers/accelerate/fsdp2.yaml, "
    "or zero2.yaml, which shards none."
)


def from_main(ask: Callable[[], T]) -> T:
    """The main process's answer, in every process; a ValueError or OSError there is raised in all of them."""
    outcome: list[object] = [None, None]
    if PartialState().is_main_process:
        try:
            outcome[0] = ask()
        except (ValueError, OSError) as error:
            outcome[1] = error
    value, problem = broadcast_object_list(outcome)
    if problem is not None:
        raise problem
    return value


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether no process holds all parameters."""
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        return accelerator.state.deepspeed_plugin.zero_stage == 3
    return kind == DistributedType.FSDP


def keeps_copies(arguments: TrainingArguments) -> bool:
    """Whether the run was started under FSDP2 or DeepSpeed, which have fp32 copies of the weights."""
    enabled = [os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true" for kind in ("FSDP", "DEEPSPEED")]
    return any(enabled) or bool(arguments.fsdp or arguments.deepspeed)


def shard_on_cpu(accelerator: Accelerator) -> None:
    """Lets FSDP2, asked for by accelerate's configuration, work on CPUs, where accelerate itself falls back to DDP."""
    enabled = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if enabled and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # both states: the accelerator's own takes over what the other says whenever somebody asks for it anew
        accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()


def batch_mean(losses: torch.Tensor) -> torch.Tensor:
    """Mean of losses (M,) whose average over processes is the mean over all processes' losses, however many each has.

    In one process the plain mean; 0 without losses.
    """
    count = float(len(losses))
    if PartialState().num_processes > 1:
        counts = gather_object([count])
        count = sum(counts) / len(counts)
    return losses.sum() / max(count, 1e-8)


@contextmanager
def whole(stage: torch.nn.Module) -> Iterator[None]:
    """All parameters of a stage on every process, for rollouts, whose forwards differ in number; within its forward.

    stage: with `sharded`. Raises ValueError where parameters are sharded by other means than FSDP2.
    """
    if not stage.sharded:
        yield
        return
    check(isinstance(stage, FSDPModule), SHARDS)
    # the stage's own are whole already, for its forward is under way
    parts = [part for part in stage.modules() if isinstance(part, FSDPModule) and part is not stage]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def common_forwards(stage: object, rows: list[ForcedSequence]) -> int:
    """Forwards that every process's `unroll` takes where parameters are sharded; 0, as many as it needs, elsewhere.

    stage: with `backbone`, `method` and `sharded`.
    """
    if not stage.sharded:
        return 0
    return max(gather_object([count_forwards(stage.backbone, stage.method, rows)]))
