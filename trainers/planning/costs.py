"""Formulas of what a run costs in memory, time and disk, without a device.

Shapes: D model width, F feed-forward width, V vocabulary, n tokens of a micro-batch, b bytes of a weight, G GPUs.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedConfig

from latent_core.model.backbones import build

Strategy = Literal["one", "ddp", "fsdp2", "zero2", "zero3"]
GB = 1e9
CONTEXT = 1.5 * GB
"""What CUDA and its libraries take of a GPU."""
MFU = 0.25
"""Share of the peak that large matrix products reach, assumed; rows of one at a time reach less."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """Bytes of memory, bytes per second, dense bf16 operations per second (the makers' data sheets)."""

    memory: float
    bandwidth: float
    flops: float


GPUS = {
    "a100-80": Gpu(80 * GB, 2.04e12, 312e12),
    "h100-80": Gpu(80 * GB, 3.35e12, 989e12),
    "h200": Gpu(141 * GB, 4.8e12, 989e12),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model's sizes, as the formulas need them; parameters in numbers of them."""

    layers: int
    width: int
    key_width: int
    """Of keys: heads × width of a head."""
    feed_forward: int
    vocabulary: int
    parameters: int
    trainable: int
    layer: int
    """Of one decoder layer."""


def shape(config: PreTrainedConfig, *, train_vision: bool) -> Shape:
    """Counts a model of this configuration on the meta device."""
    with torch.device("meta"):
        backbone = build(config)
    parameters, vision, layer = (
        sum(p.numel() for p in part.parameters()) for part in (backbone, backbone.vision, backbone.layers[0])
    )
    return Shape(
        layers=backbone.num_layers,
        width=backbone.width,
        key_width=backbone.num_key_heads * backbone.head_width,
        feed_forward=backbone.feed_forward,
        vocabulary=backbone.vocabulary,
        parameters=parameters,
        trainable=parameters - (0 if train_vision else vision),
        layer=layer,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A micro-batch of one process, counted."""

    tokens: int
    learned: int
    """Positions with a label."""
    aligned: int
    """Positions whose states are compared with the teacher's, at every level."""
    forwards: int
    """Forwards that feed latents back, one after the other; 0 in stages without."""
    teacher_tokens: int
    """Tokens of all passes of the teacher."""
    once: bool = False
    """Whether the pass that generates latents takes the losses, too."""
    rolled: int = 0
    """Tokens of all responses that are sampled before the pass."""
    decoded: int = 0
    """Forwards of sampling them, one after the other."""
    updates: int = 1
    """Passes that learn from the same responses."""
    frozen: str = ""
    """What a second copy of the model serves as, such as a teacher; empty where there is none."""


def state_memory(shape: Shape, strategy: Strategy, gpus: int, b: int) -> dict[str, float]:
    """Bytes per GPU of weights, gradients and what the optimiser keeps: AdamW's moments, and fp32 copies of weights in
    two bytes.

    one, ddp: b·P, b·T (twice under DDP, whose buckets are copies), 8T, with copies 12T. zero2: b·P, b·T/G, 12T/G.
    zero3: b·P/G, b·T/G, 12T/G, and three gathered layers. fsdp2: 4P/G, 4T/G, 8T/G, and gathered at two bytes three
    layers and all that is no layer. P all parameters, T trainable ones.
    """
    parameters, trainable = shape.parameters, shape.trainable
    rest = parameters - shape.layers * shape.layer
    match strategy:
        case "one" | "ddp":
            buckets = 2 if strategy == "ddp" else 1
            each = 12 if b == 2 else 8
            return {"weights": b * parameters, "gradients": buckets * b * trainable, "optimiser": each * trainable}
        case "zero2":
            return {
                "weights": b * parameters,
                "gradients": b * trainable / gpus,
                "optimiser": 12 * trainable / gpus,
            }
        case "zero3":
            return {
                "weights": b * parameters / gpus + 3 * b * shape.layer,
                "gradients": b * trainable / gpus,
                "optimiser": 12 * trainable / gpus,
            }
        case "fsdp2":
            return {
                "weights": 4 * parameters / gpus + 2 * (3 * shape.layer + rest),
                "gradients": 4 * trainable / gpus,
                "optimiser": 8 * trainable / gpus,
            }
    raise ValueError(f"strategy is {strategy!r}; choose one of one, ddp, fsdp2, zero2, zero3.")


def layer_activations(shape: Shape, b: int) -> float:
    """Bytes that one decoder layer keeps per token for its backward pass.

    Measured at saved tensors: 8D + 4F + 2·key width values of b bytes; in bf16 the norms keep another 4D bytes, for
    they compute in fp32.
    """
    values = 8 * shape.width + 4 * shape.feed_forward + 2 * shape.key_width
    return b * values + (4 * shape.width if b == 2 else 0)


def activation_memory(shape: Shape, load: Load, b: int, *, checkpointing: bool) -> dict[str, float]:
    """Bytes of what passes keep for the backward pass.

    The latent pass, where there is one, keeps as much as the loss pass, and in every forward keys and values of all
    tokens so far. Checkpointing leaves the loss pass its layers' inputs and one layer.
    """
    one = load.tokens * layer_activations(shape, b)
    loss = load.tokens * shape.width * b * shape.layers + one if checkpointing else shape.layers * one
    latent = 0.0
    if load.forwards:
        keys = load.forwards * load.tokens * 2 * shape.key_width * b * shape.layers
        latent = shape.layers * one + keys
    return {
        "latent pass": latent,
        "loss pass": 0.0 if latent and load.once else loss,
        "logits": 12.0 * shape.vocabulary * load.learned,
        "aligned states": 2.0 * load.aligned * (shape.layers + 1) * shape.width * b,
    }


def step_time(shape: Shape, load: Load, gpu: Gpu, b: int) -> float:
    """Seconds of one micro-batch on one GPU.

    6 operations per trainable parameter and token in each pass with gradients, 2 in the teacher's; every forward reads
    the weights three times (once forward, twice backward), which no batch of this size hides.
    """
    passes = 2 if load.forwards and not load.once else 1
    operations = 6 * shape.trainable * load.tokens * passes + 2 * shape.parameters * load.teacher_tokens
    return operations / (MFU * gpu.flops) + 3 * load.forwards * b * shape.parameters / gpu.bandwidth


def rollout_time(shape: Shape, load: Load, gpu: Gpu, b: int) -> float:
    """Seconds of sampling a micro-batch's responses: prompts and text are computed once, 2 operations per parameter
    and token, and every forward reads the weights.
    """
    operations = 2 * shape.parameters * load.rolled
    return operations / (MFU * gpu.flops) + load.decoded * b * shape.parameters / gpu.bandwidth


def cache_memory(shape: Shape, tokens: int, b: int) -> float:
    """Bytes of the keys and values of tokens."""
    return 2.0 * tokens * shape.key_width * b * shape.layers
