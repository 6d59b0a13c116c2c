"""config.json and the image processor's settings: what cannot be used is named when a checkpoint is loaded."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from app.__main__ import prepared
from latent_core.checkpoints.loading import load, save
from latent_core.config import MethodConfig
from latent_core.model.model_config import read_model_config
from latent_core.model.processor import Processor
from tests.words import words_model, words_processor

CONFIG = MethodConfig(method="text")
RED = Image.new("RGB", (24, 16), (200, 30, 30))


@pytest.fixture
def folder(tmp_path) -> Path:
    processor = words_processor()
    save(tmp_path / "tiny", model=words_model(processor), processor=processor, config=CONFIG)
    return tmp_path / "tiny"


def change(file: Path, **fields: object) -> None:
    """Sets fields; `part__name` is one of a part's."""
    values = json.loads(file.read_text())
    for name, value in fields.items():
        *parts, last = name.split("__")
        target = values
        for part in parts:
            target = target[part]
        target[last] = value
    file.write_text(json.dumps(values))


def nested(folder: Path, **fields: object) -> dict[str, object]:
    """Moves the image processor's settings into processor_config.json, where transformers 5 saves them."""
    old = folder / "preprocessor_config.json"
    settings = json.loads(old.read_text()) | {"data_format": "channels_first", "image_processor_type": "X"} | fields
    old.unlink()
    whole = {"image_processor": settings, "processor_class": "Qwen2_5_VLProcessor", "video_processor": {"fps": 2}}
    (folder / "processor_config.json").write_text(json.dumps(whole))
    return settings


QUANTIZED = "its weights are quantized, and only those in bfloat16, float16 or float32"
ATTENTION = "but the program brings its own attention; delete that field"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"attn_implementation": "flash_attention_2"}, ATTENTION),
        ({"_attn_implementation": "flash_attention_3"}, ATTENTION),
        ({"attn_implementation": {"vision_config": "flex_attention"}}, ATTENTION),
        ({"text_config___attn_implementation": "paged|eager"}, f"\\(text_config\\) asks for .*{ATTENTION}"),
        ({"vision_config__attn_implementation": "kernels-community/flash-attn"}, ATTENTION),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, f"\\(bitsandbytes\\): {QUANTIZED}"),
        ({"quantization_config": {"quant_method": "fp8"}}, f"\\(fp8\\): {QUANTIZED}"),
        ({"quantization_config": {"bits": 4}}, f"\\(unnamed\\): {QUANTIZED}"),
        ({"quantization_config": "awq"}, f"\\(awq\\): {QUANTIZED}"),
        ({"text_config__quantization_config": {"quant_method": "gptq"}}, f"text_config.* {QUANTIZED}"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, QUANTIZED),
        ({"vision_config__patch_size": 14}, "tiny has patch_size 4, but its config.json has patch_size 14"),
        ({"vision_config__spatial_merge_size": 4}, "merge_size 2, but its config.json has spatial_merge_size 4"),
        ({"vision_config__temporal_patch_size": 1}, "temporal_patch_size 2, but its config.json"),
        ({"vision_config__patch_size": 0}, "patch_size 0; it must be a whole number above 0"),
        ({"vision_config__patch_size": "14"}, "patch_size"),
        ({"vision_config__out_hidden_size": 48}, "images of width 48"),
        ({"text_config__num_attention_heads": 0}, "num_attention_heads 0"),
        ({"text_config__hidden_size": "32"}, "hidden_size"),
        ({"text_config__rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "mrope_section None; three"),
        ({"dtype": "int8x"}, "dtype 'int8x'; write bfloat16"),
        ({"torch_dtype": "int8"}, "torch_dtype 'int8'; write bfloat16"),
        ({"dtype": 16}, "dtype '16'; write"),
        ({"model_type": "llama"}, "is that of a 'llama'; only Qwen2.5-VL"),
        ({"model_type": "qwen2_vl"}, "is that of a 'qwen2_vl'"),
        ({"model_type": "qwen3_vl"}, "is that of a 'qwen3_vl'"),
        ({"image_token_id": 3}, "<\\|image_pad\\|> id 5, but its config.json has image_token_id 3"),
        ({"vision_config": []}, "config.json of tiny cannot be used"),
        ({"text_config": [1]}, "text_config in config.json of tiny is not an object"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_named_at_start(folder, fields, words):
    change(folder / "config.json", **fields)
    for start in (load, prepared):
        with pytest.raises(ValueError, match=words):
            start(str(folder))


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_implementation": "eager"},
        {"_attn_implementation": "sdpa", "vision_config___attn_implementation": "eager"},
        {"quantization_config": None},
        {"dtype": "auto"},
        {"dtype": None, "torch_dtype": "float16"},
        {"auto_map": {"AutoModel": "modeling_evil.Model"}, "trust_remote_code": True},
        {"architectures": ["QwenWithSomething"]},
    ],
)
def test_what_changes_no_answer_is_left_alone(folder, fields):
    before = load(folder).run(RED, "Which mark?", max_new_tokens=3)
    change(folder / "config.json", **fields)
    reasoner = load(folder)
    assert reasoner.backbone.dtype == torch.float32
    assert reasoner.run(RED, "Which mark?", max_new_tokens=3).text == before.text


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("text", ["", "[]", "null", '{"a":', "\xff", "[" * 100_000])
def test_a_file_that_is_no_object_is_named(folder, file, text):
    (folder / file).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"^{file} (of|in) tiny"):
        load(folder)


