"""Twins of the published checkpoints, fetched from a local Hub and loaded: whole, broken off, refused, broken."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, file_download
from huggingface_hub.utils import close_session
from PIL import Image

from app.__main__ import main
from latent_core.checkpoints import hub, placement
from latent_core.checkpoints.loading import find, load
from latent_core.checkpoints.placement import Machine
from latent_core.checkpoints.published import PUBLISHED
from latent_core.model.qwen2_5_vl_facts import ROWS_7B
from latent_core.records import to_json
from tests.hub_downloads import Hub, online, serving
from tests.twins import rewrite, write_twin

MONET, SFT, LVR = "NOVAglow646/Monet-7B", "NOVAglow646/Monet-SFT-7B/stage3", "vincentleebang/LVR-7B"
SHARD = "model-00002-of-00003.safetensors"
SIZE = 4_853_576
"""Bytes of that shard."""
BLUE = Image.new("RGB", (56, 84), (30, 60, 200))


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("twins")
    for name in (MONET, SFT, LVR):
        write_twin(PUBLISHED[name], root / PUBLISHED[name].repository)
    return root


@pytest.fixture
def served(twins, tmp_path, monkeypatch):
    """A Hub with copies of the twins, asked instead of the real one, and an empty cache."""
    shutil.copytree(twins, tmp_path / "hub")
    repositories = {entry.repository: tmp_path / "hub" / entry.repository for entry in PUBLISHED.values()}
    with serving(repositories) as server:
        online(monkeypatch, server.url, tmp_path / "cache")
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # what is kept of a broken connection
        monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub waits before it tries again
        yield server
        close_session()


def offline(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()


def cached(ending: str = "") -> list[str]:
    """Names in the cache by which files can be found: those of snapshots, no half ones."""
    return sorted(path.name for path in Path(constants.HF_HUB_CACHE).glob(f"*/snapshots/**/*{ending}"))


def half() -> list[Path]:
    return list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))


def folder(server: Hub, name: str) -> Path:
    return server.repositories[PUBLISHED[name].repository] / PUBLISHED[name].subfolder


def refused(name: str) -> str:
    """The sentence with which `load` refuses."""
    with pytest.raises(ValueError) as caught:
        load(name)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith("."), sentence
    return sentence


@pytest.mark.slow
@pytest.mark.parametrize("name", [MONET, SFT, LVR])
def test_a_twin_is_fetched_loaded_and_answers(served, name):
    entry = PUBLISHED[name]
    reasoner = load(name)
    assert reasoner.name == name and reasoner.config == entry.config
    assert (reasoner.backbone.vocabulary, reasoner.backbone.dtype) == (entry.rows, torch.float32)
    assert reasoner.method.open_id == 151665 + entry.tokens.index(entry.config.open_token)
    trace = reasoner.run(BLUE, "Which?", mode="forced", latents=3, max_new_tokens=12)
    assert [len(block.latents) for block in trace.blocks] == [3] and len(trace.tokens) > 4
    settings = reasoner.settings()
    assert settings.latents == entry.config.latents.default
    assert settings.temperature == entry.config.sampling.temperature


@pytest.mark.slow
def test_what_is_there_is_not_fetched_again_and_needs_no_hub(served, monkeypatch):
    first = find(MONET)
    files = [file for file, _ in served.downloads()]
    assert sorted(files) == sorted(path.name for path in folder(served, MONET).iterdir())
    served.asked.clear()
    assert find("Monet-7B") == first and served.downloads() == []
    offline(monkeypatch)
    assert find(MONET) == first and load(MONET).name == MONET
    assert "Monet-SFT-7B/stage3 is no folder here and could not be fetched" in refused(SFT)


@pytest.mark.slow
def test_a_copy_in_a_folder_is_known_by_its_name(twins, monkeypatch):
    for name, path in ((MONET, "Monet-7B"), (SFT, "Monet-SFT-7B/stage3")):
        reasoner = load(next(twins.glob(f"*/{path}")))
        assert reasoner.name == name and reasoner.config == PUBLISHED[name].config
    monkeypatch.chdir(twins / "vincentleebang")
    assert load("LVR-7B").name == LVR


def test_one_stage_is_fetched_and_not_the_others(served):
    shutil.copytree(folder(served, SFT), folder(served, SFT).parent / "stage1")
    (folder(served, SFT).parent / "config.json").write_text("{}")
    find(SFT)
    assert {file.partition("/")[0] for file, _ in served.downloads()} == {"stage3"}
    assert "no config.json" in refused("Monet-SFT-7B/stage2")


def test_a_connection_that_breaks_off_is_taken_up_where_it_broke(served):
    served.cut[SHARD] = [1_000_000, 3_000_000]
    reasoner = load(MONET)
    ranges = [part for _, part in served.downloads(SHARD)]
    assert ranges == [None, "bytes=1000000-", "bytes=3000000-"]
    stored = reasoner.backbone.model.get_input_embeddings().weight
    assert stored.shape == (151670, 16) and half() == []


@pytest.mark.slow
def test_a_download_that_ends_midway_goes_on_at_the_next_start(served):
    served.cut[SHARD] = [1_000_000] * 20  # no new byte comes, so it gives up
    assert "could not be fetched completely" in refused(MONET)
    assert cached(SHARD) == half() == [] and cached("model-00001-of-00003.safetensors")
    served.asked.clear()
    served.cut.clear()
    assert load(MONET).name == MONET
    got = [file for file, _ in served.downloads()]
    assert got[0] == SHARD and "model-00001-of-00003.safetensors" not in got


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_a_program_ended_midway_leaves_no_half_shard(served, kill):
    """The real program with the real environment variables; then the same cache in this one."""
    root = folder(served, LVR)
    served.repositories["someone/lvr"] = root
    (root / "method.json").write_text(json.dumps(to_json(PUBLISHED[LVR].config)))
    served.stalled[SHARD] = 2_000_000
    environment = {"HF_ENDPOINT": served.url, "HF_HUB_CACHE": constants.HF_HUB_CACHE, "HF_HUB_OFFLINE": "0"}
    program = subprocess.Popen(
        [sys.executable, "-m", "app", "--no-browser", "--model", "someone/lvr"],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert served.reached.wait(60), program.communicate(timeout=5)[1]
    program.send_signal(kill)
    assert program.wait(5) in (-kill, 128 + kill)
    program.stderr.close()
    assert cached(SHARD) == [] and len(half()) == 1
    served.stalled.clear()
    served.asked.clear()
    os.utime(half()[0], (0, 0))  # it was killed long ago
    assert load("someone/lvr").config == PUBLISHED[LVR].config
    assert "model-00001-of-00003.safetensors" not in [file for file, _ in served.downloads()] and not half()


def test_a_half_file_that_still_grows_is_left_alone(served):
    blobs = Path(constants.HF_HUB_CACHE) / "models--NOVAglow646--Monet-7B" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "0.11111111.incomplete").write_bytes(b"fresh")
    (blobs / "0.22222222.incomplete").write_bytes(b"old")
    os.utime(blobs / "0.22222222.incomplete", (0, 0))
    find(MONET)
    assert half() == [blobs / "0.11111111.incomplete"]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((401, "GatedRepo"), "NOVAglow646/Monet-7B is gated: accept its terms at .*/NOVAglow646/Monet-7B and log in"),
        ((403, "GatedRepo"), "NOVAglow646/Monet-7B is gated"),
        ((401, "RepoNotFound"), "no NOVAglow646/Monet-7B on the Hub, or it is private \\(401\\).*hf auth login"),
        ((401, ""), "The Hub refuses access to NOVAglow646/Monet-7B \\(401\\): log in"),
        ((403, ""), "The Hub refuses access to NOVAglow646/Monet-7B \\(403\\): log in"),
        ((404, "RepoNotFound"), "There is no NOVAglow646/Monet-7B on the Hub, or it is private \\(404\\)"),
        ((500, ""), "could not be fetched from the Hub: .*500"),
    ],
)
def test_refusals_of_the_hub_become_a_sentence(served, answer, sentence):
    served.refused["NOVAglow646/Monet-7B"] = answer
    with pytest.raises(ValueError, match=sentence):
        find(MONET)
    assert not cached() and not half()


def test_access_lost_midway_is_a_sentence(served, monkeypatch):
    download = hub.snapshot_download

    def lost(*given, **named):
        served.refused["NOVAglow646/Monet-7B"] = (403, "GatedRepo")
        return download(*given, **named)

    monkeypatch.setattr(hub, "snapshot_download", lost)
    assert "Monet-7B is gated" in refused(MONET)


def test_a_hub_that_is_not_there_is_a_sentence(served, monkeypatch):
    online(monkeypatch, "http://127.0.0.1:9", Path(constants.HF_HUB_CACHE))
    assert "could not be fetched from the Hub: " in refused(MONET)


def test_a_missing_shard_is_named_before_any_is_fetched(served):
    (folder(served, MONET) / SHARD).unlink()
    assert refused(MONET) == (
        "NOVAglow646/Monet-7B is incomplete on the Hub: model.safetensors.index.json names "
        "model-00002-of-00003.safetensors, which is not there."
    )
    assert served.downloads(".safetensors") == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', "\\x80"])
def test_an_index_that_cannot_be_read_is_named(served, text):
    (folder(served, MONET) / "model.safetensors.index.json").write_text(text)
    assert refused(MONET).startswith("model.safetensors.index.json of NOVAglow646/Monet-7B cannot be read: ")
    assert served.downloads(SHARD) == []


@pytest.mark.slow
def test_a_corrupt_shard_is_named_and_deleted(served):
    served.garbled.add(SHARD)
    sentence = refused(MONET)
    assert sentence.startswith(f"{SHARD} of NOVAglow646/Monet-7B arrived corrupt") and "start again" in sentence
    assert cached(SHARD) == []
    served.garbled.clear()
    assert load(MONET).name == MONET


def test_a_corrupt_shard_is_not_believed_offline(served, monkeypatch):
    """Killed between download and check: what lies there unchecked is checked at the next start."""
    served.garbled.add(SHARD)
    with monkeypatch.context() as killed:
        killed.setattr(hub, "_check_content", lambda *_: None)
        find(MONET)
    offline(monkeypatch)
    assert "arrived corrupt" in refused(MONET)
    assert "could not be fetched" in refused(MONET)


@pytest.mark.slow
def test_tensors_that_do_not_fit_are_named(served):
    rewrite(folder(served, MONET), "model.norm.weight", torch.zeros(7, dtype=torch.bfloat16))
    assert "1 misshapen (" in (sentence := refused(MONET)) and "model.language_model.norm.weight" in sentence
    rewrite(folder(served, LVR), "visual.merger.ln_q.weight", None)
    assert "1 missing (model.visual.merger.ln_q.weight" in refused(LVR)


@pytest.mark.slow
def test_a_missing_token_is_named(served):
    path = folder(served, MONET) / "tokenizer.json"
    path.write_text(path.read_text().replace('"</abs_vis_token>"', '"</other>"'))
    assert (
        refused(MONET)
        == "The tokenizer of NOVAglow646/Monet-7B lacks </abs_vis_token>, which it should add to Qwen's."
    )


def test_a_token_with_another_id_is_named(served):
    path = folder(served, LVR) / "tokenizer.json"
    swapped = path.read_text().replace('"<|lvr|>"', '"<|x|>"').replace('"<|lvr_end|>"', '"<|lvr|>"')
    path.write_text(swapped.replace('"<|x|>"', '"<|lvr_end|>"'))
    assert "The tokenizer of vincentleebang/LVR-7B gives <|lvr|> id 151668, not 151666." == refused(LVR)


@pytest.mark.slow
def test_another_vocabulary_is_named_and_the_padded_one_taken(served):
    for rows in (151680, ROWS_7B):
        for tensor in ("model.embed_tokens.weight", "lm_head.weight"):
            rewrite(folder(served, MONET), tensor, torch.zeros(rows, 16, dtype=torch.bfloat16))
        if rows == ROWS_7B:
            assert load(MONET).backbone.vocabulary == ROWS_7B
        else:
            assert refused(MONET) == (
                "The embedding of NOVAglow646/Monet-7B has 151680 rows; 151670 or, padded, 152064 are expected."
            )


def test_a_full_disk_is_named_before_it_is_filled(served, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: usage._replace(free=5_000_000))
    assert "Monet-7B needs 0.0 GB on the disk, but 0.0 GB are free in" in refused(MONET)
    assert served.downloads(".safetensors") == []


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_nothing_half(served):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_500_000, limits[1]))  # no file may grow past the limit
    try:
        sentence = refused(MONET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "could not be stored in" in sentence and "File too large; free some space" in sentence
    assert cached(".safetensors") == half() == []
    assert load(MONET).name == MONET


@pytest.mark.slow
def test_a_disk_without_space_leaves_nothing_half(served, monkeypatch):
    download = file_download.http_get

    def full(url, file, **given):
        if not url.endswith(SHARD):
            return download(url, file, **given)
        file.write(b"0" * 1000)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(file_download, "http_get", full)
        assert "could not be stored in" in (sentence := refused(MONET)) and "No space left on device" in sentence
    assert cached(SHARD) == half() == []
    assert load(MONET).name == MONET


def test_pickles_and_code_are_never_fetched(served):
    for name in ("pytorch_model.bin", "optimizer.pt", "modeling_monet.py", "evil.pkl", "README.md"):
        (folder(served, MONET) / name).write_bytes(b"\x80\x04cos\nsystem\n")
    find(MONET)
    assert not any(file.endswith((".bin", ".pt", ".py", ".pkl", ".md")) for file, _ in served.downloads())
    for path in folder(served, LVR).glob("*.safetensors"):
        path.rename(path.with_name("pytorch_model.bin"))
    assert "has its weights in pytorch_model.bin, a pickle" in refused(LVR)
    assert not cached(".bin")


@pytest.mark.slow
def test_code_of_a_repository_is_not_run(served, tmp_path):
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n"
    (folder(served, MONET) / "configuration_monet.py").write_text(code)
    for name, field in (
        ("config.json", {"AutoConfig": "configuration_monet.Config"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["configuration_monet.Config", None]}),
        ("preprocessor_config.json", {"AutoImageProcessor": "configuration_monet.Config"}),
    ):
        path = folder(served, MONET) / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": field, "trust_remote_code": True}))
    assert load(MONET).name == MONET
    assert not (tmp_path / "ran").exists() and not cached(".py")


def test_the_command_line_refuses_before_it_fetches(served, monkeypatch, capsys):
    monkeypatch.setattr(placement, "machine", lambda: Machine(memory=8 * 10**9))
    assert main(["--no-browser", "--model", "Monet-7B"]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("NOVAglow646/Monet-7B: 16.6 GB in bf16, 33.2 GB in fp32. Licence: ")
    assert said.err == (
        "NOVAglow646/Monet-7B needs 20.6 GB in bf16, but there is no GPU that computes in bf16 and 8.0 GB of main "
        "memory are free; close other programs, or use a machine with 21 GB of memory free.\n"
    )
    assert served.asked == []


def test_the_command_line_fetches_and_offers_it_first(served, monkeypatch, capsys):
    offered = []
    monkeypatch.setattr(placement, "machine", lambda: Machine(memory=64 * 10**9))
    monkeypatch.setattr("app.server.serve", lambda runner, **_: offered.extend(runner.names))
    monkeypatch.setattr("app.runner.Runner.preload", lambda *_: None)
    assert main(["--no-browser", "--model", "LVR-7B"]) == 0
    assert offered[:2] == [LVR, "glyph-monet"]
    assert "LVR-7B runs on the CPU in bf16, slowly: it needs 20.6 GB" in capsys.readouterr().out
    assert served.downloads(SHARD)
