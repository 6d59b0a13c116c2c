"""A device that is not there: tensors that say they lie on a GPU, compute on the CPU, and may not meet those that do.

What PyTorch raises on a GPU for tensors on two devices is raised here too, and every copy between host and device is
counted, so that code can be tried on machines that have no GPU. Values are exactly the CPU's. Gradients are not kept.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend


class _Module(_DummyBackendModule):
    """What torch.elsewhere is."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, *_: object) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, *_: object) -> None:
        pass  # nothing is drawn there


_setup_privateuseone_for_python_backend("elsewhere", _Module())
DEVICE = torch.device("elsewhere", 0)
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default, aten._local_scalar_dense.default)
INDEXED = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
"""Take indices from the host, and copy them."""
WAITING = (aten.nonzero.default, aten._local_scalar_dense.default)
"""The host waits for what they find."""


class Elsewhere(torch.Tensor):
    """Says that it lies on DEVICE."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, data: torch.Tensor) -> "Elsewhere":
        about = dict(strides=data.stride(), storage_offset=data.storage_offset(), dtype=data.dtype, device=DEVICE)
        tensor = torch.Tensor._make_wrapper_subclass(cls, data.shape, **about)
        tensor.held = data
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, Counter())

    def tolist(self) -> Any:
        """As on a GPU: a copy that is waited for."""
        return self.cpu().tolist()

    def __repr__(self, *_: object) -> str:
        return f"Elsewhere({tuple(self.shape)}, {self.dtype})"


class Device(TorchDispatchMode):
    """Makes what is asked for on DEVICE there, and counts what crosses over: `to device`, `to host`, `waits`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # operations that are made of others arrive whole in inference mode
            parts = func.decompose(*args, **kwargs or {})
        return _run(func, args, kwargs or {}, self.counts) if parts is NotImplemented else parts


def _run(func: Any, args: Any, kwargs: dict[str, Any], counts: Counter[str]) -> Any:
    leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    there = any(isinstance(leaf, Elsewhere) for leaf in leaves)
    here = [leaf for leaf in leaves if not isinstance(leaf, Elsewhere) and leaf.ndim > 0]
    asked = kwargs.get("device")
    target = there if asked is None else torch.device(asked).type == DEVICE.type
    if func in COPIES:
        target = isinstance(args[0], Elsewhere) if func is aten.copy_.default else target
        source = isinstance(args[1] if func is aten.copy_.default else args[0], Elsewhere)
        target = False if func is aten._local_scalar_dense.default else target
        if source != target:
            counts["to device" if target else "to host"] += 1
    elif func in INDEXED and there:
        indices = [index for index in args[1] if index is not None]
        counts["to device"] += sum(not isinstance(index, Elsewhere) for index in indices)
        counts["waits"] += sum(index.dtype == torch.bool for index in indices)
        others = [leaf for leaf in here if all(leaf is not index for index in indices)]
        assert not others, f"{func} gets tensors on the host and on the device: {_shapes(leaves)}"
    elif there:
        assert not here, f"{func} gets tensors on the host and on the device: {_shapes(leaves)}"
    if func in WAITING and there:
        counts["waits"] += 1
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if not target:
        return found
    originals = {id(leaf.held): leaf for leaf in leaves if isinstance(leaf, Elsewhere)}

    def labelled(out: Any) -> Any:
        if not isinstance(out, torch.Tensor):
            return out
        return originals[id(out)] if id(out) in originals else Elsewhere(out)

    return tree_map(labelled, found)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value


def _shapes(leaves: list[torch.Tensor]) -> str:
    return ", ".join(f"{tuple(x.shape)} on the {'device' if isinstance(x, Elsewhere) else 'host'}" for x in leaves)


@torch.inference_mode()
def moved(module: torch.nn.Module) -> torch.nn.Module:
    """The module with its parameters and buffers on DEVICE, in place."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(Elsewhere(parameter.detach()), requires_grad=False)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = Elsewhere(buffer)
    return module


@contextmanager
def device() -> Iterator[Counter[str]]:
    """Within it DEVICE can be asked for; the counts so far."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) first makes it on the host, then copies it
    try:
        with Device() as mode:
            yield mode.counts
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
