"""The choice of a device and a precision, and why: no GPU needed to know."""

import pytest
import torch

from latent_core.checkpoints.placement import Machine, choose, free_memory, machine
from latent_core.checkpoints.published import PUBLISHED

GB = 10**9
SEVEN = PUBLISHED["NOVAglow646/Monet-7B"].parameters
"""Its weights are 16.6 GB in bf16."""


def placed(parameters=SEVEN, **have):
    chosen = choose("Monet", parameters, Machine(**have))
    return chosen.device, chosen.dtype, chosen.reason


def test_a_small_model_stays_on_the_cpu_in_fp32():
    device, dtype, reason = placed(1_700_000, memory=8 * GB, gpu=80 * GB, gpu_name="A100")
    assert (device, dtype) == ("cpu", torch.float32)
    assert reason == "Monet runs on the CPU in fp32: with 1.7M parameters no GPU is needed."


def test_a_large_model_takes_a_gpu_with_room():
    device, dtype, reason = placed(memory=64 * GB, gpu=24 * GB, gpu_name="RTX 4090")
    assert (device, dtype) == ("cuda", torch.bfloat16)
    assert reason == "Monet runs on RTX 4090 in bf16: it needs 20.6 GB of 24.0 GB free there."


@pytest.mark.parametrize(
    ("have", "why"),
    [
        ({}, "there is no GPU that computes in bf16, and 64.0 GB of memory are free"),
        ({"gpu": 12 * GB, "gpu_name": "RTX 3060"}, "RTX 3060 has 12.0 GB free, and 64.0 GB"),
    ],
)
def test_without_one_it_takes_the_cpu_in_bf16(have, why):
    device, dtype, reason = placed(memory=64 * GB, **have)
    assert (device, dtype) == ("cpu", torch.bfloat16) and why in reason and "it needs 20.6 GB" in reason


def test_short_of_memory_it_says_what_is_needed_what_there_is_and_what_helps():
    with pytest.raises(ValueError) as caught:
        placed(memory=int(7.5 * GB), gpu=12 * GB, gpu_name="RTX 3060")
    assert str(caught.value) == (
        "Monet needs 20.6 GB in bf16, but RTX 3060 has 12.0 GB free and 7.5 GB of main memory are free; close other "
        "programs, or use a machine with 21 GB of memory free."
    )
    with pytest.raises(ValueError, match="A100 has room, but the weights pass through main memory and 8.0 GB"):
        placed(memory=8 * GB, gpu=80 * GB, gpu_name="A100")
    with pytest.raises(ValueError, match="Monet needs 0.3 GB of memory, but 0.2 GB are free"):
        placed(1_700_000, memory=GB // 5)


@pytest.mark.parametrize("edge", [-1, 0])
def test_the_line_is_where_it_says(edge):
    need = 2 * SEVEN + 4 * GB
    if edge < 0:
        assert placed(memory=64 * GB, gpu=need + edge, gpu_name="x")[0] == "cpu"
        with pytest.raises(ValueError):
            placed(memory=need + edge)
    else:
        assert placed(memory=64 * GB, gpu=need + edge, gpu_name="x")[0] == "cuda"
        assert placed(memory=need + edge)[0] == "cpu"


def test_where_free_memory_is_not_known_it_says_so():
    assert "how much memory is free is not known on this system" in placed(memory=None)[2]
    assert placed(1_700_000, memory=None)[0] == "cpu"


def write(folder, **files):
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)
    return folder


def test_free_memory_counts_a_containers_limit(tmp_path):
    proc = write(tmp_path / "proc", meminfo="MemTotal:  16000000 kB\nMemAvailable:   8000000 kB\n")
    assert free_memory(proc, tmp_path / "none") == 8_000_000 * 1024
    stat = "anon 1\ninactive_file 500000000\n"
    within = {"memory_current": "3000000000\n", "memory_stat": stat}
    assert free_memory(proc, write(tmp_path / "a", memory_max="4000000000\n", **within)) == 1_500_000_000
    assert free_memory(proc, write(tmp_path / "b", memory_max="max\n", **within)) == 8_000_000 * 1024
    assert free_memory(proc, write(tmp_path / "c", memory_max="1000000000\n", **within)) == 0
    assert free_memory(tmp_path / "none") is None


def test_this_machine_is_described():
    here = machine()
    assert here.memory is None or 0 <= here.memory < 10**15
    assert (here.gpu is None) == (here.gpu_name == "")
