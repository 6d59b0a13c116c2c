"""The choice of a checkpoint's device and precision, from its size and the machine, with the reason in words.

Nothing here touches a model; `machine` is the only function that looks at the computer.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

GB = 1e9
SMALL = 200_000_000
"""Parameters up to which a model runs on the CPU in fp32: launching GPU kernels takes as long as computing there."""
WORKING = 4 * GB
"""Bytes beside the weights of a larger model: cache, activations, recorded states of images of 8192 tokens in all. An
estimate for 7B: 0.3 MB a token were measured at 1B parameters, a width of 1536, on a CPU."""
WORKING_SMALL = 0.3 * GB


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Memory that is free, in bytes; None: not known (`memory`) or no GPU that computes in bf16 (`gpu`)."""

    memory: int | None
    gpu: int | None = None
    gpu_name: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """A device, a dtype and why they were chosen."""

    device: str
    dtype: torch.dtype
    reason: str


def choose(name: str, parameters: int, machine: Machine) -> Placement:
    """Device and dtype for a model with this many parameters.

    Raises ValueError with what is needed, what is free and the remedy where memory does not suffice.
    """
    if parameters <= SMALL:
        need = 4 * parameters + WORKING_SMALL
        if machine.memory is not None and machine.memory < need:
            raise ValueError(
                f"{name} needs {need / GB:.1f} GB of memory, but {machine.memory / GB:.1f} GB are free; "
                "close other programs."
            )
        return Placement(
            device="cpu",
            dtype=torch.float32,
            reason=f"{name} runs on the CPU in fp32: with {parameters / 1e6:.1f}M parameters no GPU is needed.",
        )
    weights = 2 * parameters
    need = weights + WORKING
    on_gpu = machine.gpu is not None and machine.gpu >= need
    # weights pass through main memory on their way to a GPU
    through = machine.memory is None or machine.memory >= weights
    if on_gpu and through:
        return Placement(
            device="cuda",
            dtype=torch.bfloat16,
            reason=f"{name} runs on {machine.gpu_name} in bf16: it needs {need / GB:.1f} GB of "
            f"{machine.gpu / GB:.1f} GB free there.",
        )
    if on_gpu:
        gpu = f"{machine.gpu_name} has room, but the weights pass through main memory"
    elif machine.gpu is None:
        gpu = "there is no GPU that computes in bf16"
    else:
        gpu = f"{machine.gpu_name} has {machine.gpu / GB:.1f} GB free"
    if machine.memory is None:
        free = "how much memory is free is not known on this system"
    elif machine.memory >= need:
        free = f"{machine.memory / GB:.1f} GB of memory are free"
    else:
        raise ValueError(
            f"{name} needs {need / GB:.1f} GB in bf16, but {gpu} and {machine.memory / GB:.1f} GB of main memory are "
            f"free; close other programs, or use a machine with {need / GB:.0f} GB of memory free."
        )
    return Placement(
        device="cpu",
        dtype=torch.bfloat16,
        reason=f"{name} runs on the CPU in bf16, slowly: it needs {need / GB:.1f} GB, {gpu}, and {free}.",
    )


def machine() -> Machine:
    """The memory that is free on this computer, now."""
    gpu, name = None, ""
    if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
        gpu, name = torch.cuda.mem_get_info()[0], torch.cuda.get_device_name()
    return Machine(memory=free_memory(), gpu=gpu, gpu_name=name)


def free_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that programs can still take, a container's limit (cgroup 2) counted in; None where Linux does not say."""
    meminfo = proc / "meminfo"
    if not meminfo.is_file():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.is_file() and (most := limit.read_text().strip()) != "max":
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        # what files of the container keep in memory is given up when programs want it
        free = min(free, int(most) - int(used.read_text()) + int(stat["inactive_file"]))
    return max(free, 0)
