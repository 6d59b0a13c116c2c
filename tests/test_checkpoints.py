"""Checkpoints: saved whole, loaded strictly, every problem named."""

import json
import resource

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from latent_core.checkpoints import embedded, placement
from latent_core.checkpoints.loading import find, load, load_model, planned, save
from latent_core.checkpoints.placement import Machine
from latent_core.checkpoints.published import PUBLISHED
from latent_core.config import LatentRange, MethodConfig, PixelLimits, Sampling
from latent_core.records import from_json, to_json
from tests.words import words_model, words_processor

CONFIG = MethodConfig(
    method="monet",
    open_token="<abs_vis_token>",
    close_token="</abs_vis_token>",
    pad_token="<abs_vis_token_pad>",
    rule="latents_only",
    latents=LatentRange(default=3, min=0, max=12),
    world="glyphs",
    provenance={"recipe": "glyph-monet", "steps": [100, 200]},
)
RED = Image.new("RGB", (24, 16), (200, 30, 30))


@pytest.fixture(scope="module")
def parts():
    processor = words_processor()
    return {"model": words_model(processor), "processor": processor, "config": CONFIG}


@pytest.fixture
def folder(parts, tmp_path):
    save(tmp_path / "tiny", **parts, metrics={"accuracy": 0.5}, readme="# Tiny\n")
    return tmp_path / "tiny"


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_loaded_equals_saved(parts, folder):
    reasoner = load(folder)
    assert reasoner.config == CONFIG and reasoner.name == "tiny"
    expected = parts["model"].state_dict()
    loaded = reasoner.backbone.model.state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert reasoner.processor.encode("ring") == parts["processor"].encode("ring")
    assert json.loads((folder / "metrics.json").read_text()) == {"accuracy": 0.5}
    assert (folder / "README.md").read_text() == "# Tiny\n"
    assert reasoner.run(RED, "Which mark?", max_new_tokens=3).tokens


def test_plain_transformers_loads_the_backbone(parts, folder):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, local_files_only=True)
    assert torch.equal(model.lm_head.weight, parts["model"].lm_head.weight)


def test_dtype_is_as_asked(folder):
    assert load(folder, dtype=torch.bfloat16).backbone.dtype == torch.bfloat16


def test_an_embedded_name_is_found(folder, monkeypatch):
    monkeypatch.setattr(embedded, "EMBEDDED", folder.parent)
    (folder.parent / "half").mkdir()
    assert embedded.available() == ["tiny"]
    assert find("tiny") == folder and load("tiny").name == "tiny"
    with pytest.raises(ValueError, match="'tinny'; did you mean 'tiny'\\? Known: tiny, NOVAglow646/Monet-7B"):
        load("tinny")


