"""AdamW for weights in 16 bits: it steps fp32 copies, and the weights are those copies, rounded.

Neighbouring bf16 numbers lie up to a 128th apart, and a step of 1e-5 is less than half of that for weights from 0.004
on: were the weights stepped themselves, it would be rounded away, every time. The forward computes in the weights'
dtype, as decoding does.
"""

from collections.abc import Callable

import torch
from torch import nn

from latent_core.settings import check

HALVES = torch.bfloat16, torch.float16
COPY = "copy"
"""Name of a copy among its own states, so that it is saved and resumed with them."""


class CopiedAdamW(torch.optim.AdamW):
    """AdamW over fp32 copies of 16-bit weights, with fp32 moments; weights of other dtypes are stepped themselves.

    Takes 12 bytes a weight, and a fp32 gradient for one tensor at a time. A copy begins as what its weight is at the
    first step. groups: parameter groups of an AdamW with all of its settings.
    """

    def __init__(self, groups: list[dict[str, object]]) -> None:
        self._weights: dict[torch.Tensor, nn.Parameter] = {}
        super().__init__(groups)

    def add_param_group(self, param_group: dict[str, object]) -> None:
        """See torch's; the group then holds copies where weights have 16 bits."""
        params = [self._copy(weight) for weight in param_group["params"]]
        super().add_param_group({**param_group, "params": params})

    def _copy(self, weight: nn.Parameter) -> torch.Tensor:
        if weight.dtype not in HALVES:
            return weight
        copy = weight.detach().float()
        self._weights[copy] = weight
        return copy

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """See torch's. Gradients are those of the weights."""
        loss = super().step(closure)  # what has no copy: copies have no gradients yet
        groups = self.param_groups
        for group in groups:
            for copy in group["params"]:
                weight = self._weights.get(copy)
                if weight is None or weight.grad is None:
                    continue
                if COPY not in self.state[copy]:
                    copy.copy_(weight)
                copy.grad = weight.grad.float()
                self.param_groups = [{**group, "params": [copy]}]
                super().step()
                copy.grad = None
                weight.copy_(copy)
                self.state[copy][COPY] = copy
        self.param_groups = groups
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """See torch's, for the weights."""
        super().zero_grad(set_to_none)
        for weight in self._weights.values():
            weight.grad = None

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """See torch's; copies continue where they were saved."""
        super().load_state_dict(state_dict)
        for copy in self._weights:
            if COPY in self.state.get(copy, {}):
                copy.copy_(self.state[copy][COPY])
                self.state[copy][COPY] = copy


KEEPING = "adamw_torch", "adamw_torch_fused"
"""Optimisers of TrainingArguments that are stepped as CopiedAdamW."""


def check_updates(dtype: str, optim: str, *, sharded: bool, mixed_precision: str) -> None:
    """Refuses runs that would lose updates, or take them before they are checked.

    dtype: of the weights. sharded: by FSDP2 or DeepSpeed, which step fp32 copies under mixed precision. Raises
    ValueError with the remedy.
    """
    check(
        mixed_precision in ("no", "bf16"),
        f"mixed_precision is {mixed_precision!r}, which needs losses to be scaled; take bf16 or no.",
    )
    check(
        "lomo" not in optim and not optim.endswith("layerwise"),
        f"optim is {optim!r}, which steps within the backward pass, before gradients are checked and clipped; take "
        f"{KEEPING[1]}.",
    )
    check(
        not optim.startswith("schedule_free"),
        f"optim is {optim!r}, whose weights are those to decode with only outside of training, so that no checkpoint "
        f"on the way could be used; take {KEEPING[1]}.",
    )
    if dtype != "bfloat16":
        return
    if sharded:
        check(
            mixed_precision == "bf16",
            "dtype is bfloat16 and mixed_precision 'no': FSDP2 and DeepSpeed would then step bf16 weights, in which "
            "most updates are rounded away; set mixed_precision: bf16 in accelerate's configuration.",
        )
    else:
        check(
            optim in KEEPING,
            f"dtype is bfloat16, optim {optim!r}: it would step bf16 weights, in which most updates are rounded away. "
            f"Take optim={KEEPING[1]}, which steps fp32 copies, or dtype=float32, or shard the run with FSDP2.",
        )