@pytest.mark.parametrize("place", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"patch_size": 14}, "tiny has patch_size 14, but its config.json has patch_size 4"),
        ({"merge_size": 4}, "tiny has merge_size 4"),
        ({"patch_size": "4"}, "{place} in tiny: patch_size is '4'; it must be a whole number"),
        ({"merge_size": 0}, "{place} in tiny: merge_size is 0"),
        ({"image_mean": [0.5, 0.5]}, "{place} in tiny: image_mean is .*; three numbers"),
        ({"image_std": [1, 0, 1]}, "{place} in tiny: image_std"),
        ({"rescale_factor": "1/255"}, "{place} in tiny: rescale_factor is '1/255'"),
        ({"size": {"height": 3, "width": 3}}, "{place} in tiny: size is None to None pixels"),
        ({"size": {"shortest_edge": 99, "longest_edge": 9}}, "{place} in tiny: size is 99 to 9 pixels"),
        ({"resample": 77}, "{place} in tiny: resample is 77"),
    ],
)
def test_an_image_processor_that_cannot_be_used_is_named_at_start(folder, place, fields, words):
    if place == "processor_config.json":
        nested(folder, **fields)
    else:
        change(folder / place, **fields)
    with pytest.raises(ValueError, match=words.format(place=place)):
        load(folder)


def test_a_processor_as_transformers_5_saves_it_gives_the_same_answer(folder):
    before = load(folder).run(RED, "Which mark?", max_new_tokens=5)
    nested(folder)
    after = load(folder).run(RED, "Which mark?", max_new_tokens=5)
    assert after.text == before.text and torch.equal(after.start.image_states, before.start.image_states)
    assert Processor.load(folder, min_pixels=64, max_pixels=64)([RED], "?").grid_thw.tolist() == [[1, 2, 2]]
    Processor.load(folder).save(folder)  # both are there now
    assert load(folder).run(RED, "Which mark?", max_new_tokens=5).text == before.text


def test_the_newer_place_counts_where_both_say_something(folder):
    old = (folder / "preprocessor_config.json").read_text()
    nested(folder, size={"shortest_edge": 64, "longest_edge": 64})
    (folder / "preprocessor_config.json").write_text(old)
    assert Processor.load(folder).image_processor.size["longest_edge"] == 64


@pytest.mark.parametrize("left", [None, {"processor_class": "Qwen2_5_VLProcessor"}, {"chat_template": "x"}])
def test_without_an_image_processor_both_places_are_named(folder, left):
    (folder / "preprocessor_config.json").unlink()
    if left is not None:
        (folder / "processor_config.json").write_text(json.dumps(left))
    with pytest.raises(ValueError, match="^tiny has no preprocessor_config.json, and no processor_config.json in its"):
        load(folder)


@pytest.mark.parametrize("name", ["monet_seed0", "lvr_seed0"])
def test_configurations_as_fine_tunes_carry_them_can_be_read(name):
    config = read_model_config(Path(__file__).parent / "fixtures" / name / "model")
    assert config.vision_config.patch_size == 14 and config.text_config.hidden_size == 64