@pytest.mark.parametrize("name", ["", "glyph", "../../etc/passwd", "a/b/c", "https://example.com/a"])
def test_unknown_names_list_the_known(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if name:
        with pytest.raises(ValueError, match="no checkpoint or folder .*NOVAglow646/Monet-7B"):
            load(name)
    else:
        with pytest.raises(ValueError):
            load(tmp_path)


def test_a_hub_id_without_network_is_a_sentence():
    with pytest.raises(ValueError, match="nobody/nothing is no folder here and could not be fetched"):
        load("nobody/nothing")


def test_memory_is_looked_at_before_a_model_is_loaded(parts, folder, monkeypatch):
    count = sum(parameter.numel() for parameter in parts["model"].parameters())
    monkeypatch.setattr(placement, "machine", lambda: Machine(memory=10**8))
    with pytest.raises(ValueError, match="tiny needs 0.3 GB of memory, but 0.1 GB are free"):
        load(folder)
    monkeypatch.setattr(placement, "SMALL", count - 1)
    monkeypatch.setattr(placement, "machine", lambda: Machine(memory=10**10))
    assert load(folder).backbone.dtype == planned(folder).dtype == torch.bfloat16
    monkeypatch.setattr(placement, "SMALL", count)
    assert load(folder).backbone.dtype == planned(folder).dtype == torch.float32


@pytest.mark.parametrize("change", [-3, 5])
def test_the_vocabulary_may_differ_from_config_json(folder, change):
    """Released Monet has 151670 rows where Qwen's config says 152064."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rows = config["text_config"]["vocab_size"]
    config["text_config"]["vocab_size"] = rows + change
    path.write_text(json.dumps(config))
    model = load_model(folder)
    assert model.get_input_embeddings().num_embeddings == model.lm_head.out_features == rows
    assert model.config.text_config.vocab_size == rows


def test_a_tokenizer_larger_than_the_model_is_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:100].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="tokens, the model only 100 rows"):
        load(folder)


def alter(folder, **changes):
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.norm.weight": None}, "1 missing .*norm.weight"),
        ({"model.layers.9.weight": torch.zeros(1)}, "1 unexpected .*layers.9"),
        ({"model.norm.weight": torch.zeros(7)}, "1 misshapen .*norm.weight"),
        ({"model.embed_tokens.weight": None}, "no input embedding"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, changes, message):
    alter(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_parameters_of_no_method_are_refused(folder):
    save_file({"head.weight": torch.zeros(2)}, folder / "method.safetensors")
    with pytest.raises(ValueError, match="method.safetensors of tiny does not fit.*head.weight"):
        load(folder)


NEEDED = ("config.json", "model.safetensors", "method.json", "tokenizer.json", "preprocessor_config.json")


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage"])
def test_damaged_files_are_named(folder, name, damage):
    path = folder / name
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "garbage": b"\x80\x04\x95 pickle"}[damage])
    with pytest.raises(ValueError) as caught:
        load(folder)
    word = {"tokenizer.json": "tokenizer", "model.safetensors": "tiny"}.get(name, name)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metod": "monet"}, "unknown field 'metod'; did you mean 'method'"),
        ({"format_version": 2}, "format_version is 2; this program reads version 1"),
        ({"convention": "middle"}, "method.json.convention is 'middle'"),
        ({"latents": {"default": 99}}, "0 ≤ min ≤ default ≤ max"),
        ({"latents": {"default": "8"}}, "method.json.latents.default is '8', but int"),
        ({"sampling": {"temperature": -1}}, "Temperature is -1"),
        ({"sampling": {"beams": 4}}, "unknown field 'beams'"),
        ({"image": {"min_pixels": 10, "max_pixels": 5}}, "0 < min ≤ max"),
        ({"close_token": None}, "give both or neither"),
        ({"method": "mirage"}, "'mirage'"),
        ({"method": "lvr", "options": {"heads": "mlp"}}, "options has an unknown field 'heads'"),
        ({"open_token": "<nothing>"}, "no control token <nothing>"),
    ],
)
def test_method_json_is_checked(folder, change, message):
    path = folder / "method.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_method_json_survives_the_round_trip():
    full = MethodConfig(
        method="monet",
        open_token="a",
        close_token="b",
        system="Help.",
        sampling=Sampling(temperature=0.5),
        image=PixelLimits(max_pixels=5),
    )
    for config in (full, CONFIG, *(entry.config for entry in PUBLISHED.values())):
        assert from_json(MethodConfig, json.loads(json.dumps(to_json(config))), "x") == config


@pytest.mark.parametrize("limit", [1000, 3000, 30_000])
def test_a_full_disk_leaves_the_former_checkpoint(parts, folder, limit):
    before, limits = snapshot(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))  # no file may grow past the limit
    try:
        with pytest.raises(OSError, match="tiny could not be saved: .*File too large.*nothing was overwritten"):
            save(folder, **parts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert snapshot(folder) == before and list(folder.parent.iterdir()) == [folder]


def test_a_full_disk_while_the_tokenizer_is_written(parts, folder):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="tokenizer could not be written: File too large"):
            parts["processor"].save(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_only_a_checkpoint_is_replaced(parts, tmp_path):
    (tmp_path / "letter.txt").write_text("Dear")
    for target in (tmp_path, tmp_path / "letter.txt"):
        with pytest.raises(ValueError, match="no checkpoint; choose a new or an empty folder"):
            save(target, **parts)
    assert (tmp_path / "letter.txt").read_text() == "Dear"
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty", **parts)
    assert load(tmp_path / "empty").config == CONFIG


def test_saving_again_replaces_the_whole_folder(parts, folder):
    (folder / "stale.txt").write_text("old")
    save(folder, **parts)
    assert not (folder / "stale.txt").exists() and not (folder / "README.md").exists()
    assert list(folder.parent.iterdir()) == [folder]
    assert load(folder).config == CONFIG
